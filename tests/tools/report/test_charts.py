import re

import pytest

from tools.report import charts


def test_ticks_are_round_numbers_inside_the_range():
    assert charts.linear_ticks(0, 600, 4) == [0, 200, 400, 600]
    assert charts.linear_ticks(0.13, 0.38, 4) == [0.2, 0.3]
    assert charts.log_ticks(0.03, 1.2) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1.0])
    assert charts.log_ticks(0.004, 70) == pytest.approx([0.01, 0.1, 1, 10])
    assert charts.linear_ticks(5.0, 5.0, 4) == [5.0]


def _heights(svg, name):
    points = re.search(rf'class="{name}" points="([^"]+)"', svg)[1].split()
    return [float(point.split(",")[1]) for point in points]


def test_curve_uses_a_log_axis_when_the_loss_falls_far():
    losses = [1.0, 0.1, 0.01]
    svg = charts.loss_curve({"step": [1, 2, 3], "loss": losses, "smoothed": losses})
    first, second, third = _heights(svg, "smooth")
    assert "log scale" in svg and second - first == pytest.approx(third - second, abs=0.2)
    near = [1.0, 0.9, 0.8]
    svg = charts.loss_curve({"step": [1, 2, 3], "loss": near, "smoothed": near})
    assert "log scale" not in svg and _heights(svg, "raw")[0] < _heights(svg, "raw")[2]


def test_curve_of_one_constant_point_has_finite_numbers():
    svg = charts.loss_curve({"step": [20], "loss": [0.5], "smoothed": [0.5]})
    assert "nan" not in svg and "inf" not in svg
