import numpy as np
import pytest

from tools.report import pictures


def test_clips_are_cut_into_true_and_predicted_frames():
    # Every frame has its own value: clip * 100 + row * 10 + time.
    frames = [[[c * 100 + r * 10 + t for t in range(3)] for r in range(2)] for c in range(2)]
    picture = np.kron(np.array(frames).reshape(4, 3), np.ones((5, 5)))[..., None].repeat(3, 2)
    clips = pictures.split_clips(picture.astype(np.uint8), 3)
    assert [clip[0].shape for clip in clips] == [(3, 5, 5, 3)] * 2
    assert [frame[0, 0, 0] for frame in clips[1][1]] == [110, 111, 112]
    assert all(frame.std() == 0 for true, predicted in clips for frame in (*true, *predicted))


def test_pairs_end_where_the_row_is_white():
    picture = np.full((2 * 8, 3 * 12, 3), 255, np.uint8)
    picture[:4, :4], picture[:4, 4:8] = 1, 2
    picture[8:12, :8], picture[8:12, 12:16], picture[8:12, 16:20] = 3, 4, 5
    first, second = pictures.split_pairs(picture, 4)
    assert len(first) == 1 and len(second) == 2
    assert [frame[0, 0, 0] for frame in first[0]] == [1, 2]
    assert [frame.mean() for frame in second[1]] == [4, 5]


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="no clips"):
        pictures.split_clips(np.zeros((10, 16, 3), np.uint8), 3)
    with pytest.raises(ValueError, match="no pairs"):
        pictures.split_pairs(np.zeros((8, 30, 3), np.uint8), 4)
