"""Tables of the frozen encoders: other releases' names and whole official name lists."""

import pathlib

import jax
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import clip_text, dinov2
from defi_jax.models import params as params_lib
from defi_jax.weights import fields, sources, table
from defi_jax.weights.parity import check
from defi_jax.weights.tables import clip_openai as clip_openai_table
from defi_jax.weights.tables import clip_text as clip_text_table
from defi_jax.weights.tables import dinov2 as dinov2_table
from tests.fixtures import seeded

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "parity"


def _openai_names(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tower as OpenAI stores it: packed projections, transposed text projection."""
    out = {
        "token_embedding.weight": params["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": params["text_model.embeddings.position_embedding.weight"],
        "text_projection": params["text_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = params[f"text_model.final_layer_norm.{kind}"]
        for layer in range(2):
            theirs, ours = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            packed = [params[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            out[f"{ours}.attn.in_proj_{kind}"] = np.concatenate(packed)
            for ours_name, theirs_name in (
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("attn.out_proj", "self_attn.out_proj"),
            ):
                out[f"{ours}.{ours_name}.{kind}"] = params[f"{theirs}.{theirs_name}.{kind}"]
    return out


def _assert_equal_trees(left, right):
    left, right = params_lib.flatten(left), params_lib.flatten(right)
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(value, right[path], err_msg=path)


def test_openai_and_hugging_face_names_give_the_same_tower():
    fixture = seeded.load(FIXTURES / "clip_text.safetensors")
    config = fields.make_config(clip_text.CLIPTextConfig, fixture["config"], "test")
    theirs = _openai_names(fixture["params"])
    visual = {"visual.proj": np.ones(2), "logit_scale": np.ones(())}
    abstract = sources.CLIP.abstract_params(config)
    ours = table.import_params(
        clip_openai_table.TABLE(abstract),
        theirs | visual,
        expected=abstract,
        dropped=clip_openai_table.DROPPED,
    )
    _assert_equal_trees(ours, sources.CLIP.plan_import(config, fixture["params"]).params())
    back = table.export_params(clip_openai_table.TABLE(abstract), ours)
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize("release", ["hub", "hf"])
def test_every_release_of_dinov2_gives_the_same_features(release):
    fixture = check.Fixture(**seeded.load(FIXTURES / "dinov2_smaller.safetensors"))
    config = fields.make_config(dinov2.DINOv2Config, fixture.config, "test")
    assert dinov2_table.release(fixture.params) == "hf5"
    ours = sources.DINOV2.plan_import(config, fixture.params).params()
    renamed = table.export_params(dinov2_table.RELEASES[release](ours), ours)
    assert dinov2_table.release(renamed) == release
    outputs = check.KINDS["dinov2_registers"](fixture.config, renamed, fixture.inputs)
    result = check.compare("", "", outputs["patch_tokens"], fixture.outputs["patch_tokens"])
    assert result.passed
    with pytest.raises(errors.DataError, match="no DINOv2 weights"):
        dinov2_table.release({"weight"})


CASES = {
    "clip_text": (sources.CLIP, clip_text_table.TABLE, 197),
    "clip_openai": (sources.CLIP, clip_openai_table.TABLE, 149),
    "t5_encoder": (sources.T5, sources.T5.table, 100),
    "dinov2": (sources.DINOV2, sources.DINOV2.table, 175),
}


@pytest.mark.parametrize("case", CASES)
def test_full_size_table_covers_model_and_official_names(case):
    part, make_table, num_official = CASES[case]
    expected = part.abstract_params(part.config)
    entries = make_table(expected, part.config, ())
    assert len({entry.theirs for entry in entries}) == num_official
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), expected)
    official = table.export_params(entries, zeros)
    back = table.import_params(entries, official, expected=expected)
    assert params_lib.flatten(back).keys() == params_lib.flatten(expected).keys()
