import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.diffusion import edm, schedules
from defi_jax.models import action_denoiser
from defi_jax.models import params as params_lib

B, S, A, TOKENS = 2, 4, 3, 6
CONFIG = action_denoiser.ActionDenoiserConfig(
    action_dim=A,
    action_horizon=S,
    observation_dim=8,
    goal_dim=5,
    latent_action_dim=7,
    embed_dim=16,
    encoder_layers=2,
    decoder_layers=2,
    heads=2,
    num_tokens=TOKENS,
)
FULL = dataclasses.replace(CONFIG, cross_attention="full")


def _make(config=CONFIG):
    return lambda rngs: action_denoiser.ActionDenoiser(config, rngs=rngs)


@pytest.fixture(scope="module")
def params():
    # Larger weights than the init's, so that modulation and gates are far from zero.
    params = jax.jit(lambda rng: params_lib.init_params(_make(), rng))(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 1 else leaf, params)


class _Jitted:
    """The denoiser with its methods compiled once per config and parameters given."""

    def __init__(self, params, config=CONFIG, dtype=jnp.float32):
        self.params, self.config, self.dtype = params, config, dtype

    def __getattr__(self, method):
        return functools.partial(_compiled(self.config, self.dtype, method), self.params)


@functools.cache
def _compiled(config, dtype, method):
    def make(rngs):
        return action_denoiser.ActionDenoiser(config, dtype=dtype, rngs=rngs)

    return jax.jit(
        lambda params, *args, **kwargs: getattr(params_lib.bind(make, params), method)(
            *args, **kwargs
        )
    )


def _observation():
    rngs = jax.random.split(jax.random.key(1), 3)
    shapes = ((B, 2, 7), (B, TOKENS, 8), (B, 1, 5))
    return [jax.random.normal(rng, shape) for rng, shape in zip(rngs, shapes, strict=True)]


def _actions():
    return jax.random.normal(jax.random.key(2), (B, S, A))


SIGMA = np.array([0.3, 5.0], np.float32)
WEIGHTS = np.ones((B, S), np.float32)


def test_causal_cross_attention_never_reaches_past_the_chunk(params):
    causal = _Jitted(params)
    context = causal.encode_context(*_observation())
    assert context.keys.shape[2] == S
    # The same decoder over all keys: those from S on have a gradient of exactly 0.
    everything = _Jitted(params, FULL).encode_context(*_observation())
    assert everything.keys.shape[2] == 1 + TOKENS + 2
    gradient = jax.grad(
        lambda keys: causal.predict(everything.replace(keys=keys), _actions(), SIGMA).sum()
    )(everything.keys)
    assert (np.asarray(gradient[:, :, S:]) == 0).all()
    assert np.abs(gradient[:, :, :S]).max() > 0
    np.testing.assert_allclose(
        causal.predict(everything, _actions(), SIGMA),
        causal.predict(context, _actions(), SIGMA),
        rtol=1e-5,
        atol=1e-6,
    )


def test_full_cross_attention_reaches_the_latent_actions(params):
    model = _Jitted(params, FULL)
    context = model.encode_context(*_observation())
    gradient = jax.grad(
        lambda keys: model.predict(context.replace(keys=keys), _actions(), SIGMA).sum()
    )(context.keys)
    assert np.abs(gradient[:, :, -2:]).max() > 0


def test_an_action_does_not_see_later_ones(params):
    model = _Jitted(params, FULL)
    context = model.encode_context(*_observation())
    gradient = jax.grad(lambda x: jnp.square(model.predict(context, x, SIGMA)[:, 1]).sum())(
        _actions()
    )
    assert (np.asarray(gradient[:, 2:]) == 0).all()
    assert np.abs(gradient[:, 0]).max() > 0


def test_hoisted_sampler_equals_encoding_the_context_at_each_step(params):
    model = _Jitted(params)
    sigmas = schedules.exponential(3, 0.1, 10.0)
    x_init = 10.0 * _actions()
    hoisted = model.sample(model.encode_context(*_observation()), x_init, sigmas)
    x = x_init
    for sigma, following in itertools.pairwise(sigmas):
        context = model.encode_context(*_observation())
        denoised = model.denoise(context, x, jnp.full((B,), sigma))
        x = following / sigma * x + (1 - following / sigma) * denoised
    np.testing.assert_allclose(hoisted, x, rtol=1e-4, atol=1e-5)


