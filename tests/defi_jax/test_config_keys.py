import importlib

import pytest

from data_pipelines.loading import config as data_config
from defi_jax import config_keys, errors
from defi_jax.objectives import joint

STAGES = ("gfdm", "gidm", "joint", "joint_fractal")
PRESETS = ("tiny", "small", "full")


def _config(stage="gidm", preset="tiny", changes=()):
    config = importlib.import_module(f"configs.{stage}").get_config(preset)
    config.update_from_flattened_dict(dict(changes))
    return config


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_of_every_experiment_is_declared_and_every_preset_is_allowed(stage):
    for preset in PRESETS:
        config = _config(stage, preset)
        config_keys.check(config)  # knows every key
        fields = data_config.DataConfig.of(config.data)
        assert {f"data.{name}" for name in vars(fields)} <= config_keys.flatten(config).keys()


def test_every_declaration_is_of_a_key_that_an_experiment_has():
    values = {key for stage in STAGES for key in config_keys.flatten(_config(stage))}
    used = {id(config_keys.find(key)) for key in values}
    assert not [name for name, key in config_keys.KEYS.items() if id(key) not in used]


def test_what_decides_no_batch_may_change_on_resume():
    decides = {key: field.metadata["decides"] for key, field in data_config._FIELDS.items()}
    kinds = {key: config_keys.find(f"data.{key}").kind for key in decides}
    free = {key for key, entry in decides.items() if not entry}
    assert all(kinds[key] is config_keys.Kind.LAYOUT for key in free)
    # The others, whose content the fingerprint compares, are texts that say where it is.
    named = {key for key, kind in kinds.items() if kind is config_keys.Kind.LAYOUT} - free
    assert named == {
        *("root", "mixture", "per_dataset", "dataset_version", "standardization", "latents"),
    }


def test_parts_that_can_train_are_those_of_the_joint_objective():
    assert set(config_keys.KEYS["train_parts"].choices) == set(joint.TRAIN_PARTS)


@pytest.mark.parametrize(
    ("stage", "key", "value", "allowed"),
    [
        ("gidm", "keep_checkpoints", -1, "a whole number, at least 0"),
        ("gidm", "optimizer.accumulation_steps", 0, "a whole number, at least 1"),
        ("gidm", "seed", -1, "a whole number, at least 0 and at most 4,294,967,295"),
        ("gidm", "steps", -1, "a whole number, at least 0"),
        ("gidm", "global_batch", 0, "a whole number, at least 1"),
        ("gidm", "save_every", -1, "a whole number, at least 0"),
        ("gidm", "eval_every", -5, "a whole number, at least 0"),
        ("gidm", "max_consecutive_bad_steps", 0, "a whole number, at least 1"),
        ("gidm", "mesh.fsdp", -2, "a whole number, at least -1"),
        ("gidm", "optimizer.learning_rate", -1.0, "a number, at least 0"),
        ("gidm", "optimizer.learning_rate", float("nan"), "a number, at least 0"),
        ("gidm", "optimizer.learning_rate", float("inf"), "a number, at least 0"),
        ("gidm", "optimizer.ema_decay", 2.0, "a number, at least 0 and below 1"),
        ("gidm", "optimizer.b2", 1.0, "a number, at least 0 and below 1"),
        ("gidm", "optimizer.eps", 0.0, "a number, above 0"),
        ("gidm", "optimizer.name", "adam", "one of adamw, muon"),
        ("gidm", "compute_dtype", "float17", "one of float32, bfloat16, float16"),
        ("gidm", "model.num_codes", 0, "what its section allows, at least 1"),
        ("gidm", "model.scan_unroll", 0, "a whole number, at least 1"),
        ("gfdm", "text_dropout", 1.5, "a number, at least 0 and at most 1"),
        ("gfdm", "model.sigma_min", 0.0, "a number, above 0"),
        ("gfdm", "model.unet.block_out_channels", (48, 0, 96), "what its section allows, at least"),
        ("joint", "noise_draws", 0, "a whole number, at least 1"),
        ("joint", "train_parts", "none", "one of all, adapter"),
        ("joint", "model.policy.denoiser.attn_dropout", 1.0, "a number, at least 0 and below 1"),
    ],
)
def test_a_value_out_of_its_range_names_the_key_and_what_is_allowed(stage, key, value, allowed):
    with pytest.raises(errors.UserError) as caught:
        config_keys.check(_config(stage, changes={key: value}))
    assert caught.value.exit_code == 2
    assert caught.value.where == f"--config.{key}"
    assert caught.value.fix.startswith(f"give {allowed}"), caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 2.0), ("steps", True), ("restart_by_copy", 1), ("preset", 3)]
)
def test_a_value_of_another_type_is_refused(key, value):
    config = _config().to_dict() | {key: value}
    with pytest.raises(errors.UserError, match=f"impossible {value!r}: --config.{key}; give "):
        config_keys.check(config)


def test_whole_numbers_may_stand_for_others():
    config_keys.check(_config(changes={"optimizer.grad_clip_norm": 1}))


def test_a_section_that_lacks_keys_and_a_key_that_nobody_reads_are_named():
    config = _config().to_dict()
    with pytest.raises(errors.UserError, match=r"lacks mesh.replica, mesh.tensor: --config.mesh;"):
        config_keys.check(config | {"mesh": {"fsdp": 2}})
    with pytest.raises(errors.UserError, match=r"--config.stepz; did you mean steps\?"):
        config_keys.check(config | {"stepz": 2})
