"""GIDM: two frames' features and the instruction -> latent actions and the second frame rebuilt.

Composition of `latent_action`'s encoder, quantizer and decoder; the loss that trains it without
actions is reconstruction + codebook + weighted commitment (`objectives/gidm.py`).

Paper: general inverse dynamics model (section 3.2, table 10). Reimplements
`UncontrolledDINOLatentActionModel` of the official Step2_GIDM, from DINO features on.

Dim legend: B batch, N patches, L language tokens, K latent-action tokens, Df feature width.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from defi_jax.array_typing import Array, Bool, Float, typed
from defi_jax.models import latent_action, vector_quantizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class GIDMConfig(latent_action.LatentActionConfig):
    """Sizes of the whole model.

    Attributes:
        decoder_blocks: depth of the decoder.
    """

    decoder_blocks: int


# Official lam-stage-1 configuration (the paper's table 10 differs: docs/deviations.md).
_FULL = GIDMConfig(
    feature_dim=768,
    text_dim=768,
    model_dim=768,
    num_heads=12,
    latent_dim=128,
    codebook_size=16,
    num_codes=4,
    encoder_blocks=12,
    decoder_blocks=12,
)

PRESETS: dict[str, GIDMConfig] = {
    "full": dataclasses.replace(_FULL, remat="elementwise", scan_unroll=12),
    "small": dataclasses.replace(
        _FULL, model_dim=384, num_heads=6, latent_dim=64, encoder_blocks=6, decoder_blocks=6
    ),
    "tiny": GIDMConfig(
        feature_dim=192,
        text_dim=64,
        model_dim=64,
        num_heads=2,
        latent_dim=32,
        codebook_size=16,
        num_codes=4,
        encoder_blocks=2,
        decoder_blocks=2,
        scan_unroll=2,
    ),
}


@flax.struct.dataclass
class GIDMOutput(vector_quantizer.VQOutput):
    """Quantised latent actions with their losses, and the reconstruction.

    Attributes:
        z_e: float32[B, K, Dz], before quantisation.
        recon: float32[B, N, Df], the second frame's features as predicted.
        recon_loss: scalar, mean squared error of `recon`.
    """

    z_e: jax.Array
    recon: jax.Array
    recon_loss: jax.Array


class GIDM(nnx.Module):
    """Encoder, quantizer, decoder; the encoder's text projection serves the decoder too."""

    def __init__(self, config: GIDMConfig, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.latent_action = latent_action.LatentActionModel(config, dtype=dtype, rngs=rngs)
        self.decoder = latent_action.LatentActionDecoder(
            config, config.decoder_blocks, dtype=dtype, rngs=rngs
        )

    @typed
    def __call__(
        self,
        frame_features: Float[Array, "B 2 N Df"],
        text: Float[Array, "B L Dt"],
        text_mask: Bool[Array, "B L"],
    ) -> GIDMOutput:
        """Encodes the transition and predicts the second frame from the first.

        Args:
            frame_features: features of the current and the future frame.
            text: features of the instruction.
            text_mask: False for padding.
        """
        latent = self.latent_action(frame_features, text, text_mask)
        lang = self.latent_action.encoder.lang_proj(text)
        recon = self.decoder(latent.tokens, frame_features[:, 0], lang, text_mask)
        target = frame_features[:, 1].astype(jnp.float32)
        return GIDMOutput(
            **vars(latent.vq),
            z_e=latent.z_e,
            recon=recon,
            recon_loss=jnp.mean(jnp.square(recon - target)),
        )
