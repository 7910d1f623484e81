import collections
from typing import Any, cast

import numpy as np
import pytest

from data_pipelines import episodes, normalization
from data_pipelines.formats import image as image_lib
from data_pipelines.loading import config, sample_kinds
from data_pipelines.sources import synthetic
from data_pipelines.store import reader as store_reader
from data_pipelines.store import writer as store_writer
from defi_jax import errors

NONE = normalization.Normalizer(kind="none", statistics=None, mask=(True,))


def _kind(kind, *, train=True, **changes):
    values = {"image_size": 8, "action_dim": 1, "pair_offset": (2, 2), "frame_stride": 2}
    own = config.DataConfig(**values | changes)
    return kind(config=own, normalizer=NONE, train=train)


def _read(kind, source, episode, sample, rng):
    place = sample_kinds.Place(component="c", source=source, episode=episode, sample=sample)
    return kind.begin(place, "go", rng)()


def _store(directory, levels, cameras=("static",)):
    """Writes an episode whose frames are of these grey levels."""
    encoded = [image_lib.encode_png(np.full((8, 8, 3), level, np.uint8)) for level in levels]
    with store_writer.EpisodeWriter(directory, source="s") as writer:
        writer.write(
            episodes.Episode(
                episode_id="e",
                source="s",
                embodiment="x",
                instructions=("go",),
                frames={
                    name: encoded if number == 0 else encoded[::-1]
                    for number, name in enumerate(cameras)
                },
                actions=None,
                states=None,
                fps=1.0,
            )
        )
    return store_reader.EpisodeStore(directory)


def _levels(frames):
    return frames[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("changes", "table"),
    [
        ({"frame_stride": 2}, [[0, 2, 4], [2, 4, 6], [4, 6, 6], [6, 6, 6]]),
        ({"frame_stride": 3}, [[0, 3, 6], [3, 6, 6], [6, 6, 6]]),
        ({"frame_stride": 0}, [[0, 3, 6]]),
        ({"frame_stride": 0, "max_frames": 7}, [[0, 3, 6]]),
        ({"frame_stride": 0, "max_frames": 6}, []),
        ({"frame_stride": 2, "max_frames": 6}, []),
    ],
)
def test_clips_of_a_data_set_are_as_its_rules_say(tmp_path, changes, table):
    store = _store(tmp_path, range(7))
    clips = _kind(sample_kinds.Clips, **changes)
    assert clips.num_samples(store.lengths).tolist() == [len(table)]
    rng = np.random.default_rng(0)
    read = [_read(clips, store, 0, sample, rng)["video"] for sample in range(len(table))]
    assert [_levels(video) for video in read] == table


def test_cameras_are_drawn_by_their_weights_among_those_that_there_are():
    meta = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=1).meta(0)
    rng = np.random.default_rng(0)
    for names, weights, shares in (
        (("static", "gripper"), (0.75, 0.25), {"static": 750, "gripper": 250}),
        (("static", "gripper"), (), {"static": 500, "gripper": 500}),
        (("static", "absent", "gripper"), (3, 8, 1), {"static": 750, "gripper": 250}),
    ):
        own = {"cameras": names, "camera_weights": weights}
        clips = _kind(sample_kinds.Clips, **own)
        drawn = collections.Counter(clips._camera(meta, rng) for _ in range(1000))
        assert drawn.keys() == shares.keys()
        assert all(abs(drawn[name] - share) < 60 for name, share in shares.items())
        first = _kind(sample_kinds.Clips, train=False, **own)
        assert {first._camera(meta, rng) for _ in range(20)} == {"static"}


class _GreyLevels:
    """In a cache's place: the latent of a frame is the frame's grey level."""

    def __init__(self, source):
        self._source = source

    def frames(self, episode_id, camera, indices):
        return self._source.frames(0, camera, indices)[:, :1, :1, :1]

    def text(self, instruction):
        return np.zeros(len(instruction))


def test_a_latent_cache_gives_the_clips_of_the_pixels(tmp_path):
    source = _store(tmp_path, range(0, 70, 10), cameras=("static", "gripper"))
    numbers = {
        "cameras": ("static", "gripper"),
        "camera_weights": (0.75, 0.25),
        "max_frames": 7,
        "frame_stride": 3,
    }
    pixels = _kind(sample_kinds.Clips, **numbers)
    cached = sample_kinds.LatentClips(
        config=pixels.config, normalizer=NONE, train=True, cache=cast(Any, _GreyLevels(source))
    )
    assert pixels.num_samples(source.lengths).tolist() == [3]
    assert cached.num_samples(source.lengths).tolist() == [3]
    seen = set()
    for seed in range(30):
        for sample in range(3):
            video = _read(pixels, source, 0, sample, np.random.default_rng(seed))["video"]
            clip = _read(cached, source, 0, sample, np.random.default_rng(seed))["latents"]
            assert _levels(video) == _levels(clip)
            seen.add(tuple(_levels(clip)))
    assert len(seen) == 6  # three clips of two cameras


