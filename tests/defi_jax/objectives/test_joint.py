"""The joint objective around a stand-in for the forward model, which is slow to compile."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import joint as joint_config
from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.checkpoints import train_state
from defi_jax.models import action_denoiser, latent_action, policy, vector_quantizer
from defi_jax.models import params as params_lib
from defi_jax.objectives import joint
from defi_jax.training import step
from tests.fixtures import fake_batch

BATCH, KEY = 2, jax.random.key(5)


class LinearForward(nnx.Module):
    """Features from latents and words by one linear map; shapes are the forward model's."""

    def __init__(self, shape, in_dim, *, rngs):
        self.shape = shape
        kernel = jax.random.normal(rngs.params(), (in_dim, shape[0] * shape[-1]))
        self.kernel = nnx.Param(kernel / 4)

    def features(self, noise, condition, text):
        num_frames, height, width, channels = self.shape
        words = jnp.broadcast_to(text.mean((1, 2))[:, None, None, None], condition.shape)
        mixed = (condition + words) @ self.kernel.get_value() + noise.mean()
        mixed = mixed.reshape(len(mixed), height, width, num_frames, channels)
        return jnp.moveaxis(mixed, 3, 1)


class LinearPolicy(policy.Policy):
    """The policy's loss over linear maps: its masked mean, and a quantiser's plain ones."""

    def __init__(self, config, *, rngs):
        self.config = config
        self.denoiser = LinearDenoiser(config.denoiser, rngs=rngs)
        self.codes = nnx.Param(jax.random.normal(rngs.params(), (1,)))

    def observe(self, features, text, text_mask):
        seen = features.mean((1, 2, 3, 4, 5), keepdims=True)
        loss = jnp.mean(jnp.square(seen - self.codes.get_value()))
        vq = vector_quantizer.VQOutput(seen, seen, None, loss, loss)
        return policy.Observation(seen, latent_action.LatentActionOutput(seen, seen, vq))

    def add_goal(self, seen, goal, *, dropout_rng=None):
        unread = action_denoiser.DenoiserContext(goal, goal, goal)
        return policy.PolicyContext(seen.video_tokens, seen.latent_action, unread)


class LinearDenoiser(action_denoiser.ActionDenoiser):
    """See LinearPolicy."""

    def __init__(self, config, *, rngs):
        self.config = config
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (config.action_dim,) * 2))

    def predict(self, context, actions, sigma, *, dropout_rng=None):
        return actions @ self.kernel.get_value()


def _config(**changes):
    config = joint_config.get_config("tiny")
    numbers = {
        "data.image_size": 16,
        "data.cameras": ("static", "gripper"),
        "data.action_horizon": 3,
        "execute_horizon": 2,
        "encoders.latents_factor": 8,
        "model.gfdm.feature_block": 1,
        "cache_features": True,
        **changes,
    }
    with config.unlocked():
        former = config.model.policy.video_former
        former.dim, former.heads, former.dim_head, former.depth = 16, 2, 4, 1
        denoiser = config.model.policy.denoiser
        denoiser.embed_dim, denoiser.heads = 16, 2
        denoiser.encoder_layers = denoiser.decoder_layers = 1
        config.model.gfdm.unet.block_out_channels = (8, 8)
        config.update_from_flattened_dict(numbers)
    return config


def _objective(**changes):
    config = _config(**changes)
    two_levels = {"down_block_types": 2, "up_block_types": 2, "num_attention_heads": 2}
    with config.unlocked():
        unet = config.model.gfdm.unet
        for name, levels in two_levels.items():
            unet[name] = tuple(unet[name][:1]) + tuple(unet[name][-levels + 1 :])
        unet.num_attention_heads, unet.norm_num_groups = (1, 1), 4
    objective = joint.JointObjective(config)
    shape = objective.gfdm_config.feature_shape(2)
    channels = objective.latents.channels
    objective.modules = objective.modules | {
        "gfdm": lambda rngs: LinearForward(shape, channels, rngs=rngs)
    }
    return objective


@pytest.fixture(scope="module")
def cached():
    return _objective()


@pytest.fixture(scope="module")
def params(cached):
    return step.jit_init(cached.init_params)(jax.random.key(0))


@pytest.fixture(scope="module")
def images(cached):
    return fake_batch.fake(cached.pixel_batch_spec(BATCH))


@pytest.fixture(scope="module")
def with_features(cached, params, images):
    features = jax.jit(cached.precompute_features)(params, images)
    return images.replace(images=None, features=np.asarray(features))


def test_spec_has_features_in_the_place_of_images(cached, with_features):
    batch_lib.check(with_features, cached.batch_spec(BATCH))
    assert with_features.features.dtype == np.float16
    assert cached.pixel_batch_spec(BATCH).features is None
    plain = _objective(cache_features=False)
    assert plain.batch_spec(BATCH) == plain.pixel_batch_spec(BATCH)


def test_features_are_the_same_computed_now_or_once(cached, params, images, with_features):
    noise = jnp.zeros((BATCH, *cached.noise_shapes()["video"]))
    now = jax.jit(cached._features)(params, images.images, images.text, noise)
    np.testing.assert_array_equal(np.asarray(now), with_features.features.astype(np.float32))


def test_rounding_survives_compilation_and_stays_finite():
    values = jnp.array([1 + 2**-11 + 2**-13, -1e30, 1e30, 0.1])
    rounded = np.asarray(jax.jit(joint._round_to_float16)(values))
    expected = np.clip(np.asarray(values), -65504, 65504).astype(np.float16)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, expected.astype(np.float32))


