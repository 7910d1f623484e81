import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models import video_former
from defi_jax.weights import parity_golden, parity_policy, policy_table, table


def _runner_case():
    config = {
        "condition_dim": 6, "dim": 8, "depth": 1, "dim_head": 4, "heads": 2, "num_latents": 4,
        "num_frames": 2,
    }  # fmt: skip
    model_config = video_former.VideoFormerConfig(**config)

    def make(rngs):
        return video_former.VideoFormer(model_config, rngs=rngs)

    entries = policy_table.video_former_entries(model_config)
    params = table.export_params(entries, parity_golden.seeded_params(make, entries))
    return config, params, {"features": parity_golden.seeded_input("f", (1, 2, 3, 6))}


def test_runner_returns_outputs_under_fixture_names():
    outputs = parity_policy.run_video_former(*_runner_case())
    assert set(outputs) == {"tokens"}
    assert outputs["tokens"].shape == (1, 4, 8)


def test_runner_refuses_unknown_config_fields_and_names():
    config, params, inputs = _runner_case()
    with pytest.raises(errors.UserError, match="unknown config field dimm"):
        parity_policy.run_video_former({**config, "dimm": 3}, params, inputs)
    with pytest.raises(errors.DataError, match="unknown name surplus"):
        parity_policy.run_video_former(config, {**params, "surplus": np.zeros(1)}, inputs)


def test_joint_runner_names_a_missing_part():
    with pytest.raises(errors.UserError, match=r"joint_policy\.video_former"):
        parity_policy.run_joint_policy({"condition_frames": [0, 1]}, {}, {})
