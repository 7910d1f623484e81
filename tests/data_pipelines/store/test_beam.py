"""The parts of a conversion, with Beam where it is installed (`make test-beam`) and without."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from data_pipelines.sources import base, human_video, rlds, video_clips
from data_pipelines.store import beam, convert, reader
from defi_jax import errors
from tests.fixtures import films

OPTIONS = video_clips.ClipOptions(shorter_side=24)


def _open_videos(root: str) -> base.Source:
    how = video_clips.Reading(name=pathlib.Path(root).name, options=OPTIONS)
    return human_video.open_source(root, how)


def _open_rlds(directory: str, max_damaged: int = 0) -> base.Source:
    return rlds.RldsSource(directory, max_damaged=max_damaged)


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / "clips"
    root.mkdir()
    picture = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    for number in range(7):
        frames = [np.roll(picture, 3 * t + number, axis=1) for t in range(3 + number)]
        films.write_video(root / f"{number}.mp4", frames, fps=10)
    (root / "4.mp4").write_bytes(b"\0\0\0 ftypisom" + b"x" * 200)
    captions = {f"{number}.mp4": f"push {number}" for number in (*range(7), 9)}
    (root / "captions.json").write_text(json.dumps(captions))
    return functools.partial(_open_videos, str(root))


@pytest.fixture
def bridge(write_rlds, rlds_tools):
    episodes = [[rlds_tools["episode"](3 * s + i) for i in range(3)] for s in range(4)]
    return functools.partial(_open_rlds, str(write_rlds(episodes)))


def _in_order(source, output, *, open_source, parts=4):
    """Stands in for the pipeline, which Beam alone can run: all parts, the last first."""
    job = beam.Job(
        run=uuid.uuid4().hex,
        open_source=open_source,
        output=str(output),
        parts=parts,
        known=frozenset(),
    )
    for number in reversed(range(parts)):
        beam.convert_part(number, job)
    return beam._gather(output, job, source)


def _convert(open_source, output, copy=None):
    return convert.convert(open_source(), output, origin={}, progress=False, copy=copy)


@pytest.mark.parametrize("kind", ["videos", "bridge"])
def test_parts_make_the_same_store(kind, request, tmp_path):
    open_source = request.getfixturevalue(kind)
    plain = _convert(open_source, tmp_path / "plain")
    copy = functools.partial(_in_order, open_source=open_source)
    parts = _convert(open_source, tmp_path / "parts", copy)
    assert parts == plain
    assert len(list((tmp_path / "parts").glob("*.array_record"))) > 1
    assert not list((tmp_path / "parts").glob(".b*"))
    _same_records(tmp_path / "plain", tmp_path / "parts")


def _same_records(one: pathlib.Path, other: pathlib.Path):
    stores = reader.EpisodeStore(one), reader.EpisodeStore(other)
    assert stores[0].fingerprint() == stores[1].fingerprint()
    for i in range(len(stores[0])):
        assert stores[0].episode(i).frames == stores[1].episode(i).frames
        stores[1].verify(i)


def test_a_part_that_is_there_is_not_read_again(videos, tmp_path, monkeypatch):
    copy = functools.partial(_in_order, open_source=videos)
    first = _convert(videos, tmp_path / "s", copy)
    lost = sorted((tmp_path / "s").glob("episodes-b00001-*"))
    for path in lost:
        path.unlink()
    read = []
    whole = video_clips.read_clip
    monkeypatch.setattr(
        video_clips, "read_clip", lambda clip, **rest: read.append(clip) or whole(clip, **rest)
    )
    assert _convert(videos, tmp_path / "s", copy) == first
    names = sorted(pathlib.Path(clip.item).name for clip in read)
    assert "4.mp4" in names and 1 < len(names) < 4  # the damaged one, and those of the lost part


def test_damage_is_counted_over_all_parts(bridge, tmp_path):
    directory = pathlib.Path(bridge.args[0])
    for path in sorted(directory.glob("*tfrecord*"))[:2]:
        content = bytearray(path.read_bytes())
        content[40] ^= 1  # within the first record
        path.write_bytes(content)
    for allowed, raises in ((2, False), (1, True)):
        open_source = functools.partial(_open_rlds, str(directory), allowed)
        copy = functools.partial(_in_order, open_source=open_source)
        if raises:
            with pytest.raises(errors.DataError, match="2 records are damaged, 1 are allowed"):
                _convert(open_source, tmp_path / "one", copy)
        else:
            assert _convert(open_source, tmp_path / "two", copy)["episodes"] == 10


def test_without_beam_the_environment_is_named(videos, tmp_path):
    if "apache_beam" in sys.modules or _has_beam():
        pytest.skip("Apache Beam is installed")
    copy = functools.partial(beam.copy, open_source=videos, runner="direct")
    with pytest.raises(errors.UserError, match=r"not installed.*requirements-beam.txt"):
        _convert(videos, tmp_path / "s", copy)
    assert not (tmp_path / "s").exists()


def _has_beam() -> bool:
    try:
        import apache_beam
    except ImportError:
        return False
    return bool(apache_beam)


@pytest.mark.parametrize("kind", ["videos", "bridge"])
def test_beam_makes_the_same_store(kind, request, tmp_path):
    pytest.importorskip("apache_beam")
    open_source = request.getfixturevalue(kind)
    plain = _convert(open_source, tmp_path / "plain")
    copy = functools.partial(beam.copy, open_source=open_source, runner="direct", items_per_part=2)
    assert _convert(open_source, tmp_path / "beam", copy) == plain
    _same_records(tmp_path / "plain", tmp_path / "beam")


KILLED = """
import functools, pathlib, sys, time
from data_pipelines.sources import video_clips
from data_pipelines.store import beam, convert
sys.path.insert(0, sys.argv[3])
import test_beam
whole = beam.convert_part
def slow(number, job):
    count = whole(number, job)
    print("part", flush=True)
    time.sleep(2)
    return count
beam.convert_part = slow
copy = functools.partial(
    beam.copy,
    open_source=functools.partial(test_beam._open_videos, sys.argv[1]),
    runner="direct",
    items_per_part=2,
)
test_beam._convert(copy.keywords["open_source"], pathlib.Path(sys.argv[2]), copy)
"""


def test_a_killed_pipeline_goes_on(videos, tmp_path):
    pytest.importorskip("apache_beam")
    plain = _convert(videos, tmp_path / "plain")
    output = tmp_path / "beam"
    here = str(pathlib.Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, videos.args[0], str(output), here]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "part\n" in iter(process.stdout.readline, "")
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.1)
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.array_record")}
    assert before and not json.loads((output / "manifest.json").read_text())["complete"]
    copy = functools.partial(beam.copy, open_source=videos, runner="direct", items_per_part=2)
    assert _convert(videos, output, copy) == plain
    assert (
        before.items() <= {p: p.stat().st_mtime_ns for p in output.glob("*.array_record")}.items()
    )
    _same_records(tmp_path / "plain", output)
