"""Weight tables: one list of (ours, theirs, layout change) that is read in both directions.

An `Entry` says that the parameter at the flattened path `ours` (levels joined by "/") is the tensor
the reference calls `theirs` (levels joined by "."), up to a change of memory layout. Three cases go
beyond one to one:

- `layer`: ours is a stack of equal blocks; the tensor is slice `layer` of its leading axis.
- `part = (i, n)`: theirs is a packed tensor; ours is the i-th of n equal pieces of its first axis.
- two entries with the same `ours` and `layer`: the reference stores one tensor under two names
  (tied). Either name may be missing in a file; if both are there they must be bit-equal. Export
  writes both.

Whatever a source holds beyond the table must match a `dropped` pattern, which carries its reason;
everything else is an error that lists every offending name.

Both directions are planned first, on names and shapes alone, and then run tensor by tensor:
`plan_import` and `plan_export`. `import_params` and `export_params` do it at once, in memory.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Entry:
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

    def __post_init__(self) -> None:
        if self.layout not in layouts.LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; known: {sorted(layouts.LAYOUTS)}")


def linear(
    ours: str,
    theirs: str,
    *,
    use_bias: bool = True,
    joint: str = ".",
    layer: int | None = None,
    part: tuple[int, int] | None = None,
) -> list[Entry]:
    """Returns the rows of a linear layer; `joint` stands between `theirs` and "weight"."""
    rows = [Entry(f"{ours}/kernel", f"{theirs}{joint}weight", "linear", layer, part)]
    if use_bias:
        rows.append(Entry(f"{ours}/bias", f"{theirs}{joint}bias", "same", layer, part))
    return rows


def norm(ours: str, theirs: str, *, use_bias: bool = True, layer: int | None = None) -> list[Entry]:
    """Returns the rows of a layer norm."""
    rows = [Entry(f"{ours}/scale", f"{theirs}.weight", "same", layer)]
    if use_bias:
        rows.append(Entry(f"{ours}/bias", f"{theirs}.bias", "same", layer))
    return rows


def with_prefixes(entries: Sequence[Entry], *, ours: str = "", theirs: str = "") -> list[Entry]:
    """Returns the table of a module at `ours` in our tree and at `theirs` in the reference.

    Args:
        entries: the module's own table.
        ours: path prefix with its trailing "/", e.g. "encoders/gfdm_text/".
        theirs: name prefix with its trailing ".", e.g. "lam.text_encoder.".
    """
    return [
        dataclasses.replace(entry, ours=ours + entry.ours, theirs=theirs + entry.theirs)
        for entry in entries
    ]


def drop_reason(name: str, dropped: Dropped) -> str | None:
    """Returns the reason of the first glob pattern in `dropped` that matches `name`, or None."""
    for pattern, reason in dropped:
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


class Piece(NamedTuple):
    """A parameter of ours, or slice `layer` of a stacked one."""

    path: str
    layer: int | None
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """An import whose names and shapes fit.

    Attributes:
        specs: our flattened path to shape and element type.
        rows: one entry per piece.
        source: official name to tensor.
    """

    specs: Mapping[str, TensorSpec]
    rows: Sequence[Entry]
    source: Mapping[str, np.ndarray]

    @property
    def num_scalars(self) -> int:
        """Size of all parameters together."""
        return sum(math.prod(spec.shape) for spec in self.specs.values())

    def pieces(self) -> Iterator[Piece]:
        """Reads the source, one tensor at a time.

        Raises:
            DataError: infinite values or NaN.
        """
        for entry in self.rows:
            value = _to_ours(entry, np.asarray(self.source[entry.theirs]))
            if not np.isfinite(value).all():
                raise errors.DataError(
                    "values that are not finite", entry.theirs, "download the release again"
                )
            yield Piece(
                entry.ours, entry.layer, value.astype(self.specs[entry.ours].dtype, copy=False)
            )


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
            yield (
                name,
                _join(
                    [
                        layouts.LAYOUTS[entry.layout].to_theirs(
                            tensor_files.read_slice(self.source, entry.ours, _index(entry))
                        )
                        for entry in entries
                    ]
                ),
            )


def plan_import(
    entries: Sequence[Entry],
    source: Mapping[str, np.ndarray],
    *,
    dropped: Dropped = (),
    expected: Params | None = None,
    where: str = "weights",
) -> ImportPlan:
    """Checks that a source fits, reading none of it but names stored twice.

    Args:
        entries: the table.
        source: official name -> tensor; `tensor_files.Tensors` are not read here.
        dropped: (glob pattern, reason) of official names that we do not use.
        expected: abstract parameters (`models.params.abstract_params`); when given, our paths and
            shapes must be exactly these, and tensors are cast to their dtypes.
        where: name of the source for error messages.

    Raises:
        DataError: missing, unknown, misshapen or contradictory names, and tensors that are not
            float32, bfloat16 or float16, all of them, sorted.
    """
    names = set(source.keys())
    known = {entry.theirs for entry in entries}
    problems = [
        f"unknown name {name}"
        for name in sorted(names - known)
        if drop_reason(name, dropped) is None
    ]
    rows: list[Entry] = []
    slots: dict[str, dict[int | None, TensorSpec | None]] = {}
    for aliases in _group_by_target(entries):
        entry, spec = _plan_slot(aliases, source, names, problems)
        rows.append(entry)
        slots.setdefault(entry.ours, {})[entry.layer] = spec
    specs = {path: _stacked_spec(layers, path, problems) for path, layers in slots.items()}
    fitting = {path: spec for path, spec in specs.items() if spec is not None}
    if expected is not None:
        flat = params_lib.flatten(expected)
        _check_expected(fitting, flat, set(slots), problems)
        fitting = {
            path: TensorSpec(spec.shape, np.dtype(flat[path].dtype))
            for path, spec in fitting.items()
            if path in flat
        }
    if problems:
        # Pieces of one packed tensor have one problem.
        raise errors.DataError(
            f"{len(set(problems))} names do not fit: " + "; ".join(sorted(set(problems))),
            where,
            "check that the file belongs to this architecture and config",
        )
    return ImportPlan(fitting, rows, source)


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
    known = {entry.ours for entry in entries}
    problems = [f"missing parameter {path}" for path in known - source.keys()]
    problems += [f"parameter without an official name {path}" for path in source.keys() - known]
    specs = {path: tensor_files.spec_of(source, path) for path in source}
    problems += _misfits(specs, params_lib.flatten(expected))
    problems += [
        f"{path} has elements of type {spec.dtype}"
        for path, spec in specs.items()
        if spec.dtype not in _FLOATS
    ]
    if problems:
        raise errors.DataError(
            f"{len(problems)} parameters do not fit: " + "; ".join(sorted(problems)),
            "export",
            "check that the parameters belong to this architecture and config",
        )
    rows: dict[str, list[Entry]] = {}
    for entry in entries:
        rows.setdefault(entry.theirs, []).append(entry)
    ordered = {name: sorted(group, key=lambda e: e.part or (0, 1)) for name, group in rows.items()}
    specs = {name: _official_spec(group, source) for name, group in ordered.items()}
    return ExportPlan(specs, ordered, source)


def import_params(
    entries: Sequence[Entry],
    source: Mapping[str, np.ndarray],
    *,
    dropped: Dropped = (),
    expected: Params | None = None,
    where: str = "weights",
) -> Params:
    """Builds our parameter tree from tensors under official names.

    Returns:
        Nested dicts of numpy arrays, as in `models/params.py`; arguments and errors are those of
        `plan_import`.
    """
    plan = plan_import(entries, source, dropped=dropped, expected=expected, where=where)
    flat = {path: np.empty(spec.shape, spec.dtype) for path, spec in plan.specs.items()}
    for piece in plan.pieces():
        flat[piece.path][... if piece.layer is None else piece.layer] = piece.value
    return params_lib.unflatten(flat)


def export_params(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """Builds the official state dict from our parameters: the bit-equal inverse of import.

    Args:
        entries: the table.
        params: nested dicts of arrays of the shapes that the table's module has.

    Returns:
        official name -> contiguous numpy array in the official layout.

    Raises:
        DataError: see `plan_export`.
    """
    plan = plan_export(entries, params_lib.flatten(params), expected=params)
    return {name: np.array(value, order="C") for name, value in plan.tensors()}


def _group_by_target(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Collects entries that fill the same slot of ours; more than one means tied names."""
    groups: dict[tuple[str, int | None, tuple[int, int] | None], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.ours, entry.layer, entry.part), []).append(entry)
    return list(groups.values())


