"""Config dataclasses from a reference's own JSON fields, naming everything that does not fit."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from defi_jax import errors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Config = TypeVar("_Config", bound="DataclassInstance")

# Whole numbers that may be 0: positions, ids, and parts that a model may go without. All others
# count or measure something and are at least 1.
_MAY_BE_ZERO = ("condition_frames", "eos_token_id", "num_register_tokens", "token_positions")
_LARGEST = 2**31 - 1
_LONGEST_SHOWN = 60  # characters of a value in a message


def make_config(config_type: type[_Config], fields: Mapping[str, Any], where: str) -> _Config:
    """Returns `config_type(**fields)`; lists become tuples.

    Args:
        config_type: a dataclass with the reference's field names.
        fields: what the reference's JSON holds.
        where: what errors name.

    Raises:
        UserError: no object; unknown, missing or contradictory fields, or values of another type or
            sign than the field has.
    """
    check_object(fields, where)
    known = {field.name: field for field in dataclasses.fields(config_type) if field.init}
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        near = [difflib.get_close_matches(name, known, n=1) for name in unknown]
        hint = ", ".join(sorted({name for names in near for name in names})) or "nothing near"
        raise errors.UserError(
            f"unknown config field {', '.join(unknown)}", where, f"known and near: {hint}"
        )
    missing = sorted(
        name
        for name, field in known.items()
        if name not in fields
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise errors.UserError(f"missing config field {', '.join(missing)}", where, "add it")
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
    hints = typing.get_type_hints(config_type)
    wrong = [
        f"{name} is {_shown(fields[name])}"
        for name, value in sorted(given.items())
        if not _fits(value, hints[name], 0 if name in _MAY_BE_ZERO else 1)
    ]
    if wrong:
        raise errors.UserError(f"config field {'; '.join(wrong)}", where, "correct the config")
    try:
        return config_type(**given)
    except (TypeError, ValueError) as error:
        raise errors.UserError(str(error), where, "correct the config") from error


def check_object(value: Any, where: str) -> None:
    """Raises UserError for JSON that is no object."""
    if not isinstance(value, Mapping):
        raise errors.UserError(
            f"the config is {_shown(value)}, not an object", where, "give {field: value, ...}"
        )


def _fits(value: Any, hint: Any, least: int) -> bool:
    """Whether a value has the type that a field is annotated with, whole numbers from `least` on.

    Unlike Python's, JSON's true is no number; a whole number stands for a float, not the reverse.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument, least) for argument in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple) or not value:
            return False
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(value) == len(inner) and all(map(_fits, value, inner, [least] * len(inner)))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value) and value >= 0
    if hint is int:
        return type(value) is int and least <= value <= _LARGEST
    return isinstance(value, hint)


def _shown(value: Any) -> str:
    """A value of JSON in a message, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
