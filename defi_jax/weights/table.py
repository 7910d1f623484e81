"""Weight tables: one list of (ours, theirs, layout change) that is read in both directions.

An `Entry` says that the parameter at the flattened path `ours` (levels joined by "/") is the tensor
the reference calls `theirs` (levels joined by "."), up to a change of memory layout. Three cases go
beyond one to one:

- `layer`: ours is a stack of equal blocks; the tensor is slice `layer` of its leading axis.
- `part = (i, n)`: theirs is a packed tensor; ours is the i-th of n equal pieces of its first axis.
- two entries with the same `ours` and `layer`: the reference stores one tensor under two names
  (tied). Either name may be missing in a file; if both are there they must be bit-equal. Export
  writes both.

`Names` makes the list from a model's parameters and the levels whose names differ. Whatever a
source holds beyond the table must match a `dropped` pattern, which carries its reason; everything
else is an error that lists every offending name.

Both directions are planned first, on names and shapes alone, and then run tensor by tensor:
`plan_import` and `plan_export`. `import_params` and `export_params` do it at once, in memory.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from defi_jax import errors, tensor_files
from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib
from defi_jax.weights import layouts

TensorSpec = tensor_files.TensorSpec

Dropped = Sequence[tuple[str, str]]

# Element types that float32 holds to the last bit; whole numbers would be quantised weights.
_FLOATS = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))

# PyTorch's names of our leaves, and the layouts of kernels by their number of axes.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_KERNELS = {2: "linear", 3: "conv3d_time", 4: "conv2d", 5: "conv3d"}
# Projections that the reference packs into one tensor, in its order.
QKV = ("to_q", "to_k", "to_v")


class Entry(NamedTuple):
    """One row of a weight table.

    Attributes:
        ours: flattened path of our parameter, e.g. "down_blocks/0/resnets/0/conv1/kernel".
        theirs: name of the reference tensor, e.g. "down_blocks.0.resnets.0.conv1.weight".
        layout: key of `layouts.LAYOUTS`.
        layer: index on the leading axis of ours, for stacked blocks; None when ours is not stacked.
        part: (index, count) when ours is one of `count` equal pieces of the first axis of theirs.
    """

    ours: str
    theirs: str
    layout: str = "same"
    layer: int | None = None
    part: tuple[int, int] | None = None

    @property
    def selection(self) -> Any:
        """What of the parameter at `ours` the tensor is."""
        return ... if self.layer is None else self.layer


class Names(NamedTuple):
    """The table of a module by rule: levels of our paths that the reference calls otherwise.

    Levels that are not named keep their name. The layout follows from the kind of a leaf and its
    number of axes. Projections with one name in common are pieces of one tensor (`QKV`).

    Attributes:
        levels: one or more levels of ours ("mlp/fc1") to theirs ("mlp.c_fc"), the longest first. A
            "{}" in theirs is the index of a stacked block; "" leaves the level out.
        layouts: last levels of a path to its layout, where it is another.
        tied: path of ours to a second name of theirs.
    """

    levels: Mapping[str, str]
    layouts: Mapping[str, str] = types.MappingProxyType({})
    tied: Mapping[str, str] = types.MappingProxyType({})

    def __call__(
        self, params: Params, config: Any = None, official: Iterable[str] = ()
    ) -> list[Entry]:
        """Returns the rows of a module's parameters, abstract or not.

        Args:
            params: of the module.
            config: of the module; tables may refuse what the reference does not have.
            official: names found in a release, for tables that differ by release.
        """
        del config, official
        flat = params_lib.flatten(params)
        theirs = {path: self._name(path) for path in flat}
        sharing = collections.Counter(theirs.values())
        rows = []
        for path, leaf in flat.items():
            is_packed = sharing[theirs[path]] > 1
            part = (QKV.index(path.split("/")[-2]), len(QKV)) if is_packed else None
            for name in filter(None, (theirs[path], self.tied.get(path))):
                is_stacked = "{}" in name
                layout = self._layout(path, leaf.ndim - is_stacked)
                layers = range(leaf.shape[0]) if is_stacked else [None]
                rows += [Entry(path, name.format(i), layout, i, part) for i in layers]
        return rows

    def _name(self, path: str) -> str:
        """The name of a path of ours."""
        levels = _LEAVES | dict(self.levels)
        longest_first = "|".join(sorted(levels, key=len, reverse=True))
        name = re.sub(f"(?<![^/])({longest_first})(?![^/])", lambda m: levels[m[0]], path)
        return name.replace("/", ".").lstrip(".")

    def _layout(self, path: str, ndim: int) -> str:
        for end, layout in self.layouts.items():
            if f"/{path}".endswith(f"/{end}"):
                return layout
        return _KERNELS[ndim] if path.endswith("kernel") else "same"


def drop_reason(name: str, dropped: Dropped) -> str | None:
    """Returns the reason of the first glob pattern in `dropped` that matches `name`, or None."""
    for pattern, reason in dropped:
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """An import whose names and shapes fit.

    Attributes:
        specs: our flattened path to shape and element type.
        rows: one entry per piece.
        names: official names that the table has and the source too, sorted.
        source: official name to tensor.
    """

    specs: Mapping[str, TensorSpec]
    rows: Sequence[Entry]
    names: Sequence[str]
    source: Mapping[str, np.ndarray]

    def pieces(self) -> Iterator[tuple[Entry, np.ndarray]]:
        """Reads the source and yields what belongs at each entry, one tensor at a time.

        Raises:
            DataError: infinite values or NaN.
        """
        for entry in self.rows:
            value = np.asarray(self.source[entry.theirs])
            if entry.part is not None:
                index, count = entry.part
                value = np.split(value, count)[index]
            value = layouts.LAYOUTS[entry.layout].to_ours(value)
            if not np.isfinite(value).all():
                raise errors.DataError(
                    "values that are not finite", entry.theirs, "download the release again"
                )
            yield entry, value.astype(self.specs[entry.ours].dtype, copy=False)

    def params(self) -> Params:
        """Reads the source into nested dicts of numpy arrays, as in `models/params.py`."""
        flat = {path: np.empty(spec.shape, spec.dtype) for path, spec in self.specs.items()}
        for entry, value in self.pieces():
            flat[entry.ours][entry.selection] = value
        return params_lib.unflatten(flat)


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """An export whose paths and shapes fit.

    Attributes:
        specs: official name to shape and element type.
        rows: official name to the entries that make it up, in order.
        source: our flattened path to array.
    """

    specs: Mapping[str, TensorSpec]
    rows: Mapping[str, Sequence[Entry]]
    source: Mapping[str, Any]

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Reads our parameters and yields official tensors, one at a time."""
        for name, entries in self.rows.items():
            yield name, _to_theirs(entries, self.source)


