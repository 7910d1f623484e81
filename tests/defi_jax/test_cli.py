import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# As a launch script, whose output is larger than any buffer or smaller.
_SCRIPT = """
import sys
from defi_jax import cli, errors

def main(argv):
    print("x" * int(argv[1]))
    if len(argv) > 2:
        raise errors.CheckFailed("no", "here", "nothing")

cli.run(main)
"""


@pytest.mark.parametrize(
    ("size", "more", "code", "said"),
    [
        ("10", [], 0, ""),
        ("10", ["fail"], 1, "error: no: here; nothing\n"),
        ("1000000", [], 141, ""),
        ("--help", [], 1, ""),
    ],
)
def test_reader_that_stops_reading_ends_a_command_quietly(size, more, code, said):
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, size, *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == said
    assert process.wait() == code
