import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from defi_jax import errors
from defi_jax.weights import parity
from tests.fixtures import seeded

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "parity"
# The video models take half a minute to compile on two cores.
SLOW = ("svd_unet", "svd_vae")
CASES = [
    pytest.param(path.stem, marks=pytest.mark.slow) if path.stem.startswith(SLOW) else path.stem
    for path in sorted(FIXTURES.glob("*.safetensors"))
]


def _fixture(case: str = "clip_text") -> parity.Fixture:
    return parity.Fixture(**seeded.load(FIXTURES / f"{case}.safetensors"))


def _write(path: pathlib.Path, fixture: parity.Fixture, **metadata: str) -> pathlib.Path:
    tensors = {f"param/{name}": value for name, value in fixture.params.items()}
    tensors |= {f"in/{name}": value for name, value in fixture.inputs.items()}
    tensors |= {f"out/{name}": value for name, value in fixture.outputs.items()}
    metadata = {"kind": fixture.kind, "config": json.dumps(fixture.config)} | metadata
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("case", CASES)
def test_module_agrees_with_the_published_one(case):
    results = parity.check(_fixture(case))
    assert results
    for result in results:
        assert result.passed, str(result)
        # Well below the tolerance of the contract, so that a slow drift is seen.
        assert result.rel_l2 < 1e-5, str(result)


def test_a_changed_weight_fails_the_check():
    fixture = _fixture()
    name = "text_model.final_layer_norm.bias"
    changed = fixture.params | {name: fixture.params[name] + np.float32(0.01)}
    results = parity.check(dataclasses.replace(fixture, params=changed))
    assert not any(result.passed for result in results)
    assert str(results[0]).endswith("FAIL")


def test_file_round_trip_and_order_of_outputs(tmp_path):
    fixture = parity.read_fixture(_write(tmp_path / "a.safetensors", _fixture()))
    assert [result.output for result in parity.check(fixture)] == [
        "last_hidden_state",
        "text_embeds",
    ]


def test_compare_is_strict_about_shapes_integers_and_nan():
    def passed(ours, expected):
        return parity.compare("kind", "name", ours, np.asarray(expected)).passed

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
        parity.check(dataclasses.replace(fixture, kind="clip"))
    with pytest.raises(errors.UserError, match=r"unknown config field hidden_sise.*hidden_size"):
        config = {**fixture.config, "hidden_sise": 3}
        parity.check(dataclasses.replace(fixture, config=config))
    with pytest.raises(errors.UserError, match=r"fixture lacks 'input_ids'"):
        parity.check(dataclasses.replace(fixture, inputs={}))
    with pytest.raises(errors.UserError, match="no such file"):
        parity.read_fixture(tmp_path / "absent.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not a fixture")
    with pytest.raises(errors.DataError, match="not a safetensors file"):
        parity.read_fixture(text)
    with pytest.raises(errors.DataError, match="config is not JSON"):
        parity.read_fixture(_write(tmp_path / "json.safetensors", fixture, config="{"))
    with pytest.raises(errors.DataError, match="fixture without out/"):
        empty = dataclasses.replace(fixture, outputs={})
        parity.read_fixture(_write(tmp_path / "empty.safetensors", empty))
    params = dict(fixture.params)
    params["stray.weight"] = params.pop("text_projection.weight")
    with pytest.raises(errors.DataError, match=r"missing name text_proj.*unknown name stray"):
        parity.check(dataclasses.replace(fixture, params=params))
