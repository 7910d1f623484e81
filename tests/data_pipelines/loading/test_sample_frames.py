from typing import Any, cast

import numpy as np
import pytest

from data_pipelines import normalization
from data_pipelines.loading import config, sample_kinds
from data_pipelines.sources import synthetic

NONE = normalization.Normalizer(kind="none", statistics=None, mask=(True, True))


def _kind(kind, **numbers):
    own = config.DataConfig(action_dim=2, action_horizon=3, image_size=8, **numbers)
    return kind(config=own, normalizer=NONE, train=True)


class _Actions:
    """An episode that has these actions and nothing else."""

    has_actions = (True,)

    def __init__(self, actions):
        self._actions = actions

    def actions(self, i):
        return self._actions


def test_a_pair_has_the_mean_of_the_actions_that_lead_there():
    source = cast(Any, _Actions(np.array([[1, 10], [2, 20], [3, 30]], np.float32)))
    place = sample_kinds.Place(component="c", source=source, episode=0, sample=0)
    pairs = _kind(sample_kinds.Pairs)
    for pair, mean in (((0, 2), [1.5, 15]), ((1, 1), [2, 20])):
        assert pairs._action(place, np.array(pair))["action"].tolist() == mean


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
    clip = _kind(sample_kinds.Clips, num_frames=3, frame_stride=stride)
    assert clip.num_samples(np.array([length])).tolist() == [len(table)]
    assert [clip.frames(length, sample).tolist() for sample in range(len(table))] == table


def test_whole_episode_clip_truncates_like_the_official_rule():
    clip = _kind(sample_kinds.Clips, num_frames=16, frame_stride=0)
    expected = [0, 2, 4, 6, 8, 11, 13, 15, 17, 19, 22, 24, 26, 28, 30, 33]
    assert clip.frames(34, 0).tolist() == expected


@pytest.mark.parametrize("stride", [0, 2])
def test_clips_longer_than_allowed_are_dropped(stride):
    clip = _kind(sample_kinds.Clips, num_frames=16, frame_stride=stride, max_frames=100)
    counts = clip.num_samples(np.array([1, 99, 100, 101, 5000])).tolist()
    assert counts == ([1, 1, 1, 0, 0] if stride == 0 else [1, 50, 50, 0, 0])


def test_calvin_clips_by_the_official_table():
    clip = _kind(sample_kinds.Clips, num_frames=16, frame_stride=2)
    assert clip.num_samples(np.array([35])).tolist() == [18]  # starts 0, 2, ..., 34
    assert clip.frames(35, 2).tolist() == list(range(4, 35, 2))
    assert clip.frames(35, 3).tolist() == [*range(6, 35, 2), 34]
    assert clip.frames(35, 17).tolist() == [34] * 16


def test_official_frame_pair_tables():
    rng = np.random.default_rng(0)
    for window, table in (
        (3, [[0, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7], [6, 7], [7, 7]]),
        (10, [[i, 7] for i in range(8)]),
    ):
        pair = _kind(sample_kinds.Pairs, pair_offset=(window - 1,) * 2, pair_include_last=True)
        assert [pair.frames(8, t, rng).tolist() for t in range(8)] == table
        ours = _kind(sample_kinds.Pairs, pair_offset=(window - 1,) * 2)
        assert ours.num_samples(np.array([8])).tolist() == [7]
        assert [ours.frames(8, t, rng).tolist() for t in range(7)] == table[:-1]


def test_frame_pair_table():
    pair = _kind(sample_kinds.Pairs, pair_offset=(3, 3))
    rng = np.random.default_rng(0)
    assert pair.num_samples(np.array([5, 1])).tolist() == [4, 0]
    assert [pair.frames(5, t, rng).tolist() for t in range(4)] == [[0, 3], [1, 4], [2, 4], [3, 4]]


def test_frame_pair_with_the_last_frame_as_officially():
    pair = _kind(sample_kinds.Pairs, pair_offset=(2, 2), pair_include_last=True)
    rng = np.random.default_rng(0)
    assert pair.num_samples(np.array([4, 1])).tolist() == [4, 1]
    assert [pair.frames(4, t, rng).tolist() for t in range(4)] == [[0, 2], [1, 3], [2, 3], [3, 3]]


def test_frame_pair_draws_every_offset_inclusively():
    pair = _kind(sample_kinds.Pairs, pair_offset=(2, 4))
    rng = np.random.default_rng(0)
    offsets = {int(np.diff(pair.frames(100, 7, rng))[0]) for _ in range(100)}
    assert offsets == {2, 3, 4}


@pytest.mark.parametrize(
    ("stride", "length", "starts"),
    [(1, 3, [0, 1, 2]), (3, 7, [0, 3, 6]), (3, 6, [0, 3]), (2, 1, [0]), (5, 4, [0])],
)
def test_windows_start_at_every_stride_th_frame(stride, length, starts):
    windows = _kind(sample_kinds.Windows, window_stride=stride, cameras=("static",))
    assert windows.num_samples(np.array([length])).tolist() == [len(starts)]
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=1, length=length)
    for sample, start in enumerate(starts):
        place = sample_kinds.Place(component="c", source=source, episode=0, sample=sample)
        read = windows.begin(place, "go", np.random.default_rng(0))()
        np.testing.assert_array_equal(read["images"], source.frames(0, "static", [start]))
        left = source.actions(0)[start:][:3]
        assert read["actions"][: len(left)].tolist() == left.tolist()
        assert not read["actions"][len(left) :].any()
        assert read["action_mask"].tolist() == [k < len(left) for k in range(3)]
