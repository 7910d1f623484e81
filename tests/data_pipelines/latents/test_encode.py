import json

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.latents import cache as latent_cache
from data_pipelines.latents import encode
from data_pipelines.store import reader
from data_pipelines.store import writer as store_writer
from defi_jax import errors

SIZE, LATENT, TEXT = 8, (2, 2, 3), (2, 3)
FACTS = {
    "latents": {"name": "toy", "weights": "aa"},
    "latent_shape": list(LATENT),
    "text_shape": list(TEXT),
}


class ToyEncoder:
    """Latents are means of quarters; counts its batches and can die before one."""

    posterior, image_size, batch_size = "mode", SIZE, 4

    def __init__(self, facts=FACTS, die_at=None, gain=1.0):
        self.facts, self.die_at, self.gain, self.calls = facts, die_at, gain, 0
        self.keys = []

    def frames(self, frames, keys):
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.keys += keys.tolist()
        assert frames.shape == (self.batch_size, SIZE, SIZE, 3)
        quarters = frames.reshape(len(frames), 2, 4, 2, 4, 3).mean(axis=(2, 4)) / 255
        return self.gain * quarters.astype(np.float32)

    def texts(self, texts):
        assert len(texts) == self.batch_size
        return np.stack([np.full(TEXT, len(text), np.float32) for text in texts])


def _episode(name, length, instructions, cameras=("static",), damaged=()):
    rng = np.random.default_rng(len(name) + length)
    frames = {
        camera: [
            image_lib.encode_png(rng.integers(0, 255, (10, 12, 3), np.uint8)) for _ in range(length)
        ]
        for camera in cameras
    }
    for t in damaged:
        frames["static"][t] = b"\x89PNG\r\n\x1a\n damaged"
    return episodes.Episode(
        episode_id=name,
        source="s",
        embodiment="human",
        instructions=instructions,
        frames=frames,
        actions=None,
        states=None,
        fps=5.0,
    )


@pytest.fixture
def store(tmp_path):
    with store_writer.EpisodeWriter(tmp_path / "s", source="s") as writer:
        writer.write(_episode("a", 5, ("open", "pull"), ("static", "gripper")))
        writer.write(_episode("b", 6, ("open",), damaged=(2,)))
        writer.write(_episode("c", 3, ("shut it",)))
    return reader.EpisodeStore(tmp_path / "s")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(encode, "FRAMES_PER_SHARD", 8)
    monkeypatch.setattr(encode, "TEXTS_PER_SHARD", 2)


def _encode(store, directory, encoder=None, **options):
    options = {
        "cameras": ("static", "gripper"),
        "dtype": "float16",
        "overwrite": False,
        "max_bad_fraction": 0.001,
    } | options
    return encode.encode(store, directory, encoder or ToyEncoder(), progress=False, **options)


def _bytes(directory):
    return {path.name: path.read_bytes() for path in directory.glob("[!.]*")}


def _pixels(store, i, camera, t):
    image = image_lib.resize(store.frames(i, camera, [t])[0], (SIZE, SIZE))
    return image.reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)) / 255


def test_cache_gives_latents_by_frame_and_embeddings_by_text(store, tmp_path):
    manifest = _encode(store, tmp_path / "c")
    assert (manifest["frames"], manifest["texts"]) == (19, 3)
    assert manifest["shards"] == [f"frames-0000{k}" for k in range(3)] + [
        "texts-00000",
        "texts-00001",
    ]
    cache = latent_cache.open_cache(store, tmp_path / "c", ("static", "gripper"))
    found = cache.frames(store.episode_ids[0], "gripper", [4, 0])
    assert found.dtype == np.float32
    wanted = [_pixels(store, 0, "gripper", 4), _pixels(store, 0, "gripper", 0)]
    np.testing.assert_allclose(found, wanted, rtol=2**-11)
    np.testing.assert_allclose(
        cache.frames(store.episode_ids[2], "static", [2])[0],
        _pixels(store, 2, "static", 2),
        rtol=2**-11,
    )
    assert cache.text("shut it").tolist() == np.full(TEXT, 7.0).tolist()