def _plan_slot(
    aliases: Sequence[Entry], source: Mapping[str, np.ndarray], names: set[str], problems: list[str]
) -> tuple[Entry, TensorSpec | None]:
    """Returns the entry to read for one slot and what it gives, None after noting what is wrong."""
    present = [entry for entry in aliases if entry.theirs in names]
    if not present:
        problems.append(f"missing name {aliases[0].theirs}")
        return aliases[0], None
    first = present[0]
    for other in present[1:]:
        if not _bit_equal(np.asarray(source[first.theirs]), np.asarray(source[other.theirs])):
            problems.append(f"{first.theirs} and {other.theirs} are tied but differ")
    try:
        value = _to_ours(first, _blank(tensor_files.spec_of(source, first.theirs)))
    except ValueError as error:
        problems.append(str(error))
        return first, None
    if value.dtype not in _FLOATS:
        problems.append(f"{first.theirs} has elements of type {value.dtype}")
    return first, TensorSpec(value.shape, value.dtype)


def _to_ours(entry: Entry, tensor: np.ndarray) -> np.ndarray:
    """Returns an official tensor, or the entry's piece of it, in our layout.

    Raises:
        ValueError: another number of axes than the layout has, or an axis that it would drop.
    """
    if entry.part is not None:
        index, count = entry.part
        if tensor.ndim == 0 or tensor.shape[0] % count:
            raise ValueError(f"misshapen {entry.theirs}: {tensor.shape} not divisible in {count}")
        size = tensor.shape[0] // count
        tensor = tensor[index * size : (index + 1) * size]
    if entry.layout in layouts.RANK and tensor.ndim != layouts.RANK[entry.layout]:
        raise ValueError(
            f"misshapen {entry.theirs}: {tensor.shape}, expected {layouts.RANK[entry.layout]} axes"
        )
    misfit = f"misshapen {entry.theirs}: {tensor.shape} for layout {entry.layout}"
    try:
        value = layouts.LAYOUTS[entry.layout].to_ours(tensor)
    except (ValueError, IndexError) as error:
        raise ValueError(misfit) from error
    # A layout that drops an axis of extent 1 must not drop data.
    if value.size != tensor.size:
        raise ValueError(misfit)
    return value


