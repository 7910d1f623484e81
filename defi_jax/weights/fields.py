"""Config dataclasses from a reference's own JSON fields, naming everything that does not fit."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from defi_jax import errors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Config = TypeVar("_Config", bound="DataclassInstance")


def make_config(config_type: type[_Config], fields: Mapping[str, Any], where: str) -> _Config:
    """Returns `config_type(**fields)`; lists become tuples.

    Args:
        config_type: a dataclass with the reference's field names.
        fields: what the reference's JSON holds.
        where: name of the config for error messages.

    Raises:
        UserError: unknown, missing or contradictory fields.
    """
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
    try:
        return config_type(
            **{key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
        )
    except (TypeError, ValueError) as error:
        raise errors.UserError(str(error), where, "correct the config") from error
