"""Evaluates a policy on a benchmark: rows at once, summary at the end, resumable in between.

Files of the output directory:

    run.json          what is evaluated; --resume demands the same
    episodes.jsonl    one row per finished episode, written as it ends
    videos/           films of the first episodes of each task, and of every failure of a policy
    results.json      design section 4
    index.html        the same for human eyes
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from defi_rollout import bundle, client, errors, files
from defi_rollout.benchmarks import (
    adapters,
    base,
    page,
    player,
    registry,
    scores,
    simulators,
    workers,
)

ROWS = "episodes.jsonl"
EXPERT = "expert"  # as a policy: the benchmark's scripted one
_RUN = "run.json"
_FINISHED = ("ok", "retried")  # on resume the others are played again
_CONNECT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate; of it, `execute_horizon` and `adapter` change numbers.

    Attributes:
        num_workers: processes that play.
        resume: continue what the output directory holds.
        execute_horizon: actions executed per inference; 0 for the policy's own.
        adapter: name or file of an adapter, for servers that do not describe their policy.
        token: that the policy's server wants.
        step_seconds: longest time of one step, inference included, until a worker is given up.
    """

    num_workers: int = 2
    resume: bool = False
    execute_horizon: int = 0
    adapter: str = ""
    token: str | None = None
    step_seconds: float = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Policy:
    """What is evaluated.

    Attributes:
        identity: "bundle_sha256" and "policy", for the results.
        adapter: how to speak with it; None for an expert, which speaks the benchmark's language.
        url: of its server, where somebody serves it.
        source: the bundle that is to be served here.
    """

    identity: dict[str, Any]
    adapter: adapters.Adapter | None = None
    url: str = ""
    source: bundle.Bundle | None = None


def evaluate(
    policy: str, benchmark_name: str, plan: base.Plan, output: pathlib.Path, options: Options
) -> dict[str, Any]:
    """Plays the episodes that have no row yet; returns the content of results.json.

    Args:
        policy: bundle (directory or URL), a server's ws:// URL, or "expert".
        benchmark_name: as in `registry`.
        plan: which episodes.
        output: directory to write; new or empty unless `options.resume`.
        options: how.

    Raises:
        UserError: bad flags, an output directory of another run, a missing simulator.
        BundleError: the bundle is damaged.
        ConnectionLost: the policy's server went away; what was played is kept.
        CheckFailed: an evaluation start was seen in training (results.json is written).
    """
    benchmark = registry.get_benchmark(benchmark_name)
    episodes = benchmark.episodes(plan)
    found = _describe(policy, options)
    adapter = _with_horizon(found.adapter or _expert_adapter(benchmark), options)
    benchmark.check(adapter)
    identity = {
        "protocol": base.describe_protocol(benchmark),
        **found.identity,
        "simulator": _check_simulator(benchmark.simulator),
        "seed": plan.seed,
        "execute_horizon": adapter.execute_horizon,
        "episodes_sha256": _digest([dataclasses.asdict(episode) for episode in episodes]),
    }
    rows = _open_output(output, identity, options.resume)
    todo = [episode for episode in episodes if episode.id not in rows]
    logging.info("%d episodes, %d to play", len(episodes), len(todo))
    if todo:
        with _serve(found, options) as url:
            job = player.Job(
                benchmark=benchmark_name,
                policy=url,
                token=options.token if found.url else None,
                adapter=adapter,
                output=str(output),
                step_seconds=options.step_seconds,
            )
            starts = found.source and frozenset(found.source.spec.training_starts)
            _play(job, benchmark.simulator, todo, rows, options.num_workers, starts)
    results = _collect(benchmark, identity, [rows[episode.id] for episode in episodes])
    files.write(output / base.RESULTS, json.dumps(results, indent=1, allow_nan=False))
    page.write_page(output, results)
    if results["summary"]["seen_starts"]:
        raise errors.CheckFailed(
            f"{results['summary']['seen_starts']} evaluation starts were seen in training",
            output / base.RESULTS,
            "evaluate with another --seed",
        )
    return results


