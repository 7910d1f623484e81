import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax.models import gidm, latent_action, policy
from defi_jax.models import params as params_lib

CONFIG = gidm.GIDMConfig(
    feature_dim=12,
    text_dim=10,
    model_dim=16,
    num_heads=2,
    latent_dim=6,
    codebook_size=8,
    num_codes=2,
    encoder_blocks=2,
    decoder_blocks=2,
)


def _make(rngs):
    return gidm.GIDM(CONFIG, rngs=rngs)


def _inputs():
    return (
        jax.random.normal(jax.random.key(1), (3, 2, 5, 12)),
        jax.random.normal(jax.random.key(2), (3, 4, 10)),
        jnp.ones((3, 4), bool),
    )


@functools.cache
def _params():
    return jax.jit(lambda rng: params_lib.init_params(_make, rng))(jax.random.key(0))


@jax.jit
def _forward(params, *inputs):
    return params_lib.bind(_make, params)(*inputs)


def _run(*inputs):
    return _forward(_params(), *inputs)


def test_reconstruction_knows_the_second_frame_only_through_the_codes():
    features, text, mask = _inputs()
    nudged = features.at[:, 1].add(1e-4)
    first, second = _run(features, text, mask), _run(nudged, text, mask)
    np.testing.assert_array_equal(first.indices, second.indices)
    assert np.abs(first.z_e - second.z_e).max() > 0
    np.testing.assert_allclose(first.recon, second.recon, atol=1e-5)


def test_losses_are_those_of_the_outputs():
    features, text, mask = _inputs()
    output = _run(features, text, mask)
    expected = np.square(np.asarray(output.recon) - np.asarray(features[:, 1])).mean()
    np.testing.assert_allclose(output.recon_loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.commitment_loss, output.codebook_loss, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    def loss(params):
        output = params_lib.bind(_make, params)(*_inputs())
        return output.recon_loss + output.codebook_loss + 0.25 * output.commitment_loss

    gradients = params_lib.flatten(jax.jit(jax.grad(loss))(_params()))
    assert [path for path, leaf in gradients.items() if not np.abs(leaf).max() > 0] == []


def test_full_size_counts_are_the_official_ones():
    params = params_lib.abstract_params(lambda r: gidm.GIDM(gidm.PRESETS["full"], rngs=r))
    assert params_lib.count(params) == 201_554_560
    assert params_lib.count(params["latent_action"]["encoder"]["transformer"]) == 113_959_680
    assert params_lib.count(params["decoder"]["transformer"]) == 86_211_072


def test_policy_holds_the_shared_part_under_the_same_names():
    config = gidm.PRESETS["tiny"]
    stage2 = params_lib.abstract_params(lambda r: gidm.GIDM(config, rngs=r))
    stage3 = params_lib.abstract_params(lambda r: policy.Policy(policy.PRESETS["tiny"], rngs=r))
    ours, theirs = (
        jax.tree.map(lambda x: x.shape, stage["latent_action"]) for stage in (stage3, stage2)
    )
    assert ours == theirs


def test_continuous_config_is_a_number_in_the_config():
    config = dataclasses.replace(CONFIG, quantizer="continuous")
    names = params_lib.flatten(params_lib.abstract_params(lambda r: gidm.GIDM(config, rngs=r)))
    assert not [name for name in names if "vq" in name.split("/")]  # no codebook is kept
    assert isinstance(config, latent_action.LatentActionConfig)