def test_denoise_trusts_small_sigma_and_the_loss_is_that_of_denoise(params):
    model = _Jitted(params)
    context = model.encode_context(*_observation())
    nearly_clean = model.denoise(context, _actions(), jnp.full((B,), 1e-4))
    np.testing.assert_allclose(nearly_clean, _actions(), atol=1e-2)
    noise = jax.random.normal(jax.random.key(3), (B, S, A))
    loss = model.loss(context, _actions(), WEIGHTS, SIGMA, noise)
    noised = _actions() + SIGMA[:, None, None] * noise
    error = model.denoise(context, noised, SIGMA) - _actions()
    _, c_out, _, _ = edm.Preconditioner(CONFIG.sigma_data).scalings(SIGMA)
    expected = np.square(np.asarray(error) / np.asarray(c_out)[:, None, None]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_padded_actions_do_not_count(params):
    model = _Jitted(params)
    context = model.encode_context(*_observation())
    weights = WEIGHTS.copy()
    weights[0, 2:] = 0
    noise = jax.random.normal(jax.random.key(3), (B, S, A))
    reference = model.loss(context, _actions(), weights, SIGMA, noise)
    # Self-attention is causal, so that padding at the end is invisible to what precedes it.
    changed = _actions().at[0, 2:].set(9.0)
    np.testing.assert_allclose(
        model.loss(context, changed, weights, SIGMA, noise), reference, rtol=1e-5
    )
    assert model.loss(context, _actions(), np.zeros_like(weights), SIGMA, noise) == 0


def test_dropout_needs_a_key_and_follows_it(params):
    model = _Jitted(params)

    def run(seed):
        rng = None if seed is None else jax.random.key(seed)
        context = model.encode_context(*_observation(), dropout_rng=rng)
        return np.asarray(model.predict(context, _actions(), SIGMA, dropout_rng=rng))

    np.testing.assert_array_equal(run(None), run(None))
    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-3
    assert np.abs(run(0) - run(None)).max() > 1e-3


def test_scan_equals_unrolled(params):
    outputs = []
    for unroll in (1, 2):
        config = dataclasses.replace(
            CONFIG, scan_unroll=unroll, remat="blocks" if unroll == 2 else "none"
        )
        model = _Jitted(params, config)
        context = model.encode_context(*_observation())
        outputs.append(model.predict(context, _actions(), SIGMA))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_positions_tell_equal_actions_apart_and_are_ours_only():
    config = dataclasses.replace(FULL, action_positions=True, modulation_offset=1.0)
    params = jax.jit(lambda rng: params_lib.init_params(_make(config), rng))(jax.random.key(0))
    model = _Jitted(params, config)
    context = model.encode_context(*_observation())
    equal = model.predict(context, jnp.ones((B, S, A)), SIGMA)
    assert np.abs(equal[:, 0] - equal[:, 3]).max() > 1e-4
    assert "action_pos_emb" not in params_lib.abstract_params(_make())


def test_bf16_stays_near_fp32_and_returns_fp32(params):
    # Weights of the init's size: ten times larger ones amplify rounding at every layer.
    params = jax.tree.map(lambda leaf: leaf / 10 if leaf.ndim > 1 else leaf, params)

    def run(dtype):
        model = _Jitted(params, dtype=dtype)
        return model.predict(model.encode_context(*_observation()), _actions(), SIGMA)

    output, expected = run(jnp.bfloat16), run(jnp.float32)
    assert output.dtype == jnp.float32
    assert np.linalg.norm(output - expected) / np.linalg.norm(expected) < 0.05


def test_full_size_count_is_the_official_one_without_unused_parameters():
    params = params_lib.abstract_params(_make(action_denoiser.PRESETS["full"]))
    assert params_lib.count(params) == 21_816_199


def test_config_refuses_contradictions():
    for changes in ({"heads": 3}, {"cross_attention": "none"}):
        with pytest.raises(ValueError, match=r"heads|cross_attention"):
            dataclasses.replace(CONFIG, **changes)


def test_initial_kernels_have_the_configured_or_the_fan_in_deviation():
    for std in (0.02, None):
        config = dataclasses.replace(CONFIG, embed_dim=64, init_std=std)
        flat = params_lib.flatten(params_lib.init_params(_make(config), jax.random.key(0)))
        kernel = flat["decoder_blocks/mlp/fc2/kernel"]
        np.testing.assert_allclose(kernel.std(), std or kernel.shape[-2] ** -0.5, rtol=0.05)
