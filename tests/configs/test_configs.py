"""Every experiment builds at every preset, and its step traces at full size without an array."""

import functools
import importlib
import json

import jax
import pytest

from data_pipelines.loading import named_mixtures
from data_pipelines.open_x import registry
from defi_jax import errors, objectives
from defi_jax.models import params as params_lib

STAGES = ("gfdm", "gidm", "joint")
PRESETS = ("tiny", "small", "full")


def _config(stage: str, preset: str):
    config = importlib.import_module(f"configs.{stage}").get_config(preset)
    config.data.mixture = "synthetic"
    return config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_config_is_locked_json_with_the_keys_that_stay(stage, preset):
    config = _config(stage, preset)
    assert config.is_locked
    json.dumps(config.to_dict())
    for key in (
        "steps",
        "global_batch",
        "seed",
        "mesh",
        "eval_every",
        "save_every",
        "log_every",
        "train_parts",
        "compute_dtype",
    ):
        assert key in config
    assert {"root", "mixture"} <= set(config.data)
    assert {"gfdm", "gidm"} <= set(config.init)


@pytest.mark.parametrize("stage", STAGES)
def test_unknown_preset_names_the_known_ones(stage):
    with pytest.raises(errors.UserError, match="did you mean tiny"):
        importlib.import_module(f"configs.{stage}").get_config("tinny")


def test_full_gidm_trains_on_the_official_mixture():
    config = importlib.import_module("configs.gidm").get_config("full")
    assert config.data.mixture in named_mixtures.NAMED
    assert config.data.mixture == "omni_magic_soup_plus_plus_wo_navi"


@pytest.mark.parametrize("preset", PRESETS)
def test_fractal_is_joint_with_other_data_alone(preset):
    fractal = _config("joint_fractal", preset)
    joint = _config("joint", preset)
    assert fractal.is_locked
    changed = {
        f"{section}{key}": value
        for section, ours, theirs in (("data.", fractal.data, joint.data), ("", fractal, joint))
        for key, value in ours.items()
        if key != "data" and value != theirs[key]
    }
    always = {
        "data.normalization": "bounds_q99",
        "data.unnormalized_dims": (6,),
        "embodiment": "google_robot",
    }
    assert changed == always | (
        {"data.action_dim": 7} if preset == "tiny" else {"data.cameras": ("static",)}
    )
    convention = registry.find("fractal20220817_data").convention
    assert len(convention.action_names) == fractal.data.action_dim


def test_full_joint_takes_calvins_actions_as_they_are_stored():
    config = _config("joint", "full")
    assert tuple(config.data.cameras) == ("static", "gripper")
    assert (config.data.normalization, config.data.augment) == ("none", False)
    assert (config.data.action_horizon, config.data.window_stride) == (10, 1)
    assert (config.data.action_dim, config.data.image_size) == (7, 256)
    assert config.embodiment == "franka_panda"


@pytest.mark.parametrize("preset", ["tiny", "small"])
@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_gradient_trace(stage, preset):
    objective = objectives.make(_config(stage, preset))
    params = jax.eval_shape(objective.init_params, jax.random.key(0))
    trained = {p for p in params_lib.flatten(params) if objective.is_trainable(p)}
    assert trained

    def loss(params, batch):
        return objective.loss_fn(params, objective.init_extra(), batch, jax.random.key(0))

    value, output = jax.eval_shape(loss, params, objective.batch_spec(2))
    assert value.shape == ()
    assert "loss" in output.metrics


@pytest.mark.parametrize(
    ("stage", "key"),
    [("gfdm", "data.root"), ("gidm", "weights.dinov2"), ("joint", "init.gfdm")],
)
def test_full_preset_without_files_says_all_that_is_missing(stage, key):
    config = importlib.import_module(f"configs.{stage}").get_config()
    with pytest.raises(errors.UserError, match="synthetic") as caught:
        objectives.make(config)
    assert key in str(caught.value)
    assert "data.mixture" in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("gfdm", {"steps": -1}, "--config.steps; give a whole number, at least 0"),
        ("gidm", {"train_parts": "adapter"}, "gidm trains all its parts"),
        ("gidm", {"model": {"model_dim": 8}}, "missing 6 required .*change config.model"),
        ("gfdm", {"data.mixture": "syntetic"}, "did you mean synthetic"),
        ("gfdm", {"data.image_size": 33}, "use a multiple of 32"),
        ("gfdm", {"data.image_size": 0}, "use a multiple of 32"),
        ("gidm", {"data.image_size": 33}, "use a multiple of 8"),
        ("joint", {"data.image_size": 40}, "use a multiple of 32"),
        ("joint", {"init.gfdm": "/no/such"}, "no such directory for init.gfdm: /no/such"),
        ("gfdm", {"weights.svd_vae": "/no/such"}, "no such directory for weights.svd_vae"),
    ],
)
def test_impossible_numbers_and_absent_directories_fail_first(stage, changes, words):
    config = _config(stage, "tiny")
    with config.unlocked():
        for key, value in changes.items():
            *parents, name = key.split(".")
            functools.reduce(getattr, parents, config)[name] = value
    with pytest.raises(errors.UserError, match=words) as caught:
        objectives.make(config)
    assert caught.value.exit_code == 2
