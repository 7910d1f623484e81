"""The phases of the demo, as the commands of the README, and their run with a note of the time.

A phase that is noted in `phases.json` is not run again, so a stopped demo continues.
"""

import dataclasses
import json
import logging
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from defi_jax import errors

TASKS = "drawer-open-v3,drawer-close-v3,button-press-topdown-v3,window-open-v3,window-close-v3"
OTHER_TASKS = "door-open-v3,faucet-open-v3,handle-press-v3,plate-slide-v3,reach-v3,push-v3"
VIDEO_SHARE = 0.3  # of the samples of both pretraining stages

_STORE, _SIMULATED_VIDEO = "metaworld", "metaworld_video"
_NOTES, _SETTINGS = "phases.json", "demo.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything; less than the defaults shows the road, not the result.

    Attributes:
        episodes: demonstrations of each task.
        rollouts: episodes played of each task.
        steps: steps of each training stage; None for the preset's.
    """

    episodes: int = 50
    rollouts: int = 20
    steps: int | None = None


def video_stores(folders: Sequence[str]) -> dict[str, str]:
    """Returns the store's name of each folder of clips.

    Raises:
        UserError: a folder is absent, or two would become one store.
    """
    names: dict[str, str] = {}
    for folder in folders:
        path = pathlib.Path(folder)
        if not path.is_dir():
            raise errors.UserError(
                "no such folder of videos", folder, "check DEMO_VIDEO=DIR[,DIR] (--video)"
            )
        name = re.sub(r"[^\w.-]", "_", path.resolve().name)
        if name in names or name in (_STORE, _SIMULATED_VIDEO):
            raise errors.UserError(
                f"a store named {name} is there already", folder, "rename or link the folder"
            )
        names[name] = folder
    return names


def phases(out: str, videos: Mapping[str, str], size: Size) -> dict[str, list[list[str]]]:
    """Returns the commands of each phase below `out`, without the leading `python`.

    `videos` are folders of clips by store name; none for simulated video of other tasks.
    """
    out = shlex.quote(out)
    data = f"{out}/data"
    collect = "launch/data.py convert --source=metaworld --image_size=64"
    convert = [_convert_video(folder, f"{data}/{name}") for name, folder in videos.items()]
    action_free = list(videos) or [_SIMULATED_VIDEO]
    if not videos:
        episodes = min(6, size.episodes)
        options = f"--tasks={OTHER_TASKS} --episodes={episodes} --strip_actions"
        convert = [f"{collect} {options} --output={data}/{_SIMULATED_VIDEO}"]
    share = VIDEO_SHARE / len(action_free)
    mixture = [f"{_STORE}:{1 - VIDEO_SHARE:.3f}", *(f"{name}:{share:.3f}" for name in action_free)]
    mixed = f"--config.data.mixture={','.join(mixture)}"
    pretrained = f"--config.init.gfdm={out}/gfdm --config.init.gidm={out}/gidm"
    lines = {
        "collect": [
            *convert,  # first: a folder that cannot be used is known at once
            f"{collect} --tasks={TASKS} --episodes={size.episodes} --output={data}/{_STORE}",
            *(
                f"launch/data.py preview --store={data}/{name} --output={data}/{name}.png"
                for name in (_STORE, *action_free)
            ),
        ],
        "gfdm": [_train("gfdm", out, size, mixed)],
        "gidm": [_train("gidm", out, size, mixed)],
        "joint": [_train("joint", out, size, f"--config.data.mixture={_STORE} {pretrained}")],
        "export": [f"launch/export.py --workdir={out}/joint --output={out}/bundle --overwrite"],
        "evaluate": [
            f"-m defi_rollout evaluate {out}/bundle --benchmark=metaworld --tasks={TASKS} "
            f"--episodes={size.rollouts} --language --resume --output={out}/evaluation"
        ],
        "report": [f"launch/report.py --run={out}"],
    }
    return {phase: [shlex.split(line) for line in own] for phase, own in lines.items()}


def _convert_video(folder: str, output: str) -> str:
    is_rlds = any(pathlib.Path(folder).glob("**/*.tfrecord-*"))
    source = f"--source={'rlds' if is_rlds else 'human_video'} {shlex.quote(f'--input={folder}')}"
    return f"launch/data.py convert {source} --strip_actions --output={output}"


def _train(stage: str, out: str, size: Size, more: str) -> str:
    steps = "" if size.steps is None else f"--config.steps={size.steps}"
    config = f"--config=configs/{stage}.py:tiny --workdir={out}/{stage}"
    return f"launch/train.py {config} --config.data.root={out}/data {steps} {more}"


def claim(out: pathlib.Path, videos: Mapping[str, str], size: Size) -> None:
    """Makes the demo's directory and notes its settings.

    Raises:
        UserError: a phase was finished with other settings, which would not fit the rest.
    """
    settings = json.dumps({**dataclasses.asdict(size), "videos": sorted(videos)}) + "\n"
    noted = out / _SETTINGS
    is_begun = (out / _NOTES).exists() and noted.exists()
    if is_begun and noted.read_text() != settings:
        raise errors.UserError(
            f"the demo was begun with {noted.read_text().strip()}, not {settings.strip()}",
            out,
            "repeat those, or choose another --output (make demo RUN=...)",
        )
    out.mkdir(parents=True, exist_ok=True)
    noted.write_text(settings)


def run(out: pathlib.Path, commands: Mapping[str, list[list[str]]], setup: pathlib.Path) -> None:
    """Runs the phases that are not done yet, and always the last.

    The installation may have noted its time in `setup`.

    Raises:
        SystemExit: a phase failed, with its exit code; its own error is on stderr already.
    """
    notes = out / _NOTES
    seconds = json.loads(notes.read_text()) if notes.exists() else {}
    if "setup" not in seconds and setup.exists():
        seconds["setup"] = json.loads(setup.read_text())["setup_seconds"]
    *_, last = commands
    for name, lines in commands.items():
        if name in seconds and name != last:
            continue
        start = time.monotonic()
        for line in lines:
            _run_command(name, line, cache=out.resolve() / "xla")
        seconds[name] = round(time.monotonic() - start, 1)
        notes.write_text(json.dumps(seconds, indent=1) + "\n")


def _run_command(phase: str, arguments: list[str], cache: pathlib.Path) -> None:
    """Runs one command; compiled programs go to a cache that all phases share."""
    text = f"python {shlex.join(arguments)}"
    logging.info("[%s] %s", phase, text)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, *arguments], check=False, env=environment)
    if done.returncode:
        logging.info(
            "phase %s ended with exit code %d: mend what it says above and run this again, "
            "finished phases are kept",
            phase,
            done.returncode,
        )
        raise SystemExit(done.returncode)
