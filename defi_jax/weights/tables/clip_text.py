"""Weight table of the CLIP text tower under Hugging Face names (`CLIPTextModelWithProjection`)."""

from defi_jax.weights import table

DROPPED = (
    ("vision_model.*", "CLIP's vision tower: DeFI only reads text"),
    ("visual_projection.*", "CLIP's vision tower: DeFI only reads text"),
    ("logit_scale", "contrastive temperature: not part of the text features"),
    ("text_model.embeddings.position_ids", "a constant 0..L-1 that old releases stored"),
)

TABLE = table.Names(
    levels={
        "token_embedding": "text_model.embeddings.token_embedding",
        "position_embedding": "text_model.embeddings.position_embedding",
        "layers": "text_model.encoder.layers.{}",
        "to_q": "q_proj",
        "to_k": "k_proj",
        "to_v": "v_proj",
        "to_out": "out_proj",
        "final_layer_norm": "text_model.final_layer_norm",
    }
)
