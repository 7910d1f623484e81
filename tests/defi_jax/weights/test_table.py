import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.weights import layouts, table

E = table.Entry
ENTRIES = [
    E("proj/kernel", "proj.weight", "linear"),
    E("conv/kernel", "conv.weight", "conv2d"),
    E("time/kernel", "time.weight", "conv3d"),
    E("mix", "mixer.mix_factor", "scalar"),
    E("q/kernel", "qkv.weight", "linear", part=(0, 3)),
    E("k/kernel", "qkv.weight", "linear", part=(1, 3)),
    E("v/kernel", "qkv.weight", "linear", part=(2, 3)),
    E("blocks/scale", "layers.0.norm.weight", layer=0),
    E("blocks/scale", "layers.1.norm.weight", layer=1),
    E("embed", "shared.weight"),
    E("embed", "embed_tokens.weight"),
]
SHAPES = {
    "proj.weight": (3, 2),
    "conv.weight": (5, 4, 3, 2),
    "time.weight": (5, 4, 3, 1, 1),
    "mixer.mix_factor": (1,),
    "qkv.weight": (6, 4),
    "layers.0.norm.weight": (7,),
    "layers.1.norm.weight": (7,),
    "shared.weight": (9, 2),
}


def _source() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    source = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return source | {"embed_tokens.weight": source["shared.weight"]}


def test_import_changes_layouts_and_export_gives_back_every_bit():
    source = _source()
    params = table.import_params(ENTRIES, source)
    np.testing.assert_array_equal(params["proj"]["kernel"], source["proj.weight"].T)
    assert params["conv"]["kernel"][2, 1, 3, 4] == source["conv.weight"][4, 3, 2, 1]
    assert params["time"]["kernel"].shape == (3, 1, 1, 4, 5)
    assert params["mix"].shape == ()
    np.testing.assert_array_equal(params["k"]["kernel"], source["qkv.weight"][2:4].T)
    np.testing.assert_array_equal(params["blocks"]["scale"][1], source["layers.1.norm.weight"])
    # safetensors writes the buffer as it lies.
    assert all(leaf.flags.c_contiguous for leaf in jax.tree.leaves(params))
    back = table.export_params(ENTRIES, params)
    assert back.keys() == source.keys()
    for name, value in source.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("layout", sorted(layouts.LAYOUTS))
def test_every_layout_is_undone_by_its_inverse(layout):
    shape = {
        "same": (2, 3),
        "linear": (2, 3),
        "conv1d": (2, 3, 4),
        "conv2d": (2, 3, 4, 5),
        "conv3d": (2, 3, 4, 5, 6),
        "conv3d_time": (2, 3, 4, 1, 1),
        "conv1x1_linear": (2, 3, 1, 1),
        "scalar": (1,),
        "leading1": (1, 2),
        "leading11": (1, 1, 2),
    }[layout]
    value = np.arange(np.prod(shape)).reshape(shape)
    there, back = layouts.LAYOUTS[layout]
    np.testing.assert_array_equal(back(there(value)), value)


def test_tied_names_may_miss_one_but_must_agree():
    source = _source()
    del source["embed_tokens.weight"]
    np.testing.assert_array_equal(
        table.import_params(ENTRIES, source)["embed"], source["shared.weight"]
    )
    source["embed_tokens.weight"] = source["shared.weight"] + 1
    with pytest.raises(errors.DataError, match=r"shared.weight and embed_tokens.weight are tied"):
        table.import_params(ENTRIES, source)


def test_all_problems_are_listed_at_once():
    source = _source()
    del source["proj.weight"], source["layers.1.norm.weight"]
    source["conv.weight"] = source["conv.weight"][0]
    source["mixer.mix_factor"] = np.ones(2, np.float32)
    source["visual.proj"] = source["extra.weight"] = np.ones(1, np.float32)
    with pytest.raises(errors.DataError) as caught:
        table.import_params(ENTRIES, source, dropped=[("visual.*", "vision tower")])
    text = str(caught.value)
    assert "missing name proj.weight" in text
    assert "missing name layers.1.norm.weight" in text
    assert "misshapen conv.weight" in text
    assert "misshapen mixer.mix_factor" in text
    assert "unknown name extra.weight" in text
    assert "visual" not in text


def test_layout_that_would_drop_data_is_refused():
    entries = [E("kernel", "conv.weight", "conv1x1_linear")]
    with pytest.raises(errors.DataError, match="misshapen"):
        table.import_params(entries, {"conv.weight": np.ones((2, 3, 3, 3), np.float32)})


def test_expected_shapes_paths_and_dtypes_hold():
    source = _source()
    params = table.import_params(ENTRIES, source)
    expected = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params))
    cast = table.import_params(ENTRIES, source, expected=expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.bfloat16.dtype}
    flat = params_lib.flatten(expected)
    flat["proj/kernel"] = jax.ShapeDtypeStruct((9, 9), jnp.float32)
    flat["proj/bias"] = jax.ShapeDtypeStruct((9,), jnp.float32)
    with pytest.raises(errors.DataError) as caught:
        table.import_params(ENTRIES, source, expected=params_lib.unflatten(flat))
    assert "misshapen proj/kernel: (2, 3), expected (9, 9)" in str(caught.value)
    assert "parameter without an official name proj/bias" in str(caught.value)


def test_export_names_missing_and_unknown_parameters():
    params = params_lib.flatten(table.import_params(ENTRIES, _source()))
    params["stray"] = params.pop("mix")
    with pytest.raises(errors.DataError, match=r"missing parameter mix.*official name stray"):
        table.export_params(ENTRIES, params_lib.unflatten(params))


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.bool_, np.uint16])
def test_other_numbers_than_floats_of_up_to_32_bits_are_refused(dtype):
    source = _source()
    source["proj.weight"] = np.ones((3, 2), dtype)
    with pytest.raises(errors.DataError, match=rf"proj\.weight has .* type {np.dtype(dtype)}"):
        table.import_params(ENTRIES, source)
    params = table.import_params(ENTRIES, _source())
    params["proj"]["kernel"] = np.ones((2, 3), dtype)
    with pytest.raises(errors.DataError, match=rf"proj/kernel has .* type {np.dtype(dtype)}"):
        table.export_params(ENTRIES, params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    source = _source()
    source["qkv.weight"][1, 2] = value
    with pytest.raises(errors.DataError, match=r"not finite: qkv\.weight"):
        table.import_params(ENTRIES, source)


def test_prefixes_move_a_table():
    moved = table.with_prefixes(ENTRIES[:1], ours="encoders/text/", theirs="lam.")
    assert moved == [E("encoders/text/proj/kernel", "lam.proj.weight", "linear")]
