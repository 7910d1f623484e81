import dataclasses
import json
import pathlib
from typing import Any, cast

import numpy as np
import pytest

from configs import common, gfdm, gidm
from data_pipelines.loading import config, mixtures
from data_pipelines.sources import rlds_directory, synthetic
from defi_jax import errors


@dataclasses.dataclass(frozen=True)
class _Meta:
    source: str


class _Source:
    """Says which data set its episodes come from."""

    def __init__(self, name):
        self._name = name

    def meta(self, i):
        return _Meta(self._name)


def _components(*names):
    return [
        mixtures.Component(name=name, weight=1.0, source=cast(Any, _Source(name)), directory=None)
        for name in names
    ]


def _own(data, parts, seed=0):
    """The values that data sets may have of their own, by component."""
    sources = {one.name: one.source.meta(0).source for one in parts}
    found = data.by_dataset(sources, seed)
    return {name: own.rules for name, own in found.items()}


def _resolve(*names, seed=0, **changes):
    return _own(config.DataConfig(**changes), _components(*names), seed)


def test_what_is_not_in_the_table_of_a_data_set_is_the_sections():
    table = {"rt1": {"frame_stride": 0, "max_frames": 100}, "calvin": {"pair_offset": (3, 5)}}
    found = _resolve("rt1", "calvin", "own", per_dataset=table)
    common_rules = {
        "cameras": ("static",),
        "camera_weights": (),
        "frame_stride": 10,
        "max_frames": 0,
        "pair_offset": (4, 12),
    }
    assert found == {
        "rt1": common_rules | {"frame_stride": 0, "max_frames": 100},
        "calvin": common_rules | {"pair_offset": (3, 5)},
        "own": common_rules,
    }
    assert json.loads(json.dumps(found["rt1"]))["max_frames"] == 100


def test_full_gfdm_reads_the_official_mixture_by_its_rules():
    names = mixtures.parse("defi_gfdm_video").weights
    assert names == {"sthv2": 0.4, "bridge": 0.2, "rt1": 0.2, "calvin": 0.2}
    data = config.DataConfig.of(gfdm.get_config("full").data)
    found = _own(data, _components(*names, "own"))
    table = {
        name: tuple(own[key] for key in ("frame_stride", "max_frames", "cameras", "camera_weights"))
        for name, own in found.items()
    }
    assert table == {
        "sthv2": (0, 100, ("static",), ()),
        "bridge": (0, 100, ("static",), ()),
        "rt1": (0, 100, ("static",), ()),
        "calvin": (2, 0, ("static", "gripper"), (0.75, 0.25)),
        "own": (2, 0, ("static",), ()),
    }


def test_full_gidm_pairs_frames_by_the_official_window_of_each_data_set():
    data = config.DataConfig.of(gidm.get_config("full").data)
    names = ("fractal20220817_data", "bridge_dataset", "toto", "ego4d_split_2", "own")
    found = _own(data, _components(*names))
    assert {name: own["pair_offset"] for name, own in found.items()} == {
        "fractal20220817_data": (2, 4),
        "bridge_dataset": (9, 9),
        "toto": (14, 19),
        "ego4d_split_2": (1, 1),
        "own": (9, 9),
    }


def test_the_official_offset_is_of_the_data_set_whatever_the_name_of_its_store():
    component = dataclasses.replace(_components("toto")[0], name="my_store")
    found = _own(config.DataConfig(pair_offset=("dataset",)), [component])
    assert found["my_store"]["pair_offset"] == (14, 19)


def test_offsets_of_a_run_are_one_a_data_set_and_follow_the_seed():
    drawn = [
        _resolve("toto", "viola", seed=seed, pair_offset=("dataset",), pair_draw="run")
        for seed in range(40)
    ]
    for name in ("toto", "viola"):
        offsets = [found[name]["pair_offset"] for found in drawn]
        assert all(low == high for low, high in offsets)
        assert {low for low, _ in offsets} == set(range(14, 20))
    assert any(f["toto"] != f["viola"] for f in drawn)
    again = _resolve("toto", "viola", seed=7, pair_offset=("dataset",), pair_draw="run")
    assert again == drawn[7]


def test_rules_of_a_known_data_set_that_is_not_mixed_do_nothing():
    table = {"calvin": {"frame_stride": 1}, "fractal20220817_data": {"max_frames": 3}}
    assert _resolve("own", per_dataset=table) == _resolve("own")


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(errors.UserError, match=r"no data set 'calvn'.*did you mean calvin\?"):
        _resolve("calvin", "rt1", per_dataset={"calvn": {"frame_stride": 2}})


