"""FLOPs of the full-size models: of the mathematics, and as XLA counts the lowered programs.

    JAX_PLATFORMS=cpu python benchmarks/model_flops.py

Nothing is computed: programs are traced and lowered for CPU. XLA leaves out taps of convolutions on
padding; it counts one pass of a loop, the others are added here. Results: docs/benchmarks.md.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from configs import gfdm as gfdm_config
from configs import joint as joint_config
from defi_jax import objectives
from defi_jax.export import program
from defi_jax.models import params as params_lib
from defi_jax.models.layers import attention as attention_lib
from defi_jax.training import flops


def main() -> None:
    """Prints one line per model."""
    _forward_model()
    _policy()


def _forward_model() -> None:
    config = gfdm_config.get_config("full")
    config.data.mixture = "synthetic"
    objective = objectives.make(config)
    params = params_lib.abstract_params(objective.modules["gfdm"])
    shape = jax.ShapeDtypeStruct
    latents, condition = shape((1, 16, 32, 32, 4), "float32"), shape((1, 32, 32, 4), "float32")
    text = shape((1, 20, 512), "float32")

    def features(params: Any, noise: Any, condition: Any, text: Any) -> Any:
        return params_lib.bind(objective.modules["gfdm"], params).features(noise, condition, text)

    def velocity(params: Any, noise: Any, condition: Any, text: Any) -> Any:
        model = params_lib.bind(objective.modules["gfdm"], params)
        return model.velocity(noise, jnp.ones(1), condition, text)

    for name, fn in (("UNet to up block 1", features), ("UNet", velocity)):
        _report(name, fn, params, latents, condition, text)
    attention = attention_lib.TextAttention.__call__
    for label, call in (("shared", _projected_once), ("repeated", _projected_per_frame)):
        attention_lib.TextAttention.__call__ = call
        _report(
            f"UNet to up block 1, text projections {label}",
            features,
            params,
            latents,
            condition,
            text,
        )
    attention_lib.TextAttention.__call__ = attention


def _projected_once(layer: Any, x: Any, text: Any) -> Any:
    """Text attention with keys and values once per clip, queries and outputs per position."""
    return layer.read(x, *layer.keys_values(text))


def _projected_per_frame(layer: Any, x: Any, text: Any) -> Any:
    """The same with the text repeated, as the reference does, for 16 frames at least."""
    frames = x.reshape(16, -1, x.shape[-1])
    repeated = jnp.broadcast_to(text, (16, *text.shape[1:]))
    return _projected_once(layer, frames, repeated).reshape(x.shape)


def _policy() -> None:
    config = joint_config.get_config("full")
    config.data.mixture = "synthetic"
    objective = objectives.make(config)
    params = jax.eval_shape(objective.init_params, jax.random.key(0))
    inputs = {
        name: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
        for name, leaf in program.input_spec(objective).items()
    }
    cameras = len(config.data.cameras)
    run = program.policy_program(objective)
    _report(f"policy, {cameras} cameras", run, params, inputs)


def _report(name: str, fn: Callable[..., Any], *args: Any) -> None:
    fn = functools.partial(fn)  # a new function: jax remembers traces of the one before
    found = flops.count(fn, *args)
    passes = found.total - found.loops_once
    lowered = jax.jit(fn).lower(*args).cost_analysis()["flops"] + passes
    print(f"{name:48} {found.total / 1e12:.3f} TF; XLA {lowered / 1e12:.3f} TF", flush=True)


if __name__ == "__main__":
    main()
