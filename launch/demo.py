"""The whole road on a laptop: demonstrations, GFDM, GIDM, joint finetune, bundle, rollouts, report.

    python launch/demo.py --output=runs/demo [--video=DIR,DIR]

Runs the commands of the README one after the other and notes the time of each phase. Started again,
it continues where it was stopped.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

from absl import flags

from defi_jax import cli, errors

_OUTPUT = flags.DEFINE_string("output", "runs/demo", "Directory of the demo's files.")
_VIDEO = flags.DEFINE_list("video", [], "Folders of video or RLDS to mix in without actions.")
_SETUP = flags.DEFINE_string("setup", ".venv/setup.json", "Where the installation noted its time.")

_TASKS = "drawer-open-v3,drawer-close-v3,button-press-topdown-v3,window-open-v3,window-close-v3"
_OTHER_TASKS = "door-open-v3,faucet-open-v3,handle-press-v3,plate-slide-v3,reach-v3,push-v3"


def _convert_video(folder: str, output: str, name: str) -> str:
    is_rlds = any(pathlib.Path(folder).glob("**/*.tfrecord-*"))
    kind = "rlds" if is_rlds else "human_video"
    return f"launch/data.py convert --source={kind} --input={folder} --output={output}/data/{name}"


def _phases(out: str, videos: list[str]) -> dict[str, list[str]]:
    """Returns the commands of each phase, without the leading `python`."""
    names = {pathlib.Path(folder).name: folder for folder in videos}
    collect = "launch/data.py convert --source=metaworld --image_size=64"
    clips = [_convert_video(folder, out, name) for name, folder in names.items()] or [
        f"{collect} --tasks={_OTHER_TASKS} --episodes=6 --strip_actions "
        f"--output={out}/data/metaworld_video"
    ]
    stores = ["metaworld", *(names or ["metaworld_video"])]
    share = 0.3 / (len(stores) - 1)
    mixed = "--config.data.mixture=metaworld:0.7," + ",".join(
        f"{name}:{share:.3f}" for name in stores[1:]
    )
    data = f"--config.data.root={out}/data"
    train = "launch/train.py --config=configs"
    return {
        "collect": [
            f"{collect} --tasks={_TASKS} --episodes=50 --output={out}/data/metaworld",
            *clips,
            *(
                f"launch/data.py preview --store={out}/data/{n} --output={out}/data/{n}.png"
                for n in stores
            ),
        ],
        "gfdm": [f"{train}/gfdm.py:tiny --workdir={out}/gfdm {data} {mixed}"],
        "gidm": [f"{train}/gidm.py:tiny --workdir={out}/gidm {data} {mixed}"],
        "joint": [
            f"{train}/joint.py:tiny --workdir={out}/joint {data} --config.data.mixture=metaworld "
            f"--config.init.gfdm={out}/gfdm --config.init.gidm={out}/gidm"
        ],
        "export": [f"launch/export.py --workdir={out}/joint --output={out}/bundle --overwrite"],
        "evaluate": [
            f"-m defi_rollout evaluate {out}/bundle --benchmark=metaworld --tasks={_TASKS} "
            f"--episodes=20 --language --resume --output={out}/evaluation"
        ],
        "report": [f"launch/report.py --run={out}"],
    }


def main(argv: list[str]) -> None:
    """Runs the phases that are not done yet."""
    del argv
    out = pathlib.Path(_OUTPUT.value)
    out.mkdir(parents=True, exist_ok=True)
    notes = out / "phases.json"
    seconds = json.loads(notes.read_text()) if notes.exists() else {}
    if "setup" not in seconds and os.path.exists(_SETUP.value):
        seconds["setup"] = json.loads(pathlib.Path(_SETUP.value).read_text())["setup_seconds"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out.resolve() / "xla")}  # shared by all phases
    for name, commands in _phases(str(out), _VIDEO.value).items():
        if name in seconds and name != "report":
            continue
        start = time.monotonic()
        for command in commands:
            print(f"\n[{name}] python {command}", file=sys.stderr, flush=True)
            done = subprocess.run(
                [sys.executable, *shlex.split(command)], check=False, env=os.environ | cache
            )
            if done.returncode:
                raise errors.CheckFailed(
                    f"phase {name} ended with exit code {done.returncode}", f"python {command}",
                    "mend what it says above and run this again: finished phases are kept",
                )  # fmt: skip
        seconds[name] = round(time.monotonic() - start, 1)
        notes.write_text(json.dumps(seconds, indent=1) + "\n")
    print(f"done: {out}/report.html", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
