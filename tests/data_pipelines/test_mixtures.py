import numpy as np
import pytest

from data_pipelines import episodes, media, mixtures
from data_pipelines.sources import synthetic
from defi_jax import errors

_PNG = media.encode_png(np.zeros((4, 4, 3), np.uint8))


def _store(directory):
    episode = episodes.Episode(
        episode_id="x",
        source="unit",
        embodiment="human",
        instructions=("go",),
        frames={"static": [_PNG]},
        actions=None,
        states=None,
        fps=10.0,
    )
    with episodes.EpisodeWriter(directory, source="unit") as writer:
        writer.write(episode)


def _synthetic():
    return synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic", {"synthetic": 1.0}),
        ("a,b", {"a": 1.0, "b": 1.0}),
        ("a:0.7, b:3", {"a": 0.7, "b": 3.0}),
        ("soup", {"x": 2.0, "y": 1.0}),
    ],
)
def test_parse_table(text, expected):
    assert mixtures.parse(text, {"soup": {"x": 2.0, "y": 1.0}}) == expected


@pytest.mark.parametrize("text", ["", "a:", "a:zero", "a:0", "a:-1", "a:inf", "a,,b", ":2", "a,a"])
def test_unreadable_mixtures_are_refused(text):
    with pytest.raises(errors.UserError, match=r"data\.mixture="):
        mixtures.parse(text, {})


def test_load_opens_stores_and_synthetic(tmp_path):
    _store(tmp_path / "a")
    loaded = mixtures.load("synthetic:3,a", str(tmp_path), _synthetic)
    assert [(c.name, c.weight, len(c.source)) for c in loaded] == [
        ("synthetic", 3.0, 3),
        ("a", 1.0, 1),
    ]


def test_all_absent_stores_are_in_one_error(tmp_path):
    _store(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    message = r"no episode store named gone, empty: .*available: there, synthetic"
    with pytest.raises(errors.UserError, match=message):
        mixtures.load("there,gone,empty", str(tmp_path), _synthetic)


def test_missing_root_is_named():
    with pytest.raises(errors.UserError, match=r"data\.root is empty"):
        mixtures.load("a,b", "", _synthetic)
    with pytest.raises(errors.UserError, match=r"no episode store named a: data\.root=/nowhere"):
        mixtures.load("a", "/nowhere", _synthetic)
