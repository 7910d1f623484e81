import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import toy_run

from defi_jax import errors
from defi_jax.checkpoints import manager
from defi_jax.models import clip_text, svd_unet
from defi_jax.models import params as params_lib
from defi_jax.objectives import base
from defi_jax.training import loop, step, warm_start


def start(source, theirs="", ours="net", flag="init.gfdm", config=None):
    return base.WarmStart(source=str(source), theirs=theirs, ours=ours, flag=flag, config=config)


def fresh(**options):
    config, objective = toy_run.config(), toy_run.ToyObjective(**options)
    return step.init_state(jax.random.key(9), objective=objective, config=config)


def train(workdir, **changes):
    objective = toy_run.ToyObjective(starts=changes.pop("starts", ()))
    return loop.train(toy_run.config(**changes), objective, toy_run.make_loader(), workdir)


def test_parameters_and_average_start_from_an_earlier_runs_average(tmp_path):
    earlier = train(tmp_path / "earlier")
    state, _ = warm_start.apply(fresh(), [start(tmp_path / "earlier", theirs="net")])
    want = earlier.ema_params["net"]
    jax.tree.map(np.testing.assert_array_equal, state.params["net"], want)
    jax.tree.map(np.testing.assert_array_equal, state.ema_params["net"], want)
    np.testing.assert_array_equal(state.params["codebook"], fresh().params["codebook"])


def test_a_run_takes_its_warm_start_once_and_then_resumes_itself(tmp_path):
    train(tmp_path / "earlier")
    starts = [start(tmp_path / "earlier", theirs="net")]
    warm = train(tmp_path / "run", steps=2, starts=starts)
    cold = train(tmp_path / "cold", steps=2)
    kernel = "['net']['fc1']['kernel']"
    assert not np.array_equal(
        toy_run.leaves(warm.params)[kernel], toy_run.leaves(cold.params)[kernel]
    )
    # The source is gone: a resumed run does not look for it.
    (tmp_path / "earlier").rename(tmp_path / "moved")
    assert int(train(tmp_path / "run", steps=3, starts=starts).step) == 3


def test_a_run_keeps_for_life_what_it_was_made_from(tmp_path):
    train(tmp_path / "first", steps=2)
    train(tmp_path / "second", steps=2, starts=[start(tmp_path / "first", theirs="net")])
    starts = [start(tmp_path / "second", theirs="net")]
    train(tmp_path / "run", steps=1, starts=starts)
    made_from = manager.load_metadata(tmp_path / "run")["made_from"]["init.gfdm"]
    assert (made_from["step"], made_from["weights"]) == (2, "ema")
    assert made_from["source"] == str(tmp_path / "second")
    assert made_from["made_from"]["init.gfdm"]["source"] == str(tmp_path / "first")
    # Files may move; other ones are no origin of this run.
    (tmp_path / "second").rename(tmp_path / "moved")
    for wrong in ([], [start(tmp_path / "first", theirs="net")], [start(tmp_path / "nowhere")]):
        with pytest.raises(errors.UserError, match=r"made from other files \(init.gfdm: .*second"):
            train(tmp_path / "run", steps=2, starts=wrong)
    train(tmp_path / "run", steps=2, starts=[start(tmp_path / "moved", theirs="net")])
    assert manager.load_metadata(tmp_path / "run")["made_from"]["init.gfdm"] == made_from


def test_a_run_from_scratch_takes_no_start_later(tmp_path):
    train(tmp_path / "run", steps=1)
    assert manager.load_metadata(tmp_path / "run")["made_from"] == {}
    with pytest.raises(errors.UserError, match=r"\(init.gfdm: none -> "):
        train(tmp_path / "run", steps=2, starts=[start(tmp_path / "run", theirs="net")])


