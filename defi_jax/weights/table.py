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
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib

Dropped = Sequence[tuple[str, str]]


class Layout(NamedTuple):
    """A change of memory layout and its inverse; both are views or copies, never arithmetic."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


# Letters: O output and I input channels, t h w kernel extents; theirs is PyTorch's.
LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda x: x, lambda x: x),
    # (O, I) <-> (I, O)
    "linear": Layout(lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    # (O, I, w) <-> (w, I, O)
    "conv1d": Layout(lambda x: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)),
    # (O, I, h, w) <-> (h, w, I, O)
    "conv2d": Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # (O, I, t, h, w) <-> (t, h, w, I, O)
    "conv3d": Layout(lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2)),
    # (O, I, t, 1, 1) <-> (t, I, O)
    "conv3d_time": Layout(
        lambda x: x[:, :, :, 0, 0].transpose(2, 1, 0),
        lambda x: x.transpose(2, 1, 0)[:, :, :, None, None],
    ),
    # (O, I, 1, 1) <-> (I, O)
    "conv1x1_linear": Layout(
        lambda x: x[:, :, 0, 0].transpose(1, 0), lambda x: x.transpose(1, 0)[:, :, None, None]
    ),
    # (1, ...) <-> (...)
    "leading1": Layout(lambda x: x[0], lambda x: x[None]),
    # (1, 1, ...) <-> (...)
    "leading11": Layout(lambda x: x[0, 0], lambda x: x[None, None]),
    # (1,) <-> ()
    "scalar": Layout(lambda x: x.reshape(()), lambda x: x.reshape((1,))),
}

# Number of axes theirs must have for the layouts that look at them.
_RANK = {"linear": 2, "conv1d": 3, "conv2d": 4, "conv3d": 5, "conv3d_time": 5, "conv1x1_linear": 4}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a weight table.

    Attributes:
        ours: flattened path of our parameter, e.g. "down_blocks/0/resnets/0/conv1/kernel".
        theirs: name of the reference tensor, e.g. "down_blocks.0.resnets.0.conv1.weight".
        layout: key of `LAYOUTS`.
        layer: index on the leading axis of ours, for stacked blocks; None when ours is not stacked.
        part: (index, count) when ours is one of `count` equal pieces of the first axis of theirs.
    """

    ours: str
    theirs: str
    layout: str = "same"
    layer: int | None = None
    part: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; known: {sorted(LAYOUTS)}")


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


def norm(ours: str, theirs: str, *, layer: int | None = None) -> list[Entry]:
    """Returns the rows of a layer norm."""
    return [
        Entry(f"{ours}/scale", f"{theirs}.weight", "same", layer),
        Entry(f"{ours}/bias", f"{theirs}.bias", "same", layer),
    ]


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


def dropped_names(names: Sequence[str], dropped: Dropped) -> dict[str, str]:
    """Returns {name: reason} of the names that `dropped` excuses, in sorted order."""
    reasons = {name: drop_reason(name, dropped) for name in sorted(names)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def import_params(
    entries: Sequence[Entry],
    source: Mapping[str, np.ndarray],
    *,
    dropped: Dropped = (),
    expected: Params | None = None,
    where: str = "weights",
) -> Params:
    """Builds our parameter tree from tensors under official names.

    Args:
        entries: the table.
        source: official name -> tensor. Read once per entry, so a lazy mapping streams.
        dropped: (glob pattern, reason) of official names that we do not use.
        expected: abstract parameters (`models.params.abstract_params`); when given, our paths and
            shapes must be exactly these, and tensors are cast to their dtypes.
        where: name of the source for error messages.

    Returns:
        Nested dicts of numpy arrays, as in `models/params.py`.

    Raises:
        DataError: missing, unknown, misshapen or contradictory names, all of them, sorted.
    """
    groups = _group_by_target(entries)
    names = set(source.keys())
    known = {entry.theirs for entry in entries}
    problems = [
        f"unknown name {name}"
        for name in sorted(names - known)
        if drop_reason(name, dropped) is None
    ]
    flat_expected = None if expected is None else params_lib.flatten(expected)
    values: dict[str, dict[int | None, np.ndarray]] = {}
    for (ours, layer, _), aliases in groups.items():
        value = _read_target(aliases, source, names, problems)
        if value is not None:
            values.setdefault(ours, {})[layer] = value
    complete = _complete_paths(groups, values)
    params = {
        path: _stack(layers, path, problems) for path, layers in values.items() if path in complete
    }
    if flat_expected is not None:
        _check_expected(params, flat_expected, {ours for ours, _, _ in groups}, problems)
    if problems:
        raise errors.DataError(
            f"{len(problems)} names do not fit: " + "; ".join(sorted(problems)),
            where,
            "check that the file belongs to this architecture and config",
        )
    if flat_expected is not None:
        params = {
            path: np.asarray(value, dtype=flat_expected[path].dtype, order="C")
            for path, value in params.items()
        }
    return params_lib.unflatten(
        {path: value for path, value in params.items() if value is not None}
    )


def export_params(entries: Sequence[Entry], params: Params) -> dict[str, np.ndarray]:
    """Builds the official state dict from our parameters: the bit-equal inverse of import.

    Args:
        entries: the table.
        params: nested dicts of arrays.

    Returns:
        official name -> contiguous numpy array in the official layout.

    Raises:
        DataError: `params` lacks a path of the table, or the table one of `params`.
    """
    flat = params_lib.flatten(params)
    known = {entry.ours for entry in entries}
    problems = [f"missing parameter {path}" for path in known - flat.keys()]
    problems += [f"parameter without an official name {path}" for path in flat.keys() - known]
    if problems:
        raise errors.DataError(
            f"{len(problems)} parameters do not fit: " + "; ".join(sorted(problems)),
            "export",
            "check that the parameters belong to this architecture and config",
        )
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for entry in entries:
        value = np.asarray(flat[entry.ours])
        value = value if entry.layer is None else value[entry.layer]
        index = 0 if entry.part is None else entry.part[0]
        pieces.setdefault(entry.theirs, {})[index] = LAYOUTS[entry.layout].to_theirs(value)
    return {name: _join(parts) for name, parts in pieces.items()}


def _group_by_target(
    entries: Sequence[Entry],
) -> dict[tuple[str, int | None, tuple[int, int] | None], list[Entry]]:
    """Collects entries that fill the same slot of ours; more than one means tied names."""
    groups: dict[tuple[str, int | None, tuple[int, int] | None], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.ours, entry.layer, entry.part), []).append(entry)
    return groups


