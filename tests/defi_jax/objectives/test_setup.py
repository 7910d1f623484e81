import importlib

import pytest

from defi_jax import objectives


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("gfdm", ["weights.svd_vae", "weights.clip_text", "init.gfdm"]),
        ("gidm", ["weights.dinov2", "weights.t5_encoder"]),
        (
            "joint",
            [
                *("weights.svd_vae", "weights.clip_text", "weights.t5_encoder"),
                *("weights.clip_openai", "init.gfdm"),
            ],
        ),
    ],
)
def test_imported_weights_are_compared_with_the_config_of_their_module(stage, flags):
    config = importlib.import_module(f"configs.{stage}").get_config("full")
    for name in config.weights:
        config.weights[name] = "somewhere"
    if "gfdm" in config.init:
        config.init.gfdm = "somewhere"
    objective = objectives.OBJECTIVES[stage](config)
    compared = [start for start in objective.warm_starts() if start.config is not None]
    assert sorted(start.flag for start in compared) == sorted(flags)
    modules = {start.flag: type(start.config).__name__ for start in compared}
    names = {
        "weights.svd_vae": "SVDVAEConfig",
        "weights.clip_text": "CLIPTextConfig",
        "weights.clip_openai": "CLIPTextConfig",
        "weights.t5_encoder": "T5EncoderConfig",
        "weights.dinov2": "DINOv2Config",
        "init.gfdm": "SVDUNetConfig",
    }
    assert modules == {flag: names[flag] for flag in flags}
