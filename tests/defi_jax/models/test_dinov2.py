import jax
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import dinov2
from defi_jax.models import params as params_lib

TINY = dinov2.DINOv2Config(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=20,
    patch_size=4,
    num_register_tokens=3,
    layer_norm_eps=1e-6,
    qkv_bias=True,
)


def _run(pixels, config=TINY):
    def make(rngs):
        return dinov2.DINOv2(config, rngs=rngs)

    params = params_lib.init_params(make, jax.random.key(0))
    return jax.jit(lambda p: params_lib.bind(make, p)(pixels))(params)


def test_full_size_has_the_published_parameter_count():
    params = params_lib.abstract_params(
        lambda rngs: dinov2.DINOv2(dinov2.PRESETS["full"], rngs=rngs)
    )
    mask_token = 768  # dropped: only pretraining uses it
    assert params_lib.count(params) + mask_token == 86_583_552


def test_any_multiple_of_the_patch_is_encoded():
    pixels = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    output = _run(pixels)
    assert output.patch_tokens.shape == (2, 6, 16)
    assert output.last_hidden_state.shape == (2, 1 + 3 + 6, 16)
    np.testing.assert_array_equal(output.patch_tokens, output.last_hidden_state[:, 4:])
    with pytest.raises(errors.UserError, match="10x12 is not a multiple of 4"):
        _run(np.zeros((1, 10, 12, 3), np.float32))


def test_resize_keeps_constants_identity_and_symmetry():
    for old, new in ((37, 16), (5, 4), (4, 9), (5, 5)):
        matrix = dinov2.resize_matrix(old, new)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)
    np.testing.assert_allclose(dinov2.resize_matrix(5, 5), np.eye(5), atol=1e-7)


def test_resize_averages_what_it_skips_and_follows_a_ramp():
    matrix = dinov2.resize_matrix(37, 16)
    support = (matrix != 0).sum(axis=1)
    assert support.max() >= 8  # four taps, stretched by 37 / 16
    ramp = matrix @ np.arange(37)
    centres = 37 / 16 * (np.arange(16) + 0.5) - 0.5
    np.testing.assert_allclose(ramp[3:-3], centres[3:-3], atol=0.1)


def test_patches_keep_their_place():
    pixels = np.zeros((1, 20, 20, 3), np.float32)
    changed = pixels.copy()
    changed[0, 8:12, 4:8] = 3.0  # row 2, column 1 of a 5 x 5 grid
    difference = np.abs(_run(changed).patch_tokens - _run(pixels).patch_tokens).sum(axis=-1)[0]
    assert difference.argmax() == 2 * 5 + 1
