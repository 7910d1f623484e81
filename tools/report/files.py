"""The files of a run of the whole road, and what to type when one is absent.

phases.json                      seconds of each phase
data/<store>.png                 contact sheet of each episode store
gfdm/ gidm/ joint/               training workdirs
bundle/bundle.json               exported policy
evaluation/results.json          episodes in closed loop
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from defi_jax import errors
from defi_jax.training import metrics

STAGES = ("gfdm", "gidm", "joint")


class RunFiles:
    """Reads the files below a run's directory."""

    def __init__(self, root: pathlib.Path):
        self.root = root

    def phases(self) -> dict[str, float]:
        """Seconds by phase, as launch/demo.py notes them."""
        return self._json("phases.json", self._demo())

    def config(self, stage: str) -> dict[str, Any]:
        """Resolved config of a stage."""
        return self._json(f"{stage}/config.json", self._train(stage))

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """Lines of a stage's metrics, in the order of the steps."""
        return self._json(f"{stage}/{metrics.FILE}", self._train(stage), _parse_lines)

    def last_evaluation(self, stage: str) -> dict[str, Any]:
        """The last line of a stage's held-out metrics."""
        rows = [row for row in self.metrics(stage) if row["split"] == "eval"]
        if not rows:
            raise errors.UserError(
                f"stage {stage} was not evaluated",
                str(self.root / stage / metrics.FILE),
                f"let it finish: {self._train(stage)}",
            )
        return rows[-1]

    def bundle(self) -> dict[str, Any]:
        """Description of the exported policy."""
        command = f"python launch/export.py --workdir={self.root}/joint --output={self.root}/bundle"
        return self._json("bundle/bundle.json", command)

    def results(self) -> dict[str, Any]:
        """Results of the evaluation."""
        return self._json("evaluation/results.json", self._evaluate())

    def film(self, name: str) -> pathlib.Path:
        """Video of an episode, by the name its row gives it."""
        return self._need(f"evaluation/{name}", self._evaluate())

    def contact_sheet(self, store: str) -> pathlib.Path:
        """Picture of what an episode store holds."""
        sheet = f"data/{store}.png"
        command = (
            f"python launch/data.py preview --store={self.root}/data/{store} "
            f"--output={self.root / sheet}"
        )
        return self._need(sheet, command)

    def picture(self, stage: str, name: str) -> pathlib.Path:
        """The newest held-out picture of a stage."""
        folder = self.root / stage / metrics.MEDIA
        found = sorted(folder.glob(f"eval_{name}_*.png"))
        if not found:
            raise _missing(folder / f"eval_{name}_*.png", self._train(stage))
        return found[-1]

    def _json(self, name: str, command: str, parse: Callable[[str], Any] = json.loads) -> Any:
        path, fix = self._need(name, command), f"make it again: {command}"
        with errors.DataError.instead_of(ValueError, "not readable as JSON", path, fix):
            return parse(path.read_text())

    def _need(self, name: str, command: str) -> pathlib.Path:
        path = self.root / name
        if not path.is_file():
            raise _missing(path, command)
        return path

    def _demo(self) -> str:
        return f"python launch/demo.py --output={self.root}"

    def _train(self, stage: str) -> str:
        return (
            f"python launch/train.py --config=configs/{stage}.py:tiny "
            f"--workdir={self.root}/{stage}, or all phases: {self._demo()}"
        )

    def _evaluate(self) -> str:
        return (
            f"python -m defi_rollout evaluate {self.root}/bundle --benchmark=metaworld --language "
            f"--output={self.root}/evaluation"
        )


def _parse_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def _missing(path: pathlib.Path, command: str) -> errors.UserError:
    return errors.UserError("the report lacks a file", str(path), f"make it: {command}")