def test_pairs_without_motion_are_still_by_their_grey_levels(tmp_path):
    store = _store(tmp_path, [0, 0, 3, 10, 8])
    reader = _kind(sample_kinds.Pairs, drop_still=4, pair_include_last=True, pair_offset=(1, 1))
    assert reader.num_samples(store.lengths).tolist() == [5]
    found = {}
    for sample in range(5):
        try:
            frames = _read(reader, store, 0, sample, np.random.default_rng(0))["frames"]
            found[sample] = _levels(frames)
        except sample_kinds.Still as still:
            found[sample] = str(still)
    differ = "the frames differ by {} grey levels"
    # The last frame pairs with itself.
    assert found == {
        0: differ.format("0.00"),
        1: differ.format("3.00"),
        2: [3, 10],
        3: differ.format("2.00"),
        4: differ.format("0.00"),
    }


def test_motion_is_measured_before_colours_change(tmp_path):
    store = _store(tmp_path, [100, 110])
    pairs = _kind(sample_kinds.Pairs, drop_still=10, augment=True, pair_offset=(1, 1))
    for seed in range(40):  # contrast alone would take up to a fifth away
        _read(pairs, store, 0, 0, np.random.default_rng(seed))


def test_every_pair_is_taken_without_a_threshold(tmp_path):
    store = _store(tmp_path, [5, 5, 5])
    pairs = _kind(sample_kinds.Pairs)
    assert pairs.num_samples(store.lengths).tolist() == [2]
    frames = _read(pairs, store, 0, 0, np.random.default_rng(0))["frames"]
    assert _levels(frames) == [5, 5]


def test_gfdm_draws_cameras_in_training_only():
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=2)
    both = ("static", "gripper")
    drawn = {True: set(), False: set()}
    for draw in (True, False):
        numbers = {"num_frames": 2, "frame_stride": 0, "cameras": both}
        clips = _kind(sample_kinds.Clips, train=draw, **numbers)
        for seed in range(20):
            video = _read(clips, source, 0, 0, np.random.default_rng(seed))["video"]
            drawn[draw].add(video.tobytes())
    assert len(drawn[True]) == 2
    assert drawn[False] == {source.frames(0, "static", [0, 31]).tobytes()}


def test_made_up_last_action_is_neither_trained_on_nor_counted(tmp_path):
    image = image_lib.encode_png(np.zeros((8, 8, 3), np.uint8))
    actions = np.array([[1.0], [2.0], [50.0]], np.float32)
    with store_writer.EpisodeWriter(tmp_path, source="s") as writer:
        for name, is_padding in (("a", True), ("b", False)):
            writer.write(
                episodes.Episode(
                    episode_id=name,
                    source="s",
                    embodiment="x",
                    instructions=("go",),
                    frames={"static": [image] * 3},
                    actions=actions,
                    states=None,
                    fps=1.0,
                    metadata={episodes.LAST_ACTION_IS_PADDING: is_padding},
                )
            )
    store = store_reader.EpisodeStore(tmp_path)
    windows = _kind(sample_kinds.Windows, action_horizon=3)
    rng = np.random.default_rng(0)
    masks = [
        [_read(windows, store, i, t, rng)["action_mask"].sum() for t in range(3)] for i in (0, 1)
    ]
    assert masks == [[2, 1, 0], [3, 2, 1]]
    found = normalization.of_source(store)["actions"]
    assert found.count == 5 and found.mean[0] == (1 + 2 + 1 + 2 + 50) / 5


@pytest.mark.parametrize("width", [1, 4])
def test_actions_of_another_width_are_damaged_samples(tmp_path, width):
    frames = {"static": [image_lib.encode_png(np.zeros((8, 8, 3), np.uint8))] * 3}
    with store_writer.EpisodeWriter(tmp_path, source="s") as writer:
        for name, own in (("a", 7), ("b", width)):
            actions = np.ones((3, own), np.float32)
            writer.write(
                episodes.Episode(
                    episode_id=name,
                    source="s",
                    embodiment="x",
                    instructions=("go",),
                    frames=frames,
                    actions=actions,
                    states=None,
                    fps=1.0,
                )
            )
    normal = normalization.compute(np.arange(14.0).reshape(2, 7))
    windows = sample_kinds.Windows(
        config=config.DataConfig(image_size=8, action_horizon=2, action_dim=7),
        normalizer=normalization.Normalizer(kind="normal", statistics=normal, mask=(True,) * 7),
        train=True,
    )
    store, rng = store_reader.EpisodeStore(tmp_path), np.random.default_rng(0)
    assert _read(windows, store, 0, 0, rng)["actions"].shape == (2, 7)
    with pytest.raises(errors.DataError, match=rf"have {width} dimensions.*is 7.*episode 'b'"):
        _read(windows, store, 1, 0, rng)
