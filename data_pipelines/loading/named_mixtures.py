"""Mixtures by name: Open-X as DeFI, UniVLA, OpenVLA and Octo weight it, and DeFI's video clips.

Names of DeFI and UniVLA (Step2_GIDM/datasets/rlds/oxe/mixtures.py) stand alone; the others carry
a prefix, because the same name means other data there. Where a source lists a dataset twice, its
loader keeps the first weight, and so do we.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipelines.open_x.datasets import libero, tdroid

_LONG = "_dataset_converted_externally_to_rlds"
_SHORT = "_converted_externally_to_rlds"

# ---- building blocks ----

_HUMAN = {f"ego4d_split_{number}": 1.0 for number in range(1, 5)}
_NAVIGATION = ("berkeley_gnm_recon", "berkeley_gnm_cory_hall", "berkeley_gnm_sac_son")

# Shares that OpenVLA and Octo give the two largest datasets.
_LARGE = {"fractal20220817_data": 0.54087122203, "kuka": 0.8341046294}

# What the magic soups of all groups have in common.
_SOUP = {
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    f"stanford_hydra{_LONG}": 2.0,
    f"austin_buds{_LONG}": 1.0,
    f"nyu_franka_play{_LONG}": 3.0,
    f"furniture_bench{_LONG}": 0.1,
    f"ucsd_kitchen{_LONG}": 2.0,
    f"austin_sailor{_LONG}": 1.0,
    f"austin_sirius{_LONG}": 1.0,
    f"dlr_edan_shared_control{_SHORT}": 1.0,
    f"iamlab_cmu_pickup_insert{_SHORT}": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}
_OMNI = {
    "fractal20220817_data": 0.5,
    "kuka": 0.1,
    **_SOUP,
    "language_table": 0.1,
    "bc_z": 0.2,
    "fmb": 1.0,
    "dobbe": 0.2,
}
_OPENVLA_SOUP = {**_LARGE, "bridge_orig": 1.0, **_SOUP, "language_table": 0.1}
_OPENVLA_PLUS = {"bc_z": 0.2, "fmb_dataset": 1.0, "dobbe": 0.2}
_DOOR = "nyu_door_opening_surprising_effectiveness"
_OCTO_SOUP = {
    **_LARGE,
    "bridge_dataset": 1.0,
    **_SOUP,
    _DOOR: 1.0,
    "language_table": 0.1,
    "bc_z": 0.2,
}
_RTX = {
    **_LARGE,
    "taco_play": 2.0,
    "jaco_play": 2.0,
    "berkeley_cable_routing": 3.0,
    "roboturk": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 1.0,
    "toto": 1.0,
}
_FRANKA = {
    f"stanford_hydra{_LONG}": 1.0,
    f"austin_buds{_LONG}": 3.0,
    f"nyu_franka_play{_LONG}": 3.0,
    f"maniskill{_LONG}": 0.1,
    f"furniture_bench{_LONG}": 0.1,
    f"cmu_franka_exploration{_LONG}": 5.0,
    f"austin_sailor{_LONG}": 1.0,
    f"austin_sirius{_LONG}": 1.0,
    f"berkeley_rpt{_SHORT}": 1.0,
    f"kaist_nonprehensile{_SHORT}": 3.0,
    f"stanford_robocook{_SHORT}": 1.0,
    f"iamlab_cmu_pickup_insert{_SHORT}": 1.0,
    "utaustin_mutex": 1.0,
    "cmu_play_fusion": 1.0,
}
_OCTO_RTX = {**_RTX, "bridge_dataset": 1.0, _DOOR: 5.0}
_REST_OF_OPEN_X = (
    "columbia_cairlab_pusht_real",
    f"stanford_kuka_multimodal{_LONG}",
    f"nyu_rot{_LONG}",
    f"ucsd_pick_and_place{_LONG}",
    f"utokyo_pr2_opening_fridge{_SHORT}",
    f"utokyo_pr2_tabletop_manipulation{_SHORT}",
    f"utokyo_xarm_pick_and_place{_SHORT}",
    f"utokyo_xarm_bimanual{_SHORT}",
    "robo_net",
    f"berkeley_mvp{_SHORT}",
    f"stanford_mask_vit{_SHORT}",
    f"tokyo_u_lsmo{_SHORT}",
    f"dlr_sara_pour{_SHORT}",
    f"dlr_sara_grid_clamp{_SHORT}",
    f"asu_table_top{_SHORT}",
    "imperialcollege_sawyer_wrist_cam",
    "uiuc_d3field",
    "cmu_playing_with_food",
    "gnm_dataset",
)

# Mixtures of one dataset, of the same name.
_ALONE = (
    "droid",
    "roboset",
    f"stanford_robocook{_SHORT}",
    *tdroid.STANDARDS,
    "droid_wipe",
    *libero.STANDARDS,
)


# ---- the mixtures ----


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weighted datasets.

    Attributes:
        weights: dataset -> weight.
        by_size: whether a dataset's share of the samples is its weight times its number of steps,
            as the RLDS loaders have it, or the weight alone.
    """

    weights: Mapping[str, float]
    by_size: bool = True


