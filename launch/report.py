"""Shows what a run did: numbers in report.json, one self-contained page in report.html.

    python launch/report.py --run=runs/demo [--gif=docs/demo.gif]

With --gif also a moving picture below 2 MB: rollouts above what the video model imagines.
"""

import pathlib

from absl import flags

from defi_jax import cli

_RUN = flags.DEFINE_string("run", "runs/demo", "Directory that launch/demo.py wrote.")
_GIF = flags.DEFINE_string("gif", "", "Moving picture to write too.")


def main(argv: list[str]) -> None:
    """Computes the numbers from the run's files and writes all that is asked for."""
    del argv
    from tools.report import moving, writer

    root = pathlib.Path(_RUN.value)
    report = writer.write(root)
    print(f"success {report['success_rate']:.0%} of {report['episodes']} episodes")
    print(root / writer.PAGE)
    if _GIF.value:
        size = moving.write(root, pathlib.Path(_GIF.value))
        print(f"{_GIF.value}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