def test_imported_weights_fill_frozen_parameters(tmp_path):
    weights = {"scale": np.arange(64, dtype=np.float16)}
    safetensors.numpy.save_file(weights, tmp_path / "params.safetensors")
    state, _ = warm_start.apply(fresh(), [start(tmp_path, ours="encoder", flag="weights.dinov2")])
    assert state.frozen["encoder"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(state.frozen["encoder"]["scale"], np.arange(64))


def test_what_does_not_fit_is_listed_with_the_flag(tmp_path):
    flat = params_lib.flatten(jax.device_get(fresh(hidden=8).params["net"]))
    flat["fc3/kernel"] = flat.pop("fc2/bias")
    safetensors.numpy.save_file(flat, tmp_path / "params.safetensors")
    with pytest.raises(errors.UserError) as caught:
        warm_start.apply(fresh(), [start(tmp_path)])
    text = str(caught.value)
    assert "missing net/fc2/bias; unknown net/fc3/kernel" in text and "init.gfdm" in text
    assert "net/fc1/kernel is (64, 8), the config wants (64, 1024)" in text


def test_absent_source_and_absent_part_are_named(tmp_path):
    with pytest.raises(errors.UserError, match=r"no such directory for init.gfdm"):
        warm_start.apply(fresh(), [start(tmp_path / "nowhere")])
    train(tmp_path / "earlier", steps=2)
    with pytest.raises(errors.UserError, match=r"nothing below 'gfdm'.*codebook, encoder, net"):
        warm_start.apply(fresh(), [start(tmp_path / "earlier", theirs="gfdm")])


CONFIG = clip_text.PRESETS["full"]


def _imported(directory, part, **changes):
    """An import of one part whose config has some other numbers; JSON turns tuples into lists."""
    (directory / part).mkdir(exist_ok=True)
    weights = {"scale": np.arange(64, dtype=np.float32)}
    safetensors.numpy.save_file(weights, directory / part / "params.safetensors")
    record = {"parts": {part: {"config": dataclasses.asdict(CONFIG) | changes}}}
    (directory / "import.json").write_text(json.dumps(record))
    return start(directory / part, ours="encoder", flag="weights.clip_text", config=CONFIG)


@pytest.mark.parametrize("part", ["", "clip_text"])
def test_imports_made_with_another_config_are_refused_with_all_that_differs(tmp_path, part):
    other = _imported(tmp_path, part, num_attention_heads=4, hidden_act="gelu", eos_token_id=2)
    with pytest.raises(errors.UserError) as caught:
        warm_start.apply(fresh(), [other])
    assert (
        "weights.clip_text was imported with another config (hidden_act is gelu, the config wants"
        " quick_gelu; num_attention_heads is 4, the config wants 8)" in str(caught.value)
    )
    same = _imported(tmp_path, part, eos_token_id=2)
    np.testing.assert_array_equal(
        warm_start.apply(fresh(), [same])[0].frozen["encoder"]["scale"], np.arange(64)
    )


def test_lists_of_the_record_equal_tuples_and_one_number_stands_for_all(tmp_path):
    unet = svd_unet.PRESETS["full"]
    recorded = json.loads(json.dumps(dataclasses.asdict(unet)))
    _imported(tmp_path, "")
    path = tmp_path / "import.json"
    same = start(tmp_path, ours="encoder", config=unet)
    for config, differs in (
        (recorded | {"layers_per_block": [2] * 4, "num_frames": 25}, False),
        (recorded | {"num_attention_heads": [5, 10, 20, 40]}, True),
        (recorded | {"layers_per_block": [2, 2, 2, 3]}, True),
    ):
        path.write_text(json.dumps({"parts": {"": {"config": config}}}))
        if not differs:
            warm_start.apply(fresh(), [same])
            continue
        with pytest.raises(errors.UserError, match="another config"):
            warm_start.apply(fresh(), [same])


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"parts": {"": {}}}', '{"parts": {"": null}}'])
def test_damaged_record_of_an_import_is_a_data_error(tmp_path, text):
    damaged = _imported(tmp_path, "")
    (tmp_path / "import.json").write_text(text)
    with pytest.raises(errors.DataError, match=r"damaged record .*import\.json"):
        warm_start.apply(fresh(), [damaged])