def test_killed_and_restarted_gives_the_bytes_of_one_run(store, tmp_path):
    _encode(store, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _encode(store, tmp_path / "c", ToyEncoder(die_at=4))
    with pytest.raises(errors.UserError, match="not complete"):
        latent_cache.LatentCache(tmp_path / "c")
    done = [path.name for path in (tmp_path / "c").glob("frames-*.index.jsonl")]
    assert done == ["frames-00000.index.jsonl"]
    second = ToyEncoder()
    _encode(store, tmp_path / "c", second)
    assert 0 < second.calls < 6
    assert _bytes(tmp_path / "c") == _bytes(tmp_path / "whole")


def test_processes_share_the_shards(store, tmp_path):
    _encode(store, tmp_path / "whole")
    for index in (1, 0):  # the first process completes the cache
        if index == 1:
            encode._begin(tmp_path / "c", _start(tmp_path / "whole"), False)
        _encode(store, tmp_path / "c", process_index=index, process_count=2)
    assert _bytes(tmp_path / "c") == _bytes(tmp_path / "whole")


def _start(directory):
    manifest = latent_cache.read_manifest(directory)
    del manifest["complete"], manifest["damaged"]
    return manifest


def test_a_missing_share_is_not_called_complete(store, tmp_path):
    with pytest.raises(errors.DataError, match="missing"):
        _encode(store, tmp_path / "c", process_index=0, process_count=2)
    assert not latent_cache.read_manifest(tmp_path / "c")["complete"]


def test_given_latents_are_stored_as_they_are(store, tmp_path):
    def given(episode_id, camera):
        i = store.episode_ids.index(episode_id)
        fill = 10 * i + (camera == "gripper")
        return np.full((store.lengths[i], *LATENT), fill) + np.arange(store.lengths[i]).reshape(
            -1, 1, 1, 1
        )

    encoder = ToyEncoder()
    manifest = _encode(store, tmp_path / "c", encoder, given=given)
    assert encoder.calls == 0 and manifest["damaged"] == 0
    cache = latent_cache.open_cache(store, tmp_path / "c", ("static", "gripper"))
    assert cache.frames(store.episode_ids[0], "gripper", [4, 0])[:, 0, 0, 0].tolist() == [5, 1]
    assert cache.frames(store.episode_ids[2], "static", [1])[:, 1, 1, 2].tolist() == [21]
    with pytest.raises(errors.UserError, match="given True, not False"):
        _encode(store, tmp_path / "c")


@pytest.mark.parametrize("shape", [(4, *LATENT), (5, 2, 2, 4)])
def test_given_latents_of_another_shape_are_refused(store, tmp_path, shape):
    with pytest.raises(errors.DataError, match="latents of 'a' are"):
        _encode(store, tmp_path / "c", given=lambda *_: np.zeros(shape))


def test_draws_follow_from_the_frame_alone(store, tmp_path):
    small, large = ToyEncoder(), ToyEncoder()
    large.batch_size = 8
    _encode(store, tmp_path / "a", small)
    _encode(store, tmp_path / "b", large)
    keys = {tuple(key) for key in small.keys if any(key)}
    assert keys == {tuple(key) for key in large.keys if any(key)}
    assert len(keys) == 19


def test_damaged_frames_are_no_latents(store, tmp_path, caplog):
    assert _encode(store, tmp_path / "c")["damaged"] == 1
    cache = latent_cache.open_cache(store, tmp_path / "c", ("static",))
    wanted = [_pixels(store, 1, "static", t) for t in (1, 3, 5)]
    np.testing.assert_allclose(
        cache.frames(store.episode_ids[1], "static", [1, 3, 5]), wanted, rtol=2**-11
    )
    with pytest.raises(errors.DataError, match="the frame is damaged"):
        cache.frames(store.episode_ids[1], "static", [1, 2])


def test_a_store_of_damaged_frames_makes_no_cache(store, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BAD_WINDOW", 0)
    with pytest.raises(errors.DataError, match="1 of 19 frames or more are damaged"):
        _encode(store, tmp_path / "c")
    assert not latent_cache.read_manifest(tmp_path / "c")["complete"]
    assert not list((tmp_path / "c").glob("texts-*"))  # it stopped at once
    _encode(store, tmp_path / "c", max_bad_fraction=0.1)
    monkeypatch.setattr(encode, "_begin", lambda *args: None)  # nothing is left to encode
    with pytest.raises(errors.DataError, match="1 of 19"):
        _encode(store, tmp_path / "c")


def test_frames_that_cannot_be_read_now_are_not_called_damaged(store, tmp_path, monkeypatch):
    def frames(*args):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(errors.UserError, match="Input/output"):
        patch.setattr(store, "frames", frames)
        _encode(store, tmp_path / "c")
    assert _encode(store, tmp_path / "c")["damaged"] == 1


def test_a_second_run_beside_the_first_is_refused(store, tmp_path):
    class Nested(ToyEncoder):
        def texts(self, texts):
            with pytest.raises(errors.UserError, match="another run writes here"):
                _encode(store, tmp_path / "c")
            return super().texts(texts)

    _encode(store, tmp_path / "c", Nested())


def test_overwriting_keeps_a_cache_of_the_same(store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _encode(store, tmp_path / "c", ToyEncoder(die_at=4))
    second = ToyEncoder()
    _encode(store, tmp_path / "c", second, overwrite=True)
    assert second.calls < 6


def test_float32_keeps_every_bit(store, tmp_path):
    _encode(store, tmp_path / "c", dtype="float32")
    cache = latent_cache.open_cache(store, tmp_path / "c", ("static",))
    np.testing.assert_array_equal(
        cache.frames(store.episode_ids[2], "static", [1])[0],
        _pixels(store, 2, "static", 1).astype(np.float32),
    )


def test_values_beyond_float16_are_refused(store, tmp_path):
    with pytest.raises(errors.NumericsError, match="not finite in float16"):
        _encode(store, tmp_path / "c", ToyEncoder(gain=1e6))
    _encode(store, tmp_path / "d", ToyEncoder(gain=1e6), dtype="float32")


def test_another_cache_is_not_overwritten_unasked(store, tmp_path):
    _encode(store, tmp_path / "c")
    other = FACTS | {"latents": {"name": "toy", "weights": "bb"}}
    with pytest.raises(errors.UserError, match=r"encoder\.latents\.weights aa, not bb"):
        _encode(store, tmp_path / "c", ToyEncoder(other))
    _encode(store, tmp_path / "c", ToyEncoder(other), overwrite=True)
    assert latent_cache.LatentCache(tmp_path / "c").manifest["encoder"] == other
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("mine")
    with pytest.raises(errors.UserError, match="holds files"):
        _encode(store, tmp_path / "d", overwrite=True)


def test_cache_of_other_episodes_or_cameras_is_refused(store, tmp_path):
    _encode(store, tmp_path / "c", cameras=("static",))
    with pytest.raises(errors.UserError, match="lacks the cameras gripper"):
        latent_cache.open_cache(store, tmp_path / "c", ("static", "gripper"))
    with store_writer.EpisodeWriter(tmp_path / "s", source="s", shard="1") as writer:
        writer.write(_episode("d", 2, ("open",)))
    with pytest.raises(errors.UserError, match="of other episodes"):
        latent_cache.open_cache(reader.EpisodeStore(tmp_path / "s"), tmp_path / "c", ("static",))
    with pytest.raises(errors.UserError, match="no latent cache"):
        latent_cache.open_cache(store, tmp_path / "none", ("static",))


def test_other_encoders_are_named(store, tmp_path):
    _encode(store, tmp_path / "c")
    cache = latent_cache.LatentCache(tmp_path / "c")
    cache.check_encoder(FACTS, "cmd")
    with pytest.raises(
        errors.UserError,
        match=r"latents.weights aa, not bb.*; rebuild it: cmd --posterior=mode --dtype=float16",
    ):
        cache.check_encoder(FACTS | {"latents": {"name": "toy", "weights": "bb"}}, "cmd")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.with_name("cache.json").write_text("{"),
        lambda path: path.with_name("cache.json").write_text('{"schema": 1}'),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.unlink(),
        lambda path: path.with_name("frames-00000.index.jsonl").write_text("[]"),
        lambda path: path.with_name("frames-00000.index.jsonl").unlink(),
        lambda path: _flip(path),
    ],
)
def test_damage_is_a_data_error(store, tmp_path, spoil):
    _encode(store, tmp_path / "c")
    spoil(tmp_path / "c" / "frames-00000.array_record")
    with pytest.raises(errors.DataError):
        cache = latent_cache.open_cache(store, tmp_path / "c", ("static",))
        for t in range(5):
            cache.frames(store.episode_ids[0], "static", [t])


def test_a_shard_cut_short_is_found_before_anything_is_read(store, tmp_path):
    _encode(store, tmp_path / "c")
    path = tmp_path / "c" / "frames-00001.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.DataError, match="truncated"):
        latent_cache.LatentCache(tmp_path / "c")


def _flip(path):
    """Changes a byte in the middle of the first frames' values."""
    wanted = np.frombuffer(path.read_bytes(), np.uint8).copy()
    start = int(np.flatnonzero(wanted[100:])[40]) + 100
    wanted[start] ^= 0xFF
    path.write_bytes(wanted.tobytes())


def test_manifest_is_json_able(store, tmp_path):
    assert json.loads(json.dumps(_encode(store, tmp_path / "c")))["dtype"] == "float16"
    with pytest.raises(errors.UserError, match="unknown dtype"):
        _encode(store, tmp_path / "d", dtype="int8")
    with pytest.raises(errors.DataError, match="no episode has the cameras wrist"):
        _encode(store, tmp_path / "d", cameras=("wrist",))
