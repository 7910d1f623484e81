import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import clip_text
from defi_jax.models import params as params_lib

TINY = clip_text.CLIPTextConfig(
    vocab_size=30,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=8,
    max_position_embeddings=8,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=29,
)
IDS = np.array([[28, 3, 4, 29, 29, 29], [28, 5, 6, 7, 8, 29]], np.int32)


def _run(config=TINY, ids=IDS, mask=None):
    def make(rngs):
        return clip_text.CLIPText(config, rngs=rngs)

    params = params_lib.init_params(make, jax.random.key(0))
    return jax.jit(lambda p: params_lib.bind(make, p)(ids, mask))(params)


def test_full_size_has_the_published_parameter_count():
    params = params_lib.abstract_params(
        lambda rngs: clip_text.CLIPText(clip_text.PRESETS["full"], rngs=rngs)
    )
    assert params_lib.count(params) == 63_428_096


def test_later_tokens_do_not_change_earlier_states():
    changed = IDS.copy()
    changed[:, 4:] = 9
    before, after = _run().last_hidden_state, _run(ids=changed).last_hidden_state
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert np.abs(np.asarray(before - after)[:, 4:]).max() > 1e-3


def test_masked_tokens_are_not_attended():
    mask = np.ones(IDS.shape, bool)
    mask[:, 1] = False
    changed = IDS.copy()
    changed[:, 1] = 9
    before, after = _run(mask=mask), _run(ids=changed, mask=mask)
    np.testing.assert_allclose(
        before.last_hidden_state[:, 2:], after.last_hidden_state[:, 2:], atol=1e-6
    )


def test_pooling_takes_the_first_end_token_and_the_legacy_id_the_largest():
    pooled = _run().text_embeds
    legacy = _run(dataclasses.replace(TINY, eos_token_id=2)).text_embeds
    np.testing.assert_array_equal(pooled, legacy)
    other_end = _run(dataclasses.replace(TINY, eos_token_id=4)).text_embeds
    assert np.abs(np.asarray(other_end - pooled)[0]).max() > 1e-3


def test_bfloat16_stays_close():
    def make(rngs):
        return clip_text.CLIPText(TINY, dtype=jnp.bfloat16, rngs=rngs)

    params = params_lib.init_params(make, jax.random.key(0))
    output = params_lib.bind(make, params)(IDS).last_hidden_state
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(np.float32), _run().last_hidden_state, atol=0.1)


def test_bad_config_and_too_many_tokens_are_user_errors():
    with pytest.raises(errors.UserError, match="unknown hidden_act 'swash'"):
        dataclasses.replace(TINY, hidden_act="swash")
    with pytest.raises(errors.UserError, match="9 tokens, but 8 positions"):
        _run(ids=np.zeros((1, 9), np.int32))