def _stacked_spec(
    layers: Mapping[int | None, TensorSpec | None], path: str, problems: list[str]
) -> TensorSpec | None:
    """Returns the spec of a parameter from those of its slices, None where one is missing."""
    found = {index: spec for index, spec in layers.items() if spec is not None}
    if len(found) < len(layers):
        return None
    first = next(iter(found.values()))
    if None in found:
        return first
    indices = sorted(index for index in found if index is not None)
    shapes = [found[index].shape for index in indices]
    if len(set(shapes)) > 1 or indices != list(range(len(found))):
        problems.append(f"misshapen layers of {path}: {shapes}")
        return None
    dtype = np.result_type(*(spec.dtype for spec in found.values()))
    return TensorSpec((len(found), *first.shape), dtype)


def _check_expected(
    specs: Mapping[str, TensorSpec],
    expected: Mapping[str, Any],
    table_paths: set[str],
    problems: list[str],
) -> None:
    """Notes paths that only one side has and shapes that differ."""
    problems += [
        f"parameter without an official name {path}" for path in expected.keys() - table_paths
    ]
    problems += [f"the model has no parameter {path}" for path in table_paths - expected.keys()]
    problems += _misfits(specs, expected)


def _misfits(specs: Mapping[str, TensorSpec], expected: Mapping[str, Any]) -> list[str]:
    """Returns one text per parameter of another shape than expected."""
    return [
        f"misshapen {path}: {spec.shape}, expected {tuple(expected[path].shape)}"
        for path, spec in specs.items()
        if path in expected and spec.shape != tuple(expected[path].shape)
    ]


def _official_spec(entries: Sequence[Entry], source: Mapping[str, Any]) -> TensorSpec:
    """Returns the spec of the tensor that `entries` make up."""
    shapes = []
    for entry in entries:
        blank = _blank(tensor_files.spec_of(source, entry.ours))
        shapes.append(layouts.LAYOUTS[entry.layout].to_theirs(blank[_index(entry)]).shape)
    dtype = tensor_files.spec_of(source, entries[0].ours).dtype
    if len(shapes) == 1:
        return TensorSpec(shapes[0], dtype)
    return TensorSpec((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype)


def _index(entry: Entry) -> Any:
    return ... if entry.layer is None else entry.layer


def _blank(spec: TensorSpec) -> np.ndarray:
    """An array of this shape that takes no memory, to try layouts on."""
    return np.broadcast_to(np.zeros((), spec.dtype), spec.shape)


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates the pieces of a packed tensor on the first axis; one piece stays a view."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _bit_equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays agree in shape, dtype and every bit (NaNs included)."""
    same_kind = left.shape == right.shape and left.dtype == right.dtype
    return same_kind and left.tobytes() == right.tobytes()
