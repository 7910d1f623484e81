"""The page of a run: one self-contained HTML file, every number of it out of report.json."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from tools.report import charts, pictures, style

Report = dict[str, Any]

_STAGES = {
    "gfdm": ("GFDM", "The forward model learns to predict the video that follows one frame."),
    "gidm": ("GIDM", "The inverse model learns what happened between two frames, without labels."),
    "joint": ("Joint policy", "Both meet a policy that learns from the recorded actions."),
}
_SECTIONS = (
    ("data", "What it was trained on"),
    ("losses", "Learning"),
    ("futures", "Predicted futures"),
    ("codes", "What the codes mean"),
    ("actions", "Action error"),
    ("rollouts", "The robot at work"),
    ("success", "Success by task"),
    ("language", "Does it listen?"),
    ("time", "Time"),
    ("facts", "To do it again"),
)
_FUTURES_OPEN, _CODES_OPEN = 4, 10  # rows shown before the reader asks for more
_TOLD = {
    "right": "right instruction",
    "opposite": "opposite instruction",
    "empty": "no instruction",
    "standard": "right instruction",
}


def render(report: Report, images: pictures.Pictures) -> str:
    """Returns the page.

    Args:
        report: content of report.json.
        images: data URIs of what it speaks of.
    """
    bodies = {
        "data": _data(report, images),
        "losses": _losses(report),
        "futures": _futures(report, images),
        "codes": _codes(report, images),
        "actions": _actions(report),
        "rollouts": _rollouts(report, images),
        "success": _success(report),
        "language": _language(report, images),
        "time": _time(report),
        "facts": _facts(report),
    }
    sections = "".join(
        f'<section id="{name}"><h2>{title}</h2>{bodies[name]}</section>'
        for name, title in _SECTIONS
    )
    links = " ".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>DeFI-JAX: report of a run</title><style>{style.CSS}</style></head><body>"
        "<header><h1>From demonstrations to a robot that listens</h1>"
        '<p class="muted">One run of DeFI-JAX: demonstrations, a forward model of video, an '
        "inverse model of actions, a policy made of both, and rollouts in simulation from starts "
        f"it has never seen.</p>{_tiles(report)}<nav>{links}</nav></header>"
        f"<main>{sections}</main></body></html>\n"
    )


def _tiles(report: Report) -> str:
    low, high = report["ci95"]
    tiles = [
        (
            _percent(report["success_rate"]),
            "success in closed loop",
            f"{report['episodes']} unseen starts; 95 % interval {_percent(low)} to "
            f"{_percent(high)}",
        ),
        (
            f"{report['gfdm_psnr']:.1f} dB",
            "PSNR of predicted video",
            f"SSIM {report['gfdm_ssim']:.2f}; repeating the first frame gives "
            f"{report['gfdm_psnr_repeat']:.1f} dB",
        ),
        (
            _number(report["probe_r2"]),
            "R² of actions read from codes",
            f"with shuffled codes {_number(report['probe_r2_shuffled'])}",
        ),
        (
            _number(report["policy_latency_ms_p50"], ".0f", " ms"),
            "for one inference",
            f"median, on {report['machine']['cores']} cores",
        ),
        (_duration(report["total_seconds"]), "for the whole road", "all phases together"),
    ]
    language = report["language"]
    if language:
        tiles.insert(
            1,
            (
                _percent(language["instructed"]),
                "the instructed task came first",
                f"of {language['instructed_episodes']} half-way starts; deaf to text: at most "
                f"{_percent(language['text_blind_at_most'])}",
            ),
        )
    cells = (
        f'<div class="tile"><b>{value}</b><span>{what}</span><span class="note">{note}</span></div>'
        for value, what, note in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


# ---- data and training ----


def _data(report: Report, images: pictures.Pictures) -> str:
    header = ["source", "episodes#", "frames#", "actions", "origin"]
    header += [f"{_STAGES[stage][0]}#" for stage in report["stages"]]
    rows = [
        [
            _code(source["name"]),
            f"{source['episodes']:,}",
            f"{source['frames']:,}",
            "yes" if source["has_actions"] else "no, video alone",
            "simulated" if source["is_simulated"] else "recorded or made up",
            *(
                _percent(source["shares"][stage]) if stage in source["shares"] else "–"
                for stage in report["stages"]
            ),
        ]
        for source in report["sources"]
    ]
    sheets = "".join(
        f'<h3>{_code(name)}</h3><figure class="sheet"><img src="{uri}" loading="lazy" '
        f'alt="contact sheet of {_text(name)}"></figure>'
        for name, uri in images.sheets.items()
    )
    return (
        "<p>Episodes of the training split; held-out episodes are never trained on. Sources "
        "without actions teach the forward and the inverse model only. The last columns say which "
        "share of a stage's samples comes from each source.</p>"
        f"{_table(header, rows)}{sheets}"
    )


def _losses(report: Report) -> str:
    figures = []
    for stage, facts in report["stages"].items():
        title, what = _STAGES[stage]
        size = f"{facts['steps']:,} steps of batch {facts['global_batch']}"
        seconds = _duration(report["phase_seconds"][stage])
        figures.append(
            f"<figure><h3>{title}</h3>{charts.loss_curve(facts['curve'])}<figcaption>{what} "
            f"{size}, preset {_text(facts['preset'])}, {seconds}.</figcaption></figure>"
        )
    return (
        "<p>Training loss of each stage: logged values faint, their moving average on top.</p>"
        f'<div class="curves">{"".join(figures)}</div>'
    )


def _futures(report: Report, images: pictures.Pictures) -> str:
    rows = [
        f'<div class="future">{_motion(clip.true_film, "true")}'
        f'{_motion(clip.predicted_film, "predicted")}<div class="strips">'
        f'<span class="note">true</span><img class="pixels" src="{clip.true_strip}" '
        'alt="true frames"><span class="note">predicted</span><img class="pixels" '
        f'src="{clip.predicted_strip}" alt="predicted frames"></div></div>'
        for clip in images.futures
    ]
    return (
        "<p>Held-out clips. The forward model sees the first frame and the instruction and "
        f"imagines the rest: PSNR {report['gfdm_psnr']:.1f} dB and SSIM {report['gfdm_ssim']:.2f} "
        "over the imagined frames. Repeating the first frame, which is hard to beat where little "
        f"moves, gives {report['gfdm_psnr_repeat']:.1f} dB.</p>"
        f"{_folded(rows, _FUTURES_OPEN, 'more clips')}"
    )


def _motion(uri: str, name: str) -> str:
    return (
        f'<figure><img class="pixels" src="{uri}" alt="{name} video"><figcaption>{name}'
        "</figcaption></figure>"
    )


def _codes(report: Report, images: pictures.Pictures) -> str:
    # Codes with many pairs say most.
    ordered = sorted(images.codes, key=len, reverse=True)
    rows = [
        f'<div class="code"><span>code {_letter(i)}</span>'
        + "".join(f'<img class="pixels" src="{uri}" alt="frame pair">' for uri in pairs)
        + "</div>"
        for i, pairs in enumerate(ordered)
    ]
    facts = [
        ["share of the codebook in use", _number(report["gidm_code_usage"], ".0%")],
        ["perplexity (codes in effective use)", _number(report["gidm_code_perplexity"], ".1f")],
        ["R² of a linear probe from latent to true actions", _number(report["probe_r2"])],
        ["the same on shuffled codes", _number(report["probe_r2_shuffled"])],
        ["error of the reconstructed second frame", f"{report['gidm_reconstruction']:.4f}"],
        ["the same when the first frame is copied", f"{report['gidm_reconstruction_copy']:.4f}"],
    ]
    if report["gidm_code_usage"] is None:
        text = (
            "The inverse model says what happened between two frames with a few continuous "
            "numbers (its codebook is switched off), and it is never shown an action. A linear "
            "probe says how much of the true action can be read from them."
        )
    else:
        text = (
            "The inverse model says what happened between two frames with a few discrete codes, "
            "and it is never shown an action. Held-out pairs that share the code of the first "
            "token, before and after side by side, should show the same kind of motion; a linear "
            "probe says how much of the true action can be read from the codes."
        )
    table = _table(["held-out pairs", "#"], facts)
    return f"<p>{text}</p>{table}{_folded(rows, _CODES_OPEN, 'more codes')}"


def _actions(report: Report) -> str:
    errors = report["action_mae"]
    largest = max(errors.values())
    rows = [
        [_text(name), charts.bar(error, largest), f"{error:.3f}"] for name, error in errors.items()
    ]
    rows.append(["mean", "", f"{report['action_mae_mean']:.3f}"])
    return (
        "<p>Mean absolute error of sampled actions against the recorded ones on held-out episodes, "
        "by dimension, in the units the policy is trained in.</p>"
        f"{_table(['dimension', '', 'error#'], rows, last_is_total=True)}"
    )


# ---- closed loop ----


def _rollouts(report: Report, images: pictures.Pictures) -> str:
    shown = report["shown"]["rollouts"]
    parts = [
        "<p>The first filmed successes and failures of each task, from starts that training has "
        "not seen. Half-way starts leave open what to do: only the instruction tells.</p>"
    ]
    for task in report["tasks"]:
        rows = [row for row in shown if row["task"] == task["task"]]
        failures = task["episodes"] - task["successes"]
        parts.append(
            f"<h3>{_code(task['task'])} <span class='note'>{task['successes']} successes, "
            f"{failures} failures</span></h3>{_films(rows, images)}"
        )
    return "".join(parts)


def _success(report: Report) -> str:
    starts = sorted({start for task in report["tasks"] for start in task["by_start"]})
    header = ["task", "success", "#", "95 % interval", "n#"]
    header += [f"from {start.replace('_', '-')} starts#" for start in starts]
    rows = [
        _success_row(_code(task["task"]), task, [task["by_start"].get(s) for s in starts])
        for task in report["tasks"]
    ]
    rows.append(_success_row("all episodes", report, [None] * len(starts)))
    protocol, renderer = report["protocol"], report["renderer"] or {}
    drawn = f", drawn by {_text(renderer['name'])}" if renderer else ""
    return (
        "<p>Share of episodes in which the task was done in time, with Wilson intervals.</p>"
        f"{_table(header, rows, last_is_total=True)}"
        f'<p class="note">Protocol {_text(protocol["name"])} v{_text(protocol["version"])} '
        f"({_code(protocol['sha256'][:12])}), seed {report['evaluation_seed']}{drawn}.</p>"
    )


def _success_row(name: str, rate: Report, by_start: Sequence[Report | None]) -> list[str]:
    low, high = rate["ci95"]
    return [
        name,
        charts.interval_bar(rate["success_rate"], rate["ci95"]),
        _percent(rate["success_rate"]),
        f"{_percent(low)} to {_percent(high)}",
        str(rate["episodes"]),
        *(f"{part['successes']} of {part['episodes']}" if part else "" for part in by_start),
    ]


def _language(report: Report, images: pictures.Pictures) -> str:
    language = report["language"]
    if not language:
        return "<p>The language test was not played: evaluate with <code>--language</code>.</p>"
    low, high = language["ci95"]
    blind = _percent(language["text_blind_at_most"])
    header = [
        "start of",
        "told",
        "n#",
        "its task done#",
        "opposite task done#",
        "its task first#",
        "opposite first#",
    ]
    rows = [_language_row(_code(cell["task"]), cell) for cell in language["table"]]
    rows += [_language_row("all", cell) for cell in language["conditions"].values()]
    opened = [i for i, row in enumerate(rows) if i % len(language["conditions"]) == 0]
    return (
        "<p>Half-way starts with equal seeds, each played with the right instruction, the opposite "
        "one and none, and scored on both tasks. Told the right or the opposite task, the policy "
        f"did the instructed one in {_percent(language['instructed_success'])} of "
        f"{language['instructed_episodes']} episodes, and it was the first of the two to be done "
        f"in {_percent(language['instructed'])} (95 % interval {_percent(low)} to "
        f"{_percent(high)}). <strong>A policy that ignores the text does the same whatever it is "
        f"told, so on average the instructed task comes first in at most {blind} of them.</strong>"
        f"</p>{_table(header, rows, opened=opened)}"
        '<p class="note">An episode ends when its scored task is done, or, without an instruction, '
        "when either is.</p>"
        f"<h3>One start, three instructions</h3>{_language_films(report, images)}"
    )


def _language_row(name: str, cell: Report) -> list[str]:
    shares = ("task_success", "opposite_success", "task_first", "opposite_first")
    return [
        name,
        _TOLD[cell["instruction"]],
        str(cell["episodes"]),
        *(_percent(cell[share]) for share in shares),
    ]


def _language_films(report: Report, images: pictures.Pictures) -> str:
    shown = report["shown"]["language"]
    tasks = dict.fromkeys(row["task"] for row in shown)
    return "".join(
        f'<h3 class="muted">start of {_code(task)}</h3>'
        + _films([row for row in shown if row["task"] == task], images, "films three")
        for task in tasks
    )


def _films(rows: Iterable[Report], images: pictures.Pictures, style_name: str = "films") -> str:
    return f'<div class="{style_name}">{"".join(_film(row, images) for row in rows)}</div>'


def _film(row: Report, images: pictures.Pictures) -> str:
    uri = images.films.get(row["id"])
    if uri is None:
        film = f'<span class="none">left out to keep the page small: {_code(row["video"])}</span>'
    elif uri.startswith("data:video"):
        film = f'<video src="{uri}" autoplay muted loop playsinline controls></video>'
    else:
        film = f'<img src="{uri}" alt="film of the episode">'
    said = f"<q>{_text(row['instruction'])}</q>" if row["instruction"] else "(told nothing)"
    start = row["start"].replace("_", "-")
    return (
        f'<figure class="film">{film}<figcaption>{said}<br>{_outcome(row)}, {row["steps"]} '
        f"steps, {start} start</figcaption></figure>"
    )


def _outcome(row: Report) -> str:
    if row["condition"] == "empty":
        done = [task for task, step in row["first_success"].items() if step is not None]
        return f"did {_code(done[0])}" if done else "did neither"
    if row["success"]:
        return '<span class="good">success</span>'
    return '<span class="bad">failure</span>'


# ---- the run ----


def _time(report: Report) -> str:
    seconds = report["phase_seconds"]
    largest = max(value for value in seconds.values() if value is not None)
    rows = [
        [name, charts.bar(value, largest), _duration(value)]
        if value is not None
        else [name, "", "not measured"]
        for name, value in seconds.items()
    ]
    rows.append(["all", "", _duration(report["total_seconds"])])
    machine = report["machine"]
    return (
        f"<p>On {machine['cores']} cores with {machine['memory_gib']:.0f} GiB of memory.</p>"
        f"{_table(['phase', '', 'time#'], rows, last_is_total=True)}"
    )


def _facts(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    simulator = report["simulator"]
    facts = [
        ("code", _code(report["commit"] or "not a git checkout")),
        ("packages", _text(versions)),
        ("simulator", _text(f"{simulator['name']} {simulator['version']}")),
        ("seed", f"{report['seed']} in training, {report['evaluation_seed']} in evaluation"),
        ("bundle", _code(report["bundle_sha256"])),
    ]
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in facts)}</dl>"


# ---- pieces ----


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    last_is_total: bool = False,
    opened: Sequence[int] = (),
) -> str:
    """A table of cells that are HTML already.

    Args:
        header: names of the columns; those that end in "#" hold numbers.
        rows: cells.
        last_is_total: whether the last row sums up the others.
        opened: indices of the rows that begin a group.
    """
    styles = [' class="n"' if name.endswith("#") else "" for name in header]
    top = "".join(
        f"<th{style_}>{name.rstrip('#')}</th>" for name, style_ in zip(header, styles, strict=True)
    )
    rows, lines = list(rows), []
    for i, row in enumerate(rows):
        names = ["first"] if i in opened else []
        names += ["total"] if last_is_total and i == len(rows) - 1 else []
        cells = zip(row, styles, strict=True)
        line = "".join(f"<td{style_}>{cell}</td>" for cell, style_ in cells)
        lines.append(f'<tr class="{" ".join(names)}">{line}</tr>' if names else f"<tr>{line}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _folded(rows: Sequence[str], num_open: int, more: str) -> str:
    """The first rows, and the others behind a line to click on."""
    rest = rows[num_open:]
    folded = f"<details><summary>{len(rest)} {more}</summary>{''.join(rest)}</details>"
    return "".join(rows[:num_open]) + (folded if rest else "")


def _letter(index: int) -> str:
    """A, B, ... Z, AA, AB, ...: names that no one takes for a code's number."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def _text(value: Any) -> str:
    return html.escape(str(value))


def _code(value: Any) -> str:
    return f"<code>{_text(value)}</code>"


def _percent(value: float) -> str:
    return f"{value:.0%}".replace("%", " %")


def _number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    if value is None:
        return "not measured"
    return f"{value:{form}}{unit}".replace("%", " %").replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"
