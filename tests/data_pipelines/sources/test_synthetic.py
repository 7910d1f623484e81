import numpy as np
import pytest

from data_pipelines.sources import synthetic
from defi_jax import errors


def _source(**changes):
    values = {"image_size": 64, "action_dim": 5, "num_episodes": 40}
    return synthetic.SyntheticSource(**(values | changes))


def test_episodes_are_deterministic_and_differ():
    one, two = _source(), _source()
    np.testing.assert_array_equal(one.frames(3, "static", [0, 9]), two.frames(3, "static", [0, 9]))
    np.testing.assert_array_equal(one.actions(3), two.actions(3))
    assert (one.frames(3, "static", [0]) != one.frames(4, "static", [0])).any()
    assert one.fingerprint() == two.fingerprint() != _source(image_size=32).fingerprint()


def test_actions_cause_the_motion():
    source = _source()
    actions, states = source.actions(2), source.states(2)
    position = states[0]
    for t in range(len(actions) - 1):
        velocity = np.array([actions[t][0::2].mean(), actions[t][1::2].mean()])
        position = position + synthetic.SPEED * velocity
        np.testing.assert_allclose(states[t + 1], position, atol=1e-5)
    assert np.abs(actions).max() <= 1


def test_text_names_what_moves_and_where():
    source = _source()
    for i in range(len(source)):
        words = source.meta(i).instructions[0].split()
        dx, dy = source.states(i)[-1] - source.states(i)[0]
        sideways = {"left": -dx, "right": dx, "up": -dy, "down": dy}
        assert sideways[words[-1]] > 0.05, words
        x, y = (source.states(i)[-1] * 64).astype(int)
        pixel = source.frames(i, "static", [-1])[0, y, x]
        np.testing.assert_allclose(pixel, synthetic.COLOURS[words[2]], atol=2)


@pytest.mark.parametrize("size", [16, 64, 100])
def test_frames_have_the_size_asked_for(size):
    frames = _source(image_size=size).frames(0, "gripper", [0, 5, 31])
    assert (frames.shape, frames.dtype) == ((3, size, size, 3), np.uint8)


def test_bad_requests_are_named():
    with pytest.raises(errors.DataError, match="use one of static, gripper"):
        _source().frames(0, "wrist", [0])
    with pytest.raises(errors.UserError, match=r"data\.action_dim"):
        _source(action_dim=1)
