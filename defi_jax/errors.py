"""Errors a user can cause, each one line of text and one exit code (design: 'Exit codes')."""

from collections.abc import Sequence


class UserError(Exception):
    """Wrong usage, config or missing input.

    Args:
        what: what is wrong, without a full stop.
        where: the file, key or flag it was found in.
        fix: what to type or change instead.
    """

    exit_code = 2

    def __init__(self, what: str, where: object = "", fix: str = ""):
        self.what, self.where, self.fix = what, str(where), fix
        text = what + (f": {where}" if str(where) else "") + (f"; {fix}" if fix else "")
        super().__init__(" ".join(text.split("\n")))


def listed(items: Sequence[str], shown: int) -> str:
    """Returns "a; b and 3 more": the first items of a list that may be long."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(items[:shown]) + more


class CheckFailed(UserError):
    """The check that was asked for said no (parity, plan, validate, doctor)."""

    exit_code = 1


class DataError(UserError):
    """Damaged data, checkpoint, weights or bundle."""

    exit_code = 65


class Preempted(UserError):
    """The run was asked to stop and has saved its state."""

    exit_code = 75


class NumericsError(UserError):
    """Too many consecutive steps were not finite."""

    exit_code = 76
