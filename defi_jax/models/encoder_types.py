"""What every frozen encoder promises: three protocols and the features of a text.

B batch, T frames, H W C height width channels (lower case h w c after encoding), N patches,
L language tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import flax.struct
import jax

from defi_jax.array_typing import Params, PRNGKey
from defi_jax.models import tokenizers


@flax.struct.dataclass
class TextFeatures:
    """What a text encoder says about a text.

    Attributes:
        tokens: float[B, L, D].
        pooled: float[B, Dp], one vector for the whole text.
    """

    tokens: jax.Array
    pooled: jax.Array


class LatentEncoder(Protocol):
    """Frames -> latents with unit variance (about) -> frames.

    Attributes:
        factor: pixels per latent cell and side.
        channels: C of the latents.
        scale: what `encode` multiplied by; the video model's first-frame condition is
            latents / scale (the official model conditions on the unscaled latent).
    """

    name: ClassVar[str]
    factor: int
    channels: int
    scale: float

    def init_params(self, rng: PRNGKey) -> Params:
        """Random parameters of the right shapes; {} when there are none."""
        ...

    def encode(self, params: Params, frames: jax.Array, rng: PRNGKey | None = None) -> jax.Array:
        """uint8[..., H, W, 3] -> float[..., h, w, c]; `rng` only where a posterior is sampled."""
        ...

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """float[B, T, h, w, c] -> uint8[B, T, H, W, 3]."""
        ...


class TextEncoder(Protocol):
    """Token ids -> features.

    Attributes:
        dim: D of `TextFeatures.tokens`.
        pooled_dim: Dp of `TextFeatures.pooled`.
        tokenizer: texts -> (ids, mask), on the host.
    """

    name: ClassVar[str]
    dim: int
    pooled_dim: int
    tokenizer: tokenizers.Tokenizer

    def init_params(self, rng: PRNGKey) -> Params:
        """Random parameters of the right shapes; {} when there are none."""
        ...

    def encode(self, params: Params, ids: jax.Array, mask: jax.Array) -> TextFeatures:
        """int32[B, L], bool[B, L] -> features."""
        ...


class FeatureEncoder(Protocol):
    """Frames -> patch features.

    Attributes:
        dim: D of a patch feature.
        patch_size: pixels per patch and side.
    """

    name: ClassVar[str]
    dim: int
    patch_size: int

    def init_params(self, rng: PRNGKey) -> Params:
        """Random parameters of the right shapes; {} when there are none."""
        ...

    def encode(self, params: Params, frames: jax.Array) -> jax.Array:
        """uint8[..., H, W, 3] -> float[..., N, D], patches in row-major order."""
        ...
