import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import video_former
from defi_jax.weights import table
from defi_jax.weights.parity import golden as parity_golden
from defi_jax.weights.parity import kinds


def _runner_case():
    config = {
        "condition_dim": 6,
        "dim": 8,
        "depth": 1,
        "dim_head": 4,
        "heads": 2,
        "num_latents": 4,
        "num_frames": 2,
    }
    model_config = video_former.VideoFormerConfig(**config)

    part = kinds.KINDS["video_former"].part
    params = parity_golden.seeded_params(
        lambda rngs: part.module(model_config, rngs=rngs), part.table, model_config
    )
    params = table.export_params(part.table(params, model_config, ()), params)
    return config, params, {"features": parity_golden.seeded_input("f", (1, 2, 3, 6))}


def test_runner_returns_outputs_under_fixture_names():
    outputs = kinds.KINDS["video_former"](*_runner_case())
    assert set(outputs) == {"tokens"}
    assert outputs["tokens"].shape == (1, 4, 8)


def test_runner_refuses_unknown_config_fields_and_names():
    config, params, inputs = _runner_case()
    with pytest.raises(errors.UserError, match="unknown config field dimm"):
        kinds.KINDS["video_former"]({**config, "dimm": 3}, params, inputs)
    with pytest.raises(errors.DataError, match="unknown name surplus"):
        kinds.KINDS["video_former"](config, {**params, "surplus": np.zeros(1)}, inputs)


@pytest.mark.parametrize(
    "change",
    [lambda x: x[0], lambda x: x[:, :1], lambda x: x[..., 1:], lambda x: x[:, :, :0]],
    ids=["rank", "frames", "width", "empty"],
)
def test_runner_refuses_inputs_of_another_shape(change):
    config, params, inputs = _runner_case()
    changed = {"features": change(inputs["features"])}
    with pytest.raises(errors.UserError, match=r"not \[B num_frames N condition_dim\]"):
        kinds.KINDS["video_former"](config, params, changed)


def test_joint_runner_refuses_a_part_that_is_a_list_and_inputs_without_a_camera():
    video = _runner_case()[0] | {"num_latents": 4}
    inverse = {
        "feature_dim": 6,
        "text_dim": 8,
        "model_dim": 8,
        "num_heads": 2,
        "latent_dim": 4,
        "codebook_size": 4,
        "num_codes": 2,
        "encoder_blocks": 1,
    }
    denoiser = {
        "action_dim": 3,
        "action_horizon": 2,
        "observation_dim": 8,
        "goal_dim": 6,
        "latent_action_dim": 8,
        "embed_dim": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "heads": 2,
        "num_tokens": 4,
    }
    config = {"video_former": video, "denoiser": denoiser, "condition_frames": [0, 1]}
    with pytest.raises(errors.UserError, match=r"not an object: joint_policy\.gidm"):
        kinds.KINDS["joint_policy"]({**config, "gidm": [1]}, {}, {})
    with pytest.raises(errors.UserError, match=r"lacks 'static_features'; lacks 'text_features'"):
        kinds.KINDS["joint_policy"]({**config, "gidm": inverse}, {}, {})


def test_joint_runner_names_a_missing_part():
    with pytest.raises(errors.UserError, match=r"joint_policy\.video_former"):
        kinds.KINDS["joint_policy"]({"condition_frames": [0, 1]}, {}, {})
