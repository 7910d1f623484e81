"""The policy as one function of parameters and inputs, and its portable form.

    program(params {path: array}, inputs) -> {"actions": float32[B, S, A], normalised}

    images             uint8[B, cams, H, W, 3] at the model's size
    text/<role>        int32[B, L] token ids; text_mask/<role> bool[B, L]
    noise/<name>       float32[B, ...] unit noise

The portable form is a `jax.export` artefact with a symbolic batch for cpu, cuda and tpu. Inputs
and parameters are plain dicts of arrays, so that a client needs nothing of ours to call it.

Legend: B batch, S action-chunk length, A action dimension, L text tokens, H W image size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from defi_jax import batch as batch_lib
from defi_jax.array_typing import Params
from defi_jax.models import params as params_lib
from defi_jax.objectives import joint

PLATFORMS = ("cpu", "cuda", "tpu")

Inputs = Mapping[str, jax.Array]
Program = Callable[[Params, Inputs], dict[str, jax.Array]]


def policy_program(objective: joint.JointObjective) -> Program:
    """Returns the policy of a joint objective as `program(nested params, inputs)`."""
    roles = tuple(objective.tokenizers())

    def program(params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        text = {
            role: batch_lib.TextTokens(ids=inputs[f"text/{role}"], mask=inputs[f"text_mask/{role}"])
            for role in roles
        }
        noise = {name: inputs[f"noise/{name}"] for name in objective.noise_shapes()}
        actions = objective.sample_actions(params, inputs["images"], text, noise)
        return {"actions": actions.astype(jnp.float32)}

    return program


def widened(program: Program) -> Program:
    """Returns the program for parameters rounded to bfloat16 to save space; computes as before."""

    def call(params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        def widen(leaf: jax.Array) -> jax.Array:
            return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

        return program(jax.tree.map(widen, params), inputs)

    return call


def input_spec(objective: joint.JointObjective) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract inputs of one example, without the batch dimension."""
    batch = objective.pixel_batch_spec(1)
    spec = {"images": batch.images}
    for role, tokens in batch.text.items():
        spec |= {f"text/{role}": tokens.ids, f"text_mask/{role}": tokens.mask}
    spec = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in spec.items()}
    noise = objective.noise_shapes()
    return spec | {f"noise/{n}": jax.ShapeDtypeStruct(s, jnp.float32) for n, s in noise.items()}


def export_program(
    program: Program,
    params: Mapping[str, Any],
    example_spec: Mapping[str, jax.ShapeDtypeStruct],
) -> bytes:
    """Serialises `program` for every platform.

    Args:
        params: arrays or abstract arrays by flat path.
        example_spec: inputs without the batch dimension.
    """
    (batch,) = jax.export.symbolic_shape("b")
    abstract_inputs = {
        name: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype)
        for name, leaf in example_spec.items()
    }
    abstract_params = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in params.items()}

    def flat_program(flat: Mapping[str, Any], inputs: Inputs) -> dict[str, jax.Array]:
        return program(params_lib.unflatten(flat), inputs)

    exported = jax.export.export(jax.jit(flat_program), platforms=PLATFORMS)
    return bytes(exported(abstract_params, abstract_inputs).serialize())
