"""The real joint objective of every preset, shrunk, as a checkpoint from which bundles are made.

What a preset decides stays as it is: kinds of encoders, causal or full attention, noise in the
features, compute type. Only widths, depths and picture sizes shrink. Weights come from a seed.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib

import filelock
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import real_stages
from jax.experimental.compilation_cache import compilation_cache

from configs import joint as joint_config
from data_pipelines import normalization
from defi_jax import embodiment, objectives
from defi_jax.checkpoints import manager, train_state
from defi_jax.export import writer
from defi_jax.models import clip_text, dinov2, svd_vae, t5_encoder
from defi_jax.models import params as params_lib
from defi_jax.models.frozen import pretrained

SIZE, CHUNK, STEP = 16, 5, 7
STARTS = ("aa", "bb", "seen")
MADE_FROM = {"init.gfdm": {"source": "/runs/gfdm", "step": 3, "digest": "0f"}}
CAMERAS = ("static", "gripper")

_SHRUNK = {
    "data.mixture": "synthetic",
    "data.image_size": SIZE,
    "data.action_horizon": CHUNK,
    "execute_horizon": 2,
    "encoders.text_length": 12,
    "encoders.text_dim": 16,
    "encoders.latents_factor": 4,
    **real_stages.below("model.gfdm", real_stages.GFDM),
    **real_stages.below("model.policy", real_stages.POLICY),
    "model.policy.denoiser.sampling_steps": 2,
}
# Officially an early and a later frame, the sixth, steer the latent action.
_SIX_FRAMES = {
    "model.gfdm.num_frames": 6,
    "model.gfdm.unet.num_frames": 6,
    "model.policy.video_former.num_latents": 6,
}
_ATTENDING_UNET = {
    "model.gfdm.unet.down_block_types": (
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
    ),
    "model.gfdm.unet.up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
_BY_PRESET = {"tiny": {}, "small": _SIX_FRAMES, "full": _SIX_FRAMES | _ATTENDING_UNET}

_VAE = svd_vae.SVDVAEConfig(
    down_block_types=svd_vae.PRESETS["full"].down_block_types[:3],
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    norm_num_groups=4,
)
# The tables of words stay whole: token ids of the real tokenizers must find their rows.
_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
_DINO = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}


def shrink_pretrained(patch) -> None:
    """Gives the pretrained encoders a toy's width.

    Args:
        patch: a `pytest.MonkeyPatch`; the widths are no keys of the config.
    """
    clip = _replaced(clip_text, _CLIP)
    small = {
        "clip_text": clip,
        "clip_openai": clip,
        "t5_encoder": _replaced(t5_encoder, _T5),
    }
    for name, config in small.items():
        kind = pretrained.TEXT_ENCODERS[name]
        patch.setitem(pretrained.TEXT_ENCODERS, name, functools.partial(kind, config=config))
    for name, config in {"SVDVAELatents": _VAE, "DINOv2Features": _replaced(dinov2, _DINO)}.items():
        kind = getattr(pretrained, name)
        patch.setattr(pretrained, name, functools.partial(kind, config=config))


def _replaced(module, numbers):
    return dataclasses.replace(module.PRESETS["full"], **numbers)


def config(preset: str, cameras: int) -> ml_collections.ConfigDict:
    """Returns the shrunk experiment with the first so many cameras."""
    numbers = _SHRUNK | _BY_PRESET[preset] | {"data.cameras": CAMERAS[:cameras]}
    if preset == "full":
        numbers |= {"encoders.features": "dinov2"}
    return real_stages.changed(joint_config.get_config(preset), numbers)


def random_params(objective) -> dict:
    """Returns parameters of a seed; every one matters, those that start at 0 too."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(objective.init_params, jax.random.key(0))

    def draw(path, leaf):
        value = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)
        return np.asarray(value + ("scale" in path), leaf.dtype)

    flat = params_lib.flatten(abstract)
    return params_lib.unflatten({path: draw(path, leaf) for path, leaf in flat.items()})


def write_checkpoint(workdir, preset: str, cameras: int) -> None:
    """Writes the checkpoint that a run with these numbers would leave, at step `STEP`."""
    settings = config(preset, cameras)
    objective = objectives.make(settings)
    flat = params_lib.flatten(random_params(objective))
    trained = {path for path in flat if objective.is_trainable(path)}
    number = jnp.int32(STEP)
    state = train_state.TrainState(
        step=number,
        params=params_lib.unflatten({p: flat[p] for p in flat if p in trained}),
        frozen=params_lib.unflatten({p: flat[p] for p in flat if p not in trained}),
        ema_params=None,
        opt_state=(),
        extra={},
        rng=jax.random.key(0),
        bad_steps=number,
        skipped_steps=number,
    )
    with manager.Checkpointer(workdir, keep=1) as checkpoints:
        assert checkpoints.save(state, metadata=metadata(settings), data_state={})


def metadata(settings: ml_collections.ConfigDict) -> dict:
    """Returns what training notes beside the parameters."""
    width = settings.data.action_dim
    embodiment.get(settings.embodiment, width)
    rows = np.linspace([-1.0] * width, [0.5 + i for i in range(width)], 9)
    normalizer = normalization.Normalizer(
        kind="bounds",
        statistics=normalization.compute(rows),
        mask=(True,) * (width - 1) + (False,),  # the gripper stays as it is
    )
    # One camera, as a checkpoint of an older version: nothing is known of the frames' sizes.
    sizes = {"static": [24, 32], "gripper": [16, 16]} if len(settings.data.cameras) == 2 else {}
    return {
        "objective": "joint",
        "config": settings.to_dict(),
        "step": STEP,
        "normalizer": normalizer.to_json(),
        "trained_on": [
            {"name": "a", "weight": 2.0, "frames": 10, "start_digests": ["seen", "aa"]}
            | ({"frame_sizes": sizes} if sizes else {}),
            {"name": "b", "weight": 1.0, "frames": 5, "start_digests": ["bb", "aa"]}
            | {"origins": ["self-made"]},
        ],
        "pipeline_fingerprint": "f" * 8,
        "made_from": MADE_FROM,
        "versions": {"jax": "0"},
    }


def export(workdir, output, **changes) -> writer.Report:
    """Exports the latest checkpoint as launch/export.py does."""
    return writer.export_bundle(
        workdir,
        output,
        make_inverse=lambda stored: normalization.Normalizer.from_json(stored).invert,
        **changes,
    )


def shared_run(tmp_path_factory, preset: str = "tiny", cameras: int = 1) -> pathlib.Path:
    """Returns a directory with a checkpoint in `run` and its bundle in `bundle`.

    All processes of a test run share it; nothing may change it.
    """
    root = _shared_root(tmp_path_factory) / f"{preset}-{cameras}"
    with filelock.FileLock(f"{root}.lock"), compiled_once(tmp_path_factory):
        if not (root / "bundle").exists():
            write_checkpoint(root / "run", preset, cameras)
            export(root / "run", root / "bundle")
    return root


@contextlib.contextmanager
def compiled_once(tmp_path_factory):
    """Programs are compiled once for all processes, those of the test's own too."""
    settings = {
        "jax_compilation_cache_dir": str(_shared_root(tmp_path_factory) / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
        _configure(settings)
        yield
        _configure(before)


def _configure(settings: dict) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # else the first directory stays in use


def _shared_root(tmp_path_factory) -> pathlib.Path:
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (root / "real_policies").mkdir(exist_ok=True)
    return root / "real_policies"
