"""DINOv2 with registers: normalised pixels [B, H, W, 3] -> patch features [B, N, D].

Oquab et al. 2023 and Darcet et al. 2023; frozen target space of the inverse model (spec 2.1).
Mirrors `torch.hub dinov2_vitb14_reg` and transformers `Dinov2WithRegistersModel`, which differ only
in names. Pictures of any size that is a multiple of the patch: the grid of position embeddings is
resized as the reference does it (bicubic, antialiased, target size given; spec 5).

B batch, H W height and width in pixels, N patches, R registers, D width.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from defi_jax import errors
from defi_jax.array_typing import Array, Float, typed
from defi_jax.models.layers import attention, conv, norms, stack
from defi_jax.models.layers import linear as linear_lib

# Keys' cubic convolution; PyTorch takes -0.5 with antialiasing and -0.75 without.
_CUBIC_A = -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOv2Config:
    """Numbers of the model, under the names of transformers' `Dinov2WithRegistersConfig`.

    Attributes:
        mlp_ratio: hidden width of the feed-forward over D.
        image_size: side in pixels of the pictures that the position grid was trained for.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: int
    image_size: int
    patch_size: int
    num_register_tokens: int
    layer_norm_eps: float
    qkv_bias: bool

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise errors.UserError(
                f"hidden_size {self.hidden_size} is not a multiple of the heads", "dinov2"
            )
        if self.patch_size > self.image_size:
            raise errors.UserError(
                f"patch_size {self.patch_size} is more than image_size {self.image_size}", "dinov2"
            )

    @property
    def grid_size(self) -> int:
        """Patches per side of the position grid."""
        return self.image_size // self.patch_size


# dinov2_vitb14_reg.
PRESETS = {
    "full": DINOv2Config(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        mlp_ratio=4,
        image_size=518,
        patch_size=14,
        num_register_tokens=4,
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
}


@flax.struct.dataclass
class DINOv2Output:
    """Outputs of `DINOv2`.

    Attributes:
        last_hidden_state: float[B, 1 + R + N, D]: class token, registers, patches; normed.
        patch_tokens: float[B, N, D], the patches alone, row-major.
    """

    last_hidden_state: jax.Array
    patch_tokens: jax.Array


class Block(nnx.Module):
    """Pre-norm transformer block with a learned scale on each residual branch."""

    def __init__(self, config: DINOv2Config, *, dtype: Any, rngs: nnx.Rngs):
        width, eps = config.hidden_size, config.layer_norm_eps
        options = {"dtype": dtype, "rngs": rngs}
        self.norm1 = norms.layer_norm(width, epsilon=eps, **options)
        self.attention = attention.Attention(
            width,
            config.num_attention_heads,
            qkv_bias=config.qkv_bias,
            attend=attention.over_tokens,
            **options,
        )
        self.layer_scale1 = nnx.Param(jnp.ones(width))
        self.norm2 = norms.layer_norm(width, epsilon=eps, **options)
        self.mlp = linear_lib.MLP(width, width * config.mlp_ratio, width, **options)
        self.layer_scale2 = nnx.Param(jnp.ones(width))

    def __call__(self, x: Array) -> jax.Array:
        """Maps [B, M, D] to [B, M, D]."""
        x = x + self.attention(self.norm1(x)) * self.layer_scale1.astype(x.dtype)
        return x + self.mlp(self.norm2(x)) * self.layer_scale2.astype(x.dtype)


class DINOv2(nnx.Module):
    """Vision transformer with register tokens."""

    def __init__(self, config: DINOv2Config, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        width, patch = config.hidden_size, config.patch_size
        init = nnx.initializers.normal(0.02)
        self.cls_token = nnx.Param(init(rngs.params(), (width,)))
        self.register_tokens = nnx.Param(init(rngs.params(), (config.num_register_tokens, width)))
        self.position_embeddings = nnx.Param(init(rngs.params(), (1 + config.grid_size**2, width)))
        self.patch_embed = conv.Conv2d(
            3, width, patch, stride=patch, padding=(0, 0), dtype=dtype, rngs=rngs
        )
        self.layer = stack.stack_blocks(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.num_hidden_layers, rngs
        )
        self.layernorm = norms.layer_norm(
            width, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs
        )

    @typed
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> DINOv2Output:
        """Encodes pictures.

        Args:
            pixels: normalised by the ImageNet mean and standard deviation.

        Raises:
            UserError: a side is not a multiple of the patch size.
        """
        batch, height, width, _ = pixels.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise errors.UserError(
                f"picture of {height}x{width} is not a multiple of {patch}",
                "dinov2",
                "change the image size",
            )
        patches = self.patch_embed(pixels.astype(self.dtype)).reshape(
            batch, -1, self.config.hidden_size
        )
        position = self._positions(height // patch, width // patch).astype(self.dtype)
        first = self.cls_token[...].astype(self.dtype) + position[0]
        # Registers have no position: they are put between after positions are added.
        prefix = jnp.concatenate([first[None], self.register_tokens[...].astype(self.dtype)])
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape))
        x = jnp.concatenate([prefix, patches + position[1:]], axis=1)
        x, _ = stack.scan_blocks(self.layer, lambda block, carry, _: (block(carry), None), x)
        hidden = self.layernorm(x)
        return DINOv2Output(
            last_hidden_state=hidden,
            patch_tokens=hidden[:, 1 + self.config.num_register_tokens :],
        )

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """float32[1 + rows * columns, D], in fp32 as in the reference."""
        position, grid = self.position_embeddings[...], self.config.grid_size
        if (rows, columns) == (grid, grid):
            return position
        cells = position[1:].reshape(grid, grid, -1)
        resized = jnp.einsum(
            "hi,wj,ijd->hwd",
            resize_matrix(grid, rows),
            resize_matrix(grid, columns),
            cells,
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.concatenate([position[:1], resized.reshape(rows * columns, -1)])


def resize_matrix(old: int, new: int) -> np.ndarray:
    """Returns float32[new, old], the antialiased bicubic resize of one axis (spec 5).

    Row o has its centre at c = s (o + 1/2) with s = old / new; when shrinking, the cubic is
    stretched by s so that it averages what it skips. Weights are normalised to sum 1.
    """
    scale = old / new
    stretch = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = scale * (row + 0.5)
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), old)
        taps = np.arange(first, last)
        weights = np.array([_cubic((tap - centre + 0.5) / stretch) for tap in taps])
        matrix[row, first:last] = weights / math.fsum(weights)
    return matrix.astype(np.float32)


def _cubic(x: float) -> float:
    """Keys' cubic convolution kernel with support [-2, 2]."""
    x = abs(x)
    if x < 1:
        return (_CUBIC_A + 2) * x**3 - (_CUBIC_A + 3) * x**2 + 1
    if x < 2:
        return _CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0