def plan_import(
    entries: Sequence[Entry],
    source: Mapping[str, np.ndarray],
    *,
    expected: Params,
    dropped: Dropped = (),
    where: str = "weights",
) -> ImportPlan:
    """Checks that a source fits, reading none of it but names stored twice.

    Args:
        entries: the table.
        source: official name -> tensor; `tensor_files.Tensors` are not read here.
        expected: abstract parameters (`models.params.abstract_params`) of the module that the table
            describes; tensors are cast to their dtypes.
        dropped: (glob pattern, reason) of official names that we do not use.
        where: name of the source for error messages.

    Raises:
        DataError: missing, unknown, misshapen or contradictory names, and tensors that are not
            float32, bfloat16 or float16, all of them, sorted.
    """
    specs = _specs(params_lib.flatten(expected))
    problems = _unmatched(entries, specs)
    official, _ = _official_specs([row for row in entries if row.ours in specs], specs)
    unknown = [name for name in source if name not in official]
    problems += [f"unknown name {name}" for name in unknown if drop_reason(name, dropped) is None]
    names = sorted(official.keys() & source.keys())
    for name in names:
        found = tensor_files.spec_of(source, name)
        if found.shape != official[name].shape:
            problems.append(f"misshapen {name}: {found.shape}, expected {official[name].shape}")
        if found.dtype not in _FLOATS:
            problems.append(f"{name} has elements of type {found.dtype}")
    slots: dict[tuple[str, int | None], list[Entry]] = {}
    for entry in entries:
        slots.setdefault((entry.ours, entry.layer), []).append(entry)
    rows = []
    for aliases in slots.values():
        present = [row for row in aliases if row.theirs in source]
        rows += present[:1]
        if not present:
            problems.append(f"missing name {aliases[0].theirs}")
        elif not _all_bit_equal([source[row.theirs] for row in present]):
            tied = " and ".join(row.theirs for row in present)
            problems.append(f"{tied} are tied but differ")
    if problems:
        problems = sorted(set(problems))  # pieces of one packed tensor have one problem
        raise errors.DataError(
            f"{len(problems)} names do not fit: {'; '.join(problems)}",
            where,
            "check that the file belongs to this architecture and config",
        )
    return ImportPlan(specs, rows, names, source)


