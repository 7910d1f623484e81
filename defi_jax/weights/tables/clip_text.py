"""Weight table of the CLIP text tower under Hugging Face names (`CLIPTextModelWithProjection`)."""

from defi_jax.models import clip_text
from defi_jax.weights import table

DROPPED = (
    ("vision_model.*", "CLIP's vision tower: DeFI only reads text"),
    ("visual_projection.*", "CLIP's vision tower: DeFI only reads text"),
    ("logit_scale", "contrastive temperature: not part of the text features"),
    ("text_model.embeddings.position_ids", "a constant 0..L-1 that old releases stored"),
)

_NORMS = (("layer_norm1", "layer_norm1"), ("layer_norm2", "layer_norm2"))
_LINEARS = (
    ("self_attn/to_q", "self_attn.q_proj"),
    ("self_attn/to_k", "self_attn.k_proj"),
    ("self_attn/to_v", "self_attn.v_proj"),
    ("self_attn/to_out", "self_attn.out_proj"),
    ("mlp/fc1", "mlp.fc1"),
    ("mlp/fc2", "mlp.fc2"),
)


def entries(config: clip_text.CLIPTextConfig) -> list[table.Entry]:
    """Returns the table for one size of the tower."""
    rows = [
        table.Entry("token_embedding/embedding", "text_model.embeddings.token_embedding.weight"),
        table.Entry(
            "position_embedding/embedding", "text_model.embeddings.position_embedding.weight"
        ),
        *table.norm("final_layer_norm", "text_model.final_layer_norm"),
        *table.linear("text_projection", "text_projection", use_bias=False),
    ]
    for layer in range(config.num_hidden_layers):
        theirs = f"text_model.encoder.layers.{layer}"
        for ours, name in _NORMS:
            rows += table.norm(f"layers/{ours}", f"{theirs}.{name}", layer=layer)
        for ours, name in _LINEARS:
            rows += table.linear(f"layers/{ours}", f"{theirs}.{name}", layer=layer)
    return rows
