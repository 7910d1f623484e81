"""Outputs of the official modules, recorded once, with weights and inputs from a seeded rule.

`defi_golden_outputs.npz` holds outputs only (eval mode, CPU, fp32). The rule: each tensor comes
from a numpy RandomState seeded with the CRC-32 of its official name (inputs: "input:" + tag). The
outputs never change: they are the reference's.
"""

import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.diffusion import schedules
from defi_jax.models import action_denoiser, latent_action, vector_quantizer, video_former
from defi_jax.models import params as params_lib
from defi_jax.weights import gidm_table, parity_policy, policy_table, table

GOLDEN = pathlib.Path(__file__).with_name("defi_golden_outputs.npz")
ENCODER = "latent_action/encoder/transformer/"
TEXT_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)


@pytest.fixture(autouse=True)
def _exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def _golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def _assert_golden(name, value):
    expected = _golden()[name]
    assert value.shape == expected.shape
    if expected.dtype == np.int64:
        np.testing.assert_array_equal(value, expected)
        return
    error = np.linalg.norm(np.asarray(value, np.float64) - expected) / np.linalg.norm(expected)
    assert error <= 3e-6, f"{name}: relative L2 error {error:.1e}"


def _seeded_weight(name, shape):
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    is_codebook = name.split(".")[-2:] == ["codebook", "weight"]  # to_codebook is none
    if name.endswith("weight") and len(shape) >= 2 and not is_codebook:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * values
    elif name.endswith("bias"):
        values = 0.1 * values
    return values.astype(np.float32)


def _input(tag, shape):
    rng = np.random.RandomState(zlib.crc32(f"input:{tag}".encode()))
    return rng.standard_normal(shape).astype(np.float32)


def _seeded(make, entries):
    """Our parameters, filled under the official names of `entries`."""
    abstract = params_lib.abstract_params(make)
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    official = {
        name: _seeded_weight(name, value.shape)
        for name, value in table.export_params(entries, blank).items()
    }
    return table.import_params(entries, official, expected=abstract)


def _apply(make, entries, *inputs):
    params = _seeded(make, entries)
    return jax.jit(lambda params, *x: params_lib.bind(make, params)(*x))(params, *inputs)


def _relative(entries, ours, theirs):
    """The rows under two prefixes, without them."""
    return [
        table.Entry(
            entry.ours.removeprefix(ours), entry.theirs.removeprefix(theirs), entry.layout,
            entry.layer,
        )
        for entry in entries
        if entry.ours.startswith(ours) and entry.theirs.startswith(theirs)
    ]  # fmt: skip


def _gidm_config(**fields):
    return parity_policy.gidm.GIDMConfig(
        **{
            "feature_dim": 768, "text_dim": 768, "model_dim": 48, "num_heads": 4,
            "latent_dim": 16, "codebook_size": 8, "num_codes": 4, "encoder_blocks": 2,
            "decoder_blocks": 2,
        } | fields
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "order"),
    [("official_tiled_mask", "tiled"), ("aligned_mask", "aligned"), ("nolang", "aligned")],
)
def test_encoder_equals_the_official_one(name, order):
    config = latent_action.TransformerConfig(
        in_dim=24, model_dim=32, num_blocks=2, num_heads=4, mask_order=order
    )
    entries = _relative(gidm_table.entries(_gidm_config()), ENCODER, "encoder.")
    lang = (_input("enc_lang", (3, 5, 32)), TEXT_MASK)
    output = _apply(
        lambda rngs: latent_action.SpatioTemporalTransformer(config, rngs=rngs),
        entries,
        _input("enc_x", (3, 2, 7, 24)),
        *(() if name == "nolang" else lang),
    )
    _assert_golden(f"st_enc_{name}", output)


def test_decoder_equals_the_official_one():
    config = latent_action.TransformerConfig(
        in_dim=32, model_dim=32, out_dim=24, num_blocks=2, num_heads=4
    )
    output = _apply(
        lambda rngs: latent_action.SpatioTransformer(config, rngs=rngs),
        _relative(gidm_table.entries(_gidm_config()), "decoder/transformer/", "decoder."),
        _input("dec_x", (3, 1, 9, 32)),
        _input("enc_lang", (3, 5, 32)),
        TEXT_MASK,
    )
    _assert_golden("sp_dec", output)


