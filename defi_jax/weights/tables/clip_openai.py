"""Weight table of the CLIP text tower under OpenAI's names (`ViT-B-32.pt`).

Differs from Hugging Face's in names, in the packed input projection and in `text_projection`, which
OpenAI multiplies from the right and hence needs no transposition.
"""

from defi_jax.weights import table

DROPPED = (
    ("visual.*", "CLIP's vision tower: DeFI only reads text"),
    ("logit_scale", "contrastive temperature: not part of the text features"),
    ("input_resolution", "a number that the TorchScript archive keeps beside the tensors"),
    ("context_length", "a number that the TorchScript archive keeps beside the tensors"),
    ("vocab_size", "a number that the TorchScript archive keeps beside the tensors"),
)

TABLE = table.Names(
    levels={
        "position_embedding/embedding": "positional_embedding",
        "layers": "transformer.resblocks.{}",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        **{f"self_attn/{name}/kernel": "attn.in_proj_weight" for name in table.QKV},
        **{f"self_attn/{name}/bias": "attn.in_proj_bias" for name in table.QKV},
        "self_attn/to_out": "attn.out_proj",
        "fc1": "c_fc",
        "fc2": "c_proj",
        "final_layer_norm": "ln_final",
        "text_projection/kernel": "text_projection",
    },
    layouts={"text_projection/kernel": "same"},
)
