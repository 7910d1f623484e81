r"""Joint finetune on Fractal (RT-1's Google robot) for SimplerEnv: `joint` with other data.

Source: DeFI (arXiv 2604.16391) table 2 fine-tunes on Fractal. Its training is not in the official
release, so what is not in the data is ours: one camera, because the data set has no other;
bounds_q99, as stage 2 normalises it, because motions are small numbers of two scales; chunks of
ten actions, as on CALVIN.

| preset | hardware | rough cost | expected |
|---|---|---|---|
| tiny | 2 CPU cores | minutes | not yet run to its end |
| small | one 24 GB GPU or one v5e chip, bf16 | not yet run | - |
| full | 8 H200 | not known | 51.2 % visual matching in the paper; not yet run |

    python launch/train.py --config=configs/joint_fractal.py --workdir=runs/fractal \
        --config.data.root=stores --config.init.gfdm=runs/gfdm --config.init.gidm=runs/gidm

For Bridge: --config.data.mixture=bridge_dataset --config.embodiment=widowx250
"""

import ml_collections

from configs import common, joint

# Actions are those of data_pipelines/open_x/datasets/fractal20220817_data.py.
_FRACTAL = {
    "data.mixture": "fractal20220817_data",
    "data.cameras": ("static",),
    "data.action_dim": 7,
    "data.normalization": "bounds_q99",
    "data.unnormalized_dims": (6,),
    "embodiment": "google_robot",
}


def get_config(preset: str = "full") -> ml_collections.ConfigDict:
    """Returns the experiment at one preset, locked."""
    config = joint.get_config(preset)
    common.apply(config, _FRACTAL)
    return config.lock()
