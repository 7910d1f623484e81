"""The whole road on a laptop: demonstrations, GFDM, GIDM, joint finetune, bundle, rollouts, report.

    python launch/demo.py --output=runs/demo [--video=DIR,DIR]

Runs the commands of the README one after the other and notes the time of each phase. Started again,
it continues where it was stopped. To see the road in minutes, without a useful policy:
--episodes=10 --steps=20 --rollouts=1
"""

import pathlib
import sys

from absl import flags

from defi_jax import cli
from tools import demo

_SIZE = demo.Size()
_OUTPUT = flags.DEFINE_string("output", "runs/demo", "Directory of the demo's files.")
_VIDEO = flags.DEFINE_list("video", [], "Folders of video or RLDS to mix in without actions.")
_SETUP = flags.DEFINE_string("setup", ".venv/setup.json", "Where the installation noted its time.")
_EPISODES = flags.DEFINE_integer("episodes", _SIZE.episodes, "Demonstrations a task.", 1)
_ROLLOUTS = flags.DEFINE_integer("rollouts", _SIZE.rollouts, "Episodes played a task.", 1)
_STEPS = flags.DEFINE_integer("steps", _SIZE.steps, "Training steps a stage; the preset's.", 1)


def main(argv: list[str]) -> None:
    """Runs the phases that are not done yet."""
    del argv
    size = demo.Size(episodes=_EPISODES.value, rollouts=_ROLLOUTS.value, steps=_STEPS.value)
    videos = demo.video_stores(_VIDEO.value)
    commands = demo.phases(_OUTPUT.value, videos, size)
    out = pathlib.Path(_OUTPUT.value)
    demo.claim(out, videos, size)
    demo.run(out, commands, pathlib.Path(_SETUP.value))
    print(f"done: {_OUTPUT.value}/report.html", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
