import dataclasses

import jax
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.models import svd_vae

CONFIG = svd_vae.SVDVAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
)


def _make(config=CONFIG):
    return lambda rngs: svd_vae.SVDVAE(config, rngs=rngs)


@pytest.fixture(scope="module")
def params():
    flat = params_lib.flatten(params_lib.abstract_params(_make()))
    rng = np.random.default_rng(0)
    return params_lib.unflatten(
        {path: 0.3 * rng.standard_normal(leaf.shape, np.float32) for path, leaf in flat.items()}
    )


@pytest.fixture(scope="module")
def encode():
    return jax.jit(lambda params, pixels: params_lib.bind(_make(), params).encode(pixels))


@pytest.fixture(scope="module")
def decode():
    return jax.jit(lambda params, latents: params_lib.bind(_make(), params).decode(latents))


def _random(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_encoder_treats_images_one_by_one(params, encode):
    pixels = _random(3, 8, 12, 3)
    mean, logvar = encode(params, pixels)
    assert mean.shape == logvar.shape == (3, 4, 6, 4)
    changed, _ = encode(params, np.concatenate([pixels[:1] + 1, pixels[1:]]))
    assert np.abs(changed[0] - mean[0]).max() > 1e-3
    np.testing.assert_allclose(changed[1:], mean[1:], atol=1e-5)


def test_log_variance_is_bounded(params, encode):
    flat = params_lib.flatten(params)
    flat["quant_conv/bias"] = np.float32([0] * 4 + [-90, 90, 0, 0])
    _, logvar = encode(params_lib.unflatten(flat), _random(3, 8, 12, 3))
    np.testing.assert_array_equal(logvar[..., 0], -30)
    np.testing.assert_array_equal(logvar[..., 1], 20)


def test_decoder_mixes_frames_but_not_videos(params, decode):
    latents = _random(2, 3, 4, 6, 4)
    video = decode(params, latents)
    assert video.shape == (2, 3, 8, 12, 3)
    latents = latents.copy()  # the first call may still read the other
    latents[0, 0] += 1
    changed = decode(params, latents)
    assert np.abs(changed[0, -1] - video[0, -1]).max() > 1e-4
    np.testing.assert_allclose(changed[1], video[1], atol=1e-5)


def test_mixer_at_its_lower_end_leaves_frames_alone(params, decode):
    flat = params_lib.flatten(params)
    flat |= {path: np.float32(-200) for path in flat if path.endswith("mix_factor")}
    kernel = np.zeros_like(flat["decoder/time_conv_out/kernel"])
    kernel[1] = np.eye(3)
    flat["decoder/time_conv_out/kernel"] = kernel
    latents = _random(2, 3, 4, 6, 4)
    video = decode(params_lib.unflatten(flat), latents)
    latents[0, 0] += 1
    changed = decode(params_lib.unflatten(flat), latents)
    np.testing.assert_allclose(changed[0, 1:], video[0, 1:], atol=1e-5)


def test_downsampling_pads_only_right_and_bottom(params):
    kernel = params["encoder"]["down_blocks"]["0"]["downsamplers"]["0"]["conv"]["kernel"]

    def first(pixels):
        vae = params_lib.bind(_make(), params)
        return vae.encoder.down_blocks[0].downsamplers[0](pixels)

    pixels = _random(1, 4, 4, 4)
    bias = params["encoder"]["down_blocks"]["0"]["downsamplers"]["0"]["conv"]["bias"]
    corner = np.einsum("hwc,hwcd->d", pixels[0, :3, :3], kernel) + bias
    np.testing.assert_allclose(first(pixels)[0, 0, 0], corner, atol=1e-5)
    padded = np.pad(pixels[0], ((0, 1), (0, 1), (0, 0)))
    last = np.einsum("hwc,hwcd->d", padded[2:5, 2:5], kernel) + bias
    np.testing.assert_allclose(first(pixels)[0, 1, 1], last, atol=1e-5)


@pytest.mark.slow
def test_full_size_has_the_published_parameter_count():
    make = _make(svd_vae.PRESETS["full"])
    assert params_lib.count(params_lib.abstract_params(make)) == 97_742_847


@pytest.mark.parametrize(
    ("field", "value"),
    [("down_block_types", ("DownEncoderBlock2D",)), ("norm_num_groups", 3)],
)
def test_contradictory_configs_are_refused(field, value):
    with pytest.raises(errors.UserError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
