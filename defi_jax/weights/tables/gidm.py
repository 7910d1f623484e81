"""Weight table of the GIDM: official Step2_GIDM names without their `lam.` prefix.

`latent_action_entries` is the part that stage 3 shares (`policy_table`).
"""

from collections.abc import Iterable

from defi_jax.models import gidm, latent_action
from defi_jax.weights import table

Entry = table.Entry

# The frozen encoders inside the official checkpoint have tables of their own.
DROPPED: tuple[tuple[str, str], ...] = (
    ("dino_encoder.*", "frozen DINOv2, imported on its own (dinov2 table)"),
    ("text_encoder.*", "frozen T5, imported on its own (t5 table)"),
    ("vq.usage", "counter of code usage, part of the train state"),
)


def entries(config: gidm.GIDMConfig) -> list[Entry]:
    """Returns the table of the whole GIDM."""
    ours = "decoder/"
    return [
        *table.with_prefixes(latent_action_entries(config), ours="latent_action/"),
        *table.linear(f"{ours}patch_up", "patch_up"),
        *transformer(f"{ours}transformer/", "decoder.", config.decoder_blocks, is_temporal=False),
        *table.linear(f"{ours}transformer/out", "decoder.out"),
    ]


def latent_action_entries(config: latent_action.LatentActionConfig) -> list[Entry]:
    """Returns the table of `LatentActionModel`, relative to it."""
    codebook = [Entry("vq/codebook", "vq.codebook.weight")] if config.quantizer == "vq" else []
    return [
        Entry("encoder/action_latent", "action_latent"),
        *table.linear("encoder/lang_proj", "lang_proj"),
        *transformer("encoder/transformer/", "encoder.", config.encoder_blocks, is_temporal=True),
        *table.linear("encoder/to_codebook", "to_codebook"),
        *codebook,
        *table.linear("action_up", "action_up"),
    ]


def transformer(ours: str, theirs: str, num_blocks: int, *, is_temporal: bool) -> list[Entry]:
    """Returns the rows of the stem and the stacked blocks; prefixes end in "/" and "."."""
    rows = [
        *table.norm(f"{ours}stem_norm_in", f"{theirs}ffn.0"),
        *table.linear(f"{ours}stem_proj", f"{theirs}ffn.1"),
        *table.norm(f"{ours}stem_norm_out", f"{theirs}ffn.2"),
    ]
    for layer in range(num_blocks):
        rows += _block(
            f"{ours}transformer_blocks",
            f"{theirs}transformer_blocks.{layer}",
            layer,
            attentions=("spatial_attn", "temporal_attn") if is_temporal else ("spatial_attn",),
        )
    return rows


def _block(ours: str, theirs: str, layer: int, *, attentions: Iterable[str]) -> list[Entry]:
    """Rows of one spatial or spatio-temporal block."""
    rows: list[Entry] = []
    for name in attentions:
        for projection in ("to_q", "to_k", "to_v"):
            path = f"{ours}/{name}/{projection}"
            rows += table.linear(path, f"{theirs}.{name}.{projection}", use_bias=False, layer=layer)
        rows += table.linear(f"{ours}/{name}/to_out", f"{theirs}.{name}.to_out.0", layer=layer)
    rows += table.linear(f"{ours}/ffn/fc1", f"{theirs}.ffn.0", layer=layer)
    rows += table.linear(f"{ours}/ffn/fc2", f"{theirs}.ffn.3", layer=layer)
    # One norm before each attention, one before the feed-forward.
    for index in range(1, len(tuple(attentions)) + 2):
        rows += table.norm(f"{ours}/norm{index}", f"{theirs}.norm{index}", layer=layer)
    return rows
