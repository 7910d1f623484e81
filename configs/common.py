"""What the three experiment files share: every key, its type and its unit.

A preset is numbers, never another code path. Paths come from flags, never from here.
"""

import dataclasses
from typing import Any, cast

import ml_collections

from data_pipelines.loading import config as data_config
from defi_jax import cli, errors

PRESETS = ("tiny", "small", "full")


def check_preset(preset: str, where: str) -> None:
    """Raises UserError for an unknown preset."""
    if preset not in PRESETS:
        raise errors.UserError(f"unknown preset '{preset}'", where, cli.nearest(preset, PRESETS))


def base(objective: str, preset: str) -> ml_collections.ConfigDict:
    """Returns the keys that all objectives have, at the values of `tiny`."""
    config = ml_collections.ConfigDict()
    config.objective = objective
    config.preset = preset
    config.seed = 0
    config.steps = 1_000
    config.global_batch = 16
    config.compute_dtype = "float32"
    config.mesh = ml_collections.ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1})

    config.eval_every = 1_000  # steps; the last step is always evaluated
    config.eval_batches = 4
    config.save_every = 1_000
    config.log_every = 20
    config.keep_checkpoints = 3
    config.max_failed_saves = 3  # in a row, before the run ends
    config.storage_timeout = 600.0  # seconds that the workdir may not be writable
    config.step_timeout = 30.0  # seconds; or ten times the slowest measured step
    config.max_consecutive_bad_steps = 10
    config.profile_start = 0  # step after which some are traced; 0 for none but by SIGUSR1
    config.profile_steps = 5  # how many
    config.compilation_cache_dir = ""  # "": beside the user's other caches
    config.logging = ml_collections.ConfigDict({"tensorboard": False, "wandb": False})

    config.data = data()
    config.encoders = encoders()
    # Directories written by launch/import_weights.py, one per pretrained encoder in use.
    config.weights = ml_collections.ConfigDict(
        {"svd_vae": "", "clip_text": "", "clip_openai": "", "t5_encoder": "", "dinov2": ""}
    )
    # Workdirs (or checkpoints) of earlier stages to start from.
    config.init = ml_collections.ConfigDict({"gfdm": "", "gidm": ""})
    config.train_parts = "all"
    config.optimizer = optimizer()
    return config


def data() -> ml_collections.ConfigDict:
    """Returns the data section; docs/data_keys.md says what its keys mean."""
    return ml_collections.ConfigDict(dataclasses.asdict(data_config.DataConfig()))


def encoders() -> ml_collections.ConfigDict:
    """Returns the frozen encoders by role; numbers are of the from-scratch ones."""
    return ml_collections.ConfigDict(
        {
            "latents": "space_to_depth",  # | svd_vae
            "latents_factor": 8,  # pixels per latent cell of space_to_depth
            "latents_frequencies": 4,  # kept per side of a cell; latents_factor keeps all
            "features": "patches",  # | dinov2
            "features_patch": 8,  # pixels per patch of `patches`
            "gfdm_text": "bytes",  # | clip_text | t5_encoder
            "gidm_text": "bytes",
            "goal_text": "bytes",  # pooled; | clip_openai
            "text_length": 48,  # tokens of `bytes` and `t5_encoder`
            "text_dim": 64,  # width of `bytes`
        }
    )


def optimizer() -> ml_collections.ConfigDict:
    """Returns the optimizer section."""
    return ml_collections.ConfigDict(
        {
            "name": "adamw",  # | muon
            "learning_rate": 1e-3,
            "schedule": "warmup_cosine",  # constant | warmup_cosine | tri_stage
            "warmup_steps": 50,
            "schedule_steps": 0,  # the schedule's length; 0 for the steps that the run began with
            "final_scale": 0.02,  # of learning_rate, at the last step
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "grad_clip_norm": 1.0,  # 0 for none
            "accumulation_steps": 1,
            "ema_decay": 0.0,  # 0 for none
            # A step with a loss or gradient norm above so many medians is skipped; 0 for none.
            "spike_factor": 0.0,
            "spike_window": 100,  # steps that the median is over
            "spike_skips": 5,  # within the window, before the rate is halved
            "spike_cuts": 3,  # halvings, before the run ends
        }
    )


def apply(config: ml_collections.ConfigDict, numbers: dict) -> None:
    """Sets dotted keys that must exist."""
    with config.unlocked():
        for key, value in numbers.items():
            *parents, name = key.split(".")
            node = cast(Any, config)
            for parent in parents:
                node = node[parent]
            if name not in node:
                raise KeyError(f"preset sets unknown key {key}")
            node[name] = value


def section(numbers: dict, name: str) -> dict:
    """Returns the keys below `name.` of a table of dotted keys, without that prefix."""
    prefix = f"{name}."
    return {key[len(prefix) :]: v for key, v in numbers.items() if key.startswith(prefix)}
