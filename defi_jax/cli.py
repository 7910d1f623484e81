"""Shared shell of the launch scripts: logging to stderr, one-line errors, exit codes."""

import contextlib
import difflib
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from absl import app, flags

from defi_jax import errors

_EXIT_BROKEN_PIPE = 141  # as of programs that the signal SIGPIPE ends

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
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    with _quiet_pipe():
        app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def _quiet_pipe() -> Iterator[None]:
    """Ends without a word where who reads stdout, such as `head`, has seen enough."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        # Python itself would complain of what is still to be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ended = error.__context__  # the exit that was under way when the rest was written
        sys.exit(ended.code if isinstance(ended, SystemExit) else _EXIT_BROKEN_PIPE)


def nearest(name: str, known: Iterable[str], *, otherwise: str | None = None) -> str:
    """Returns a hint such as 'did you mean a, b?' for an unknown name.

    Where no known name is near, it lists them, or is `otherwise`.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"known: {', '.join(known[:20])}" if otherwise is None else otherwise


def require_one(values: Mapping[str, str | None]) -> None:
    """Raises UserError unless exactly one of the flags has a value."""
    if sum(map(bool, values.values())) != 1:
        raise errors.UserError(
            "one source is needed", ", ".join(values), "give exactly one of the two"
        )


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {_flag_error(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        print(f"error: {_config_error(str(error), argv)}", file=sys.stderr)
        sys.exit(2)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _flag_error(text: str) -> str:
    """Rewords what absl says of a flag."""
    missing = re.fullmatch(r"flag --(\w+)=None: Flag --\w+ must have a value .*", text)
    if missing:
        return f"a flag is missing: --{missing[1]}; see --help"
    return " ".join(text.split())


def _config_error(text: str, argv: list[str]) -> str:
    """Rewords what ml_collections says of a config key it does not know, quoted twice."""
    text = " ".join(text.replace("\\n", " ").replace("\\'", "'").split())
    unknown = re.match(r"[\"']*(\w+)['\"]*( Did you mean \"(\w+)\")?", text)
    names = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    where = [name for name in names if unknown and unknown[1] in name.split(".")[1:]]
    if not unknown or not where:
        return f"--config: {text.strip(chr(39) + chr(34))}"
    fix = f"did you mean {unknown[3]}?" if unknown[3] else "the keys are in configs/"
    return f"unknown config key '{unknown[1]}': --{where[0]}; {fix}"


def _check_config_file(argv: list[str]) -> None:
    """Raises UserError where `--config` names no file; ml_collections would say so much later."""
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        path = (value if equals else following).partition(":")[0]
        if name == "config" and argument.startswith("-") and not os.path.isfile(path):
            raise errors.UserError(
                "no such config file", path or argument, "give --config=configs/gfdm.py[:preset]"
            )
