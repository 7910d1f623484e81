"""Command line of the rollout side: serve, evaluate, compare, setup, inspect, doctor.

Every expected error is one line on stderr, `error: what: where; what to do`, and an exit code
(errors.py); `--debug` shows the traceback. `--json` prints one object on stdout; logs go to stderr.
"""

import argparse
import logging
import pathlib
import sys
from collections.abc import Sequence

from defi_rollout import bundle, command_line, errors
from defi_rollout.benchmarks import commands as benchmark_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the process exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        flags = _make_parser().parse_args(arguments)
        return flags.run(flags)
    except errors.UserError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _make_parser() -> argparse.ArgumentParser:
    description = "Runs exported DeFI-JAX policies."
    parser = command_line.Parser(prog="defi_rollout", description=description)
    common = command_line.Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", parents=[common], help="verify and describe a bundle")
    inspect.add_argument("bundle", help="its directory, or its URL such as gs://bucket/bundle")
    inspect.set_defaults(run=_inspect)

    serve = commands.add_parser(
        "serve", parents=[common], help="answer robots over openpi's protocol"
    )
    serve.add_argument("bundle")
    serve.add_argument("--host", default="127.0.0.1", help="others need --token_file")
    serve.add_argument("--port", type=int, default=8000, help="0: any free one")
    serve.add_argument("--token_file", type=pathlib.Path, help="clients send what it holds")
    serve.add_argument("--max_batch", type=int, default=8, help="rows of one call (default 8)")
    serve.add_argument("--max_connections", type=int, default=64)
    serve.add_argument("--max_message_mib", type=int, default=32)
    serve.add_argument("--idle_seconds", type=float, default=3600, help="then it is disconnected")
    serve.set_defaults(run=_serve)

    benchmark_commands.add(commands, common)
    return parser


def _inspect(flags: argparse.Namespace) -> int:
    source = bundle.read_bundle(flags.bundle)
    document = source.spec.to_json()
    starts = document.pop("training_starts")
    document |= {"bundle_sha256": source.digest, "num_training_starts": len(starts)}
    if flags.json:
        command_line.print_json(document)
        return 0
    spec = source.spec
    print(f"bundle       {source.digest}")
    print(f"embodiment   {spec.embodiment['name']} at {spec.control_hz:g} Hz")
    for camera in spec.cameras:
        print(f"camera       {camera.key}: {camera.name}, {camera.height}x{camera.width}")
    print(f"model image  {spec.image.height}x{spec.image.width} ({spec.image.resize})")
    for role, text in spec.text.items():
        print(f"text         {role}: {text.name}, {text.length} tokens")
    print(f"actions      {spec.action_horizon} x ({', '.join(spec.action_spec.names)})")
    print(f"executed     {spec.execute_horizon} of {spec.action_horizon}")
    for name, entry in spec.files.items():
        print(f"file         {name}: {entry.bytes} bytes, sha256 {entry.sha256[:12]} verified")
    for key, value in spec.provenance.items():
        print(f"provenance   {key}: {value}")
    return 0


def _serve(flags: argparse.Namespace) -> int:
    for name in ("max_batch", "max_connections", "max_message_mib", "idle_seconds"):
        command_line.require(flags, name, 1)
    if not 0 <= flags.port < 1 << 16:
        raise errors.UserError(f"{flags.port}", "--port", "give 0 to 65535")
    token = command_line.read_token(flags.token_file) if flags.token_file else None
    from defi_rollout import server

    options = server.Options(
        host=flags.host,
        port=flags.port,
        token=token,
        max_connections=flags.max_connections,
        max_message_bytes=flags.max_message_mib * server.MEBIBYTE,
        idle_seconds=flags.idle_seconds,
    )
    server.serve(flags.bundle, options, max_batch=flags.max_batch)
    return 0
