"""Shell blocks of README.md and docs/ are run as they stand, in order, at reduced size.

A block is run, unless a comment just before it gives a reason: `<!-- not run: needs a TPU -->`, or
`<!-- run by .ci/run -->`. What is made smaller is written in `SMALLER`, so a block cannot drift.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow
import pytest
import real_policies
from pyarrow import parquet

from tests.data_pipelines.open_x import example_dataset
from tests.fixtures import films

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
STAGE = "tests/defi_jax/training/real_stages.py"  # the real stages, shrunk

# Document -> what it says and what is typed instead.
SMALLER = {
    "README.md": {
        "configs/gfdm.py:tiny": f"{STAGE}:gfdm",
        "configs/gidm.py:tiny": f"{STAGE}:gidm",
        "configs/joint.py:tiny": f"{STAGE}:joint",
        "configs/gfdm.py ": f"{STAGE}:gfdm ",
        "--config.steps=100": "--config.steps=2",
        ",button-press-topdown-v3,window-open-v3,window-close-v3": "",
        "--episodes=50": "--episodes=2",
        "--benchmark=metaworld": "--benchmark=metaworld --episodes=1",
        "--config.data.mixture=bridge ": "--config.data.mixture=metaworld ",
        "--config.weights.svd_vae=W/vae --config.weights.clip_text=W/clip": "",
        "--steps=10": "--steps=2",
    },
    "docs/benchmarks.md": {
        "configs/gidm.py:small": f"{STAGE}:gidm",
        "configs/joint.py:tiny": f"{STAGE}:joint",
        "--store=DATA/rt1": "--store=runs/data/metaworld",
        "=DATA": "=runs/data",
        "mixture=rt1": "mixture=metaworld",
        "image_size=224": "image_size=16",
        "--copies=100": "--copies=2",
        "--seconds=8": "--seconds=1",
        "--seconds=20": "--seconds=1",
        "--rounds=3": "--rounds=1",
        "--workdir=W": "--workdir=runs/other",
        "init.gfdm=G": "init.gfdm=runs/gfdm",
    },
    "docs/serving.md": {"--steps=20": "--steps=3"},
    "docs/evaluation.md": {
        "--episodes=2": "--episodes=1",
        "--steps=10": "--steps=2",
    },
    "docs/open_x.md": {
        "configs/gidm.py:tiny": f"{STAGE}:gidm",
        "configs/gidm.py ": f"{STAGE}:gidm ",
    },
}

_COMMANDS = "python|make|git|pip|bash|cd|tfds|export"
_SHELL = re.compile(rf"(?:\$ )?(?:[A-Z_]+=\S* ?)*(?:{_COMMANDS})\b|[A-Z_]+=\S+$", re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")  # first line of a Python block that is a file of one's own
_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
_BY_CI = "<!-- run by .ci/run -->"


@dataclasses.dataclass(frozen=True)
class Block:
    document: str
    line: int
    text: str
    comment: str  # just before it, "" where there is none
    language: str  # of a fence

    @property
    def is_shell(self) -> bool:
        return self.language in ("sh", "bash", "shell", "console") or bool(_SHELL.match(self.text))

    @property
    def is_python(self) -> bool:
        return self.language == "python" or bool(re.match(r"(from|import) \w", self.text))

    @property
    def is_run(self) -> bool:
        return not self.comment and (self.is_shell or self.is_python)


def blocks(document: str, text: str) -> list[Block]:
    """Returns the fenced blocks and those indented by four blanks after an empty line."""
    found, lines, number, comment = [], text.splitlines(), 0, ""
    while number < len(lines):
        line, start = lines[number], number
        if line.startswith("```"):
            number = lines.index("```", number + 1)
            content, language = lines[start + 1 : number], line[3:].strip()
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number + 1 < len(lines) and re.match(r"    |$", lines[number + 1]):
                number += 1
            content, language = [row[4:] for row in lines[start : number + 1]], ""
        else:
            number += 1
            comment = line if line.strip() else comment
            continue
        before = comment if comment.startswith("<!-- ") else ""
        found.append(Block(document, start + 1, "\n".join(content).strip(), before, language))
        number, comment = number + 1, ""
    return found


ALL = [b for name in DOCUMENTS for b in blocks(name, (ROOT / name).read_text())]


@pytest.mark.parametrize("block", [b for b in ALL if b.is_shell or b.is_python], ids=str)
def test_every_block_is_run_or_says_why_not(block):
    if block.comment == _BY_CI:
        script = (ROOT / ".ci" / "run").read_text()
        targets = re.findall(r"\bmake ([a-z-]+)", block.text)
        assert targets, "only targets of make are run there"
        for target in targets:
            assert f"make {target}" in script, f".ci/run does not run `make {target}`"
    elif block.is_run:
        assert block.document in SMALLER, "make it smaller in SMALLER, or say why not"
    else:
        assert _NOT_RUN.fullmatch(block.comment), block.comment


@pytest.mark.parametrize("document", SMALLER)
def test_what_is_made_smaller_is_there(document):
    text = "\n".join(b.text for b in ALL if b.document == document and b.is_run)
    assert [words for words in SMALLER[document] if words not in text] == []


def test_blocks_are_found_with_their_comments():
    text = "a\n\n    make demo\n    more\n\n<!-- not run: no -->\n\n    X=1 python x\n"
    text += "\n```\nfrom a\n```\n"
    found = blocks("d", text)
    assert [(b.line, b.text, b.comment) for b in found] == [
        (3, "make demo\nmore", ""),
        (8, "X=1 python x", "<!-- not run: no -->"),
        (10, "from a", ""),
    ]
    assert [b.is_shell for b in found] == [True, True, False]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, rlds_writer, rlds_tools):
    """A directory like the repository's root, in which the README was typed from top to bottom."""
    directory = tmp_path_factory.mktemp("typed")
    for path in ROOT.iterdir():
        if path.name not in ("runs", "build") and not path.name.startswith("."):
            (directory / path.name).symlink_to(path)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(image).save(directory / "scene.png")
    episodes = [rlds_tools["episode"](seed) for seed in range(12)]
    rlds_writer(directory / "raw")([episodes[:6], episodes[6:]])
    _write_lerobot(directory / "raw" / "my_robot")
    example_dataset.write(directory / "raw", num_episodes=12)
    bundle = real_policies.shared_run(tmp_path_factory) / "bundle"
    shutil.copytree(bundle, directory / "runs" / "demo" / "bundle")
    _type(directory, "README.md")
    return directory


