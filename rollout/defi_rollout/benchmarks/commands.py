"""The subcommands about benchmarks: doctor, evaluate, setup, compare."""

import argparse
import logging
import pathlib
from typing import Any

from defi_rollout import command_line, errors


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds them to the subparsers `commands`; each takes the flags of `common` too."""
    doctor = commands.add_parser("doctor", parents=[common], help="check machine and bundle")
    doctor.add_argument("bundle", nargs="?")
    doctor.add_argument("--benchmark", default="", help="also check this benchmark's simulator")
    doctor.set_defaults(run=_doctor)

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


def _doctor(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import doctor

    checks = doctor.run_checks(flags.bundle, flags.benchmark)
    failed = [check for check in checks if not check.ok]
    if flags.json:
        rows = [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]
        command_line.print_json({"ok": not failed, "checks": rows})
    else:
        for check in checks:
            print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
    return errors.CheckFailed.exit_code if failed else 0


def _evaluate(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import base, runner

    least = {"workers": 1, "seed": 0, "execute_horizon": 0, "step_seconds": 1}
    for name, value in least.items():
        command_line.require(flags, name, value)
    if flags.episodes is not None:
        command_line.require(flags, "episodes", 1)
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
        token=command_line.read_token(flags.token_file) if flags.token_file else None,
        step_seconds=flags.step_seconds,
    )
    results = runner.evaluate(flags.policy, flags.benchmark, plan, flags.output, options)
    summary = results["summary"]
    rows = results["episodes"] + results["language_episodes"]
    lost = [row for row in rows if row["error"]]
    if lost:
        reason = lost[0]["error"].strip().splitlines()[-1]
        logging.warning(
            "%d episodes could not be played and count as failures (%s: %s); add --resume",
            *(len(lost), lost[0]["id"], reason),
        )
    exit_code = errors.CheckFailed.exit_code if lost else 0
    if flags.json:
        command_line.print_json(summary)
        return exit_code
    low, high = summary["ci95"]
    print(f"success {summary['success_rate']:.1%} of {summary['episodes']} episodes")
    print(f"95 % interval {low:.1%} to {high:.1%}")
    for task, rate in summary["success_by_task"].items():
        print(f"  {task:28} {rate:.1%}")
    if summary["language"]:
        print(f"instructed task first: {summary['language']['instructed']:.1%} of half-way starts")
    print(f"written: {flags.output / base.RESULTS}")
    return exit_code


def _setup(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import registry, simulators

    simulator = registry.get_benchmark(flags.benchmark).simulator
    simulators.set_up(simulator, flags.benchmark)
    versions = simulators.ask(simulator, "versions")["versions"]
    python = simulators.python_of(simulator)
    if flags.json:
        command_line.print_json({"simulator": versions, "python": python})
        return 0
    print(f"{versions['name']} {versions['version']}, {versions['commit']}, runs in {python}")
    print(f"now: python -m defi_rollout doctor --benchmark={flags.benchmark}")
    return 0


def _compare(flags: argparse.Namespace) -> int:
    from defi_rollout.benchmarks import comparison

    result = comparison.compare(flags.first, flags.second)
    if flags.json:
        command_line.print_json(result)
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
