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
OURS = {
    "proj/kernel": (2, 3),
    "conv/kernel": (3, 2, 4, 5),
    "time/kernel": (3, 1, 1, 4, 5),
    "mix": (),
    "q/kernel": (4, 2),
    "k/kernel": (4, 2),
    "v/kernel": (4, 2),
    "blocks/scale": (2, 7),
    "embed": (9, 2),
}


def _abstract(**changes) -> dict:
    shapes = OURS | {path.replace("__", "/"): shape for path, shape in changes.items()}
    flat = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    return params_lib.unflatten(flat)


def _import(source, entries=ENTRIES, **options):
    return table.import_params(entries, source, **{"expected": _abstract()} | options)


def _source() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    source = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return source | {"embed_tokens.weight": source["shared.weight"]}


def test_import_changes_layouts_and_export_gives_back_every_bit():
    source = _source()
    params = _import(source)
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
    np.testing.assert_array_equal(_import(source)["embed"], source["shared.weight"])
    source["embed_tokens.weight"] = source["shared.weight"] + 1
    with pytest.raises(errors.DataError, match=r"shared.weight and embed_tokens.weight are tied"):
        _import(source)


def test_all_problems_are_listed_at_once():
    source = _source()
    del source["proj.weight"], source["layers.1.norm.weight"]
    source["conv.weight"] = source["conv.weight"][0]
    source["mixer.mix_factor"] = np.ones(2, np.float32)
    source["visual.proj"] = source["extra.weight"] = np.ones(1, np.float32)
    with pytest.raises(errors.DataError) as caught:
        _import(source, dropped=[("visual.*", "vision tower")])
    text = str(caught.value)
    assert "missing name proj.weight" in text
    assert "missing name layers.1.norm.weight" in text
    assert "misshapen conv.weight" in text
    assert "misshapen mixer.mix_factor" in text
    assert "unknown name extra.weight" in text
    assert "visual" not in text


def test_layout_that_would_drop_data_is_refused():
    source = {"conv.weight": np.ones((2, 3, 3, 3), np.float32)}
    entries = [E("kernel", "conv.weight", "conv1x1_linear")]
    expected = {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    with pytest.raises(errors.DataError, match=r"misshapen conv.weight.*expected \(2, 3, 1, 1\)"):
        _import(source, entries, expected=expected)


def test_expected_shapes_paths_and_dtypes_hold():
    source = _source()
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), _abstract())
    cast = _import(source, expected=narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.bfloat16.dtype}
    changed = _abstract(proj__kernel=(9, 8), proj__bias=(9,))
    del changed["mix"]
    with pytest.raises(errors.DataError) as caught:
        _import(source, expected=changed)
    assert "misshapen proj.weight: (3, 2), expected (8, 9)" in str(caught.value)
    assert "parameter without an official name proj/bias" in str(caught.value)
    assert "missing parameter mix" in str(caught.value)


def test_export_names_missing_and_unknown_parameters():
    params = params_lib.flatten(_import(_source()))
    params["stray"] = params.pop("mix")
    with pytest.raises(errors.DataError, match=r"missing parameter mix.*official name stray"):
        table.export_params(ENTRIES, params_lib.unflatten(params))


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.bool_, np.uint16])
def test_other_numbers_than_floats_of_up_to_32_bits_are_refused(dtype):
    source = _source()
    source["proj.weight"] = np.ones((3, 2), dtype)
    with pytest.raises(errors.DataError, match=rf"proj\.weight has .* type {np.dtype(dtype)}"):
        _import(source)
    params = _import(_source())
    params["proj"]["kernel"] = np.ones((2, 3), dtype)
    with pytest.raises(errors.DataError, match=rf"proj/kernel has .* type {np.dtype(dtype)}"):
        table.export_params(ENTRIES, params)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    source = _source()
    source["qkv.weight"][1, 2] = value
    with pytest.raises(errors.DataError, match=r"not finite: qkv\.weight"):
        _import(source)


def test_names_make_a_table_by_rule():
    shapes = {
        "norm/scale": (4,),
        "blocks/mlp/fc1/kernel": (2, 4, 8),
        "blocks/mlp/fc1/bias": (2, 8),
        "blocks/attn/to_k/kernel": (2, 4, 4),
        "blocks/attn/to_q/kernel": (2, 4, 4),
        "blocks/attn/to_v/kernel": (2, 4, 4),
        "inner/fc1/kernel": (3, 3, 4, 8),
        "token": (4,),
    }
    names = table.Names(
        levels={
            "blocks": "layers.{}",
            "fc1": "linear",
            "mlp/fc1": "0",  # the longer run comes first
            **{f"attn/{name}": "qkv" for name in table.QKV},
            "inner": "",
        },
        layouts={"token": "leading1"},
        tied={"norm/scale": "again.weight"},
    )
    flat = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    rows = set(names(params_lib.unflatten(flat)))
    per_layer = [
        E(f"blocks/{ours}", f"layers.{layer}.{theirs}", layout, layer, part)
        for layer in (0, 1)
        for ours, theirs, layout, part in (
            ("mlp/fc1/kernel", "0.weight", "linear", None),
            ("mlp/fc1/bias", "0.bias", "same", None),
            ("attn/to_q/kernel", "qkv.weight", "linear", (0, 3)),
            ("attn/to_k/kernel", "qkv.weight", "linear", (1, 3)),
            ("attn/to_v/kernel", "qkv.weight", "linear", (2, 3)),
        )
    ]
    assert rows == {
        *per_layer,
        E("norm/scale", "norm.weight"),
        E("norm/scale", "again.weight"),
        E("inner/fc1/kernel", "linear.weight", "conv2d"),
        E("token", "token", "leading1"),
    }
