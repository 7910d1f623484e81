import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.models import svd_vae
from defi_jax.models.frozen import encoders, pretrained


def _frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_space_to_depth_with_all_frequencies_is_exactly_undone():
    encoder = encoders.latent_encoder("space_to_depth", factor=4, frequencies=4)
    frames = _frames(2, 3, 16, 8, 3)
    latents = jax.jit(encoder.encode)({}, frames)
    assert latents.shape == (2, 3, 4, 2, encoder.channels)
    np.testing.assert_array_equal(jax.jit(encoder.decode)({}, latents), frames)
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    np.testing.assert_array_equal(encoder.decode({}, encoder.encode({}, every_value)), every_value)


def test_space_to_depth_keeps_cells_in_place():
    encoder = encoders.latent_encoder("space_to_depth", factor=4, frequencies=2)
    frames = np.zeros((1, 16, 8, 3), np.uint8)
    frames[0, 4:8, 0:4, 1] = 255
    latents = np.asarray(encoder.encode({}, frames))
    lowest, others = latents[0, :, :, :3], latents[0, :, :, 3:]
    assert (lowest == lowest.max()).sum() == 1 and lowest[1, 0, 1] == lowest.max()
    np.testing.assert_allclose(others, 0.0, atol=1e-5)


def test_space_to_depth_with_few_frequencies_is_a_smooth_picture_of_even_variances():
    encoder = encoders.latent_encoder("space_to_depth", factor=8, frequencies=4)
    rows, columns = np.mgrid[:64, :64] / 64
    waves = np.sin(9 * rows + 5 * columns)[..., None] * [0.9, 0.6, -0.4]
    frames = np.uint8(np.round(127.5 * (1 + waves)))[None]
    latents = np.asarray(encoder.encode({}, frames))
    assert latents.shape == (1, 8, 8, 48)
    pixels = np.asarray(encoder.decode({}, latents)).astype(float)
    assert np.abs(pixels - frames).max() < 6
    # A step across a cell has every frequency; their latents differ far less than its cosines do.
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, :, 3:] = 255
    row = np.abs(np.asarray(encoder.encode({}, frames))[0, 0, 0, ::3][1:4])
    assert row.max() / row.min() < 5  # 6.9 in the plain cosine basis


def test_patches_are_exactly_undone_in_row_major_order():
    encoder = encoders.feature_encoder("patches", patch=4)
    frames = _frames(2, 2, 8, 12, 3)
    features = encoder.encode({}, frames)
    assert features.shape == (2, 2, 6, encoder.dim)
    np.testing.assert_allclose(
        features[0, 0, 1],
        (frames[0, 0, 0:4, 4:8].reshape(-1) / 127.5 - 1) * 2,
        rtol=1e-6,
        atol=1e-6,
    )
    np.testing.assert_array_equal(encoder.decode({}, features, (2, 3)), frames)


def test_bytes_goes_from_text_to_features_without_parameters():
    encoder = encoders.text_encoder("bytes", length=16, dim=32)
    assert encoder.init_params(jax.random.key(0)) == {}
    ids, mask = encoder.tokenizer(["open it", "close it"])
    features = jax.jit(encoder.encode)({}, ids, mask)
    assert features.tokens.shape == (2, 4, encoder.dim)
    np.testing.assert_array_equal(features.mask, [[True, True, False, False]] * 2)
    word_scales = encoder.dim * 3 // 4  # the rest says what stands before the word
    it = features.tokens[:, 1, :word_scales]
    np.testing.assert_array_equal(it[0], it[1])
    assert (features.tokens[0, 0] != features.tokens[1, 0]).any()
    assert (features.tokens[:, 2:] == 0).all()
    assert features.pooled.shape == (2, encoder.pooled_dim)