def test_unknown_keys_of_data_sets_are_one_error():
    table = {"calvin": {"frame_strid": 2}, "rt1": {"stride": 2, "max_frames": 100}, "bridge": 3}
    with pytest.raises(errors.UserError) as error:
        _resolve("calvin", "rt1", per_dataset=table)
    text = str(error.value)
    for part in (
        "no rule calvin.frame_strid",
        "no rule rt1.stride",
        "frame_stride",
        "rules of bridge are 3",
        "data.per_dataset",
    ):
        assert part in text
    assert "text_field" not in text  # not the list of all


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"camera_weights": (1.0,), "cameras": ("static", "gripper")}, "1 weights for cameras"),
        ({"camera_weights": (0.0,)}, "not positive"),
        ({"cameras": "static"}, "is not a tuple"),
        ({"cameras": ()}, "no camera"),
        ({"frame_stride": -1}, "impossible -1"),
        ({"max_frames": -1}, "impossible -1"),
        ({"pair_offset": (5, 2)}, "impossible frame pair"),
        ({"pair_offset": (0, 2)}, "impossible frame pair"),
        ({"pair_offset": ("official",)}, "neither"),
        ({"pair_offset": "dataset"}, "not a tuple"),
        ({"frame_stride": "two"}, "two"),
    ],
)
def test_impossible_rules_name_their_data_set(own, message):
    with pytest.raises(errors.UserError, match=message) as error:
        _resolve("calvin", per_dataset={"calvin": own})
    assert "data.per_dataset.calvin" in str(error.value)


def test_an_unknown_draw_names_the_known_ones():
    with pytest.raises(errors.UserError, match="did you mean sample"):
        _resolve("calvin", pair_draw="samples")


def test_synthetic_data_follow_the_section():
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=2)
    component = mixtures.Component(name="synthetic", weight=1.0, source=source, directory=None)
    found = _own(config.DataConfig(pair_offset=("dataset",)), [component])
    assert found["synthetic"]["pair_offset"] == (9, 9)
    assert np.all(source.lengths > 9)


def test_the_documentation_is_that_of_the_keys():
    path = pathlib.Path(config.__file__).parents[2] / "docs" / "data_keys.md"
    assert path.read_text() == config.table(), "python -m data_pipelines.loading.config > " + str(
        path
    )


def test_the_section_of_the_experiments_is_the_config():
    assert config.DataConfig.of(common.data()) == config.DataConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": "64"}, r"'64' is not a whole number: data\.image_size"),
        ({"image_size": 0}, r"impossible 0: data\.image_size; give at least 1"),
        (
            {"cameras": ("static,gripper",)},
            r"is one text: data\.cameras; write --config\.data\.cameras=.\('static', 'gripper'",
        ),
        ({"workers": True}, r"True is not a whole number: data\.workers"),
        ({"augment": 1}, r"1 is not True or False: data\.augment"),
        ({"holdout_percent": 101}, r"data\.holdout_percent; give at least 0 and at most 100"),
        ({"max_bad_fraction": float("nan")}, r"impossible nan: data\.max_bad_fraction"),
        ({"normalization": "bound"}, r"unknown 'bound': data\.normalization; did you mean bounds"),
        ({"camera_weights": ("a",)}, r"'a' is not a number: data\.camera_weights"),
        ({"mixture": 3}, r"3 is not a text: data\.mixture"),
        ({"per_dataset": ()}, r"\(\) is not a table: data\.per_dataset"),
        ({"drop_still": -1.0}, r"impossible -1\.0: data\.drop_still"),
    ],
)
def test_impossible_values_name_their_key(changes, message):
    with pytest.raises(errors.UserError, match=message):
        config.DataConfig(**changes)


def test_unknown_and_absent_keys_are_refused():
    values = common.data().to_dict()
    with pytest.raises(errors.UserError, match=r"unknown keys \['imagesize'\].*mean image_size"):
        config.DataConfig.of(values | {"imagesize": 3})
    del values["augment"]
    with pytest.raises(errors.UserError, match=r"absent keys \['augment'\]"):
        config.DataConfig.of(values)


def test_every_key_says_what_it_decides():
    read = config.DataConfig()
    assert {*read.rules, *read.transforms} <= {f.name for f in dataclasses.fields(read)}
    assert "image_size" in read.transforms and "workers" not in read.transforms
    assert set(read.rules) == set(config.OWN_KEYS) - set(rlds_directory.KEYS)
    assert config.DataConfig(cameras=["a", "b"], camera_weights=[1, 2]).rules["camera_weights"] == (
        1.0,
        2.0,
    )