def plan_export(
    entries: Sequence[Entry], source: Mapping[str, Any], *, expected: Params
) -> ExportPlan:
    """Checks that our parameters fit a table, without reading them.

    Args:
        entries: the table.
        source: our flattened path to array.
        expected: abstract parameters of the module that the table describes.

    Raises:
        DataError: `source` lacks a path of the table, or the table one of `source`; another shape
            than expected, or no floating-point numbers of ours.
    """
    specs, wanted = _specs(source), _specs(params_lib.flatten(expected))
    problems = _unmatched(entries, specs)
    for path, spec in specs.items():
        if path in wanted and spec.shape != wanted[path].shape:
            problems.append(f"misshapen {path}: {spec.shape}, expected {wanted[path].shape}")
        if spec.dtype not in _FLOATS:
            problems.append(f"{path} has elements of type {spec.dtype}")
    if problems:
        raise errors.DataError(
            f"{len(problems)} parameters do not fit: " + "; ".join(sorted(problems)),
            "export",
            "check that the parameters belong to this architecture and config",
        )
    return ExportPlan(*_official_specs(entries, specs), source)


def import_params(
    entries: Sequence[Entry],
    source: Mapping[str, np.ndarray],
    *,
    expected: Params,
    dropped: Dropped = (),
    where: str = "weights",
) -> Params:
    """Builds our parameter tree from tensors under official names.

    Returns:
        Nested dicts of numpy arrays, as in `models/params.py`; arguments and errors are those of
        `plan_import`.
    """
    plan = plan_import(entries, source, expected=expected, dropped=dropped, where=where)
    return plan.params()


def export_params(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """Builds the official state dict from our parameters: the bit-equal inverse of import.

    Returns:
        official name -> contiguous numpy array in the official layout; errors as of `plan_export`.
    """
    plan = plan_export(entries, params_lib.flatten(params), expected=params)
    return {name: np.array(value, order="C") for name, value in plan.tensors()}


def _specs(source: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {path: tensor_files.spec_of(source, path) for path in source}


def _unmatched(entries: Sequence[Entry], paths: Iterable[str]) -> list[str]:
    """Returns one text per path that only the table has, or only the parameters."""
    known, paths = {entry.ours for entry in entries}, set(paths)
    return [
        *(f"missing parameter {path}" for path in known - paths),
        *(f"parameter without an official name {path}" for path in paths - known),
    ]


def _official_specs(
    entries: Sequence[Entry], specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, TensorSpec], dict[str, list[Entry]]]:
    """Returns by official name what our parameters make up, and of which entries."""
    rows: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda row: row.part or (0, 1)):
        rows.setdefault(entry.theirs, []).append(entry)
    # Arrays that take no memory, to try layouts on.
    blank = {path: np.broadcast_to(np.zeros((), x.dtype), x.shape) for path, x in specs.items()}
    official = {}
    for name, group in rows.items():
        tensor = _to_theirs(group, blank)
        official[name] = TensorSpec(tensor.shape, tensor.dtype)
    return official, rows


def _to_theirs(entries: Sequence[Entry], source: Mapping[str, Any]) -> np.ndarray:
    """Returns the official tensor that the entries make up; of one entry a view."""
    pieces = [
        layouts.LAYOUTS[entry.layout].to_theirs(
            tensor_files.read_slice(source, entry.ours, entry.selection)
        )
        for entry in entries
    ]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _all_bit_equal(tensors: Sequence[np.ndarray]) -> bool:
    """Whether they agree in shape, element type and every bit (NaNs included)."""
    return len({(x.shape, x.dtype, x.tobytes()) for x in map(np.asarray, tensors)}) == 1
