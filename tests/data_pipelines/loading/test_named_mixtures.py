import pytest

from data_pipelines.loading import named_mixtures
from data_pipelines.open_x import registry

# Datasets and total weight of the published tables, entries that repeat a dataset not counted.
COUNTS = {
    "Ego4D": (4, 4.0),
    "human_video": (4, 4.0),
    "bridge_rt_1": (2, 2.0),
    "omni_magic_soup_plus": (29, 33.2),
    "omni_magic_soup_plus_plus": (33, 40.2),
    "omni_magic_soup_plus_plus_wo_human": (26, 30.2),
    "omni_magic_soup_plus_plus_wo_navi": (30, 34.2),
    "defi_gfdm_video": (4, 1.0),
    "openvla_rtx": (10, 14.375),
    "openvla_rtx_franka": (24, 36.575),
    "openvla_oxe_magic_soup": (23, 29.575),
    "openvla_oxe_magic_soup_plus": (27, 31.035),
    "openvla_oxe_magic_soup_plus_minus": (25, 31.3341),
    "octo_rtx": (11, 19.375),
    "octo_rtx_franka": (25, 41.575),
    "octo_oxe_magic_soup": (25, 30.775),
    "octo_oxe_flex_act_soup": (32, 39.775),
    "octo_full_mix_unnamed": (50, 50.0),
}
OF_ONE = {
    "bridge": "bridge_oxe",
    "rt_1": "fractal20220817_data",
    "fractal": "fractal20220817_data",
    "omni_magic_soup_plus_plus_example_bridge": "bridge_dataset",
    "omni_magic_soup_plus_plus_example_rt1": "fractal20220817_data",
    "openvla_bridge": "bridge_orig",
    "octo_bridge": "bridge_dataset",
}
OCTO_ONLY = {"gnm_dataset", "aloha_static_dataset", "aloha_mobile_dataset"}


def test_there_are_all_46():
    assert len(named_mixtures.NAMED) == 46


@pytest.mark.parametrize("name", named_mixtures.NAMED)
def test_sizes_and_total_weights(name):
    weights = named_mixtures.NAMED[name].weights
    if name in COUNTS:
        number, total = COUNTS[name]
        assert len(weights) == number
        assert sum(weights.values()) == pytest.approx(total, abs=1e-4)
    else:
        assert weights == {OF_ONE.get(name, name): 1.0}


@pytest.mark.parametrize("name", named_mixtures.NAMED)
def test_members_can_be_converted(name):
    mixture = named_mixtures.NAMED[name]
    assert mixture.by_size == (name != "defi_gfdm_video")
    if mixture.by_size:
        unknown = mixture.weights.keys() - registry.standards().keys()
        assert unknown <= OCTO_ONLY


def test_the_inverse_models_default_word_for_word():
    long, short = "_dataset_converted_externally_to_rlds", "_converted_externally_to_rlds"
    assert named_mixtures.NAMED["omni_magic_soup_plus_plus_wo_navi"].weights == {
        "fractal20220817_data": 0.5,
        "kuka": 0.1,
        "bridge_dataset": 1.0,
        "taco_play": 2.0,
        "jaco_play": 1.0,
        "berkeley_cable_routing": 1.0,
        "roboturk": 2.0,
        "viola": 2.0,
        "berkeley_autolab_ur5": 2.0,
        "toto": 1.0,
        "language_table": 0.1,
        "stanford_hydra" + long: 2.0,
        "austin_buds" + long: 1.0,
        "nyu_franka_play" + long: 3.0,
        "furniture_bench" + long: 0.1,
        "ucsd_kitchen" + long: 2.0,
        "austin_sailor" + long: 1.0,
        "austin_sirius" + long: 1.0,
        "dlr_edan_shared_control" + short: 1.0,
        "iamlab_cmu_pickup_insert" + short: 1.0,
        "utaustin_mutex": 1.0,
        "berkeley_fanuc_manipulation": 2.0,
        "cmu_stretch": 1.0,
        "bc_z": 0.2,
        "fmb": 1.0,
        "dobbe": 0.2,
        "ego4d_split_1": 1.0,
        "ego4d_split_2": 1.0,
        "ego4d_split_3": 1.0,
        "ego4d_split_4": 1.0,
    }
