"""Vector quantizer of the latent actions: continuous codes -> nearest codebook entries.

Paper: the inverse dynamics model's discrete bottleneck; reimplements `VectorQuantizer` of the
official Step2_GIDM blocks file. Usage counting and dead-code restart are pure functions over arrays
that the train state carries, not hidden buffers.

Deviation: the official restart copies random codes, which may be dead themselves, over the dead
ones; ours re-seeds them from encoder outputs (`copy_codes` keeps the official rule).

Dim legend: B batch, K latent-action tokens per transition, V codebook size, D width of a code.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Float, Int, PRNGKey, typed


@flax.struct.dataclass
class VQOutput:
    """Result of one quantisation.

    Attributes:
        z_q: [B, K, D], values of the codes with the gradient of z_e (straight-through).
        codes: [B, K, D], the selected codes; their gradient reaches the codebook.
        indices: int32[B, K], or None when latent actions are continuous.
        codebook_loss: scalar, moves the codes to the encoder's outputs.
        commitment_loss: scalar, moves the encoder's outputs to the codes.
    """

    z_q: jax.Array
    codes: jax.Array
    indices: jax.Array | None
    codebook_loss: jax.Array
    commitment_loss: jax.Array


class VectorQuantizer(nnx.Module):
    """Nearest of V codes of width D by Euclidean distance, always in fp32."""

    def __init__(self, codebook_size: int, latent_dim: int, *, rngs: nnx.Rngs):
        shape, bound = (codebook_size, latent_dim), 1.0 / codebook_size
        self.codebook = nnx.Param(
            jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        )

    @typed
    def __call__(self, z_e: Float[Array, "B K D"]) -> VQOutput:
        """Quantises encoder outputs.

        fp32 because near-ties decide the index: in bf16 two codes 1 % apart are one.
        """
        z_e = z_e.astype(jnp.float32)
        codebook = self.codebook.get_value().astype(jnp.float32)
        # The argmin has no gradient; stopping it here spares the backward pass.
        offsets = jax.lax.stop_gradient(z_e[:, :, None] - codebook)  # [B, K, V, D]
        indices = jnp.argmin(jnp.sum(jnp.square(offsets), axis=-1), axis=-1).astype(jnp.int32)
        codes = codebook[indices]
        return VQOutput(
            # Straight-through: the forward value is the code, the gradient is z_e's.
            z_q=z_e + jax.lax.stop_gradient(codes - z_e),
            codes=codes,
            indices=indices,
            codebook_loss=jnp.mean(jnp.square(jax.lax.stop_gradient(z_e) - codes)),
            commitment_loss=jnp.mean(jnp.square(z_e - jax.lax.stop_gradient(codes))),
        )


@typed
def usage_increment(indices: Int[Array, "B K"], codebook_size: int) -> Float[Array, "V"]:
    """Returns how many rows use each code; a code repeated inside one row counts once."""
    used = jax.nn.one_hot(indices, codebook_size, dtype=jnp.float32).max(axis=1)
    return used.sum(axis=0)


@typed
def restart_dead_codes(
    codebook: Float[Array, "V D"],
    usage: Float[Array, "V"],
    z_e: Float[Array, "M D"],
    rng: PRNGKey,
    *,
    copy_codes: bool = False,
) -> Float[Array, "V D"]:
    """Returns the codebook with every unused code replaced; used codes keep their bits.

    Args:
        codebook: the codes.
        usage: summed `usage_increment` since the last restart; a code below 1 is dead.
        z_e: recent encoder outputs, all K tokens of all samples on one axis.
        rng: chooses the replacements; must be equal on all hosts.
        copy_codes: copy randomly chosen codes (dead ones included) instead of encoder
            outputs, as the official code does.
    """
    num_codes = codebook.shape[0]
    dead = usage < 1
    if copy_codes:
        order = jax.random.permutation(rng, num_codes)
        # The i-th dead code takes the i-th code of the random order.
        source = codebook[order[jnp.maximum(jnp.cumsum(dead) - 1, 0)]]
    else:
        # Distinct samples while there are enough, so that two dead codes do not become twins.
        enough = z_e.shape[0] >= num_codes
        rows = jax.random.choice(rng, z_e.shape[0], (num_codes,), replace=not enough)
        source = z_e[rows].astype(codebook.dtype)
    return jnp.where(dead[:, None], source, codebook)
