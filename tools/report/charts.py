"""Drawings of numbers as inline SVG: loss curves, bars and intervals. Colours come from CSS."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Size of a curve's drawing and of the margins that hold its axes, in SVG units.
_WIDTH, _HEIGHT = 340, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 40
_LOG_FROM = 4.0  # losses that fall by more than this factor are drawn on a logarithmic axis

_BAR_WIDTH, _BAR_HEIGHT = 220, 18

_To = Callable[[float], float]


def loss_curve(curve: Mapping[str, Sequence[float]]) -> str:
    """Draws a loss over steps: every logged value faint, the smoothed one on top.

    Args:
        curve: "step", "loss" and "smoothed", of equal length.
    """
    low, high = min(curve["loss"]), max(curve["loss"])
    is_log = low > 0 and high / low > _LOG_FROM
    x_ticks = linear_ticks(0, curve["step"][-1], 4)
    y_ticks = log_ticks(low, high) if is_log else linear_ticks(low, high, 4)
    bottom, top = min(low, *y_ticks), max(high, *y_ticks)
    to_x = _scale(0, curve["step"][-1], _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(bottom, top, _HEIGHT - _BOTTOM, _TOP, is_log)
    parts = [_grid_line(to_y(tick), _short(tick)) for tick in y_ticks]
    parts += [_x_label(to_x(tick), _short(tick)) for tick in x_ticks]
    parts += [
        _line("raw", curve["step"], curve["loss"], to_x, to_y),
        _line("smooth", curve["step"], curve["smoothed"], to_x, to_y),
    ]
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    unit = "loss (log scale)" if is_log else "loss"
    parts += [
        f'<text class="axis" x="{middle_x}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>',
        f'<text class="axis" x="12" y="{middle_y}" text-anchor="middle" '
        f'transform="rotate(-90 12 {middle_y})">{unit}</text>',
    ]
    label = f"training loss from {_short(curve['loss'][0])} to {_short(curve['smoothed'][-1])}"
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def interval_bar(rate: float, interval: Sequence[float]) -> str:
    """Draws a share from 0 to 1 as a bar, with a line over its confidence interval."""
    low, high = (round(bound * _BAR_WIDTH, 1) for bound in interval)
    middle, length = _BAR_HEIGHT / 2, round(rate * _BAR_WIDTH, 1)
    return (
        f'<svg class="share" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" aria-hidden="true">'
        f'<rect class="track" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" rx="3"/>'
        f'<rect class="fill" width="{length}" height="{_BAR_HEIGHT}" rx="3"/>'
        f'<path class="whisker" d="M{low} {middle}H{high}M{low} {middle - 4}v8'
        f'M{high} {middle - 4}v8"/></svg>'
    )


def bar(value: float, largest: float) -> str:
    """Draws a bar whose length is the share of `value` in `largest`."""
    width = round(100 * value / largest, 2) if largest else 0
    return f'<span class="bar"><span style="width:{width}%"></span></span>'


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)] or [low]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], and as many round multiples as make three ticks."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 5, 7)):
        ticks = [k * 10.0**power for power in powers for k in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks or [low, high]


def _scale(low: float, high: float, start: float, end: float, is_log: bool = False) -> _To:
    """Returns the affine map from [low, high], or from their logarithms, to [start, end]."""
    take = math.log10 if is_log else float
    first, span = take(low), (take(high) - take(low)) or 1.0
    return lambda value: round(start + (take(value) - first) / span * (end - start), 1)


def _line(name: str, xs: Sequence[float], ys: Sequence[float], to_x: _To, to_y: _To) -> str:
    points = " ".join(f"{to_x(x)},{to_y(y)}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{name}" points="{points}"/>'


def _grid_line(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>'
    )


def _x_label(x: float, text: str) -> str:
    y = _HEIGHT - _BOTTOM + 16
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="middle">{text}</text>'


def _short(value: Any) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