@pytest.mark.slow
def test_loss_is_the_same_from_features_and_from_images(cached, params, images, with_features):
    loss = jax.jit(lambda batch: cached.loss_fn(params, {}, batch, jax.random.key(1))[0])
    np.testing.assert_allclose(loss(with_features), loss(images), rtol=1e-6)


def test_accumulated_gradients_are_those_of_one_batch_for_every_mask(monkeypatch):
    """The mean is over the real actions of the whole batch, wherever a microbatch has them."""
    objective = _objective()
    objective.modules = {"policy": lambda rngs: LinearPolicy(objective.policy_config, rngs=rngs)}
    params = step.jit_init(objective.init_params)(jax.random.key(0))
    trained, frozen = train_state.split_params(params, objective.is_trainable)
    state = types.SimpleNamespace(params=trained, frozen=frozen, extra={})  # all that is read
    batch = jax.tree.map(jnp.asarray, fake_batch.fake(objective.batch_spec(4)))

    # Noise held fixed: the same for every example, however they are split.
    eps, normal = np.random.default_rng(1).normal(size=batch.actions.shape[1:]), jax.random.normal

    def fixed(rng, shape, *rest):
        is_noise = shape[-2:] == eps.shape
        return jnp.broadcast_to(eps, shape) if is_noise else normal(rng, shape, *rest)

    monkeypatch.setattr(jax.random, "normal", fixed)
    monkeypatch.setattr(
        joint.edm, "sample_sigma_loglogistic", lambda rng, shape, *limits: jnp.full(shape, 0.5)
    )

    def gradient(num):
        config = types.SimpleNamespace(optimizer=types.SimpleNamespace(accumulation_steps=num))
        compute = functools.partial(step.compute_gradient, objective=objective, config=config)
        return step.jit_init(lambda mask: compute(state, batch.replace(action_mask=mask), KEY))

    one, accumulated = gradient(1), gradient(2)
    for real in ((3, 3, 3, 1), (3, 1, 3, 1), (0, 2, 0, 1), (1, 0, 0, 0), (0, 0, 0, 0)):
        mask = np.arange(3) < np.array(real)[:, None]
        loss, metrics, _, grads = one(mask)
        assert metrics["action"] > 0.1 or not mask.any()
        got_loss, got_metrics, _, got = accumulated(mask)
        np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
        np.testing.assert_allclose(got_metrics["action"], metrics["action"], rtol=1e-5)
        off = optax.global_norm(jax.tree.map(jnp.subtract, got, grads)) / optax.global_norm(grads)
        assert off < 1e-5, real


@pytest.mark.slow
def test_evaluation_is_the_same_from_features_and_from_images(
    cached, params, images, with_features
):
    one, two = (
        cached.evaluate(params, [batch], jax.random.key(2)).scalars
        for batch in (images, with_features)
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_features_depend_on_what_they_are_said_to_depend_on(cached, params, with_features, images):
    used = cached.feature_params({**params, "encoders": {"gfdm_text": {"a": 1}, "goal_text": {}}})
    assert set(params_lib.flatten(used)) == {"gfdm/kernel", "encoders/gfdm_text/a"}
    again = cached.precompute_features(cached.feature_params(params), images)
    np.testing.assert_allclose(again, with_features.features, rtol=1e-2)
    other = _objective(**{"model.gfdm.feature_fps_id": 3.0})
    assert other.feature_facts() != cached.feature_facts()


def test_every_key_that_changes_features_is_named():
    with pytest.raises(errors.UserError) as raised:
        _objective(
            **{"train_parts": "all", "model.gfdm.feature_noise_scale": 1.0, "data.augment": True}
        )
    for key in ("train_parts=all", "model.gfdm.feature_noise_scale=1.0", "data.augment=True"):
        assert f"--config.{key}" in str(raised.value)
    _objective(train_parts="all", cache_features=False)
    with pytest.raises(errors.UserError, match=r"--config\.train_parts=gfdm\+adapter;"):
        _objective(train_parts="gfdm+adapter")


@pytest.mark.parametrize("horizon", [0, 4])
def test_an_execute_horizon_that_no_bundle_can_have_is_refused_before_training(horizon):
    with pytest.raises(errors.UserError, match=r"--config\.execute_horizon; give 1 to"):
        _objective(execute_horizon=horizon)


def test_tokens_of_the_video_former_are_counted_from_the_features(cached):
    assert cached.policy_config.video_former.token_positions == 2 * 2 * 2
    off = _objective(**{"model.policy.video_former.token_positions": 0})
    assert off.policy_config.video_former.token_positions == 0


def test_presets_cache_only_where_features_stay_the_same():
    caches = {p: joint_config.get_config(p).cache_features for p in ("tiny", "small", "full")}
    assert caches == {"tiny": True, "small": False, "full": False}
    strides = {p: joint_config.get_config(p).data.window_stride for p in caches}
    assert strides == {"tiny": 2, "small": 1, "full": 1}


def test_an_unknown_robot_is_refused_before_training():
    with pytest.raises(errors.UserError, match="unknown embodiment 'google'"):
        _objective(embodiment="google")
    with pytest.raises(errors.UserError, match="4 dimensions, franka_panda has 7"):
        _objective(embodiment="franka_panda")
