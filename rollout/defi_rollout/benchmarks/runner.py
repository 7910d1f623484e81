"""Evaluates a bundle on a benchmark: rows at once, summary at the end, resumable in between.

Files of the output directory:

    run.json          what is evaluated; --resume demands the same
    episodes.jsonl    one row per finished episode, written as it ends
    videos/           films of the first episodes of each task, and of every failure
    results.json      design section 4
    index.html        the same for human eyes
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import time
from typing import Any

from defi_rollout import bundle, errors, files
from defi_rollout.benchmarks import base, page, scores, workers

ROWS = "episodes.jsonl"
RESULTS = "results.json"
_RUN = "run.json"
_FINISHED = ("ok", "retried")  # on resume the others are played again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of `evaluate`.

    Attributes:
        bundle_path: the bundle's directory.
        benchmark: the benchmark.
        plan: which episodes.
        output: directory to write; new or empty unless `resume`.
        num_workers: processes.
        resume: continue what `output` holds.
        execute_horizon: actions executed per inference; 0 for the bundle's own.
    """

    bundle_path: pathlib.Path
    benchmark: base.Benchmark
    plan: base.Plan
    output: pathlib.Path
    num_workers: int
    resume: bool
    execute_horizon: int


def evaluate(options: Options) -> dict[str, Any]:
    """Plays the episodes that have no row yet; returns the content of results.json.

    Raises:
        UserError: bad flags, an output directory of another run, a missing simulator.
        BundleError: the bundle is damaged.
        CheckFailed: an evaluation start was seen in training (results.json is written).
    """
    source = bundle.read_bundle(options.bundle_path)
    episodes = options.benchmark.episodes(options.plan)
    execute_horizon = options.execute_horizon or source.spec.execute_horizon
    if execute_horizon > source.spec.action_horizon:
        raise errors.UserError(
            f"{execute_horizon} actions of {source.spec.action_horizon}",
            "--execute_horizon",
            "give at most the bundle's action_horizon",
        )
    options.benchmark.check(source.spec)
    identity = _identify(options, source, episodes, execute_horizon)
    rows = _open_output(options, identity)
    todo = [episode for episode in episodes if episode.id not in rows]
    logging.info("%d episodes, %d to play", len(episodes), len(todo))
    job = workers.Job(
        bundle_path=options.bundle_path,
        benchmark=options.benchmark,
        execute_horizon=execute_horizon,
        output=options.output,
    )
    _play(job, todo, rows, options.num_workers)
    ordered = [rows[episode.id] for episode in episodes]
    results = _collect(identity, options, ordered)
    files.write(options.output / RESULTS, json.dumps(results, indent=1, allow_nan=False))
    page.write_page(options.output, results)
    if results["summary"]["seen_starts"]:
        raise errors.CheckFailed(
            f"{results['summary']['seen_starts']} evaluation starts were seen in training",
            options.output / RESULTS,
            "evaluate with another --seed",
        )
    return results


def _identify(
    options: Options, source: bundle.Bundle, episodes: list[base.Episode], execute_horizon: int
) -> dict[str, Any]:
    """What makes rows comparable: the same protocol, bundle, episodes and execution."""
    table = json.dumps([dataclasses.asdict(episode) for episode in episodes], sort_keys=True)
    return {
        "protocol": base.describe_protocol(options.benchmark),
        "bundle_sha256": source.digest,
        "simulator": options.benchmark.simulator(),
        "seed": options.plan.seed,
        "execute_horizon": execute_horizon,
        "episodes_sha256": hashlib.sha256(table.encode()).hexdigest(),
    }


def _open_output(options: Options, identity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Makes or checks the output directory; returns the finished rows by id."""
    run_file, rows_file = options.output / _RUN, options.output / ROWS
    if not run_file.exists():
        if options.output.exists() and any(options.output.iterdir()):
            raise errors.UserError(
                "directory is not empty", options.output, "choose a new --output"
            )
        options.output.mkdir(parents=True, exist_ok=True)
        files.write(run_file, json.dumps(identity, indent=1))
        return {}
    if not options.resume:
        raise errors.UserError(
            "holds an evaluation", options.output, "add --resume or choose a new --output"
        )
    try:
        before = json.loads(run_file.read_text())
    except ValueError as error:
        raise errors.UserError("damaged", run_file, "choose a new --output") from error
    changed = sorted(key for key in identity if before.get(key) != identity[key])
    if changed:
        raise errors.UserError(
            f"another evaluation ({', '.join(changed)} differ)",
            options.output,
            "repeat its flags and bundle, or choose a new --output",
        )
    return _read_rows(rows_file)


def _read_rows(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Finished rows; a last line cut off by a kill is dropped from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        logging.info("dropping a half-written last row of %s", path.name)
        os.truncate(path, len(complete))
    try:
        rows = [json.loads(line) for line in complete.splitlines()]
        return {row["id"]: row for row in rows if row["status"] in _FINISHED}
    except (ValueError, KeyError, TypeError) as error:
        raise errors.UserError("damaged rows", path, "choose a new --output") from error


def _play(
    job: workers.Job,
    todo: list[base.Episode],
    rows: dict[str, dict[str, Any]],
    num_workers: int,
) -> None:
    """Plays `todo`; each row goes to the file before the next one is awaited."""
    if not todo:
        return
    started = time.monotonic()
    with (job.output / ROWS).open("a") as file:
        for count, result in enumerate(workers.play_all(job, todo, num_workers), start=1):
            row = result.row
            rows[row["id"]] = row
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            seconds = (time.monotonic() - started) / count * (len(todo) - count)
            outcome = "success" if row["success"] else "no success"
            logging.info(
                "%d/%d %s: %s after %d steps (%s; %.0f s left)",
                *(count, len(todo), row["id"], outcome, row["steps"], row["status"], seconds),
            )


def _collect(
    identity: dict[str, Any], options: Options, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Content of results.json."""
    renderers = [row["renderer"] for row in rows if "renderer" in row]
    shown = [{k: v for k, v in row.items() if k != "renderer"} for row in rows]
    return {
        "protocol": identity["protocol"],
        "bundle_sha256": identity["bundle_sha256"],
        "simulator": identity["simulator"],
        "renderer": renderers[0] if renderers else None,
        "seed": identity["seed"],
        "success_mode": "first_success",
        "execute_horizon": identity["execute_horizon"],
        "summary": scores.summarise(rows),
        "episodes": [row for row in shown if row["condition"] == base.STANDARD],
        "language_episodes": [row for row in shown if row["condition"] != base.STANDARD],
    }
