"""What every frozen encoder promises: three protocols and the features of a text.

B batch, T frames, H W C height width channels (lower case h w c after encoding), N patches,
L language tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import flax.struct
import jax
from defi_rollout import tokenizers

from defi_jax.array_typing import Params, PRNGKey


@flax.struct.dataclass
class TextFeatures:
    """What a text encoder says about a text.

    Attributes:
        tokens: float[B, L, D]; L may be less than the number of token ids.
        mask: bool[B, L], False for padding.
        pooled: float[B, Dp], one vector for the whole text.
    """

    tokens: jax.Array
    mask: jax.Array
    pooled: jax.Array


class Encoder(Protocol):
    """What all three have."""

    name: ClassVar[str]

    def init_params(self, rng: PRNGKey) -> Params:
        """Random parameters of the right shapes; {} when there are none, as here."""
        del rng
        return {}


class LatentEncoder(Encoder, Protocol):
    """Frames -> latents with unit variance (about) -> frames.

    The video model's first-frame condition is latents / scale (the official model conditions on the
    unscaled latent).
    """

    @property
    def factor(self) -> int:
        """Pixels per latent cell and side."""
        ...

    @property
    def channels(self) -> int:
        """C of the latents."""
        ...

    @property
    def scale(self) -> float:
        """What `encode` multiplied by."""
        ...

    def encode(self, params: Params, frames: jax.Array, rng: PRNGKey | None = None) -> jax.Array:
        """uint8[..., H, W, 3] -> float[..., h, w, c]; `rng` only where a posterior is sampled."""
        ...

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """float[B, T, h, w, c] -> uint8[B, T, H, W, 3]."""
        ...


class TextEncoder(Encoder, Protocol):
    """Token ids -> features."""

    @property
    def dim(self) -> int:
        """D of `TextFeatures.tokens`."""
        ...

    @property
    def pooled_dim(self) -> int:
        """Dp of `TextFeatures.pooled`."""
        ...

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """Texts -> (ids, mask), on the host."""
        ...

    def encode(self, params: Params, ids: jax.Array, mask: jax.Array) -> TextFeatures:
        """int32[B, ids], bool[B, ids] -> features."""
        ...


class FeatureEncoder(Encoder, Protocol):
    """Frames -> patch features."""

    @property
    def dim(self) -> int:
        """D of a patch feature."""
        ...

    @property
    def patch_size(self) -> int:
        """Pixels per patch and side."""
        ...

    def encode(self, params: Params, frames: jax.Array) -> jax.Array:
        """uint8[..., H, W, 3] -> float[..., N, D], patches in row-major order."""
        ...
