import dataclasses

import jax
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.models import t5_encoder

TINY = t5_encoder.T5EncoderConfig(
    vocab_size=30,
    d_model=16,
    d_kv=4,
    d_ff=32,
    num_layers=2,
    num_heads=3,
    feed_forward_proj="relu",
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
)


def _run(ids, mask, config=TINY):
    def make(rngs):
        return t5_encoder.T5Encoder(config, rngs=rngs)

    params = params_lib.init_params(make, jax.random.key(0))
    return np.asarray(jax.jit(lambda p: params_lib.bind(make, p)(ids, mask))(params))


def test_full_size_has_the_published_parameter_count():
    params = params_lib.abstract_params(
        lambda rngs: t5_encoder.T5Encoder(t5_encoder.PRESETS["full"], rngs=rngs)
    )
    # The reference's state dict names the token embedding twice; it is one tensor, counted once.
    assert params_lib.count(params) == 109_628_544


def test_padding_length_does_not_matter():
    ids = np.array([[3, 4, 5, 1]], np.int32)
    padded = np.pad(ids, ((0, 0), (0, 5)), constant_values=7)
    short = _run(ids, np.ones((1, 4), bool))
    long = _run(padded, np.arange(9)[None] < 4)
    np.testing.assert_allclose(short, long[:, :4], atol=1e-6)


@pytest.mark.parametrize(
    "distance, bucket",
    [
        (0, 0),
        (-1, 1),
        (-7, 7),
        (-8, 8),
        (-15, 9),
        (-16, 10),
        (-127, 15),
        (-4000, 15),
        (1, 17),
        (7, 23),
        (8, 24),
        (127, 31),
        (4000, 31),
    ],
)
def test_buckets_are_exact_near_and_logarithmic_far(distance, bucket):
    assert t5_encoder.relative_position_buckets(np.array([distance]), 32, 128)[0] == bucket


def test_order_of_tokens_matters():
    mask = np.ones((1, 3), bool)
    forward = _run(np.array([[3, 4, 5]], np.int32), mask)
    backward = _run(np.array([[5, 4, 3]], np.int32), mask)
    assert np.abs(forward - backward[:, ::-1]).max() > 1e-2


def test_gated_feed_forward_runs_and_unknown_one_is_a_user_error():
    gated = dataclasses.replace(TINY, feed_forward_proj="gated-gelu")
    assert np.isfinite(_run(np.ones((1, 3), np.int32), np.ones((1, 3), bool), gated)).all()
    with pytest.raises(errors.UserError, match="unknown feed_forward_proj 'swash'"):
        dataclasses.replace(TINY, feed_forward_proj="swash")
