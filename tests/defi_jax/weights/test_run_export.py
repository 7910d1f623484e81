import importlib
import json
import lzma
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from defi_jax import errors, objectives
from defi_jax.checkpoints import manager, train_state
from defi_jax.weights import run_export, sources, table

NAMES = pathlib.Path(__file__).with_name("official_names.txt.xz")

# What makes tiny a model that the reference knows.
OFFICIAL = {
    "gfdm": {
        "model.unet.norm_num_groups": 32,
        "model.unet.block_out_channels": (32, 32),
        "model.unet.down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2,
        "model.unet.up_block_types": ("CrossAttnUpBlockSpatioTemporal",) * 2,
        "model.unet.num_attention_heads": (1, 2),
        "model.feature_block": 1,
    },
    "gidm": {},
    "joint": {
        "model.policy.video_former.token_positions": 0,
        "model.policy.normalize_features": False,
        "model.policy.denoiser.action_positions": False,
        "model.policy.denoiser.modulation_offset": 0.0,
        "init.gfdm": "scratch",
        "init.gidm": "scratch",
        "cache_features": False,
    },
}


# Official names that runs with encoders of their own do not have.
ABSENT = {
    "gidm": {"lam.dino_encoder.*", "lam.text_encoder.*", "lam.vq.usage"},
    "joint": {
        "model.inner_model.goal_emb.*",
        "model.inner_model.proprio_emb.*",
        "model.inner_model.pos_emb",
        "lam.vq.usage",
        "lam.text_encoder.*",
        "lam.dino_encoder.*",
        "TVP_encoder.text_encoder.*",
        "language_goal.clip_rn50.*",
    },
}


def _save_run(workdir, stage, changes):
    """Saves the first checkpoint of a run, with values that are not those of a fresh one."""
    config = importlib.import_module(f"configs.{stage}").get_config("tiny")
    config.data.mixture = "synthetic"
    config.update_from_flattened_dict(changes)
    objective = objectives.OBJECTIVES[stage](config)
    abstract = jax.eval_shape(objective.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract)
    trained, frozen = train_state.split_params(params, objective.is_trainable)
    zero = jnp.zeros((), jnp.int32)
    state = train_state.TrainState(
        step=zero + 1,
        params=trained,
        frozen=frozen,
        ema_params=None,
        opt_state={},
        extra={},
        rng=jax.random.key(0),
        bad_steps=zero,
        skipped_steps=zero,
    )
    with manager.Checkpointer(workdir, keep=1) as checkpointer:
        checkpointer.save(state, metadata={"config": config.to_dict()}, data_state={})
    return params


@pytest.mark.parametrize(
    ("stage", "name", "ours"),
    [
        (
            "gidm",
            "lam.decoder.transformer_blocks.1.ffn.0.weight",
            "gidm decoder transformer transformer_blocks ffn fc1 kernel",
        ),
        pytest.param(
            "joint",
            "model.inner_model.decoder.blocks.1.mlp.c_fc.weight",
            "policy denoiser decoder_blocks mlp fc1 kernel",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_runs_checkpoint_has_official_names(stage, name, ours, tmp_path):
    params = _save_run(tmp_path / "run", stage, OFFICIAL[stage])
    written = run_export.reverse(tmp_path / "run", tmp_path / "theirs")
    (path,) = written.files
    assert path == tmp_path / "theirs" / "model.safetensors"
    value = params
    for key in ours.split():
        value = value[key]
    official = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(official[name], np.asarray(value)[1].T)
    prefixes = {key.split(".")[0] for key in official}
    assert (
        prefixes
        == {
            "gidm": {"lam"},
            "joint": {"lam", "model", "Video_Former", "goal_emb", "time_pos_emb"},
        }[stage]
    )
    assert set(written.absent) == ABSENT[stage]


@pytest.mark.parametrize(
    ("stage", "listed"), [("gidm", "keys_stage2_lam"), ("joint", "keys_stage3_policy")]
)
def test_absent_names_are_those_of_the_official_list_that_no_table_has(stage, listed):
    parts = sources.SOURCES[run_export._SOURCES[stage]].parts
    absent = run_export._absent_names(parts, {part.name for part in parts})
    lines = lzma.decompress(NAMES.read_bytes()).decode().split(f"# {listed}\n")[1].split("# ")[0]
    names = {line.split(" ")[0] for line in lines.splitlines()}
    tables = {
        part.prefix + entry.theirs
        for part in parts
        for entry in part.table(part.abstract_params(part.config), part.config, ())
    }
    lacking = {name for name in names - tables if table.drop_reason(name, tuple(absent.items()))}
    assert lacking == names - tables
    assert lacking
    assert not {name for name in tables if table.drop_reason(name, tuple(absent.items()))}


@pytest.mark.slow
def test_a_video_run_becomes_a_diffusers_folder(tmp_path):
    params = _save_run(tmp_path / "run", "gfdm", OFFICIAL["gfdm"])
    (path,) = run_export.reverse(tmp_path / "run", tmp_path / "theirs").files
    assert path == tmp_path / "theirs" / "unet" / "diffusion_pytorch_model.safetensors"
    config = json.loads(path.with_name("config.json").read_text())
    assert config["_class_name"] == "UNetSpatioTemporalConditionModel"
    assert config["block_out_channels"] == [32, 32]
    assert "norm_num_groups" not in config
    official = safetensors.numpy.load_file(path)
    kernel = params["gfdm"]["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(official["conv_in.weight"], np.transpose(kernel, (3, 2, 0, 1)))


@pytest.mark.slow
def test_models_that_the_reference_cannot_hold_are_refused(tmp_path):
    _save_run(tmp_path / "gfdm", "gfdm", {})
    with pytest.raises(errors.UserError, match="norm_num_groups is"):
        run_export.reverse(tmp_path / "gfdm", tmp_path / "theirs")
    _save_run(
        tmp_path / "joint",
        "joint",
        OFFICIAL["joint"] | {"model.policy.denoiser.action_positions": True},
    )
    with pytest.raises(errors.UserError, match="official policy has no such part"):
        run_export.reverse(tmp_path / "joint", tmp_path / "theirs")
    with pytest.raises(errors.UserError, match=r"neither import\.json nor checkpoints"):
        run_export.reverse(tmp_path, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
