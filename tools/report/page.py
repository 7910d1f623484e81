"""The page of a run: one self-contained HTML file, every number of it out of report.json.

`page.html.jinja` is the page, `page.css` its looks: neutral, in the reader's light or dark mode.
"""

from typing import Any

import jinja2
import markupsafe

from tools.report import charts, pictures

_STAGES = {
    "gfdm": ("GFDM", "The forward model learns to predict the video that follows one frame."),
    "gidm": ("GIDM", "The inverse model learns what happened between two frames, without labels."),
    "joint": ("Joint policy", "Both meet a policy that learns from the recorded actions."),
}
_TOLD = {
    "right": "right instruction",
    "opposite": "opposite instruction",
    "empty": "no instruction",
    "standard": "right instruction",
}


def render(report: dict[str, Any], images: pictures.Pictures) -> str:
    """Returns the page.

    Args:
        report: content of report.json.
        images: data URIs of what it speaks of.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tools.report", "."),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "duration": duration,
        "letters": letters,
        "number": number,
        "percent": lambda value: number(value, ".0%"),
    }
    starts = sorted({start for task in report["tasks"] for start in task["by_start"]})
    return environment.get_template("page.html.jinja").render(
        report=report,
        images=images,
        codes=sorted(images.codes, key=len, reverse=True),  # those with many pairs say most
        css=markupsafe.Markup(environment.loader.get_source(environment, "page.css")[0]),
        loss_curve=lambda curve: markupsafe.Markup(charts.loss_curve(curve)),
        bar=lambda *values: markupsafe.Markup(charts.bar(*values)),
        interval_bar=lambda *values: markupsafe.Markup(charts.interval_bar(*values)),
        stages=_STAGES,
        stage_names=[f"{_STAGES[stage][0]}#" for stage in report["stages"]],
        starts=starts,
        start_names=[f"from {start.replace('_', '-')} starts#" for start in starts],
        told=_TOLD,
    )


def letters(index: int) -> str:
    """A, B, ... Z, AA, AB, ...: names that no one takes for a code's number."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A number for people, with its unit; None was not measured."""
    if value is None:
        return "not measured"
    return f"{value:{form}}{unit}".replace("%", " %").replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds, or minutes where those are many."""
    if seconds is None or seconds < 90:
        return number(seconds, ".0f", " s")
    return number(seconds / 60, ".1f", " min")
