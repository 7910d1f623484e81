"""The mission's first half: human video and robot episodes train GFDM and GIDM on 8 devices.

Both data sets lie in TFDS's own files: clips that a builder wrote as array_record, and Bridge as
RLDS. Each stage is killed and goes on, once straight from these files, once from stores of them.
"""

import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import real_stages

from data_pipelines.sources import base, rlds, video_clips
from data_pipelines.store import convert
from data_pipelines.tfds_builders import human_video
from defi_jax.checkpoints import manager
from tests.fixtures import films

pytestmark = pytest.mark.slow

HUMAN, ROBOT = "something_something_v2", "bridge_dataset"
NUM_CLIPS, NUM_EPISODES = 12, 12


def _write_clips(root: pathlib.Path) -> None:
    """Clips of a patch that moves, with label files as Something-Something ships them."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for number in range(NUM_CLIPS):
        picture = np.full((48, 64, 3), rng.integers(0, 255, 3), np.uint8)
        picture[8:24, 8:24] = rng.integers(0, 255, 3)
        frames = [np.roll(picture, (t, 2 * t), (0, 1)) for t in range(8 + number % 3)]
        films.write_video(root / f"{number}.mp4", frames, fps=12)
    labels = [{"id": str(i), "label": f"moving patch {i}"} for i in range(NUM_CLIPS)]
    (root / "train.json").write_text(json.dumps(labels))


@pytest.fixture
def root(tmp_path, write_rlds, rlds_tools, monkeypatch):
    """A folder with both data sets in TFDS's files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _write_clips(tmp_path / "clips")
    builder = human_video.SomethingSomethingV2(
        input_dir=tmp_path / "clips",
        data_dir=tmp_path,
        options=video_clips.ClipOptions(shorter_side=32),
        workers=base.Workers(),
        progress=False,
    )
    builder.download_and_prepare()
    robot = [rlds_tools["episode"](seed, steps=7 + seed % 4) for seed in range(NUM_EPISODES)]
    write_rlds([robot[::2], robot[1::2]])
    return tmp_path


def _convert(root: pathlib.Path) -> pathlib.Path:
    for name in (HUMAN, ROBOT):
        source = rlds.RldsSource(root / name)
        convert.convert(source, root / "stores" / name, origin={}, progress=False)
    return root / "stores"


def _run(mode, stage, directory, data_root):
    changes = {"data.root": str(data_root), "data.mixture": f"{HUMAN}:0.5,{ROBOT}:0.5"}
    changes |= {"data.stream_mib": 0}  # an episode in memory, so that positions are told apart
    script = real_stages.HERE / "real_run.py"
    env = real_stages.environment(8, CHANGES=json.dumps(changes))
    command = [sys.executable, str(script), mode, stage, str(directory)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def _train(stage, directory, data_root, then) -> str:
    """Kills a run after its checkpoint 2, then ends it; returns the log."""
    killed = _run("killed", stage, directory, data_root)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert manager.committed_steps(directory / "killed") == [2]
    ended = _run(then, stage, directory, data_root)
    assert ended.returncode == 0, ended.stderr
    lines = (directory / "killed" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert len(losses) >= 4 and np.isfinite(losses).all()
    return ended.stderr


def _document(workdir, step, name):
    return json.loads((workdir / "checkpoints" / str(step) / name / "metadata").read_text())


@pytest.mark.parametrize("stage", ["gfdm", "gidm"])
def test_stores_are_trained_from_and_resumed_bit_for_bit(stage, root):
    _train(stage, root / "runs", _convert(root), "finished")
    resumed, straight = (root / "runs" / run for run in ("killed", "straight"))
    leaves = _document(resumed, 4, "integrity")["leaves"]
    assert leaves == _document(straight, 4, "integrity")["leaves"]
    assert any("opt_state" in path for path in leaves)
    data = _document(resumed, 4, "data")
    assert data == _document(straight, 4, "data") and data["state"]["next_batch"] == 4


@pytest.mark.parametrize("stage", ["gfdm", "gidm"])
def test_files_are_streamed_and_a_killed_run_goes_on_at_its_record_positions(stage, root):
    log = _train(stage, root / "runs", root, "resumed")
    assert "a restored run goes on at its record positions" in log
    saved, ended = (_document(root / "runs" / "killed", s, "data")["state"] for s in (2, 4))
    assert saved["next_batch"] == 2 and ended["next_batch"] == 4
    assert set(saved["positions"]) == {HUMAN, ROBOT}
    for name, position in saved["positions"].items():
        # What was in the pool is passed over: another record was read since.
        assert [0, 0] < position < ended["positions"][name]
