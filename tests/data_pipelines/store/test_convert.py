import functools
import json
import shutil

import pytest

from data_pipelines import episodes
from data_pipelines.sources import base, rlds
from data_pipelines.store import convert, reader
from data_pipelines.store import writer as store_writer
from defi_jax import errors


def _convert(source, output) -> dict:
    return convert.convert(source, output, origin={"input": "x"}, progress=False)


def _files(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _video_episode() -> episodes.Episode:
    return episodes.Episode(
        episode_id="e",
        source="s",
        embodiment="human",
        instructions=("push",),
        frames={"static": [b"x"] * 3},
        actions=None,
        states=None,
        fps=12.0,
        metadata={"frame_size": (8, 9), "conversions": ["mirrored"]},
    )


class _Interrupted(base.Source):
    """A source that dies after some episodes."""

    def __init__(self, source, after: int):
        self._source, self._after = source, after
        self.name, self.total, self.recipe = source.name, source.total, source.recipe

    def read(self, skip=frozenset()):
        for number, result in enumerate(self._source.read(skip)):
            if number == self._after:
                raise KeyboardInterrupt
            yield result


@pytest.fixture
def source(write_rlds, rlds_tools):
    bad = rlds_tools["episode"](2) | {"steps/language_instruction": [b"\xff"] * 6}
    shards = [[rlds_tools["episode"](0), rlds_tools["episode"](1)], [bad, rlds_tools["episode"](3)]]
    return rlds.RldsSource(write_rlds(shards))


def test_manifest_counts_and_names_rejects(source, tmp_path):
    manifest = _convert(source, tmp_path / "store")
    store = reader.EpisodeStore(tmp_path / "store")
    assert manifest["episodes"] == len(store) == 3 and manifest["frames"] == 12
    (reject,) = manifest["rejected"]
    assert "record 0" in reject["item"] and "utf-8" in reject["reason"]
    assert manifest["complete"] and manifest["fingerprint"] == store.fingerprint()
    assert convert.read_manifest(tmp_path / "store") == manifest
    text = convert.summary(manifest, 1.0)
    assert "3 episodes, 12 frames, 1 rejected" in text and "record 0" in text


def test_interrupted_conversion_continues_to_the_same_bytes(source, tmp_path, monkeypatch):
    small_shards = functools.partial(store_writer.EpisodeWriter, episodes_per_shard=1)
    monkeypatch.setattr(store_writer, "EpisodeWriter", small_shards)
    _convert(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _convert(_Interrupted(source, 1), tmp_path / "store")
    assert convert.read_manifest(tmp_path / "store")["complete"] is False
    _convert(source, tmp_path / "store")
    assert _files(tmp_path / "store") == _files(tmp_path / "whole")


def test_repeated_conversion_changes_nothing(source, tmp_path):
    _convert(source, tmp_path / "store")
    before = _files(tmp_path / "store")
    _convert(source, tmp_path / "store")
    assert _files(tmp_path / "store") == before


def test_other_origin_is_refused(source, tmp_path):
    _convert(source, tmp_path / "store")
    with pytest.raises(errors.UserError, match="another origin"):
        convert.convert(source, tmp_path / "store", origin={"input": "y"}, progress=False)


def test_damaged_source_leaves_nothing_half_written(source, tmp_path, write_rlds):
    path = write_rlds.shard(1, 2)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(errors.DataError, match="cut short"):
        _convert(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_source_without_a_usable_episode_is_a_data_error(write_rlds, rlds_tools, tmp_path):
    source = rlds.RldsSource(write_rlds([[rlds_tools["episode"](0, steps=2)]]))
    with pytest.raises(errors.DataError, match=r"no episode \(1 rejected; the first.*record 0"):
        _convert(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_rejects_are_counted_by_reason_and_the_recipe_is_kept(tmp_path):
    class Source(base.Source):
        name, total, recipe = "s", 3, {"selection": "all"}

        def read(self, skip=frozenset()):
            yield episodes.Reject("a", "cut short (5 of 10 bytes): a.mp4; replace it")
            yield episodes.Reject("b\udce9", "cut short (7 of 90 bytes): b.mp4; replace it")
            yield episodes.Reject("c", "starts with b'PK7'")
            if "e" not in skip:
                yield _video_episode()

    manifest = _convert(Source(), tmp_path / "store")
    assert manifest["rejected_by_reason"] == {"cut short (N of N bytes)": 2, "starts with N": 1}
    assert (
        manifest["recipe"] == {"selection": "all"} and manifest["rejected"][1]["item"] == r"b\udce9"
    )
    assert (manifest["fps"], manifest["sizes"]) == ({"12": 1}, {"8x9": 1})
    assert manifest["conversions"] == {"mirrored": 1}
    text = convert.summary(manifest, 1.0, shown=1)
    assert "1 mirrored" in text and "2 cut short (N of N bytes)" in text
    assert manifest["hours"] == pytest.approx(3 / 12 / 3600, abs=1e-4)
    Source.recipe = {"selection": "some"}
    with pytest.raises(errors.UserError, match="another recipe"):
        _convert(Source(), tmp_path / "store")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_damaged_manifest_is_a_data_error(tmp_path, text):
    (tmp_path / convert.MANIFEST).write_text(text)
    with pytest.raises(errors.DataError, match="manifest"):
        convert.read_manifest(tmp_path)


def test_manifest_is_utf8_json(source, tmp_path):
    _convert(source, tmp_path / "store")
    json.loads((tmp_path / "store" / convert.MANIFEST).read_text(encoding="utf-8"))


def test_other_files_of_the_same_name_are_refused(write_rlds, rlds_tools, tmp_path):
    directory = write_rlds([[rlds_tools["episode"](0), rlds_tools["episode"](1)]])
    _convert(rlds.RldsSource(directory), tmp_path / "store")
    shutil.rmtree(directory)
    write_rlds([[rlds_tools["episode"](2), rlds_tools["episode"](3)]])
    with pytest.raises(errors.UserError, match="another recipe"):
        _convert(rlds.RldsSource(directory), tmp_path / "store")


def test_files_of_something_else_are_left_alone(source, tmp_path):
    store = tmp_path / "store"
    with store_writer.EpisodeWriter(store, source="metaworld") as writer:
        writer.write(_video_episode())
    before = _files(store)
    with pytest.raises(errors.UserError, match=r"holds files, but no manifest\.json"):
        _convert(source, store)
    assert _files(store) == before


def test_a_second_run_into_the_same_store_is_refused(source, tmp_path):
    class Slow(_Interrupted):
        def read(self, skip=frozenset()):
            with pytest.raises(errors.UserError, match="another run writes here"):
                _convert(source, tmp_path / "store")
            yield from super().read(skip)

    assert _convert(Slow(source, 99), tmp_path / "store")["episodes"] == 3
