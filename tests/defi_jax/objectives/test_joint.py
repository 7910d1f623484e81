"""The joint objective around a stand-in for the forward model, which is slow to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import joint as joint_config
from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.objectives import joint
from tests.fixtures import fake_batch

BATCH = 2


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
    return jax.jit(cached.init_params)(jax.random.key(0))


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
