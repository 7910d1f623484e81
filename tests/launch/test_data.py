import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.store import writer as store_writer
from tests.fixtures import films

ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch/data.py", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def store(tmp_path):
    image = image_lib.encode_png(np.full((16, 16, 3), 90, np.uint8))
    episode = episodes.Episode(
        episode_id="a",
        source="s",
        embodiment="human",
        instructions=("öffne",),
        frames={"static": [image] * 3},
        actions=None,
        states=None,
        fps=5.0,
    )
    with store_writer.EpisodeWriter(tmp_path / "s", source="s") as writer:
        writer.write(episode)
    return tmp_path / "s"


def test_json_is_exactly_one_object_on_stdout(store):
    done = _run("list", f"--root={store.parent}", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["stores"][0]["frames"] == 3


def test_validate_says_no_by_exit_code(store):
    assert _run("validate", f"--store={store}").returncode == 0
    (store / "manifest.json").write_text('{"complete": false}')
    done = _run("validate", f"--store={store}")
    assert done.returncode == 1
    assert "[incomplete]" in done.stdout and "error: 1 error" in done.stderr


def test_bad_input_is_one_line_and_an_exit_code(tmp_path):
    done = _run("convert", "--source=rlds", f"--input={tmp_path}/no", f"--output={tmp_path}/o")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip().startswith("error: no such RLDS directory")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_the_command_converts_in_workers_and_says_what_it_refused(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(3):
        image = np.full((48, 64, 3), 60 * number, np.uint8)
        films.write_video(folder / f"{number}.mp4", [image] * 4, fps=10)
    (folder / "list.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    captions = {f"{number}.mp4": "push" for number in range(3)} | {"list.mp4": "pull"}
    (folder / "captions.json").write_text(json.dumps(captions))
    flags = ("--source=human_video", f"--input={folder}", f"--output={tmp_path / 'store'}")
    done = _run("convert", *flags, "--workers=2", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["episodes"], manifest["frames"]) == (3, 12)
    assert [reject["item"] for reject in manifest["rejected"]] == [str(folder / "list.mp4")]
    other = _run("convert", *flags, "--sample_fps=5")
    assert other.returncode == 2 and "another origin" in other.stderr
    unknown = _run("convert", "--source=humanvideo", f"--input={folder}", "--output=x")
    assert unknown.returncode == 2 and "did you mean human_video" in unknown.stderr
