"""Writes report.json and report.html of a run."""

import json
import logging
import pathlib
import time
from typing import Any

from defi_rollout import files as rollout_files

from defi_jax import errors
from tools.report import files as files_lib
from tools.report import numbers, page, pictures

NUMBERS, PAGE = "report.json", "report.html"


def write(root: pathlib.Path) -> dict[str, Any]:
    """Writes both files of the run below `root`, or neither; returns the content of report.json.

    Raises:
        UserError: a file of a phase is missing; the text says what makes it.
        DataError: a file is damaged.
    """
    start = time.monotonic()
    if not root.is_dir():
        raise errors.UserError(
            "no such run", str(root), f"make it: python launch/demo.py --output={root}"
        )
    files = files_lib.RunFiles(root)
    report = numbers.compute(files)
    images = pictures.collect(files, report)
    phases = report["phase_seconds"]
    phases["report"] = round(time.monotonic() - start, 1)
    report["total_seconds"] = round(sum(s for s in phases.values() if s is not None), 1)
    text = page.render(report, images)
    rollout_files.write(root / NUMBERS, json.dumps(report, indent=1, allow_nan=False) + "\n")
    rollout_files.write(root / PAGE, text)
    logging.info("%s: %.1f MB", root / PAGE, len(text) / 1e6)
    return report
