"""What subcommands share: how flags are read and results are printed."""

import argparse
import json
import pathlib
from typing import Any, NoReturn

from defi_rollout import errors


class Parser(argparse.ArgumentParser):
    """Reports wrong flags the way every other expected error is reported."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise errors.UserError(message, self.prog, f"see {self.prog} --help")


def read_token(path: pathlib.Path) -> str:
    """Returns the one line of a token's file; raises UserError."""
    where, fix = f"--token_file={path}", "write one token"
    with errors.UserError.instead_of((OSError, UnicodeDecodeError), "cannot read", where, fix):
        token = path.read_text().strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise errors.UserError("not one line of ASCII", where, fix)
    return token


def require(flags: argparse.Namespace, name: str, least: int) -> None:
    """Raises UserError where a flag is below its least value."""
    if getattr(flags, name) < least:
        raise errors.UserError(f"{getattr(flags, name)}", f"--{name}", f"give at least {least}")


def print_json(document: dict[str, Any]) -> None:
    """Prints one object on stdout."""
    print(json.dumps(document, indent=1, allow_nan=False))
