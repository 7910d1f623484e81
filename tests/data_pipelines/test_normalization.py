import json

import numpy as np
import pytest

from data_pipelines import episodes, normalization
from data_pipelines.formats import image
from data_pipelines.sources import synthetic
from data_pipelines.store import reader
from data_pipelines.store import writer as store_writer
from defi_jax import errors

_PNG = image.encode_png(np.zeros((4, 4, 3), np.uint8))
# Dimension 0 runs from 0 to 10, dimension 1 is constant, dimension 2 is a gripper.
_VALUES = np.stack([np.arange(11.0), np.full(11, 3.0), np.arange(11) % 2], axis=1)
_MASK = (True, True, False)


def _normalizer(kind, values=_VALUES):
    kept = None if kind == "none" else normalization.compute(values)
    return normalization.Normalizer(kind=kind, statistics=kept, mask=_MASK)


def _store(directory, actions_by_id, states=None):
    with store_writer.EpisodeWriter(directory, source="unit") as writer:
        for episode_id, actions in actions_by_id.items():
            writer.write(
                episodes.Episode(
                    episode_id=episode_id,
                    source="unit",
                    embodiment="robot",
                    instructions=("go",),
                    frames={"static": [_PNG] * 3},
                    actions=actions,
                    states=states,
                    fps=10.0,
                )
            )
    return reader.EpisodeStore(directory)


def test_statistics_by_hand():
    got = normalization.compute(_VALUES)
    np.testing.assert_allclose(got.mean, [5, 3, 5 / 11])
    np.testing.assert_allclose(got.std[:2], [np.sqrt(10), 0])
    np.testing.assert_allclose((got.min[0], got.max[0], got.q01[0], got.q99[0]), (0, 10, 0.1, 9.9))
    assert got.count == 11


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("none", [2.0, 9.0, 0.5], [2.0, 9.0, 0.5]),
        ("normal", [5 + np.sqrt(10), 3.0, 0.5], [1.0, 0.0, 0.5]),
        ("bounds", [0.0, 3.0, 0.5], [-1.0, 0.0, 0.5]),
        ("bounds", [10.0, 7.0, 1.0], [1.0, 0.0, 1.0]),
        ("bounds", [11.0, 7.0, 1.0], [1.0, 0.0, 1.0]),
        ("bounds_q99", [0.1, 3.0, 0.0], [-1.0, 0.0, 0.0]),
        ("bounds_q99", [10.0, 3.0, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_normalisation_table(kind, values, expected):
    got = _normalizer(kind).apply(np.array(values))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert got.dtype == np.float32


def test_constant_gripper_becomes_zero_although_unmasked():
    constant = _VALUES.copy()
    constant[:, 2] = 1.0
    for kind, expected in (("bounds", 0.0), ("bounds_q99", 0.0), ("normal", 1.0)):
        assert _normalizer(kind, constant).apply(np.array([1.0, 3.0, 1.0]))[2] == expected


@pytest.mark.parametrize("kind", normalization.KINDS)
def test_inverse_and_json_round_trip(kind):
    normalizer = _normalizer(kind)
    inside = _VALUES[1:-1].astype(np.float32)
    np.testing.assert_allclose(normalizer.invert(normalizer.apply(inside)), inside, atol=1e-5)
    text = json.dumps(normalizer.to_json(), allow_nan=False)
    copy = normalization.Normalizer.from_json(json.loads(text))
    np.testing.assert_array_equal(copy.apply(inside), normalizer.apply(inside))
    assert copy.to_json() == normalizer.to_json()


def test_merged_statistics_equal_those_of_all_steps():
    rng = np.random.default_rng(0)
    one, two = rng.normal(3, 1, (30, 2)), rng.normal(-1, 2, (70, 2))
    merged = normalization.merge([normalization.compute(one), normalization.compute(two)])
    whole = normalization.compute(np.concatenate([one, two]))
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), err_msg=name)
    assert merged.count == 100
    with pytest.raises(errors.DataError, match=r"widths \[1, 2\]"):
        normalization.merge([normalization.compute(one), normalization.compute(two[:, :1])])


def test_values_that_are_not_finite_are_named():
    values = _VALUES.copy()
    values[3, 1] = np.nan
    with pytest.raises(errors.DataError, match=r"dimensions \[1\] are not finite"):
        normalization.compute(values)
    with pytest.raises(errors.DataError, match="no steps"):
        normalization.compute(values[:0])


def test_unknown_kind_lists_the_known():
    with pytest.raises(errors.UserError, match="use one of none, normal, bounds, bounds_q99"):
        normalization.Normalizer(kind="minmax", statistics=None, mask=_MASK)


def test_cache_is_used_and_follows_the_content(tmp_path, monkeypatch):
    store = _store(tmp_path / "a", {"x": _VALUES[:3].astype(np.float32), "y": None})
    first = normalization.cached(store, store.directory)
    assert first.keys() == {"actions"}
    assert first["actions"].count == 3
    monkeypatch.setattr(normalization, "of_source", lambda source: pytest.fail("not cached"))
    again = normalization.cached(store, store.directory)
    assert again["actions"].to_json() == first["actions"].to_json()
    monkeypatch.undo()
    other = _store(tmp_path / "b", {"x": _VALUES[3:6].astype(np.float32)})
    (cache,) = store.directory.glob("statistics_*.json")
    (other.directory / cache.name).write_text(cache.read_text())
    assert normalization.cached(other, other.directory)["actions"].mean[0] == 4.0


def test_damaged_cache_is_computed_again(tmp_path):
    store = _store(tmp_path, {"x": _VALUES[:3].astype(np.float32)})
    expected = normalization.cached(store, store.directory)["actions"].to_json()
    (cache,) = store.directory.glob("statistics_*.json")
    cache.write_text(cache.read_text()[:40])
    assert normalization.cached(store, store.directory)["actions"].to_json() == expected
    json.loads(cache.read_text())


def test_width_that_changes_names_the_episode(tmp_path):
    actions = {"x": np.zeros((3, 2), np.float32), "y": np.zeros((3, 4), np.float32)}
    with pytest.raises(errors.DataError, match="4 wide, 2 in earlier episodes: episode 'y'"):
        normalization.of_source(_store(tmp_path, actions))


def test_values_that_are_not_finite_are_named_with_their_store(tmp_path):
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=2)
    source.actions = lambda i: np.full((3, 2), np.nan, np.float32)
    with pytest.raises(errors.DataError, match=f"not finite: actions of {tmp_path}"):
        normalization.cached(source, tmp_path)
