"""Number-by-number comparison with the reference, on recorded fixtures.

A fixture is one safetensors file: metadata `kind`, `config` (JSON, the reference's field names) and
`source`; tensors `param/<official name>`, `in/<name>`, `out/<name>`. A kind's runner maps the
official weights through our tables, runs our module on the inputs and returns outputs in official
layouts under the fixture's names.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors

from defi_jax import errors, tensor_files
from defi_jax.weights import fields
from defi_jax.weights.parity import golden as parity_golden
from defi_jax.weights.parity import kinds, runner

# Relative L2 error that a float output in fp32 may have.
TOLERANCE = 1e-4

Arrays = runner.Arrays
Runner = Callable[[Mapping[str, Any], Arrays, Arrays], Mapping[str, np.ndarray]]

KINDS: dict[str, Runner] = dict(kinds.KINDS)

_GROUPS = ("param", "in", "out")
_GOLDEN_SUFFIX = ".npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixture:
    """One recorded module: its kind, the reference's config and state dict, tensors by name."""

    kind: str
    config: Mapping[str, Any]
    params: Arrays
    inputs: Arrays
    outputs: Arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one output agrees.

    Attributes:
        max_abs: largest absolute difference; infinite for a missing or misshapen output.
        rel_l2: L2 norm of the difference over that of the reference.
        passed: within tolerance; integer outputs must be equal.
    """

    kind: str
    output: str
    max_abs: float
    rel_l2: float
    passed: bool

    def __str__(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{self.kind} {self.output} {self.max_abs:.3e} {self.rel_l2:.3e} {verdict}"

    def to_json(self) -> dict[str, Any]:
        """The fields; JSON has no infinity and no NaN, they are null."""
        values = dataclasses.asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def check_files(
    paths: Sequence[str], report: Callable[[Comparison], None]
) -> tuple[list[Comparison], list[errors.UserError]]:
    """Checks file after file, also behind one that cannot be checked.

    Args:
        paths: files for `check_file`.
        report: called with each comparison as soon as it is there.

    Returns:
        All comparisons in order, and the errors of the files without any, which name the file.
    """
    results, failures = [], []
    for path in paths:
        try:
            found = check_file(path)
        except errors.UserError as error:
            where = error.where if path in error.where else f"{error.where} in {path}"
            failures.append(type(error)(error.what, where, error.fix))
            continue
        results += found
        for comparison in found:
            report(comparison)
    return results, failures


def check_file(path: str | pathlib.Path) -> list[Comparison]:
    """Compares our modules with a fixture (.safetensors) or with golden vectors (.npz).

    Returns:
        One comparison per recorded output, in order.

    Raises:
        UserError: no such file; unknown kind, config field or vector; a missing input.
        DataError: a damaged file, or weights that do not fit the config.
    """
    if not pathlib.Path(path).is_file():
        raise errors.UserError("no such file", str(path), "name a fixture .safetensors or .npz")
    if pathlib.Path(path).suffix != _GOLDEN_SUFFIX:
        return check(read_fixture(path))
    vectors = parity_golden.read(str(path))
    with jax.default_matmul_precision("highest"):
        outputs = parity_golden.run(vectors)
    return [
        compare(parity_golden.KIND, name, outputs[name], expected)
        for name, expected in vectors.items()
    ]


def read_fixture(path: str | pathlib.Path) -> Fixture:
    """Reads a fixture file.

    Raises:
        UserError: no such file.
        DataError: not a safetensors file of known element types, or without the metadata and groups
            of a fixture.
    """
    fix = "write it as parity fixtures are written: metadata kind, config; tensors param/ in/ out/"
    if not pathlib.Path(path).is_file():
        raise errors.UserError("no such file", str(path), "name a fixture .safetensors file")
    kinds = (safetensors.SafetensorError, OSError)
    with (
        errors.DataError.instead_of(kinds, "not a safetensors file", path, fix),
        safetensors.safe_open(path, "numpy") as file,
    ):
        metadata = file.metadata() or {}
    groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
    for name, tensor in tensor_files.SafetensorsFiles(pathlib.Path(path)).items():
        group, _, rest = name.partition("/")
        if group not in groups or not rest:
            raise errors.DataError(f"tensor {name!r} is of no group", str(path), fix)
        groups[group][rest] = tensor
    missing = [key for key in ("kind", "config") if key not in metadata]
    missing += [f"{group}/" for group in _GROUPS if not groups[group]]
    if missing:
        raise errors.DataError(f"fixture without {', '.join(missing)}", str(path), fix)
    kinds = (ValueError, RecursionError)
    with errors.DataError.instead_of(kinds, "config is not JSON", path, fix):
        config = json.loads(metadata["config"])
    return Fixture(
        kind=metadata["kind"],
        config=config,
        params=groups["param"],
        inputs=groups["in"],
        outputs=groups["out"],
    )


def check(fixture: Fixture) -> list[Comparison]:
    """Runs our module on a fixture, in fp32 with exact matrix products.

    Returns:
        One comparison per recorded output, in order.

    Raises:
        UserError: unknown kind; a config, or inputs, that are not those of the kind.
        DataError: weights that do not fit the config.
    """
    if fixture.kind not in KINDS:
        raise errors.UserError(
            f"unknown kind {fixture.kind!r}", "fixture", f"known: {', '.join(sorted(KINDS))}"
        )
    fields.check_object(fixture.config, fixture.kind)
    try:
        with jax.default_matmul_precision("highest"):
            outputs = KINDS[fixture.kind](fixture.config, fixture.params, fixture.inputs)
    # What jax and jaxtyping (whose error is a TypeError) say of shapes that only the module knows.
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise errors.UserError(
            f"the module refuses the inputs ({reason})", fixture.kind, "record the module's inputs"
        ) from error
    return [
        compare(fixture.kind, name, outputs.get(name), expected)
        for name, expected in fixture.outputs.items()
    ]


def compare(kind: str, name: str, ours: np.ndarray | None, expected: np.ndarray) -> Comparison:
    """Compares one output; a missing or misshapen one fails."""
    max_abs = rel_l2 = float("inf")
    if ours is not None and np.shape(ours) == expected.shape:
        difference = np.asarray(ours, np.float64) - np.asarray(expected, np.float64)
        scale = max(float(np.linalg.norm(np.ravel(expected).astype(np.float64))), 1e-30)
        max_abs = float(np.max(np.abs(difference), initial=0.0))
        rel_l2 = float(np.linalg.norm(np.ravel(difference))) / scale
    exact = np.issubdtype(expected.dtype, np.integer) or expected.dtype == np.bool_
    # NaN compares false, so a module that returns NaN fails.
    passed = max_abs == 0.0 if exact else rel_l2 <= TOLERANCE
    return Comparison(kind=kind, output=name, max_abs=max_abs, rel_l2=rel_l2, passed=passed)