def test_bad_names_and_sizes_are_user_errors():
    with pytest.raises(errors.UserError, match=r"unknown text encoder 'byte'.*known: bytes"):
        encoders.text_encoder("byte", length=16, dim=32)
    with pytest.raises(errors.UserError, match="unknown latent encoder"):
        encoders.latent_encoder("vae", factor=8, frequencies=4)
    with pytest.raises(errors.UserError, match="unknown feature encoder"):
        encoders.feature_encoder("dino", patch=8)
    with pytest.raises(errors.UserError, match="30x32 are not a multiple of 8"):
        encoder = encoders.latent_encoder("space_to_depth", factor=8, frequencies=4)
        encoder.encode({}, _frames(1, 30, 32, 3))
    with pytest.raises(errors.UserError, match=r"9 frequencies do not fit 8 pixels.*give 1 to 8"):
        encoders.latent_encoder("space_to_depth", factor=8, frequencies=9)


TEXTS = ["open the drawer", "close it"]


@pytest.mark.parametrize(
    "name, length, dim, pooled_dim",
    [("clip_text", 20, 512, 512), ("clip_openai", 77, 512, 512), ("t5_encoder", 32, 768, 768)],
)
def test_published_text_encoders_fit_together_without_files(name, length, dim, pooled_dim):
    encoder = encoders.text_encoder(name, length=32, dim=1)
    assert (encoder.name, encoder.dim, encoder.pooled_dim) == (name, dim, pooled_dim)
    ids, mask = encoder.tokenizer(TEXTS)
    params = jax.eval_shape(encoder.init_params, jax.random.key(0))
    features = jax.eval_shape(encoder.encode, params, ids, mask)
    assert features.tokens.shape == (2, length, dim)
    assert features.pooled.shape == (2, pooled_dim)


def test_published_frame_encoders_have_the_official_shapes():
    vae = encoders.latent_encoder("svd_vae", factor=1, frequencies=1)
    assert (vae.factor, vae.channels, vae.scale) == (8, 4, 0.18215)
    params = jax.eval_shape(vae.init_params, jax.random.key(0))
    frames = jnp.zeros((1, 3, 64, 32, 3), jnp.uint8)
    latents = jax.eval_shape(vae.encode, params, frames)
    assert latents.shape == (1, 3, 8, 4, 4)
    assert jax.eval_shape(vae.decode, params, latents).shape == frames.shape

    dino = encoders.feature_encoder("dinov2", patch=1)
    params = jax.eval_shape(dino.init_params, jax.random.key(0))
    features = jax.eval_shape(dino.encode, params, jnp.zeros((2, 2, 224, 224, 3), jnp.uint8))
    assert features.shape == (2, 2, 256, dino.dim)


def test_vae_refuses_sizes_that_cannot_be_halved():
    with pytest.raises(errors.UserError, match="image of 28x32: svd_vae; use multiples of 8"):
        pretrained.SVDVAELatents().encode({}, np.zeros((1, 28, 32, 3), np.uint8))


@pytest.mark.slow
def test_vae_mode_sample_and_chunks():
    config = svd_vae.SVDVAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    mode = pretrained.SVDVAELatents(config=config, decode_chunk=2)
    params = mode.init_params(jax.random.key(0))
    frames = _frames(1, 3, 8, 8, 3)
    latents = mode.encode(params, frames)
    pixels = np.float32(frames[0]) / 127.5 - 1
    mean, _ = params_lib.bind(mode.make, params).encode(jnp.asarray(pixels))
    np.testing.assert_allclose(latents[0], mean * config.scaling_factor, atol=1e-5)
    sample = dataclasses.replace(mode, posterior="sample")
    drawn = sample.encode(params, frames, jax.random.key(1))
    assert np.abs(np.asarray(drawn - latents)).max() > 1e-4
    with pytest.raises(ValueError, match="needs an rng"):
        sample.encode(params, frames)
    assert mode.decode(params, latents).shape == frames.shape
    with pytest.raises(errors.UserError, match="unknown posterior"):
        dataclasses.replace(mode, posterior="mean")
