"""Softmax attention of many tokens: one kernel on TPUs, plain XLA elsewhere.

The matrix of logits of 1,024 latent positions is read and written a dozen times in a training step
when it is an array: half of a fine transformer block's memory traffic on a TPU. The kernel is
`splash_attention` of jax. It cannot be split by the compiler, so each device runs it on its own
examples (and heads) of the mesh in context.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from defi_jax import partition
from defi_jax.array_typing import Array

# Below this many tokens the logits are small beside their queries.
MIN_TOKENS, _LANES = 256, 128
# Rows of queries and keys that the kernel holds at once, and of these the keys it multiplies.
_BLOCK, _COMPUTE_BLOCK = 1024, 512


def attend(query: Array, key: Array, value: Array) -> jax.Array:
    """Softmax attention within each frame, [B, T, N, heads, Dh] each -> the same shape.

    As `plain`, by the kernel on TPUs where there are many tokens; it wants whole rows of lanes.
    """
    tokens = query.shape[-3]
    if tokens < MIN_TOKENS or tokens % _LANES:
        return plain(query, key, value)
    return lax.platform_dependent(query, key, value, tpu=_on_each_device, default=plain)


def plain(query: Array, key: Array, value: Array) -> jax.Array:
    """Softmax attention [..., N, heads, Dh] x [..., M, heads, Dh] -> [..., N, heads, Dh].

    Logits and softmax are float32 whatever the inputs; no mask, scale Dh ** -0.5.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("...nhd,...mhd->...hnm", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("...hnm,...mhd->...nhd", weights, value)


def _on_each_device(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    free = {axis: mesh.shape[axis] for axis in mesh.auto_axes if mesh.shape[axis] > 1}
    if not free:
        return _kernel(query, key, value)
    batch = tuple(axis for axis in partition.BATCH_AXES if axis in free)
    if query.shape[0] % math.prod(free[axis] for axis in batch):
        batch = ()
    heads = "tensor" if "tensor" in free and query.shape[-2] % free["tensor"] == 0 else None
    spec = jax.P(batch, None, None, heads)
    return jax.shard_map(
        _kernel,
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
        axis_names=set(mesh.auto_axes),  # those of size 1 too: the kernel refuses any other
        check_vma=False,
    )(query, key, value)


def _kernel(
    query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False
) -> jax.Array:
    B, T, N, heads, width = query.shape
    block = math.gcd(N, _BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=math.gcd(N, _COMPUTE_BLOCK),
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=math.gcd(N, _COMPUTE_BLOCK),
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.FullMask((N, N))] * heads)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)

    def to_heads(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(B * T, N, heads, width), 1, 2)

    y: Any = jax.vmap(kernel)(to_heads(query) * width**-0.5, to_heads(key), to_heads(value))
    return jnp.swapaxes(y, 1, 2).reshape(query.shape)
