"""Meshes, batches, rematerialisation and cached latents for a topology: ranked, the best compiled.

All candidates are estimated from shapes (`estimate`); the best are compiled, each in a process of
its own, whose memory goes back to the system. Every result is a line of a file, so that a search
that was interrupted goes on where it was.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from defi_jax import errors, partition
from defi_jax.models.layers import stack
from defi_jax.training import hardware, progress
from tools.plan import estimate, planner

# What is tried of a stage's keys. Joint trains small parts, which need no rematerialisation.
_SETTINGS = {
    "gfdm": {"data.latents": ("cached", ""), "model.unet.remat": stack.REMAT},
    "gidm": {"model.remat": stack.REMAT},
    "joint": {},
}
_LARGEST_TENSOR = 4
# Compiled, and shown.
_COMPILED, _ROWS = 3, 12
_ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a step.

    Attributes:
        mesh: size of each axis.
        examples: of each device (of each group of devices along `tensor`).
        settings: values of other keys.
    """

    mesh: Mapping[str, int]
    examples: int
    settings: Mapping[str, str]

    @property
    def global_batch(self) -> int:
        """Examples of a step."""
        return self.examples * self.mesh["replica"] * self.mesh["fsdp"]

    def flags(self) -> list[str]:
        """Of `launch/train.py` and `launch/plan.py`."""
        keys = {f"mesh.{axis}": size for axis, size in self.mesh.items()}
        keys |= {"global_batch": self.global_batch, **self.settings}
        return [f"--config.{key}={value}" for key, value in keys.items()]


@dataclasses.dataclass
class Found:
    """A candidate with its estimate and, where it was compiled, the plan's object."""

    candidate: Candidate
    estimate: estimate.Estimate
    fits: bool
    compiled: dict[str, Any] | None = None

    @property
    def rate(self) -> float:
        """Examples a second, by the estimate."""
        return self.candidate.global_batch / self.estimate.step_seconds


def run(config: Any, topology: str, num_slices: int, examples: Sequence[int], results: str) -> str:
    """Searches; returns the table and where the flags of the best are.

    Args:
        config: the experiment; a global batch that was given as a flag stays.
        topology: as `planner.find_devices` takes it.
        num_slices: slices of it.
        examples: numbers of examples per device that are tried.
        results: path of the file with what was compiled so far.

    Raises:
        CheckFailed: nothing fits.
        UserError: results of another search, or nothing to try.
    """
    given = sys.argv[1:]
    is_fixed = any(argument.startswith("--config.global_batch") for argument in given)
    found = rank(config, topology, num_slices, examples, config.global_batch if is_fixed else None)
    chip, _ = planner.find_devices(topology, num_slices)
    assert chip is not None
    path = pathlib.Path(results)
    compile_best(found, Results(path, {"flags": sorted(given)}), given, _COMPILED)
    winner = best(found)
    if winner is None:
        raise errors.CheckFailed(
            "no candidate fits the memory",
            f"--topology={topology}",
            "more devices, or fewer --examples_per_device",
        )
    flagfile = path.with_suffix(".flags")
    flagfile.write_text("\n".join(winner.candidate.flags()) + "\n")
    shown = table(found, chip, _ROWS)
    return f"{shown}\nbest: {' '.join(winner.candidate.flags())}\nuse it: --flagfile={flagfile}"


def candidates(
    objective: str, devices: int, num_slices: int, examples: Sequence[int]
) -> Iterator[Candidate]:
    """Every mesh of powers of two that fits the devices, with every number of examples."""
    settings = _SETTINGS[objective]
    values = [
        dict(zip(settings, chosen, strict=True)) for chosen in itertools.product(*settings.values())
    ]
    powers = [2**n for n in range(devices.bit_length())]
    for tensor, fsdp in itertools.product(powers, powers):
        replica, rest = divmod(devices, tensor * fsdp)
        if rest or replica < num_slices or replica % num_slices or tensor > _LARGEST_TENSOR:
            continue
        mesh: dict[str, int] = dict(zip(partition.AXES, (replica, fsdp, tensor), strict=True))
        for one, each in itertools.product(examples, values):
            yield Candidate(mesh, one, each)


def rank(
    config: Any,
    topology: str,
    num_slices: int,
    examples: Sequence[int],
    global_batch: int | None = None,
) -> list[Found]:
    """All candidates, those that fit first, the fastest first.

    Args:
        config: the experiment; what a candidate sets is replaced.
        topology: as `planner.find_devices` takes it.
        num_slices: slices of it.
        examples: numbers of examples per device that are tried.
        global_batch: the only one that is tried; None for all that come out.

    Raises:
        UserError: a topology that has no figures, or no candidate.
    """
    chip, devices = planner.find_devices(topology, num_slices)
    if chip is None:
        raise errors.UserError(
            f"{topology} has no figures to rank by", "--topology", "give a TPU's, as v5e:8x8"
        )
    tried = [
        candidate
        for candidate in candidates(config.objective, len(devices), num_slices, examples)
        if global_batch in (None, candidate.global_batch)
    ]
    if not tried:
        raise errors.UserError(
            f"no mesh of {len(devices)} devices gives a global batch of {global_batch}",
            "--examples_per_device",
            "add numbers, or leave --config.global_batch out",
        )
    models, found = {}, []
    for candidate in tried:
        key = tuple(candidate.settings.items())
        if key not in models:
            models[key] = _model(config, candidate.settings)
        guess = models[key].estimate(chip, candidate.mesh, candidate.examples, num_slices)
        found.append(Found(candidate, guess, guess.hbm_bytes <= chip.hbm_bytes))
    return sorted(found, key=lambda one: (not one.fits, -one.rate))


