"""Json that others wrote: whatever is wrong with it is one kind of error."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from defi_jax import errors


def parse(text: str) -> Any:
    """Parses a text.

    Raises:
        ValueError: it is no json, or nested deeper than Python's parser goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def load(path: epath.PathLike, *, what: str, fix: str) -> Any:
    """Reads a file that errors call `what`, for example "annotation".

    Raises:
        DataError: it cannot be read.
    """
    with errors.DataError.instead_of((OSError, ValueError), f"{what} cannot be used", path, fix):
        return parse(epath.Path(path).read_text(encoding="utf-8"))