def _read_target(
    aliases: Sequence[Entry], source: Mapping[str, np.ndarray], names: set[str], problems: list[str]
) -> np.ndarray | None:
    """Returns the tensor of one slot in our layout, or None after noting what is wrong."""
    present = [entry for entry in aliases if entry.theirs in names]
    if not present:
        problems.append(f"missing name {aliases[0].theirs}")
        return None
    first = present[0]
    tensor = np.asarray(source[first.theirs])
    for other in present[1:]:
        if not _bit_equal(tensor, np.asarray(source[other.theirs])):
            problems.append(f"{first.theirs} and {other.theirs} are tied but differ")
    if first.part is not None:
        index, count = first.part
        if tensor.ndim == 0 or tensor.shape[0] % count:
            problems.append(f"misshapen {first.theirs}: {tensor.shape} not divisible in {count}")
            return None
        size = tensor.shape[0] // count
        tensor = tensor[index * size : (index + 1) * size]
    if first.layout in _RANK and tensor.ndim != _RANK[first.layout]:
        problems.append(
            f"misshapen {first.theirs}: {tensor.shape}, expected {_RANK[first.layout]} axes"
        )
        return None
    try:
        value = LAYOUTS[first.layout].to_ours(tensor)
    except (ValueError, IndexError):
        problems.append(f"misshapen {first.theirs}: {tensor.shape} for layout {first.layout}")
        return None
    # A layout that drops an axis of extent 1 must not drop data.
    if value.size != tensor.size:
        problems.append(f"misshapen {first.theirs}: {tensor.shape} for layout {first.layout}")
        return None
    return value


def _complete_paths(groups: Mapping, values: Mapping[str, Mapping]) -> set[str]:
    """Returns the paths of ours for which every slot was read."""
    wanted: dict[str, set[int | None]] = {}
    for ours, layer, _ in groups:
        wanted.setdefault(ours, set()).add(layer)
    return {path for path, layers in values.items() if wanted[path] == set(layers)}


def _stack(
    layers: Mapping[int | None, np.ndarray], path: str, problems: list[str]
) -> np.ndarray | None:
    """Joins the slices of one parameter on a leading axis, in the order of their index."""
    if None in layers:
        return np.ascontiguousarray(layers[None]).reshape(layers[None].shape)
    indices = sorted(index for index in layers if index is not None)
    ordered = [layers[index] for index in indices]
    if len({value.shape for value in ordered}) > 1 or indices != list(range(len(layers))):
        problems.append(f"misshapen layers of {path}: {[value.shape for value in ordered]}")
        return None
    return np.ascontiguousarray(np.stack(ordered))


def _check_expected(
    params: Mapping[str, np.ndarray | None],
    expected: Mapping[str, Any],
    table_paths: set[str],
    problems: list[str],
) -> None:
    """Notes paths that only one side has and shapes that differ."""
    problems += [
        f"parameter without an official name {path}" for path in expected.keys() - table_paths
    ]
    problems += [f"the model has no parameter {path}" for path in table_paths - expected.keys()]
    for path, value in params.items():
        if value is not None and path in expected and value.shape != tuple(expected[path].shape):
            problems.append(
                f"misshapen {path}: {value.shape}, expected {tuple(expected[path].shape)}"
            )


def _join(parts: Mapping[int, np.ndarray]) -> np.ndarray:
    """Concatenates the pieces of a packed tensor on the first axis, in order."""
    if len(parts) == 1:
        value = next(iter(parts.values()))
        return np.ascontiguousarray(value).reshape(value.shape)
    return np.ascontiguousarray(np.concatenate([parts[index] for index in sorted(parts)], axis=0))


def _bit_equal(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two arrays agree in shape, dtype and every bit (NaNs included)."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
