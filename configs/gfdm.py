r"""GFDM: the video model that predicts the future from one frame and an instruction (stage 1).

Source: DeFI (arXiv 2604.16391) section 3.1 and table 10; official
`video_conf/train_calvin_svd.yaml`.

| preset | hardware | rough cost | expected |
|---|---|---|---|
| tiny | 2 CPU cores | minutes | see docs/benchmarks.md |
| small | one 24 GB GPU or one v5e chip, bf16 | not yet run | - |
| full | 64 v5p chips or 8 H200 | 3 days on 8 H100 in the paper | not yet run |

    python launch/train.py --config=configs/gfdm.py:tiny --workdir=runs/gfdm \
        --config.data.mixture=synthetic --config.steps=200
"""

import dataclasses
from typing import Any

import ml_collections

from configs import common
from defi_jax.models import gfdm, svd_unet

# Official rules of stage 1 (Step1_GFDM/video_dataset/dataset_mix.py:121-158, 235-243), by the names
# of the mixture `defi_gfdm_video`; other data sets take every second frame of the first camera.
_WHOLE_CLIPS = {"frame_stride": 0, "max_frames": 100}
_OFFICIAL_RULES = {
    "sthv2": _WHOLE_CLIPS,
    "bridge": _WHOLE_CLIPS,
    "rt1": _WHOLE_CLIPS,
    "calvin": {
        "frame_stride": 2,
        "cameras": ("static", "gripper"),
        "camera_weights": (0.75, 0.25),
    },
}

_NUMBERS = {
    "tiny": {
        "steps": 300,
        "global_batch": 16,
        "compute_dtype": "float32",
        "eval_every": 300,
        "save_every": 150,
        "eval_batches": 2,
        "data.image_size": 64,
        "data.num_frames": 3,
        "data.frame_stride": 10,
        "sigma_log_mean": 1.0,
        "optimizer.name": "muon",
        "optimizer.learning_rate": 3e-3,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 30,
        "optimizer.ema_decay": 0.98,
        "model.text_copies": 1,
        "model.feature_noise_scale": 0.0,
        # At 64 px the finest up block is needed: the one before it sees 16 px cells.
        "model.feature_block": 2,
        "model.feature_fps_id": 7.0,
    },
    "small": {
        "steps": 100_000,
        "global_batch": 8,
        "compute_dtype": "bfloat16",
        "eval_every": 5_000,
        "save_every": 5_000,
        "data.image_size": 128,
        "data.num_frames": 8,
        "data.frame_stride": 3,
        "data.workers": 4,
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 1_000,
        "optimizer.ema_decay": 0.999,
        "model.text_copies": 1,
        "encoders.text_length": 64,
        "encoders.text_dim": 512,
    },
    "full": {
        "steps": 500_000,
        "global_batch": 48,
        "compute_dtype": "bfloat16",
        "eval_every": 10_000,
        "save_every": 10_000,
        "data.image_size": 256,
        "data.num_frames": 16,
        "data.frame_stride": 2,
        "data.per_dataset": _OFFICIAL_RULES,
        "data.workers": 8,
        "encoders.latents": "svd_vae",
        "encoders.gfdm_text": "clip_text",
        "optimizer.learning_rate": 5e-6,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "model.unet.remat": "elementwise",
    },
}


def get_config(preset: str = "full") -> ml_collections.ConfigDict:
    """Returns the experiment at one preset, locked."""
    common.check_preset(preset, "configs/gfdm.py")
    config = common.base("gfdm", preset)
    config.model = model(preset)
    data: Any = config.data
    config.model.num_frames = data.get_ref("num_frames")  # T is one number
    config.text_dropout = 0.05  # share of instructions replaced by zeros
    config.sigma_log_mean, config.sigma_log_std = 0.7, 1.6
    config.eval = ml_collections.ConfigDict(
        # Denoising steps, guidance of the last frame and clips drawn as pictures.
        {"sample_steps": 10, "max_guidance": 1.0, "pictures": 8}
    )
    common.apply(config, _NUMBERS[preset])
    return config.lock()


def model(preset: str) -> ml_collections.ConfigDict:
    """Returns the forward model's numbers; the joint experiment uses the same."""
    fields = dataclasses.fields(gfdm.GFDMConfig)
    config = ml_collections.ConfigDict({f.name: f.default for f in fields if f.name != "unet"})
    config.num_frames = _NUMBERS[preset]["data.num_frames"]
    config.unet = dataclasses.asdict(svd_unet.PRESETS[preset])
    common.apply(config, common.section(_NUMBERS[preset], "model"))
    return config
