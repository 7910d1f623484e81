"""Shared shell of the launch scripts: logging to stderr, one-line errors, exit codes."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable

from absl import app, flags

from defi_jax import errors

_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an expected error.")


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main(argv)`; a UserError becomes one line on stderr and its exit code."""

    def guarded(argv: list[str]) -> int | None:
        logging.basicConfig(
            level=logging.INFO,
            stream=sys.stderr,
            format="%(asctime)s %(message)s",
            datefmt="%H:%M:%S",
        )
        logging.getLogger("absl").setLevel(logging.WARNING)
        try:
            return main(argv)
        except errors.UserError as error:
            if _DEBUG.value:
                raise
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    app.run(guarded, flags_parser=_parse_flags)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as 'did you mean a, b?' for an unknown name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known: {', '.join(known[:20])}"


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # ml_collections reports unknown or mistyped config keys through these, quoted twice.
        text = str(error).replace("\\n", " ").replace("\\'", "").strip("'\"")
        print(f"error: --config: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _check_config_file(argv: list[str]) -> None:
    """Raises UserError where `--config` names no file; ml_collections would say so much later."""
    for argument in argv:
        name, _, value = argument.lstrip("-").partition("=")
        path = value.partition(":")[0]
        if name == "config" and not os.path.isfile(path):
            raise errors.UserError(
                "no such config file", path or argument, "give --config=configs/gfdm.py[:preset]"
            )
