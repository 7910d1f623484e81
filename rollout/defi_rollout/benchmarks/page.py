"""The HTML page of an evaluation: tables, and the films beside their instruction and outcome."""

import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from defi_rollout.benchmarks import scores, videos

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd }
.films { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0 }
figcaption { font-size: 13px; max-width: 27rem }
video, img { width: 13rem; border-radius: 4px; margin-right: .25rem }
.yes { color: #17752b }
.no { color: #a3261b }
"""
_COLUMNS = ("episode", "instruction", "start", "outcome", "steps", "status")


def write_page(output: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes `output`/index.html; videos are linked, not embedded."""
    summary, name = results["summary"], results["protocol"]["name"]
    rows = results["episodes"] + results["language_episodes"]
    films = sorted((row for row in rows if row["video"]), key=lambda row: row["success"])
    body = [
        f"<h1>{html.escape(name)}: {summary['success_rate']:.1%} success</h1>",
        f"<p>{summary['episodes']} episodes; 95 % interval {_interval(summary['ci95'])}</p>",
        _table(("", ""), _facts(results)),
        *_chains(summary["chains"]),
        "<h2>By task</h2>",
        _table(
            ("task", "tried", "success", "95 % interval"),
            [
                (task, found["episodes"], f"{found['success_rate']:.1%}", _interval(found["ci95"]))
                for task, found in summary["by_task"].items()
            ],
        ),
        *_language(summary["language"]),
        "<h2>Episodes, failures first</h2>",
        f'<div class="films">{"".join(_film(output, row) for row in films)}</div>',
        _table(
            _COLUMNS,
            [
                (
                    row["id"],
                    row["instruction"],
                    row["start"],
                    _outcome(row),
                    row["steps"],
                    row["status"],
                )
                for row in rows
            ],
        ),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(name)}</title>'
    text = f"<!doctype html><html><head>{head}<style>{_STYLE}</style></head><body>"
    (output / "index.html").write_text(text + "\n".join(body) + "</body></html>\n")


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    protocol, renderer = results["protocol"], results["renderer"] or {}
    bundle, kind = results["bundle_sha256"], results["policy"]["kind"]
    latency = results["summary"]["policy_latency_ms_p50"]
    comparable = "" if renderer.get("comparable", True) else " (pixels not those of a GPU)"
    drawn = " ".join(str(renderer.get(key, "unknown")) for key in ("vendor", "name"))
    return [
        ("protocol", f"{protocol['name']} v{protocol['version']} ({protocol['sha256'][:12]})"),
        ("policy", f"{kind} {bundle[:12] if isinstance(bundle, str) else ''}"),
        *[("trained on", origin) for origin in results["policy"].get("origins") or ()],
        ("simulator", f"{results['simulator']['version']}, {results['simulator']['commit']}"),
        ("renderer", drawn + comparable),
        ("success counts", results["success_mode"].replace("_", " ")),
        ("median inference", "none" if latency is None else f"{latency:.1f} ms"),
    ]


def _chains(chains: dict[str, Any] | None) -> list[str]:
    if chains is None:
        return []
    low, high = chains["average_length_ci95"]
    rates = zip(chains["success_rates"], chains["ci95"], strict=True)
    return [
        "<h2>By position in the chain</h2>",
        f"<p>{chains['chains']} chains, {chains['average_length']:.2f} tasks done on average "
        f"(95 % interval {low:.2f} to {high:.2f})</p>",
        _table(
            ("tasks in a row", "chains", "95 % interval"),
            [(i, f"{rate:.1%}", _interval(ci)) for i, (rate, ci) in enumerate(rates, start=1)],
        ),
    ]


def _interval(ci95: Sequence[float]) -> str:
    return f"{ci95[0]:.1%} to {ci95[1]:.1%}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _language(language: dict[str, Any] | None) -> list[str]:
    if language is None:
        return []
    header = ("start of", "instruction", "episodes", "that task first", "its opposite first")
    rows = [
        (
            *(row["task"], row["instruction"], row["episodes"]),
            *(f"{row[key]:.0%}" for key in ("task_first", "opposite_first")),
        )
        for row in language["table"]
    ]
    text = f"{language['instructed']:.0%} of {language['instructed_episodes']} episodes"
    return [
        "<h2>Language</h2>",
        f"<p>Half-way starts: in {text} the instructed task came first.</p>",
        _table(header, rows),
    ]


def _outcome(row: dict[str, Any]) -> str:
    """Success, or where it failed."""
    if row["success"]:
        return "success"
    if row["status"] in ("failed", "crashed"):
        return f"{row['status']} after {row['steps']} steps"
    done = scores.completed(row)
    if row["stages"]:
        return f"failed at task {done + 1} of {len(row['stages'])}: {row['stages'][done]}"
    return f"no success in {row['steps']} steps"


def _film(output: pathlib.Path, row: dict[str, Any]) -> str:
    """What happened and, where `launch/imagine_evaluation.py` was run, what was expected."""
    future = videos.future_of(output, row["video"])
    said = html.escape(row["instruction"] or "(no instruction)")
    style, outcome = "yes" if row["success"] else "no", html.escape(_outcome(row))
    beside = "" if future is None else "; right: predicted from the first picture"
    caption = f'{said}<br><span class="{style}">{outcome}</span>, {row["start"]} start{beside}'
    films = "".join(map(_moving, filter(None, (row["video"], future))))
    return f"<figure>{films}<figcaption>{caption}</figcaption></figure>"


def _moving(path: str) -> str:
    source = html.escape(path, quote=True)
    if source.endswith(".gif"):
        return f'<img src="{source}" alt="">'
    return f'<video src="{source}" controls muted loop preload="metadata"></video>'
