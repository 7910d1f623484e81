"""What the runners of parity fixtures share: reading weights, checking inputs."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib
from defi_jax.weights import table

Arrays = Mapping[str, np.ndarray]


def import_params(
    make: params_lib.Make,
    entries: Sequence[table.Entry],
    params: Arrays,
    dropped: table.Dropped,
    where: str,
) -> Params:
    """Returns a fixture's weights as the parameters of the module that `make` builds.

    Raises:
        DataError: names or shapes that do not fit the module.
    """
    return table.import_params(
        entries,
        params,
        dropped=dropped,
        expected=params_lib.abstract_params(make),
        where=where,
    )


def check_inputs(inputs: Arrays, specs: Mapping[str, str], config: Any, where: str) -> None:
    """Checks the inputs that a kind needs; more of them are no harm.

    Args:
        inputs: name to array.
        specs: name to axes, each a number, a field of the config (dotted where configs nest) or a
            letter that stands for one size in all inputs: "B 2 N feature_dim". A leading "int" asks
            for whole numbers; a trailing "..." leaves the rest to the module.
        config: the module's config.
        where: the kind, for messages.

    Raises:
        UserError: inputs that are missing or have another shape, all of them.
    """
    problems, letters = [], {}
    for name, spec in specs.items():
        if name not in inputs:
            problems.append(f"lacks {name!r}")
        elif not _fits(inputs[name], spec.split(), config, letters):
            problems.append(f"{name} is {inputs[name].dtype}{inputs[name].shape}, not [{spec}]")
    if problems:
        raise errors.UserError(
            f"fixture {'; '.join(problems)}", where, "record every input of the kind"
        )


def _fits(value: np.ndarray, axes: list[str], config: Any, letters: dict[str, int]) -> bool:
    """Whether an array has these axes; notes the sizes of letters seen for the first time."""
    if axes[0] == "int":
        if not np.issubdtype(value.dtype, np.integer):
            return False
        axes = axes[1:]
    shape = value.shape
    if axes[-1] == "...":
        axes = axes[:-1]
        shape = shape[: len(axes)]
    if len(shape) != len(axes) or 0 in shape:
        return False
    return all(
        size == _expected(axis, size, config, letters)
        for axis, size in zip(axes, shape, strict=True)
    )


def _expected(axis: str, size: int, config: Any, letters: dict[str, int]) -> int:
    """The size that an axis must have; `size` itself where it is free."""
    if axis.isdigit():
        return int(axis)
    if len(axis) == 1:
        return letters.setdefault(axis, size)
    field = operator.attrgetter(axis)(config)
    return field if isinstance(field, int) else size  # one of several, by level
