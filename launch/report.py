"""Shows what a run did: numbers in report.json, one self-contained page in report.html.

python launch/report.py --run=runs/demo
"""

import pathlib

from absl import flags

from defi_jax import cli

_RUN = flags.DEFINE_string("run", "runs/demo", "Directory that launch/demo.py wrote.")


def main(argv: list[str]) -> None:
    """Computes the numbers from the run's files and writes both."""
    del argv
    from tools.report import writer

    report = writer.write(pathlib.Path(_RUN.value))
    print(f"success {report['success_rate']:.0%} of {report['episodes']} episodes")
    print(pathlib.Path(_RUN.value) / writer.PAGE)


if __name__ == "__main__":
    cli.run(main)
