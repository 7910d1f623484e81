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
_RUN = "run.json"
_FINISHED = ("ok", "retried")  # on resume the others are played again


def evaluate(
    bundle_path: pathlib.Path,
    benchmark: base.Benchmark,
    plan: base.Plan,
    output: pathlib.Path,
    *,
    num_workers: int,
    resume: bool,
    execute_horizon: int,
) -> dict[str, Any]:
    """Plays the episodes that have no row yet; returns the content of results.json.

    Args:
        output: directory to write; new or empty unless `resume`.
        resume: continue what `output` holds.
        execute_horizon: actions executed per inference; 0 for the bundle's own.

    Raises:
        UserError: bad flags, an output directory of another run, a missing simulator.
        BundleError: the bundle is damaged.
        CheckFailed: an evaluation start was seen in training (results.json is written).
    """
    source = bundle.read_bundle(bundle_path)
    episodes = benchmark.episodes(plan)
    execute_horizon = execute_horizon or source.spec.execute_horizon
    if execute_horizon > source.spec.action_horizon:
        raise errors.UserError(
            f"{execute_horizon} actions of {source.spec.action_horizon}",
            "--execute_horizon",
            "give at most the bundle's action_horizon",
        )
    benchmark.check(source.spec)
    identity = _identity(source, benchmark, plan.seed, execute_horizon, episodes)
    rows = _open_output(output, identity, resume)
    todo = [episode for episode in episodes if episode.id not in rows]
    logging.info("%d episodes, %d to play", len(episodes), len(todo))
    job = workers.Job(
        bundle_path=bundle_path,
        benchmark=benchmark,
        execute_horizon=execute_horizon,
        output=output,
    )
    _play(job, todo, rows, num_workers)
    results = _collect(identity, [rows[episode.id] for episode in episodes])
    files.write(output / base.RESULTS, json.dumps(results, indent=1, allow_nan=False))
    page.write_page(output, results)
    if results["summary"]["seen_starts"]:
        raise errors.CheckFailed(
            f"{results['summary']['seen_starts']} evaluation starts were seen in training",
            output / base.RESULTS,
            "evaluate with another --seed",
        )
    return results


def _identity(
    source: bundle.Bundle,
    benchmark: base.Benchmark,
    seed: int,
    execute_horizon: int,
    episodes: list[base.Episode],
) -> dict[str, Any]:
    """What makes rows comparable: only runs that agree in it are continued."""
    table = json.dumps([dataclasses.asdict(episode) for episode in episodes], sort_keys=True)
    return {
        "protocol": base.describe_protocol(benchmark),
        "bundle_sha256": source.digest,
        "simulator": benchmark.simulator(),
        "seed": seed,
        "execute_horizon": execute_horizon,
        "episodes_sha256": hashlib.sha256(table.encode()).hexdigest(),
    }


def _open_output(
    output: pathlib.Path, identity: dict[str, Any], resume: bool
) -> dict[str, dict[str, Any]]:
    """Makes or checks the output directory; returns the finished rows by id."""
    new, run_file = "choose a new --output", output / _RUN
    if not run_file.exists():
        if output.exists() and any(output.iterdir()):
            raise errors.UserError("directory is not empty", output, new)
        output.mkdir(parents=True, exist_ok=True)
        files.write(run_file, json.dumps(identity, indent=1))
        return {}
    if not resume:
        raise errors.UserError("holds an evaluation", output, f"add --resume or {new}")
    with errors.UserError.instead_of(ValueError, "damaged", run_file, new):
        before = json.loads(run_file.read_text())
    changed = sorted(key for key in identity if before.get(key) != identity[key])
    if changed:
        what = f"another evaluation ({', '.join(changed)} differ)"
        raise errors.UserError(what, output, f"repeat its flags and bundle, or {new}")
    return _read_rows(output / ROWS)


def _read_rows(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Finished rows; a last line cut off by a kill is dropped from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        logging.info("dropping a half-written last row of %s", path.name)
        os.truncate(path, len(complete))
    kinds = (ValueError, KeyError, TypeError)
    with errors.UserError.instead_of(kinds, "damaged rows", path, "choose a new --output"):
        rows = [json.loads(line) for line in complete.splitlines()]
        return {row["id"]: row for row in rows if row["status"] in _FINISHED}


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
        for count, row in enumerate(workers.play_all(job, todo, num_workers), start=1):
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


def _collect(identity: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Content of results.json."""
    renderers = [row["renderer"] for row in rows if "renderer" in row]
    shown = [{k: v for k, v in row.items() if k != "renderer"} for row in rows]
    return {
        **{key: value for key, value in identity.items() if key != "episodes_sha256"},
        "renderer": renderers[0] if renderers else None,
        "success_mode": "first_success",
        "summary": scores.summarise(rows),
        "episodes": [row for row in shown if row["condition"] == base.STANDARD],
        "language_episodes": [row for row in shown if row["condition"] != base.STANDARD],
    }
