"""Expected errors of a child process, sent to its parent: another Python, so JSON and no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from defi_rollout import errors

_PARTS = ("what", "where", "fix", "exit_code")


def encode(error: errors.UserError) -> dict[str, Any]:
    """The three parts and the exit code."""
    return {part: getattr(error, part) for part in _PARTS}


def decode(document: Mapping[str, Any]) -> errors.UserError:
    """The error that `encode` described."""
    error = errors.UserError(document["what"], document["where"], document["fix"])
    error.exit_code = document["exit_code"]
    return error