def _model(config: Any, settings: Mapping[str, str]) -> estimate.Model:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(dict(settings))
    return estimate.Model(config, progress.model_flops(config).total)


class Results:
    """A search's file: a first line that says what was searched, then a compiled plan a line."""

    def __init__(self, path: pathlib.Path, what: Mapping[str, Any]):
        self._path = path
        text = json.dumps(what, sort_keys=True, default=str)
        self._head = {"search": hashlib.sha256(text.encode()).hexdigest()}
        self.compiled: dict[str, dict[str, Any]] = {}
        lines = path.read_text().splitlines() if path.exists() else []
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._head) + "\n")
            return
        if _line(lines[0]) != self._head:
            raise errors.UserError(
                "the results are of another search", str(path), "delete them, or give --results"
            )
        whole = [line for line in lines[1:] if _line(line) is not None]
        if len(whole) < len(lines) - 1:  # the last was cut
            path.write_text("\n".join([lines[0], *whole]) + "\n")
        self.compiled = {_line(line)["flags"]: _line(line)["plan"] for line in whole}

    def add(self, candidate: Candidate, plan: dict[str, Any]) -> None:
        """Writes one compiled plan."""
        flags = " ".join(candidate.flags())
        self.compiled[flags] = plan
        with self._path.open("a") as file:
            file.write(json.dumps({"flags": flags, "plan": plan}) + "\n")


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def compile_best(
    found: Sequence[Found], results: Results, arguments: Sequence[str], count: int
) -> None:
    """Compiles from the top until `count` fit, at most twice as many; fills in `compiled`.

    Args:
        found: ranked.
        results: has what was compiled before.
        arguments: flags of `launch/plan.py` that hold for all; those of a candidate follow and win.
        count: how many are wanted.
    """
    left, tries = count, 2 * count
    for one in found:
        if not left or not tries or not one.fits:
            return
        flags = one.candidate.flags()
        if " ".join(flags) not in results.compiled:
            print(f"compiling {' '.join(flags)}", file=sys.stderr, flush=True)
            results.add(one.candidate, _compile([*arguments, *flags]))
        one.compiled = results.compiled[" ".join(flags)]
        tries -= 1
        left -= bool(one.compiled["fits"])


def _compile(arguments: Sequence[str]) -> dict[str, Any]:
    command = [
        sys.executable,
        str(_ROOT / "launch" / "plan.py"),
        *arguments,
        "--nosearch",
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise errors.CheckFailed(
            f"the compiler ended with {done.returncode}",
            " ".join(arguments),
            "its last lines are above; run it again to go on with the search",
        ) from None


def best(found: Sequence[Found]) -> Found | None:
    """The fastest of those that were compiled and fit."""
    compiled = [one for one in found if one.compiled and one.compiled["fits"]]
    return max(
        compiled,
        key=lambda one: one.candidate.global_batch / one.compiled["predicted_step_seconds"],  # type: ignore[index]
        default=None,
    )


def table(found: Sequence[Found], chip: hardware.Chip, rows: int) -> str:
    """The first candidates, estimate beside compiled."""
    lines = [
        f"{'mesh':>14} {'batch':>6} {'memory, GiB':>13} {'step, s':>16} {'MFU':>13}  other keys",
        f"{'r x f x t':>14} {'':>6} {'est. / comp.':>13} {'est. / comp.':>16} {'est. / comp.':>13}",
    ]
    for one in [each for i, each in enumerate(found) if i < rows or each.compiled]:
        sizes = "x".join(str(one.candidate.mesh[axis]) for axis in partition.AXES)
        compiled = one.compiled or {}
        memory, seconds, mfu = (
            compiled.get(key)
            for key in ("hbm_bytes_per_device", "predicted_step_seconds", "predicted_mfu")
        )
        keys = " ".join(f"{key}={value}" for key, value in one.candidate.settings.items())
        pairs = [
            (one.estimate.hbm_bytes / 2**30, memory and memory / 2**30, ".1f"),
            (one.estimate.step_seconds, seconds, ".4f"),
            (one.estimate.mfu, mfu, ".1%"),
        ]
        cells = [f"{guess:{form}} / {_or_dash(exact, form)}" for guess, exact, form in pairs]
        fits = one.fits and compiled.get("fits") is not False
        lines.append(
            f"{sizes:>14} {one.candidate.global_batch:>6} {cells[0]:>13} {cells[1]:>16}"
            f" {cells[2]:>13}  {keys}{'' if fits else '  does not fit'}"
        )
    lines.append(f"memory of a device: {chip.hbm_bytes / 2**30:.0f} GiB")
    return "\n".join(lines)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
