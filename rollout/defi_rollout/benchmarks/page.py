"""The HTML page of an evaluation: tables, and the films beside their instruction and outcome."""

import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #ddd }
.films { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0; width: 13rem }
figcaption { font-size: 13px }
video, img { width: 100%; border-radius: 4px }
.yes { color: #17752b }
.no { color: #a3261b }
"""
# Of the table of episodes: keys of a row, and what became of it.
_COLUMNS = ("id", "instruction", "start", "outcome", "steps", "status")


def write_page(output: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes `output`/index.html; videos are linked, not embedded."""
    summary = results["summary"]
    low, high = summary["ci95"]
    protocol, renderer = results["protocol"], results["renderer"] or {}
    rows = results["episodes"] + results["language_episodes"]
    facts = [
        ("protocol", f"{protocol['name']} v{protocol['version']} ({protocol['sha256'][:12]})"),
        ("bundle", results["bundle_sha256"][:12]),
        ("simulator", results["simulator"]["version"]),
        ("renderer", " ".join(str(renderer.get(k, "unknown")) for k in ("vendor", "name"))),
        ("median inference", f"{summary['policy_latency_ms_p50'] or 0:.1f} ms"),
    ]
    body = [
        f"<h1>{html.escape(protocol['name'])}: {summary['success_rate']:.0%} success</h1>",
        f"<p>{summary['episodes']} episodes; 95 % interval {low:.0%} to {high:.0%}</p>",
        _table(("", ""), facts),
        "<h2>By task</h2>",
        _table(
            ("task", "success"),
            [(task, f"{rate:.0%}") for task, rate in summary["success_by_task"].items()],
        ),
        *_language(summary["language"]),
        "<h2>Episodes</h2>",
        f'<div class="films">{"".join(_film(row) for row in rows if row["video"])}</div>',
        _table(
            ("episode", *_COLUMNS[1:]),
            [[{**row, "outcome": _outcome(row)}[key] for key in _COLUMNS] for row in rows],
        ),
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(protocol["name"])}</title>'
    text = f"<!doctype html><html><head>{head}<style>{_STYLE}</style></head><body>"
    (output / "index.html").write_text(text + "\n".join(body) + "</body></html>\n")


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
    return "success" if row["success"] else "no success"


def _film(row: dict[str, Any]) -> str:
    source = html.escape(row["video"], quote=True)
    if source.endswith(".gif"):
        film = f'<img src="{source}" alt="">'
    else:
        film = f'<video src="{source}" controls muted loop preload="metadata"></video>'
    style = "yes" if row["success"] else "no"
    said = html.escape(row["instruction"] or "(no instruction)")
    caption = f'{said}<br><span class="{style}">{_outcome(row)}</span>, {row["start"]} start'
    return f"<figure>{film}<figcaption>{caption}</figcaption></figure>"
