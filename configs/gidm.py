r"""GIDM: latent actions from pairs of frames, without action labels (stage 2).

Source: DeFI (arXiv 2604.16391) section 3.2 and table 10; official `config/lam-stage-1.yaml`.

| preset | hardware | rough cost | expected |
|---|---|---|---|
| tiny | 2 CPU cores | minutes | see docs/benchmarks.md |
| small | one 24 GB GPU or one v5e chip, bf16 | not yet run | - |
| full | 64 v5p chips or 8 H200 | 1.5 days on 8 H100 in the paper | not yet run |

    python launch/train.py --config=configs/gidm.py:tiny --workdir=runs/gidm \
        --config.data.mixture=synthetic --config.steps=200
"""

import dataclasses

import ml_collections

from configs import common
from defi_jax.models import gidm

_NUMBERS = {
    "tiny": {
        "steps": 400,
        "global_batch": 32,
        "compute_dtype": "float32",
        "eval_every": 400,
        "save_every": 200,
        "eval_batches": 24,
        "data.image_size": 64,
        "data.pair_offset": (8, 12),
        "optimizer.name": "muon",
        "optimizer.learning_rate": 2e-3,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 30,
        "restart_every": 50,
    },
    "small": {
        "steps": 100_000,
        "global_batch": 64,
        "compute_dtype": "bfloat16",
        "eval_every": 5_000,
        "save_every": 5_000,
        "data.image_size": 128,
        "data.pair_offset": (3, 9),
        "data.workers": 4,
        "data.augment": True,
        "encoders.text_length": 64,
        "encoders.text_dim": 512,
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_steps": 1_000,
        "optimizer.weight_decay": 1e-2,
        "restart_every": 500,
    },
    "full": {
        "steps": 100_000,
        "global_batch": 512,
        "compute_dtype": "bfloat16",
        "eval_every": 5_000,
        "save_every": 10_000,
        "data.mixture": "omni_magic_soup_plus_plus_wo_navi",
        "data.image_size": 224,
        "data.pair_offset": ("dataset",),
        "data.workers": 8,
        "data.augment": True,
        "data.action_dim": 7,
        "data.normalization": "bounds_q99",
        "data.unnormalized_dims": (6,),
        "encoders.features": "dinov2",
        "encoders.gidm_text": "t5_encoder",
        "encoders.text_length": 32,
        "optimizer.learning_rate": 1e-4,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
        "optimizer.weight_decay": 1e-2,
        "optimizer.grad_clip_norm": 0.1,
        "restart_every": 1_000,
    },
}


def get_config(preset: str = "full") -> ml_collections.ConfigDict:
    """Returns the experiment at one preset, locked."""
    common.check_preset(preset, "configs/gidm.py")
    config = common.base("gidm", preset)
    config.model = model(preset)
    config.commitment_weight = 0.25
    config.restart_every = 0  # steps between re-seedings of dead codes; 0 for never
    config.restart_by_copy = False  # officially, by copies of other codes, dead ones included
    config.eval = ml_collections.ConfigDict({"pictures": 8})  # frame pairs shown per code
    common.apply(config, _NUMBERS[preset])
    return config.lock()


def model(preset: str) -> ml_collections.ConfigDict:
    """Returns the inverse model's numbers; the joint experiment uses the same."""
    return ml_collections.ConfigDict(dataclasses.asdict(gidm.PRESETS[preset]))
