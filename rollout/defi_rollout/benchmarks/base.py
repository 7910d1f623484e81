"""What a benchmark is: a frozen table of episodes and an environment that plays them.

Legend: A action dimension, H W image size.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from defi_rollout import spec

STANDARD = "standard"
OPPOSITE = "opposite"
EMPTY = "empty"

RESULTS = "results.json"  # in the directory of an evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the user asked to evaluate.

    Attributes:
        tasks: task names; empty for the benchmark's own list.
        episodes: episodes per task.
        seed: another seed gives other starts.
        language: whether half-way starts are played again with the opposite and no instruction.
    """

    tasks: tuple[str, ...]
    episodes: int
    seed: int
    language: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One row of the table; its id never changes meaning within a protocol version.

    Attributes:
        id: stable and unique; also the stem of its video's file name.
        task: the scene and start state.
        condition: "standard", or in the language test "opposite" or "empty".
        instruction: text given to the policy.
        seed: seed of the start.
        start: kind of start state.
        max_steps: steps until it counts as failed.
        scored_task: the task whose success is the row's.
        ends_on: tasks whose success ends the episode.
        film: whether a video is kept.
    """

    id: str
    task: str
    condition: str
    instruction: str
    seed: int
    start: str
    max_steps: int
    scored_task: str
    ends_on: tuple[str, ...]
    film: bool

    def row(self) -> dict[str, Any]:
        """Its row of the results before it is played, without "status"."""
        known = ("id", "task", "condition", "instruction", "seed", "start")
        return {
            **{name: getattr(self, name) for name in known},
            "start_digest": None,
            "start_unseen": None,
            "scored_task": self.scored_task,
            "success": False,
            "first_success": {},
            "steps": 0,
            "infer_ms_p50": None,
            "seconds": 0.0,
            "video": None,
        }


class Environment(Protocol):
    """A simulator with one task loaded."""

    def reset(self, episode: Episode) -> str:
        """Places the scene; returns a digest of the start state."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """Observation key of each camera to uint8 [H, W, 3]."""
        ...

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Executes an action, float32 [A]; returns by task whether it has succeeded so far."""
        ...

    def renderer(self) -> dict[str, Any]:
        """{"vendor", "name", "comparable"} of the renderer in use."""
        ...

    def close(self) -> None:
        """Frees the simulator."""
        ...


class Benchmark(Protocol):
    """A named, versioned protocol; picklable, because workers are processes of their own."""

    @property
    def name(self) -> str:
        """What users type."""
        ...

    @property
    def film_every(self) -> int:
        """Of how many episodes one is filmed."""
        ...

    @property
    def film_fps(self) -> float:
        """Frames a second of the films."""
        ...

    def protocol(self) -> dict[str, Any]:
        """All that fixes the numbers, as JSON, with "name" and "version"."""
        ...

    def episodes(self, plan: Plan) -> list[Episode]:
        """The episodes of `plan`, in order; UserError for unknown tasks."""
        ...

    def check(self, bundle_spec: spec.BundleSpec) -> None:
        """Raises UserError when the bundle or this machine cannot play the benchmark."""
        ...

    def check_renderer(self) -> str:
        """Draws one picture; returns which renderer did, or raises UserError."""
        ...

    def make_environment(self, task: str, bundle_spec: spec.BundleSpec) -> Environment:
        """Loads the simulator with `task`."""
        ...

    def simulator(self) -> dict[str, str]:
        """{"name", "version", "commit"} of the simulator."""
        ...


def describe_protocol(benchmark: Benchmark) -> dict[str, str]:
    """{"name", "version", "sha256"}: equal digests mean equal episodes and rules."""
    protocol = benchmark.protocol()
    text = json.dumps(protocol, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {
        "name": protocol["name"],
        "version": protocol["version"],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