def _describe(policy: str, options: Options) -> _Policy:
    """Reads what the policy is, without loading it."""
    if policy == EXPERT:
        return _Policy(identity={"bundle_sha256": None, "policy": {"kind": EXPERT}})
    given = adapters.read(options.adapter) if options.adapter else None
    if not policy.startswith(("ws://", "wss://")):
        if given:
            raise errors.UserError("a bundle describes itself", "--adapter", "leave it out")
        source = bundle.read_bundle(policy)
        metadata = source.spec.metadata(source.digest)
        described = {"kind": "bundle", "origins": metadata["origins"]}
        return _Policy(
            identity={"bundle_sha256": source.digest, "policy": described},
            adapter=adapters.from_metadata(metadata, policy),
            source=source,
        )
    with client.Client(policy, token=options.token, connect_timeout=_CONNECT_SECONDS) as remote:
        metadata = remote.metadata
    adapter = given or adapters.from_metadata(metadata, policy)
    described = {"kind": "server", "url": policy, "adapter": dataclasses.asdict(adapter)}
    described["origins"] = metadata.get("origins") if "bundle" in metadata else None
    # What a server of others says of itself may hold anything; only its digest is kept.
    described["metadata_sha256"] = hashlib.sha256(repr(metadata).encode()).hexdigest()
    identity = {"bundle_sha256": metadata.get("bundle"), "policy": described}
    return _Policy(identity=identity, adapter=adapter, url=policy)


@contextlib.contextmanager
def _serve(found: _Policy, options: Options) -> Iterator[str]:
    """The URL that workers ask, "" for an expert: of a server that is there, or of a bundle's.

    Ours answers one observation a call. In larger batches sums may round in another way, and rows
    would depend on which workers ask at the same time.
    """
    if found.source is None:
        yield found.url
        return
    from defi_rollout import batching, server  # with jax, which a remote policy does not need
    from defi_rollout.benchmarks import policy_thread

    loaded = server.load(found.source, max_batch=1)
    chosen = server.Options(port=0, max_connections=2 * options.num_workers + 1)
    batcher = batching.Batcher(loaded, max_rows=1)
    with policy_thread.serving(batcher, loaded.metadata, chosen) as url:
        yield url


def _expert_adapter(benchmark: base.Benchmark) -> adapters.Adapter:
    """An adapter of a policy that looks at nothing and speaks the benchmark's own language."""
    width = benchmark.action_dim
    return adapters.Adapter(
        embodiment=benchmark.embodiments[0],
        observations={},
        prompt="prompt",
        action_dim=width,
        action_horizon=1,
        execute_horizon=1,
        factors=(1.0,) * width,
    )


def _check_simulator(simulator: simulators.Simulator) -> dict[str, str]:
    """Its versions, when its files are whole and it draws: a missing mesh is no error to it."""
    return simulators.ask(simulator, "check_files", "draw_one", "versions")["versions"]


def _with_horizon(adapter: adapters.Adapter, options: Options) -> adapters.Adapter:
    wanted = options.execute_horizon or adapter.execute_horizon
    if adapter.action_horizon is not None and wanted > adapter.action_horizon:
        raise errors.UserError(
            f"{wanted} actions of {adapter.action_horizon}",
            "--execute_horizon",
            "give at most the policy's action_horizon",
        )
    return dataclasses.replace(adapter, execute_horizon=wanted)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    job: player.Job,
    simulator: simulators.Simulator,
    todo: list[base.Episode],
    rows: dict[str, dict[str, Any]],
    num_workers: int,
    training_starts: frozenset[str] | None,
) -> None:
    """Plays `todo`; each row goes to the file before the next one is awaited."""
    started = time.monotonic()
    played = workers.play_all(job, simulator, todo, num_workers)
    with pathlib.Path(job.output, ROWS).open("a") as file, contextlib.closing(played):
        for count, row in enumerate(played, start=1):
            if training_starts is not None and row["start_digest"]:
                row["start_unseen"] = row["start_digest"] not in training_starts
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
    benchmark: base.Benchmark, identity: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Content of results.json."""
    return {
        **{key: value for key, value in identity.items() if key != "episodes_sha256"},
        "renderer": _common_renderer([row["renderer"] for row in rows if "renderer" in row]),
        "success_mode": benchmark.success_mode,
        "summary": scores.summarise(rows),
        "episodes": [row for row in rows if row["condition"] == base.STANDARD],
        "language_episodes": [row for row in rows if row["condition"] != base.STANDARD],
    }


def _common_renderer(renderers: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The renderer of all rows; where they differ, all that is said, comparable if each is."""
    if not renderers:
        return None
    joined = {
        key: " and ".join(sorted({str(one[key]) for one in renderers if key in one}))
        for key in sorted(set().union(*renderers) - {"comparable"})
    }
    return {**joined, "comparable": all(one["comparable"] for one in renderers)}
