"""The numbers of a run, computed from its files alone: the content of report.json.

Success counts and intervals come from the rows of the episodes, never from a stored summary.
"""

import os
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from defi_rollout.benchmarks import base, scores

from defi_jax import errors
from defi_jax.checkpoints import manager
from tools.report import files as files_lib

Row = dict[str, Any]

PHASES = ("setup", "collect", "gfdm", "gidm", "joint", "export", "evaluate")

# From a half-way start a policy that does not read its instruction does the same under the right
# and the opposite one; only one of the two tasks can come first.
TEXT_BLIND_AT_MOST = 0.5

_SHOWN_PER_OUTCOME = 2  # films of successes, and of failures, for each task
_SMOOTHING = 15  # a smoothed curve averages over this fraction of its points
_ACTION_MAE = "action_mae/dim"

# What is taken over from `scores.summarise`, and from results.json.
_SUMMARY = ("success_rate", "successes", "episodes", "ci95", "success_by_task")
_SUMMARY += ("policy_latency_ms_p50",)
_IDENTITY = ("protocol", "bundle_sha256", "simulator", "renderer")


def compute(files: files_lib.RunFiles) -> dict[str, Any]:
    """Returns the content of report.json, without the seconds of the report itself.

    Raises:
        UserError: a file of a phase is missing; the text says what makes it.
        DataError: a file is damaged.
    """
    phases = _phase_seconds(files)
    configs = {stage: files.config(stage) for stage in files_lib.STAGES}
    stages = {stage: _stage(files, stage, configs[stage]) for stage in files_lib.STAGES}
    metadata = {s: manager.load_metadata(str(files.root / s)) for s in files_lib.STAGES}
    sources = _sources(metadata)
    bundle, results = files.bundle(), files.results()
    rows = [*results["episodes"], *results["language_episodes"]]
    summary = scores.summarise(rows)
    return {
        **{name: summary[name] for name in _SUMMARY},
        "tasks": [_task(name, results["episodes"]) for name in summary["success_by_task"]],
        "language": _language(summary["language"]),
        "phase_seconds": phases,
        **_held_out(files, bundle["action_spec"]["names"]),
        "trained_on": {source["name"]: source["frames"] for source in sources},
        "sources": sources,
        "stages": stages,
        "shown": _shown(rows),
        "seed": configs["joint"]["seed"],
        "evaluation_seed": results["seed"],
        **{name: results[name] for name in _IDENTITY},
        "commit": _commit(pathlib.Path(__file__).parent),
        "versions": {"python": platform.python_version(), **metadata["joint"]["versions"]},
        "machine": {"cores": _num_cores(), "memory_gib": round(_memory_gib(), 1)},
    }


def _phase_seconds(files: files_lib.RunFiles) -> dict[str, float | None]:
    """Seconds by phase; "setup" is None where the packages were installed by other means."""
    noted = files.phases()
    absent = [name for name in PHASES if name not in noted and name != "setup"]
    if absent:
        raise errors.UserError(
            f"no time of phase {', '.join(absent)}",
            str(files.root / "phases.json"),
            f"finish the run: python launch/demo.py --output={files.root}",
        )
    return {name: noted.get(name) for name in PHASES}


# ---- training ----


