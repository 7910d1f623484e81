"""Errors that a user can cause: one line `what: where; what to do` and one exit code each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence


class UserError(Exception):
    """Wrong usage or config, a malformed observation, or a missing input.

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

    @classmethod
    @contextlib.contextmanager
    def instead_of(
        cls,
        kinds: type[BaseException] | tuple[type[BaseException], ...],
        what: str,
        where: object = "",
        fix: str = "",
    ) -> Iterator[None]:
        """Raises this error where the block raises one of some kinds, which it names in brackets.

        Args:
            kinds: exceptions that the block may raise.
            what, where, fix: of this error; `what` goes on with the text of the other one.
        """
        try:
            yield
        except kinds as error:
            text = getattr(error, "strerror", None) or str(error)
            if not text or isinstance(error, KeyError):  # whose text is the key alone
                text = repr(error)
            raise cls(f"{what} ({text})", where, fix) from error

    def __reduce__(self) -> tuple:
        """Rebuilds from the three parts, so that the error survives a process boundary."""
        return type(self), (self.what, self.where, self.fix)


class CheckFailed(UserError):
    """The check that was asked for said no (parity, plan, validate, doctor)."""

    exit_code = 1


class DataError(UserError):
    """Damaged data, checkpoint, weights or bundle."""

    exit_code = 65


class BundleError(DataError):
    """A bundle with a missing, unknown, damaged or refused file."""


def listed(items: Sequence[str], shown: int) -> str:
    """Returns "a; b and 3 more": the first items of a list that may be long."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(items[:shown]) + more