def _ones(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


_WEIGHTS: dict[str, dict[str, float]] = {
    **{name: _ones(name) for name in _ALONE},
    # DeFI and UniVLA
    "bridge": _ones("bridge_oxe"),
    "Ego4D": _HUMAN,
    "human_video": _HUMAN,
    "bridge_rt_1": _ones("bridge_orig", "fractal20220817_data"),
    "rt_1": _ones("fractal20220817_data"),
    "fractal": _ones("fractal20220817_data"),
    "omni_magic_soup_plus": {**_OMNI, "bridge_oxe": 1.0, **_ones(*_NAVIGATION)},
    "omni_magic_soup_plus_plus": {
        **_OMNI,
        "bridge_oxe": 1.0,
        **dict.fromkeys(_NAVIGATION, 2.0),
        **_HUMAN,
    },
    "omni_magic_soup_plus_plus_wo_human": {**_OMNI, "bridge_dataset": 1.0},
    "omni_magic_soup_plus_plus_wo_navi": {**_OMNI, "bridge_dataset": 1.0, **_HUMAN},
    "omni_magic_soup_plus_plus_example_bridge": _ones("bridge_dataset"),
    "omni_magic_soup_plus_plus_example_rt1": _ones("fractal20220817_data"),
    # OpenVLA
    "openvla_bridge": _ones("bridge_orig"),
    "openvla_rtx": {**_RTX, "bridge_orig": 1.0},
    "openvla_rtx_franka": {**_RTX, "bridge_orig": 1.0, **_FRANKA},
    "openvla_oxe_magic_soup": _OPENVLA_SOUP,
    "openvla_oxe_magic_soup_plus": {**_OPENVLA_SOUP, **_OPENVLA_PLUS, "droid": 0.06},
    "openvla_oxe_magic_soup_plus_minus": {
        **{name: weight for name, weight in _OPENVLA_SOUP.items() if name != "language_table"},
        **_OPENVLA_PLUS,
        "fractal20220817_data": 1.0,
    },
    # Octo
    "octo_bridge": _ones("bridge_dataset"),
    "octo_rtx": _OCTO_RTX,
    "octo_rtx_franka": {**_OCTO_RTX, **_FRANKA},
    "octo_oxe_magic_soup": _OCTO_SOUP,
    "octo_oxe_flex_act_soup": {
        **_OCTO_SOUP,
        f"berkeley_mvp{_SHORT}": 1.0,
        "gnm_dataset": 1.0,
        "aloha_static_dataset": 3.0,
        "aloha_mobile_dataset": 2.0,
        "dobbe": 1.0,
        "roboset": 0.5,
        "rh20t": 0.5,
    },
    "octo_full_mix_unnamed": _ones(*_OCTO_SOUP, *_FRANKA, *_REST_OF_OPEN_X),
}

NAMED = {name: Mixture(weights=weights) for name, weights in _WEIGHTS.items()} | {
    # Stage 1: sthv2 is Something-Something v2 (Step1_GFDM/video_conf/train_calvin_svd.yaml:17-18).
    "defi_gfdm_video": Mixture(
        weights={"sthv2": 0.4, "bridge": 0.2, "rt1": 0.2, "calvin": 0.2}, by_size=False
    )
}
