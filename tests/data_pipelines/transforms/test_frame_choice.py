import numpy as np
import pytest

from data_pipelines.transforms import frame_choice


@pytest.mark.parametrize(
    ("stride", "length", "table"),
    [
        (2, 7, [[0, 2, 4], [2, 4, 6], [4, 6, 6], [6, 6, 6]]),
        (2, 4, [[0, 2, 3], [2, 3, 3]]),
        (1, 2, [[0, 1, 1], [1, 1, 1]]),
        (5, 11, [[0, 5, 10], [5, 10, 10], [10, 10, 10]]),
        (0, 7, [[0, 3, 6]]),
        (0, 2, [[0, 0, 1]]),
        (0, 1, [[0, 0, 0]]),
    ],
)
def test_clip_tables(stride, length, table):
    clip = frame_choice.Clip(num_frames=3, stride=stride)
    assert clip.num_samples(np.array([length])).tolist() == [len(table)]
    assert [clip(length, sample).tolist() for sample in range(len(table))] == table


def test_whole_episode_clip_truncates_like_the_official_rule():
    clip = frame_choice.Clip(num_frames=16, stride=0)
    expected = [0, 2, 4, 6, 8, 11, 13, 15, 17, 19, 22, 24, 26, 28, 30, 33]
    assert clip(34, 0).tolist() == expected


@pytest.mark.parametrize("stride", [0, 2])
def test_clips_longer_than_allowed_are_dropped(stride):
    clip = frame_choice.Clip(num_frames=16, stride=stride, max_frames=100)
    counts = clip.num_samples(np.array([1, 99, 100, 101, 5000])).tolist()
    assert counts == ([1, 1, 1, 0, 0] if stride == 0 else [1, 50, 50, 0, 0])


def test_calvin_clips_by_the_official_table():
    clip = frame_choice.Clip(num_frames=16, stride=2)
    assert clip.num_samples(np.array([35])).tolist() == [18]  # starts 0, 2, ..., 34
    assert clip(35, 2).tolist() == list(range(4, 35, 2))
    assert clip(35, 3).tolist() == [*range(6, 35, 2), 34]
    assert clip(35, 17).tolist() == [34] * 16


def test_official_frame_pair_tables():
    rng = np.random.default_rng(0)
    for window, table in (
        (3, [[0, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7], [6, 7], [7, 7]]),
        (10, [[i, 7] for i in range(8)]),
    ):
        pair = frame_choice.FramePair(
            min_offset=window - 1, max_offset=window - 1, include_last=True
        )
        assert [pair(8, t, rng).tolist() for t in range(8)] == table
        ours = frame_choice.FramePair(min_offset=window - 1, max_offset=window - 1)
        assert ours.num_samples(np.array([8])).tolist() == [7]
        assert [ours(8, t, rng).tolist() for t in range(7)] == table[:-1]


def test_frame_pair_table():
    pair = frame_choice.FramePair(min_offset=3, max_offset=3)
    rng = np.random.default_rng(0)
    assert pair.num_samples(np.array([5, 1])).tolist() == [4, 0]
    assert [pair(5, t, rng).tolist() for t in range(4)] == [[0, 3], [1, 4], [2, 4], [3, 4]]


def test_frame_pair_with_the_last_frame_as_officially():
    pair = frame_choice.FramePair(min_offset=2, max_offset=2, include_last=True)
    rng = np.random.default_rng(0)
    assert pair.num_samples(np.array([4, 1])).tolist() == [4, 1]
    assert [pair(4, t, rng).tolist() for t in range(4)] == [[0, 2], [1, 3], [2, 3], [3, 3]]


def test_frame_pair_draws_every_offset_inclusively():
    pair = frame_choice.FramePair(min_offset=2, max_offset=4)
    rng = np.random.default_rng(0)
    offsets = {int(np.diff(pair(100, 7, rng))[0]) for _ in range(100)}
    assert offsets == {2, 3, 4}


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="clip"):
        frame_choice.Clip(num_frames=0, stride=1)
    with pytest.raises(ValueError, match="pair"):
        frame_choice.FramePair(min_offset=0, max_offset=3)
    with pytest.raises(ValueError, match="pair"):
        frame_choice.FramePair(min_offset=4, max_offset=3)
    with pytest.raises(ValueError, match="window"):
        frame_choice.Window(stride=0)


@pytest.mark.parametrize(
    ("stride", "length", "starts"),
    [(1, 3, [0, 1, 2]), (3, 7, [0, 3, 6]), (3, 6, [0, 3]), (2, 1, [0]), (5, 4, [0])],
)
def test_windows_start_at_every_stride_th_frame(stride, length, starts):
    window = frame_choice.Window(stride=stride)
    assert window.num_samples(np.array([length])).tolist() == [len(starts)]
    assert [window(length, sample) for sample in range(len(starts))] == starts
    with pytest.raises(ValueError, match=f"window {len(starts)}"):
        window(length, len(starts))
