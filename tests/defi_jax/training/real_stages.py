"""The real stages, shrunk so that they compile in seconds; also a config file for launch/train.py.

python launch/train.py --config=tests/defi_jax/training/real_stages.py:gidm --workdir=DIR

The environment variable CHANGES may hold more keys as JSON, such as {"data.root": DIR}.
"""

import functools
import importlib
import json
import os
import pathlib

from data_pipelines.loading import loader
from defi_jax import objectives

HERE = pathlib.Path(__file__).parent
REPO = HERE.parents[2]
NAMES = ("gfdm", "gidm", "joint", "joint_cached")

_SHARED = {
    "steps": 4,
    "global_batch": 8,
    "seed": 3,
    "save_every": 2,
    "eval_every": 0,
    "eval_batches": 0,
    "log_every": 1,
    "data.mixture": "synthetic",
    "data.image_size": 16,
    "data.window_stride": 31,
    "encoders.text_length": 12,
    "encoders.text_dim": 16,  # three words
    "encoders.latents_factor": 4,
    "optimizer.ema_decay": 0.9,
    "optimizer.warmup_steps": 1,
}
_UNET = {
    "block_out_channels": (8, 16),
    "num_attention_heads": (1, 2),
    "norm_num_groups": 4,
    # The block in the middle attends: at 2x2 cells of 16 px, to the text and over two frames.
    "down_block_types": ("DownBlockSpatioTemporal",) * 2,
    "up_block_types": ("UpBlockSpatioTemporal",) * 2,
    "layers_per_block": 1,
}
_GIDM = {"model_dim": 16, "num_heads": 2, "latent_dim": 8, "encoder_blocks": 1, "decoder_blocks": 1}
GFDM = {"num_frames": 2, "feature_block": 1, **{f"unet.{k}": v for k, v in _UNET.items()}}
POLICY = {
    "video_former.dim": 16,
    "video_former.heads": 2,
    "video_former.dim_head": 8,
    "video_former.depth": 1,
    "video_former.num_latents": 4,
    "denoiser.embed_dim": 16,
    "denoiser.heads": 2,
    "denoiser.encoder_layers": 1,
    "denoiser.decoder_layers": 1,
    **{f"gidm.{k}": v for k, v in _GIDM.items()},
}


# One floor of the UNet compiles in two thirds of the time; for CHANGES, below a stage's prefix.
ONE_FLOOR = {
    "unet.block_out_channels": (8,),
    "unet.num_attention_heads": (1,),
    "unet.down_block_types": ("DownBlockSpatioTemporal",),
    "unet.up_block_types": ("UpBlockSpatioTemporal",),
    "feature_block": 0,
}


def below(prefix, numbers):
    """The numbers of a section of the config, by their full keys."""
    return {f"{prefix}.{key}": value for key, value in numbers.items()}


_STAGES = {
    "gfdm": {"data.num_frames": 2, "eval.sample_steps": 2, **below("model", GFDM)},
    "gidm": {"restart_every": 3, **below("model", _GIDM)},
    "joint": {
        "data.action_horizon": 4,
        "execute_horizon": 2,
        "init.gfdm": "scratch",
        "init.gidm": "scratch",
        **below("model.gfdm", GFDM),
        **below("model.policy", POLICY),
    },
}


def get_config(name):
    """Returns the shrunk `tiny` of a stage; "joint_cached" computes the features once."""
    stage = name.removesuffix("_cached")
    config = importlib.import_module(f"configs.{stage}").get_config("tiny")
    numbers = _SHARED | _STAGES[stage]
    if stage == "joint":
        numbers |= {"cache_features": name != stage}
    numbers |= json.loads(os.environ.get("CHANGES", "{}"))
    return changed(config, numbers)


def changed(config, numbers):
    """The config with other values at some dotted keys."""
    with config.unlocked():
        for key, value in numbers.items():
            *parents, last = key.split(".")
            functools.reduce(lambda node, part: node[part], parents, config)[last] = value
    return config.lock()


def make(config):
    """Returns the objective, and what opens its loaders."""
    objective = objectives.make(config)
    make_loader = functools.partial(
        loader.make_loader, config.data, tokenizers=objective.tokenizers()
    )
    return objective, make_loader


def environment(devices=1, **variables):
    """Environment of a process that trains a stage on so many fake devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (REPO, REPO / "rollout", HERE))),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **variables,
    }
