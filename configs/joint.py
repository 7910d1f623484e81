r"""Joint finetune: GFDM features, GIDM encoder, Video Former and diffusion policy (stage 3).

Source: DeFI (arXiv 2604.16391) section 3.3 and table 10; official
`policy_conf/VPP_Calvinabc_train.yaml`.

| preset | hardware | rough cost | expected |
|---|---|---|---|
| tiny | 2 CPU cores | minutes | success on Meta-World: docs/benchmarks.md |
| small | one 24 GB GPU or one v5e chip, bf16 | not yet run | - |
| full | 8 H200 | 0.5 days on 8 H100 in the paper | 4.51 on CALVIN ABC-D; not yet run |

    python launch/train.py --config=configs/joint.py:tiny --workdir=runs/joint \
        --config.data.mixture=synthetic --config.init.gfdm=scratch --config.init.gidm=scratch
"""

import dataclasses

import ml_collections

from configs import common
from configs import gfdm as gfdm_config
from defi_jax.models import policy

_NUMBERS = {
    "tiny": {
        "steps": 1_700,
        "global_batch": 32,
        "compute_dtype": "float32",
        "eval_every": 1_700,
        "save_every": 850,
        "eval_batches": 8,
        "train_parts": "gidm+adapter",
        "cache_features": True,
        "noise_draws": 4,
        "embodiment": "metaworld_sawyer",
        "data.image_size": 64,
        "data.window_stride": 2,
        "optimizer.name": "muon",
        "optimizer.learning_rate": 3e-3,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 50,
        "optimizer.b2": 0.99,
        "optimizer.ema_decay": 0.99,
    },
    "small": {
        "steps": 50_000,
        "global_batch": 32,
        "compute_dtype": "bfloat16",
        "eval_every": 5_000,
        "save_every": 5_000,
        "train_parts": "gidm+adapter",
        "data.image_size": 128,
        "data.cameras": ("static", "gripper"),
        "data.action_dim": 7,
        "data.workers": 4,
        "encoders.text_length": 64,
        "encoders.text_dim": 512,
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 1_000,
        "optimizer.weight_decay": 1e-2,
        "optimizer.ema_decay": 0.999,
    },
    "full": {
        "steps": 50_000,
        "global_batch": 224,
        "compute_dtype": "bfloat16",
        "eval_every": 5_000,
        "save_every": 5_000,
        "train_parts": "gidm+adapter",
        "data.image_size": 256,
        "data.cameras": ("static", "gripper"),
        "data.action_dim": 7,
        "data.workers": 8,
        "encoders.latents": "svd_vae",
        "encoders.gfdm_text": "clip_text",
        "encoders.gidm_text": "t5_encoder",
        "encoders.goal_text": "clip_openai",
        "encoders.text_length": 32,
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "tri_stage",
        "optimizer.warmup_steps": 1_000,
        "optimizer.b2": 0.9,
        "optimizer.weight_decay": 0.05,
        "optimizer.grad_clip_norm": 0.0,
        "optimizer.ema_decay": 0.9999,
    },
}


def get_config(preset: str = "full") -> ml_collections.ConfigDict:
    """Returns the experiment at one preset, locked."""
    common.check_preset(preset, "configs/joint.py")
    config = common.base("joint", preset)
    config.model = ml_collections.ConfigDict()
    config.model.gfdm = gfdm_config.model(preset)
    config.model.policy = ml_collections.ConfigDict(dataclasses.asdict(policy.PRESETS[preset]))
    config.commitment_weight = 0.25
    # Compute the frozen forward model's features of all windows once, before training; needs disk.
    config.cache_features = False
    # Noise levels and noises drawn per sample and step; they share the sample's context.
    config.noise_draws = 1
    # adapter | gfdm+adapter | gidm+adapter | all
    config.train_parts = "gidm+adapter"
    # The policy executes this many actions of a chunk before it plans again.
    config.execute_horizon = 10
    config.embodiment = "franka_panda"  # a name of defi_jax/embodiment.py
    common.apply(config, _NUMBERS[preset])
    return config.lock()