def test_quantizer_and_usage_equal_the_official_ones():
    config = vector_quantizer.VectorQuantizerConfig(codebook_size=8, latent_dim=16)
    output = _apply(
        lambda rngs: vector_quantizer.VectorQuantizer(config, rngs=rngs),
        [table.Entry("codebook", "codebook.weight")],
        _input("vq_z", (3, 4, 16)),
    )
    _assert_golden("vq_zq", output.z_q)
    _assert_golden("vq_code", output.codes)
    _assert_golden("vq_idx", output.indices)
    _assert_golden("vq_usage", vector_quantizer.usage_increment(output.indices, 8))


@pytest.mark.parametrize("order", ["tiled", "aligned"])
def test_latent_action_model_equals_the_official_one(order):
    config = _gidm_config(mask_order=order)
    output = _apply(
        lambda rngs: latent_action.LatentActionModel(config, rngs=rngs),
        gidm_table.latent_action_entries(config),
        _input("lam_feats", (2, 2, 16, 768)),
        _input("lam_t5", (2, 6, 768)),
        np.array([[1, 1, 1, 0, 0, 0], [1] * 6], bool),
    )
    _assert_golden(f"lam_{order}_emb", output.z_e)
    _assert_golden(f"lam_{order}_idx", output.vq.indices)
    _assert_golden(f"lam_{order}_z", output.vq.codes)
    _assert_golden(f"lam_{order}_tokens", output.tokens)


def test_video_former_equals_the_official_one():
    config = video_former.VideoFormerConfig(
        condition_dim=20, dim=48, depth=2, dim_head=8, heads=4, num_latents=32, num_frames=16
    )
    output = _apply(
        lambda rngs: video_former.VideoFormer(config, rngs=rngs),
        policy_table.video_former_entries(config),
        _input("vf_x", (2, 16, 6, 20)),
    )
    _assert_golden("video_former", output)


@pytest.mark.slow
def test_full_size_denoiser_loss_and_sampler_equal_the_official_ones():
    config = action_denoiser.PRESETS["full"]

    def make(rngs):
        return action_denoiser.ActionDenoiser(config, rngs=rngs)

    actions, noise = _input("act", (2, 10, 7)), _input("noise", (2, 10, 7))
    sigma = jnp.array([0.3, 5.0])
    sigmas = schedules.exponential(10, 1.0, 80.0)

    @jax.jit
    def run(params):
        model = params_lib.bind(make, params)
        context = model.encode_context(
            _input("lat", (2, 4, 768)), _input("st_vf", (2, 224, 384)), _input("goal", (2, 1, 512))
        )
        c_in = model.preconditioner.scalings(sigma)[2][:, None, None]
        noised = actions + sigma[:, None, None] * noise
        return {
            "sigma_emb": model.embed_sigma(sigma),
            "dit_context_first3": context.memory[:, :3],
            "dit_context_last5": context.memory[:, -5:],
            "dit_dec": model.predict(context, actions, sigma),
            "denoised": model.denoise(context, actions, sigma),
            "loss": model.loss(context, actions, jnp.ones((2, 10), bool), sigma, noise),
            "loss_model_output": model.predict(context, c_in * noised, sigma),
            "ddim_sample": model.sample(context, _input("x0", (2, 10, 7)) * 80, sigmas),
        }

    for name, value in run(_seeded(make, policy_table.denoiser_entries(config))).items():
        _assert_golden(name, value)
    _assert_golden("ddim_eval_sigmas", sigmas)


# Runners


def _runner_case():
    config = {
        "condition_dim": 6, "dim": 8, "depth": 1, "dim_head": 4, "heads": 2, "num_latents": 4,
        "num_frames": 2,
    }  # fmt: skip
    model_config = video_former.VideoFormerConfig(**config)

    def make(rngs):
        return video_former.VideoFormer(model_config, rngs=rngs)

    entries = policy_table.video_former_entries(model_config)
    params = table.export_params(entries, _seeded(make, entries))
    return config, params, {"features": _input("f", (1, 2, 3, 6))}


def test_runner_returns_outputs_under_fixture_names():
    outputs = parity_policy.run_video_former(*_runner_case())
    assert set(outputs) == {"tokens"}
    assert outputs["tokens"].shape == (1, 4, 8)


def test_runner_refuses_unknown_config_fields_and_names():
    config, params, inputs = _runner_case()
    with pytest.raises(errors.UserError, match="unknown config field dimm"):
        parity_policy.run_video_former({**config, "dimm": 3}, params, inputs)
    with pytest.raises(errors.DataError, match="unknown name surplus"):
        parity_policy.run_video_former(config, {**params, "surplus": np.zeros(1)}, inputs)


def test_joint_runner_names_a_missing_part():
    with pytest.raises(errors.UserError, match=r"joint_policy\.video_former"):
        parity_policy.run_joint_policy({"condition_frames": [0, 1]}, {}, {})
