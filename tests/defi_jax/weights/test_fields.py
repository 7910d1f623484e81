import dataclasses
from typing import Literal

import pytest

from defi_jax import errors
from defi_jax.weights import fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One field of each kind."""

    layers: int
    eps: float
    act: Literal["relu", "gelu"] = "relu"
    has_bias: bool = True
    widths: tuple[int, ...] = (1,)
    heads: int | tuple[int, ...] = 1
    condition_frames: tuple[int, int] = (0, 1)
    out_dim: int | None = None

    def __post_init__(self) -> None:
        if self.layers == 13:
            raise ValueError("layers is 13")


GIVEN = {"layers": 2, "eps": 1e-5}


def test_json_becomes_a_config():
    config = fields.make_config(
        Config,
        {**GIVEN, "eps": 1, "widths": [3, 4], "heads": [1, 2], "condition_frames": [0, 3]},
        "here",
    )
    assert config == Config(layers=2, eps=1, widths=(3, 4), heads=(1, 2), condition_frames=(0, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("layers", value) for value in ("2", 2.0, -2, 0, None, True, [2], {}, 2**40)),
        *(("eps", value) for value in ("1", -1.0, float("nan"), float("inf"), True)),
        *(("act", value) for value in ("tanh", 1, [])),
        *(("has_bias", value) for value in (1, "true", None)),
        *(("widths", value) for value in (3, [], [1, 0], [1, "2"], [[1]])),
        *(("heads", value) for value in (0, [1, -1], 1.5)),
        *(("condition_frames", value) for value in ([0], [0, 1, 2], [-1, 0])),
        ("out_dim", 0),
    ],
)
def test_value_of_another_type_or_sign_is_refused(name, value):
    with pytest.raises(errors.UserError, match=f"config field {name} is .*: here"):
        fields.make_config(Config, {**GIVEN, name: value}, "here")


def test_all_wrong_fields_are_one_line_and_long_values_are_cut():
    with pytest.raises(errors.UserError, match=r'act is "xx.*; layers is 0') as caught:
        fields.make_config(Config, {**GIVEN, "layers": 0, "act": "x" * 10**6}, "here")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("given", [[1], None, "text", 3])
def test_what_is_no_object_is_refused(given):
    with pytest.raises(errors.UserError, match="not an object: here"):
        fields.make_config(Config, given, "here")


def test_unknown_missing_and_contradictory_fields_are_named():
    with pytest.raises(errors.UserError, match=r"unknown config field layer.*near: layers"):
        fields.make_config(Config, {**GIVEN, "layer": 2}, "here")
    with pytest.raises(errors.UserError, match="missing config field eps: here"):
        fields.make_config(Config, {"layers": 2}, "here")
    with pytest.raises(errors.UserError, match="layers is 13: here"):
        fields.make_config(Config, {**GIVEN, "layers": 13}, "here")