def _stage(files: files_lib.RunFiles, stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Size of a stage's training and its loss curve."""
    rows = [row for row in files.metrics(stage) if row["split"] == "train"]
    points = [(row["step"], row["loss"]) for row in rows if row["loss"] is not None]
    if not points:
        raise errors.UserError(
            f"stage {stage} logged no loss", str(files.root / stage), "train it for more steps"
        )
    losses = [loss for _, loss in points]
    return {
        "preset": config["preset"],
        "steps": points[-1][0],
        "global_batch": config["global_batch"],
        "curve": {
            "step": [step for step, _ in points],
            "loss": losses,
            "smoothed": smooth(losses, max(1, len(losses) // _SMOOTHING)),
        },
    }


def smooth(values: Sequence[float], radius: int) -> list[float]:
    """Mean over each point and `radius` neighbours on both sides, fewer at the ends."""
    windows = (values[max(0, i - radius) : i + radius + 1] for i in range(len(values)))
    return [statistics.fmean(window) for window in windows]


def _sources(metadata: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each source once, with its share of every stage's samples."""
    merged: dict[str, dict[str, Any]] = {}
    for stage, facts in metadata.items():
        total = sum(part["weight"] for part in facts["trained_on"])
        for part in facts["trained_on"]:
            entry = merged.setdefault(
                part["name"],
                {
                    "name": part["name"],
                    "episodes": 0,
                    "frames": 0,
                    "has_actions": part["episodes_with_actions"] > 0,
                    "is_simulated": bool(part["start_digests"]),
                    "shares": {},
                },
            )
            # A stage leaves out episodes that are too short for it: count the widest use.
            entry["episodes"] = max(entry["episodes"], part["episodes"])
            entry["frames"] = max(entry["frames"], part["frames"])
            entry["shares"][stage] = part["weight"] / total
    return list(merged.values())


def _held_out(files: files_lib.RunFiles, action_names: Sequence[str]) -> dict[str, Any]:
    """The last evaluation of each stage on held-out episodes; None for what was not measured."""
    gfdm, gidm, joint = (files.last_evaluation(stage) for stage in files_lib.STAGES)
    return {
        "gfdm_psnr": gfdm["psnr"],
        "gfdm_ssim": gfdm["ssim"],
        "gfdm_psnr_repeat": gfdm["psnr_repeat"],
        # Absent without a codebook (the first two) or with few labelled pairs (the probe).
        "gidm_code_usage": gidm.get("code_usage"),
        "gidm_code_perplexity": gidm.get("code_perplexity"),
        "probe_r2": gidm.get("probe_r2"),
        "probe_r2_shuffled": gidm.get("probe_r2_shuffled"),
        "gidm_reconstruction": gidm["reconstruction"],
        "gidm_reconstruction_copy": gidm["reconstruction_copy"],
        "action_mae_mean": joint["action_mae"],
        "action_mae": {name: joint[f"{_ACTION_MAE}{i}"] for i, name in enumerate(action_names)},
    }


# ---- closed loop ----


def _task(name: str, episodes: Sequence[Row]) -> dict[str, Any]:
    rows = [row for row in episodes if row["task"] == name]
    starts = sorted({row["start"] for row in rows})
    by_start = {start: [row for row in rows if row["start"] == start] for start in starts}
    return {
        "task": name,
        **scores.rate(rows),
        "by_start": {start: scores.rate(own) for start, own in by_start.items()},
    }


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _language(language: dict[str, Any] | None) -> dict[str, Any] | None:
    """The language table with its interval; None when it was not played."""
    if language is None:
        return None
    total = language["instructed_episodes"]
    interval = scores.wilson_interval(round(language["instructed"] * total), total)
    return {**language, "ci95": list(interval), "text_blind_at_most": TEXT_BLIND_AT_MOST}


def _shown(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows whose films the page shows: successes and failures of each task, and for the language
    test one start of each task under all its instructions."""
    filmed = [_brief(row) for row in rows if row["video"]]
    standard = [row for row in filmed if row["condition"] == base.STANDARD]
    rollouts = []
    for name in _names(standard):
        for succeeded in (True, False):
            chosen = [r for r in standard if (r["task"], r["success"]) == (name, succeeded)]
            rollouts += chosen[:_SHOWN_PER_OUTCOME]
    return {"rollouts": rollouts, "language": _one_start_each(filmed)}


def _one_start_each(filmed: Sequence[Row]) -> list[Row]:
    order = (base.STANDARD, base.OPPOSITE, base.EMPTY)
    chosen = []
    for name in _names(filmed):
        by_seed: dict[int, dict[str, Row]] = {}
        for row in filmed:
            if row["task"] == name:
                by_seed.setdefault(row["seed"], {})[row["condition"]] = row
        complete = [rows for rows in by_seed.values() if len(rows) == len(order)]
        chosen += [complete[0][condition] for condition in order] if complete else []
    return chosen


def _brief(row: Row) -> Row:
    kept = ("id", "task", "condition", "instruction", "seed", "start", "success", "first_success")
    return {name: row[name] for name in (*kept, "steps", "video")}


# ---- where it ran ----


def _commit(folder: pathlib.Path) -> str | None:
    """The commit of the code, with "+" when files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float:
    """Memory of the machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    return min(total, int(text) if text.isdigit() else total) / 2**30
