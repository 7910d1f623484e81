"""Rules by data set, in the batches of a loader."""

import json

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.store import writer as store_writer
from defi_jax import errors
from tests.data_pipelines import loaders


def _official(root):
    """Stores of the four names of the official mixture, and their rules at T = 3."""
    both = ("static", "gripper")
    for name, length in (("sthv2", 5), ("bridge", 12), ("rt1", 7), ("calvin", 6)):
        loaders.write_store(root, name, 8, length=length, cameras=both)
    whole = {"frame_stride": 0, "max_frames": 11}
    calvin = {"frame_stride": 2, "cameras": both, "camera_weights": (0.75, 0.25)}
    return {"sthv2": whole, "rt1": whole, "calvin": calvin}


def test_one_run_follows_the_rules_of_every_data_set(tmp_path):
    table = _official(tmp_path)
    settings = {
        "root": str(tmp_path),
        "mixture": "sthv2:0.4,bridge:0.2,rt1:0.2,calvin:0.2",
        "per_dataset": table,
        "holdout_percent": 0,
        "augment": False,
    }
    one = loaders.make("gfdm", global_batch=10, **settings)
    clips = {name: set() for name in ("sthv2", "bridge", "rt1", "calvin")}
    shares = dict.fromkeys(clips, 0)
    for _ in range(20):
        batch = next(one)
        for text, video in zip(batch.text.ids, batch.video, strict=True):
            name = bytes(text[text > 0].astype(np.uint8) - 1).decode().split()[0]
            clips[name].add(tuple((video[:, 0, 0, 0] // 10).tolist()))
            shares[name] += 1
    assert clips == {
        "sthv2": {(0, 2, 4)},
        "rt1": {(0, 3, 6)},
        "calvin": {(0, 2, 4), (2, 4, 5), (4, 5, 5)},
        "bridge": {(0, 4, 8), (4, 8, 11), (8, 11, 11)},  # those of the section: every fourth
    }
    assert shares == {"sthv2": 80, "bridge": 40, "rt1": 40, "calvin": 40}
    rules = {part["name"]: part["rules"] for part in one.describe()}
    assert rules["calvin"]["camera_weights"] == (0.75, 0.25)
    assert rules["bridge"]["frame_stride"] == 4
    samples = {part["name"]: part["samples"] for part in one.describe()}
    assert samples == {"sthv2": 8, "bridge": 24, "rt1": 8, "calvin": 24}

    state = json.loads(json.dumps(one.state()))
    assert len(json.dumps(state)) < 500
    resumed = loaders.make("gfdm", global_batch=10, **settings)
    resumed.restore(state)
    loaders.assert_equal(next(resumed), next(one))
    other = table | {"rt1": {"frame_stride": 0, "max_frames": 12}}
    changed = loaders.make("gfdm", global_batch=10, **settings | {"per_dataset": other})
    with pytest.raises(errors.UserError, match="rules changed"):
        changed.restore(state)


def test_a_data_set_of_longer_clips_alone_says_so(tmp_path):
    loaders.write_store(tmp_path, "a")
    table = {"a": {"max_frames": 8}}
    with pytest.raises(errors.DataError, match=r"usable length.*raise data\.max_frames"):
        loaders.make("gfdm", root=str(tmp_path), mixture="a", per_dataset=table)


def test_a_camera_that_only_one_data_set_has(tmp_path):
    loaders.write_store(tmp_path, "a", cameras=("wrist",))
    loaders.write_store(tmp_path, "b")
    mixed = {"root": str(tmp_path), "mixture": "a,b"}
    with pytest.raises(errors.DataError, match="no episode has the cameras static"):
        loaders.make("joint", **mixed)
    next(loaders.make("joint", **mixed, per_dataset={"a": {"cameras": ("wrist",)}}))


def test_still_pairs_are_counted_and_the_count_is_restored(tmp_path):
    moving, still = [10 * t for t in range(9)], [10, 10, 10, 10, 10, 10, 10, 50, 90]
    for name, levels in (("moving", moving), ("still", still)):
        encoded = [image.encode_png(np.full((16, 16, 3), v, np.uint8)) for v in levels]
        _write_frames(tmp_path, name, encoded)
    settings = {
        "root": str(tmp_path),
        "mixture": "moving,still",
        "pair_offset": (1, 1),
        "drop_still": 2.0,
        "holdout_percent": 0,
        "augment": False,
    }
    one, plain = (
        loaders.make(**settings),
        loaders.make(**settings | {"drop_still": 0.0}),
    )
    seen = [next(one) for _ in range(6)]
    for batch in seen:
        assert (batch.frames[:, 0] != batch.frames[:, 1]).all()
    assert any((next(plain).frames[:, 0] == next(plain).frames[:, 1]).any() for _ in range(3))
    assert one.still_pairs.keys() == {"still"} and one.bad_samples == {}
    assert one.still_pairs["still"] > 24
    resumed = loaders.make(**settings)
    resumed.restore(json.loads(json.dumps(one.state())))
    assert resumed.still_pairs == one.still_pairs
    loaders.assert_equal(next(resumed), next(one))


def _write_frames(directory, name, encoded, count=12):
    with store_writer.EpisodeWriter(directory / name, source=name) as writer:
        for number in range(count):
            writer.write(
                episodes.Episode(
                    episode_id=f"{name}-{number}",
                    source=name,
                    embodiment="robot",
                    instructions=(f"{name} {number}",),
                    frames={"static": encoded},
                    actions=None,
                    states=None,
                    fps=10.0,
                )
            )
