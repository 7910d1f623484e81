import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax.models import action_denoiser, latent_action, policy, video_former
from defi_jax.models import params as params_lib

B, CAMS, T, SIDE, C, L, S, A = 2, 2, 4, 2, 10, 3, 4, 3
CONFIG = policy.PolicyConfig(
    video_former=video_former.VideoFormerConfig(
        condition_dim=C, dim=16, depth=1, dim_head=4, heads=2, num_latents=8, num_frames=T
    ),
    gidm=latent_action.LatentActionConfig(
        feature_dim=12,
        text_dim=6,
        model_dim=16,
        num_heads=2,
        latent_dim=6,
        codebook_size=8,
        num_codes=2,
        encoder_blocks=1,
    ),
    denoiser=action_denoiser.ActionDenoiserConfig(
        action_dim=A,
        action_horizon=S,
        observation_dim=16,
        goal_dim=5,
        latent_action_dim=16,
        embed_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        heads=2,
        num_tokens=8,
        cross_attention="full",
        sampling_steps=3,
    ),
    condition_frames=(0, 2),
)


def _make(rngs):
    return policy.Policy(CONFIG, rngs=rngs)


@functools.cache
def _params():
    return jax.jit(lambda rng: params_lib.init_params(_make, rng))(jax.random.key(0))


@functools.cache
def _compiled(method):
    return jax.jit(lambda params, *args: getattr(params_lib.bind(_make, params), method)(*args))


class _Jitted:
    """The policy with its methods compiled once."""

    def __getattr__(self, method):
        return functools.partial(_compiled(method), _params())


@pytest.fixture(scope="module")
def model():
    return _Jitted()


def _observation(cams=CAMS):
    rngs = jax.random.split(jax.random.key(1), 3)
    return (
        jax.random.normal(rngs[0], (B, cams, T, SIDE, SIDE, C)),
        jax.random.normal(rngs[1], (B, L, 6)),
        jnp.ones((B, L), bool),
        jax.random.normal(rngs[2], (B, 5)),
    )


@pytest.mark.parametrize("cams", [1, 2, 3])
def test_any_number_of_cameras_gives_actions(model, cams):
    context = model.context(*_observation(cams))
    actions = model.sample(context, jnp.ones((B, S, A)))
    assert actions.shape == (B, S, A)
    assert np.isfinite(actions).all()


def test_latent_actions_see_two_frames_of_camera_0_only(model):
    _, *rest = _observation()
    gradient = jax.grad(
        lambda features: jnp.square(model.context(features, *rest).latent_action.z_e).sum()
    )(_observation()[0])
    moved = np.abs(gradient).max(axis=(0, 3, 4, 5))  # [cams, T]
    np.testing.assert_array_equal(moved > 0, [[True, False, True, False], [False] * 4])


def test_video_tokens_see_all_cameras_and_frames(model):
    _, *rest = _observation()
    gradient = jax.grad(
        lambda features: jnp.square(model.context(features, *rest).video_tokens).sum()
    )(_observation()[0])
    assert (np.abs(gradient).max(axis=(0, 3, 4, 5)) > 0).all()


def test_goal_may_have_a_token_axis(model):
    features, text, mask, goal = _observation()
    flat = model.context(features, text, mask, goal).denoiser.memory
    np.testing.assert_array_equal(
        flat, model.context(features, text, mask, goal[:, None]).denoiser.memory
    )


def test_loss_is_the_weighted_sum_of_its_terms(model):
    noise = jax.random.normal(jax.random.key(4), (B, S, A))
    loss = model.loss(
        model.context(*_observation()), noise, jnp.ones((B, S)), jnp.ones((B,)), noise
    )
    expected = loss.act_loss + loss.codebook_loss + 0.25 * loss.commitment_loss
    np.testing.assert_allclose(loss.total, expected, rtol=1e-6)
    assert loss.codebook_loss > 0


def test_every_parameter_gets_a_gradient():
    noise = jax.random.normal(jax.random.key(4), (B, S, A))

    @jax.jit
    @jax.grad
    def gradients(params):
        model = params_lib.bind(_make, params)
        context = model.context(*_observation())
        return model.loss(context, noise, jnp.ones((B, S)), jnp.ones((B,)), noise).total

    flat = params_lib.flatten(gradients(_params()))
    assert [path for path, leaf in flat.items() if not np.abs(leaf).max() > 0] == []


def test_sampling_steps_come_from_the_config_unless_given(model):
    context, noise = model.context(*_observation()), jnp.ones((B, S, A))

    def sample(num_steps):
        return params_lib.bind(_make, _params()).sample(context, noise, num_steps)

    np.testing.assert_array_equal(sample(None), sample(CONFIG.denoiser.sampling_steps))
    assert np.abs(sample(2) - sample(None)).max() > 0


def test_full_size_count_is_the_official_one():
    params = params_lib.abstract_params(lambda r: policy.Policy(policy.PRESETS["full"], rngs=r))
    counts = {name: params_lib.count({name: leaf}) for name, leaf in params.items()}
    assert counts == {
        "denoiser": 21_816_199,
        "goal_emb": 2_557_440,
        "latent_action": 114_752_896,
        "time_pos_emb": 1_536,
        "video_former": 17_713_536,
    }


@pytest.mark.parametrize("preset", ["small", "tiny"])
def test_other_presets_build(preset):
    assert params_lib.abstract_params(lambda r: policy.Policy(policy.PRESETS[preset], rngs=r))


def test_config_refuses_parts_that_do_not_fit():
    denoiser = dataclasses.replace(CONFIG.denoiser, observation_dim=8)
    with pytest.raises(ValueError, match=r"denoiser.observation_dim is 8"):
        dataclasses.replace(CONFIG, denoiser=denoiser)
    with pytest.raises(ValueError, match="condition_frames"):
        dataclasses.replace(CONFIG, condition_frames=(0, 4))


def test_normalised_features_reach_both_readers(model):
    features, *rest = _observation()
    config = dataclasses.replace(CONFIG, normalize_features=True)
    params = params_lib.init_params(_make, jax.random.key(0))
    normalised = params_lib.bind(lambda rngs: policy.Policy(config, rngs=rngs), params)
    # Per vector, over C: another scale and offset of each leave everything as it is.
    scale = 1 + jnp.arange(T, dtype=jnp.float32)[:, None, None, None]
    one = normalised.context(features, *rest)
    two = normalised.context(7 * scale * features + 3 * scale, *rest)
    np.testing.assert_allclose(one.video_tokens, two.video_tokens, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.latent_action.z_e, two.latent_action.z_e, rtol=1e-3, atol=1e-3)
    standard = (features - features.mean(-1, keepdims=True)) / features.std(-1, keepdims=True)
    expected = model.context(standard, *rest)
    np.testing.assert_allclose(one.video_tokens, expected.video_tokens, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        one.latent_action.z_e, expected.latent_action.z_e, rtol=1e-3, atol=1e-3
    )
    off = model.context(7 * scale * features, *rest)
    assert np.abs(off.latent_action.z_e - one.latent_action.z_e).max() > 1e-2
