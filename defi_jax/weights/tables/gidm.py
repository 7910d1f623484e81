"""Weight table of the GIDM: official Step2_GIDM names without their `lam.` prefix.

It serves its parts too, as the latent-action model that stage 3 shares (`policy_table`).
"""

from defi_jax.weights import table

# The frozen encoders inside the official checkpoint have tables of their own.
DROPPED: tuple[tuple[str, str], ...] = (
    ("dino_encoder.*", "frozen DINOv2, imported on its own (dinov2 table)"),
    ("text_encoder.*", "frozen T5, imported on its own (t5 table)"),
    ("vq.usage", "counter of code usage, part of the train state"),
)

TABLE = table.Names(
    levels={
        "latent_action": "",
        "encoder/action_latent": "action_latent",
        "encoder/lang_proj": "lang_proj",
        "encoder/to_codebook": "to_codebook",
        "codebook": "codebook.weight",
        "decoder/patch_up": "patch_up",
        "encoder/transformer": "encoder",
        "decoder/transformer": "decoder",
        "stem_norm_in": "ffn.0",
        "stem_proj": "ffn.1",
        "stem_norm_out": "ffn.2",
        "transformer_blocks": "transformer_blocks.{}",
        "spatial_attn/to_out": "spatial_attn.to_out.0",
        "temporal_attn/to_out": "temporal_attn.to_out.0",
        "ffn/fc1": "ffn.0",
        "ffn/fc2": "ffn.3",
    }
)
