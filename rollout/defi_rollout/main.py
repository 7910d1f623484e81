"""Command line of the rollout side: serve, evaluate, compare, setup, inspect, doctor.

Every expected error is one line on stderr, `error: what: where; what to do`, and an exit code
(errors.py); `--debug` shows the traceback. `--json` prints one object on stdout; logs go to stderr.
"""

import argparse
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from defi_rollout import bundle, errors


class _Parser(argparse.ArgumentParser):
    """Reports wrong flags the way every other expected error is reported."""

    def error(self, message: str) -> NoReturn:
        raise errors.UserError(message, self.prog, f"see {self.prog} --help")


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
    parser = _Parser(prog="defi_rollout", description="Runs exported DeFI-JAX policies.")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", parents=[common], help="verify and describe a bundle")
    inspect.add_argument("bundle", help="its directory, or its URL such as gs://bucket/bundle")
    inspect.set_defaults(run=_inspect)

    doctor = commands.add_parser("doctor", parents=[common], help="check machine and bundle")
    doctor.add_argument("bundle", nargs="?")
    doctor.add_argument("--benchmark", default="", help="also check this benchmark's simulator")
    doctor.set_defaults(run=_doctor)

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

    evaluate = commands.add_parser("evaluate", parents=[common], help="play a benchmark")
    evaluate.add_argument("policy", help="a bundle, a server's ws://HOST:PORT, or `expert`")
    evaluate.add_argument("--benchmark", required=True, help="such as calvin-abcd-360")
    evaluate.add_argument("--tasks", default="", help="comma-separated; default: the benchmark's")
    evaluate.add_argument("--episodes", type=int, help="per task, or of a list; default: all")
    evaluate.add_argument("--seed", type=int, default=0, help="another seed gives other starts")
    evaluate.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    evaluate.add_argument("--execute_horizon", type=int, default=0, help="default: the policy's")
    evaluate.add_argument("--adapter", default="", help="for servers that are not ours; see docs")
    evaluate.add_argument("--token_file", type=pathlib.Path, help="what the server wants")
    evaluate.add_argument("--step_seconds", type=float, default=600, help="then a worker hangs")
    evaluate.add_argument(
        "--language", action="store_true", help="also play half-way starts with other instructions"
    )
    evaluate.add_argument("--resume", action="store_true", help="continue what --output holds")
    evaluate.add_argument("--output", type=pathlib.Path, required=True)
    evaluate.set_defaults(run=_evaluate)

    setup = commands.add_parser(
        "setup", parents=[common], help="make the environment of a benchmark's simulator"
    )
    setup.add_argument("benchmark")
    setup.set_defaults(run=_setup)

    compare = commands.add_parser(
        "compare", parents=[common], help="pair two evaluations episode by episode"
    )
    for name in ("first", "second"):
        compare.add_argument(name, type=pathlib.Path, help="directory of an evaluation")
    compare.set_defaults(run=_compare)
    return parser


def _inspect(flags: argparse.Namespace) -> int:
    source = bundle.read_bundle(flags.bundle)
    document = source.spec.to_json()
    starts = document.pop("training_starts")
    document |= {"bundle_sha256": source.digest, "num_training_starts": len(starts)}
    if flags.json:
        _print_json(document)
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


def _doctor(flags: argparse.Namespace) -> int:
    from defi_rollout import doctor

    checks = doctor.run_checks(flags.bundle, flags.benchmark)
    failed = [check for check in checks if not check.ok]
    if flags.json:
        rows = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]
        _print_json({"ok": not failed, "checks": rows})
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    return errors.CheckFailed.exit_code if failed else 0


def _serve(flags: argparse.Namespace) -> int:
    for name in ("max_batch", "max_connections", "max_message_mib", "idle_seconds"):
        _require(flags, name, 1)
    if not 0 <= flags.port < 1 << 16:
        raise errors.UserError(f"{flags.port}", "--port", "give 0 to 65535")
    token = _read_token(flags.token_file) if flags.token_file else None
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


def _read_token(path: pathlib.Path) -> str:
    where, fix = f"--token_file={path}", "write one token"
    with errors.UserError.instead_of((OSError, UnicodeDecodeError), "cannot read", where, fix):
        token = path.read_text().strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise errors.UserError("not one line of ASCII", where, fix)
    return token


def _require(flags: argparse.Namespace, name: str, least: int) -> None:
    if getattr(flags, name) < least:
        raise errors.UserError(f"{getattr(flags, name)}", f"--{name}", f"give at least {least}")


def _evaluate(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import base, runner

    least = {"workers": 1, "seed": 0, "execute_horizon": 0, "step_seconds": 1}
    for name, value in least.items():
        _require(flags, name, value)
    if flags.episodes is not None:
        _require(flags, "episodes", 1)
    plan = base.Plan(
        tasks=tuple(task for task in flags.tasks.split(",") if task),
        episodes=flags.episodes,
        seed=flags.seed,
        language=flags.language,
    )
    options = runner.Options(
        num_workers=flags.workers,
        resume=flags.resume,
        execute_horizon=flags.execute_horizon,
        adapter=flags.adapter,
        token=_read_token(flags.token_file) if flags.token_file else None,
        step_seconds=flags.step_seconds,
    )
    results = runner.evaluate(flags.policy, flags.benchmark, plan, flags.output, options)
    summary = results["summary"]
    if flags.json:
        _print_json(summary)
        return 0
    low, high = summary["ci95"]
    print(f"success {summary['success_rate']:.1%} of {summary['episodes']} episodes")
    print(f"95 % interval {low:.1%} to {high:.1%}")
    for task, rate in summary["success_by_task"].items():
        print(f"  {task:28} {rate:.1%}")
    if summary["language"]:
        print(f"instructed task first: {summary['language']['instructed']:.1%} of half-way starts")
    print(f"written: {flags.output / base.RESULTS}")
    return 0


def _setup(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import registry, simulators

    simulator = registry.get_benchmark(flags.benchmark).simulator
    simulators.set_up(simulator, flags.benchmark)
    versions = simulators.ask(simulator, "versions")["versions"]
    python = simulators.python_of(simulator)
    if flags.json:
        _print_json({"simulator": versions, "python": python})
        return 0
    print(f"{versions['name']} {versions['version']}, {versions['commit']}, runs in {python}")
    print(f"now: python -m defi_rollout doctor --benchmark={flags.benchmark}")
    return 0


def _compare(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import comparison

    result = comparison.compare(flags.first, flags.second)
    if flags.json:
        _print_json(result)
        return 0
    for key in result["differs"]:
        print(f"note: {key} differs, which may explain a difference of the policies")
    if result["unpaired"]:
        print(f"note: left out, as only one evaluation has them: {result['unpaired']} episodes")
    print(
        f"{'':28} {'pairs':>6} {'first':>7} {'second':>7} {'only 1st':>9} {'only 2nd':>9} {'p':>7}"
    )
    for name, row in {**result["tasks"], "all": result["all"]}.items():
        print(
            f"{name:28} {row['pairs']:6} {row['first']:7.1%} {row['second']:7.1%} "
            f"{row['only_first']:9} {row['only_second']:9} {row['p_value']:7.3f}"
        )
    return 0


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=1, allow_nan=False))
