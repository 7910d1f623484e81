import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.numpy

from defi_jax import errors
from defi_jax.weights.parity import check
from tests.fixtures import seeded

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures" / "parity"
pytestmark = pytest.mark.usefixtures("as_users_compile")
# The video models take half a minute to compile on two cores.
SLOW = ("svd_unet", "svd_vae")
CASES = [
    pytest.param(path.stem, marks=pytest.mark.slow) if path.stem.startswith(SLOW) else path.stem
    for path in sorted(FIXTURES.glob("*.safetensors"))
]


def _fixture(case: str = "clip_text") -> check.Fixture:
    return check.Fixture(**seeded.load(FIXTURES / f"{case}.safetensors"))


def _write(path: pathlib.Path, fixture: check.Fixture, **metadata: str) -> pathlib.Path:
    tensors = {f"param/{name}": value for name, value in fixture.params.items()}
    tensors |= {f"in/{name}": value for name, value in fixture.inputs.items()}
    tensors |= {f"out/{name}": value for name, value in fixture.outputs.items()}
    metadata = {"kind": fixture.kind, "config": json.dumps(fixture.config)} | metadata
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("case", CASES)
def test_module_agrees_with_the_published_one(case):
    results = check.check(_fixture(case))
    assert results
    for result in results:
        assert result.passed, str(result)
        # Well below the tolerance of the contract, so that a slow drift is seen.
        assert result.rel_l2 < 1e-5, str(result)


def test_a_changed_weight_fails_the_check():
    fixture = _fixture()
    name = "text_model.final_layer_norm.bias"
    changed = fixture.params | {name: fixture.params[name] + np.float32(0.01)}
    results = check.check(dataclasses.replace(fixture, params=changed))
    assert not any(result.passed for result in results)
    assert str(results[0]).endswith("FAIL")


def test_file_round_trip_and_order_of_outputs(tmp_path):
    fixture = check.read_fixture(_write(tmp_path / "a.safetensors", _fixture()))
    assert [result.output for result in check.check(fixture)] == [
        "last_hidden_state",
        "text_embeds",
    ]


def test_compare_is_strict_about_shapes_integers_and_nan():
    def passed(ours, expected):
        return check.compare("kind", "name", ours, np.asarray(expected)).passed

    assert passed(np.array([1, 2]), [1, 2])
    assert not passed(np.array([1, 3]), [1, 2])
    assert passed(np.float32([1, 1.00001]), np.float32([1, 1]))
    assert not passed(np.float32([1, 1.001]), np.float32([1, 1]))
    assert not passed(np.float32([[1, 1]]), np.float32([1, 1]))
    assert not passed(np.float32([1, np.nan]), np.float32([1, 1]))
    assert not passed(None, np.float32([1]))
    assert passed(np.zeros(2, np.float32), np.zeros(2, np.float32))


def test_bad_fixtures_are_named(tmp_path):
    fixture = _fixture()
    with pytest.raises(errors.UserError, match="unknown kind 'clip'"):
        check.check(dataclasses.replace(fixture, kind="clip"))
    with pytest.raises(errors.UserError, match=r"unknown config field hidden_sise.*hidden_size"):
        config = {**fixture.config, "hidden_sise": 3}
        check.check(dataclasses.replace(fixture, config=config))
    with pytest.raises(errors.UserError, match=r"fixture lacks 'input_ids'"):
        check.check(dataclasses.replace(fixture, inputs={}))
    with pytest.raises(errors.UserError, match="no such file"):
        check.read_fixture(tmp_path / "absent.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not a fixture")
    with pytest.raises(errors.DataError, match="not a safetensors file"):
        check.read_fixture(text)
    for config in ("{", "[" * 100_000, "1" * 5000):
        with pytest.raises(errors.DataError, match="config is not JSON"):
            check.read_fixture(_write(tmp_path / "json.safetensors", fixture, config=config))
    header = b'{"out/a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    text.write_bytes(len(header).to_bytes(8, "little") + header + b"a")
    with pytest.raises(errors.DataError, match="unknown element types"):
        check.read_fixture(text)
    with pytest.raises(errors.DataError, match="fixture without out/"):
        empty = dataclasses.replace(fixture, outputs={})
        check.read_fixture(_write(tmp_path / "empty.safetensors", empty))
    params = dict(fixture.params)
    params["stray.weight"] = params.pop("text_projection.weight")
    with pytest.raises(errors.DataError, match=r"missing name text_proj.*unknown name stray"):
        check.check(dataclasses.replace(fixture, params=params))


@pytest.mark.parametrize(
    "config",
    [
        [1],
        3,
        None,
        *({"num_hidden_layers": value} for value in ("2", 2.5, -2, 0)),
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
    ],
)
def test_bad_configs_are_user_errors(config):
    fixture = _fixture()
    given = fixture.config | config if isinstance(config, dict) else config
    with pytest.raises(errors.UserError) as caught:
        check.check(dataclasses.replace(fixture, config=given))
    assert type(caught.value) is errors.UserError
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name", "change", "message"),
    [
        ("clip_text", "input_ids", lambda x: x[0], "input_ids is int64(9,), not [int B L]"),
        ("clip_text", "input_ids", lambda x: x.astype(np.float32), "not [int B L]"),
        ("clip_text", "input_ids", lambda x: np.tile(x, 9), "81 tokens, but 12 positions"),
        ("t5_encoder", "attention_mask", lambda x: x[:, 1:], "not [B L]"),
        ("dinov2_cut", "pixel_values", lambda x: x[:, :2], "not [B 3 H W]"),
        ("dinov2_cut", "pixel_values", lambda x: x[..., :1], "images smaller than a patch"),
        ("dinov2_cut", "pixel_values", lambda x: x.astype(np.int32), "the module refuses"),
        ("svd_unet", "sample", lambda x: x[:, :, 1:], "not [B T in_channels H W]"),
        ("svd_unet", "timestep", lambda x: x[:1], "not [B]"),
        ("svd_unet", "encoder_hidden_states", lambda x: x[..., 1:], "L cross_attention_dim]"),
        ("svd_vae", "pixels", lambda x: x[0], "not [B in_channels H W]"),
    ],
)
def test_inputs_of_another_shape_or_type_are_user_errors(case, name, change, message):
    fixture = _fixture(case)
    inputs = {**fixture.inputs, name: change(fixture.inputs[name])}
    with pytest.raises(errors.UserError, match=re.escape(message)) as caught:
        check.check(dataclasses.replace(fixture, inputs=inputs))
    assert type(caught.value) is errors.UserError
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_runner_is_no_error_of_the_fixture(monkeypatch):
    monkeypatch.setitem(check.KINDS, "clip_text", lambda *arguments: {}["bug"])
    with pytest.raises(KeyError):
        check.check(_fixture())