def _write_lerobot(root: pathlib.Path, episodes: int = 6, length: int = 40) -> None:
    """A LeRobot data set of version 2.1: one camera, seven joints, a square that moves."""
    place = "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    camera = "observation.images.top"
    number = {"dtype": "float32", "shape": [7], "names": None}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "my_robot",
        "total_episodes": episodes,
        "total_frames": episodes * length,
        "chunks_size": 1000,
        "fps": 20,
        "splits": {"train": f"0:{episodes}"},
        "data_path": f"data/{place}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": {
            camera: {"dtype": "video", "shape": [48, 64, 3], "info": {}},
            "action": number,
            "observation.state": number,
        },
    }
    for folder in ("meta", "data/chunk-000", f"videos/chunk-000/{camera}"):
        (root / folder).mkdir(parents=True)
    rows = [{"episode_index": i, "tasks": ["push"], "length": length} for i in range(episodes)]
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push"}))
    rng, times = np.random.default_rng(0), np.arange(length)
    for episode in range(episodes):
        motion = rng.standard_normal((length, 7)).astype(np.float32)
        columns = {
            "action": list(motion),
            "observation.state": list(np.cumsum(motion, axis=0)),
            "timestamp": (times / 20).astype(np.float32),
            "frame_index": times,
            "episode_index": np.full(length, episode),
            "index": episode * length + times,
            "task_index": np.zeros(length, int),
        }
        name = f"chunk-000/episode_{episode:06d}"
        parquet.write_table(pyarrow.table(columns), root / "data" / f"{name}.parquet")
        frames = np.full((length, 48, 64, 3), 90, np.uint8)
        for time in times:
            frames[time, 10:20, time : time + 10] = 230
        film = root / "videos" / "chunk-000" / camera / f"episode_{episode:06d}.mp4"
        films.write_video(film, list(frames), fps=20)


def _type(directory: pathlib.Path, document: str) -> None:
    """Types a document's blocks; stops at the first that fails."""
    environment = os.environ | {
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}:{ROOT / 'tests/defi_jax/training'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "HOME": str(directory),
    }
    for block in ALL:
        if (
            block.document != document
            or not block.is_run
            or not (block.is_shell or block.is_python)
        ):
            continue
        text = block.text
        for words, instead in SMALLER[document].items():
            text = text.replace(words, instead)
        command = ["bash", "-euo", "pipefail", "-c", text]
        if block.is_python:
            picture = "import numpy; image = numpy.zeros((64, 64, 3), numpy.uint8)\n"
            command = [sys.executable, "-c", picture + text]
            if name := _FILE.match(text):
                (directory / name[1]).write_text(text)
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        said = f"{document}:{block.line}\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, said


@pytest.mark.slow
def test_readme_runs_as_it_stands(sandbox):
    assert (sandbox / "runs" / "bundle" / "bundle.json").exists()
    assert (sandbox / "runs" / "evaluation" / "results.json").exists()
    assert (sandbox / "runs" / "future" / "future.mp4").exists()
    assert (sandbox / "runs" / "mine" / "bundle" / "bundle.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in SMALLER if name != "README.md"])
def test_documents_run_as_they_stand(sandbox, document):
    _type(sandbox, document)
