"""Weight table of the CLIP text tower under OpenAI's names (`ViT-B-32.pt`).

Differs from Hugging Face's in names, in the packed input projection and in `text_projection`, which
OpenAI multiplies from the right and hence needs no transposition.
"""

from defi_jax.models import clip_text
from defi_jax.weights import table

DROPPED = (
    ("visual.*", "CLIP's vision tower: DeFI only reads text"),
    ("logit_scale", "contrastive temperature: not part of the text features"),
    ("input_resolution", "a number that the TorchScript archive keeps beside the tensors"),
    ("context_length", "a number that the TorchScript archive keeps beside the tensors"),
    ("vocab_size", "a number that the TorchScript archive keeps beside the tensors"),
)

_PACKED = ("self_attn/to_q", "self_attn/to_k", "self_attn/to_v")


def entries(config: clip_text.CLIPTextConfig) -> list[table.Entry]:
    """Returns the table for one size of the tower."""
    rows = [
        table.Entry("token_embedding/embedding", "token_embedding.weight"),
        table.Entry("position_embedding/embedding", "positional_embedding"),
        *table.norm("final_layer_norm", "ln_final"),
        table.Entry("text_projection/kernel", "text_projection"),
    ]
    for layer in range(config.num_hidden_layers):
        theirs = f"transformer.resblocks.{layer}"
        rows += table.norm("layers/layer_norm1", f"{theirs}.ln_1", layer=layer)
        rows += table.norm("layers/layer_norm2", f"{theirs}.ln_2", layer=layer)
        for index, ours in enumerate(_PACKED):
            rows += table.linear(
                f"layers/{ours}", f"{theirs}.attn.in_proj", joint="_", layer=layer, part=(index, 3)
            )
        rows += table.linear("layers/self_attn/to_out", f"{theirs}.attn.out_proj", layer=layer)
        rows += table.linear("layers/mlp/fc1", f"{theirs}.mlp.c_fc", layer=layer)
        rows += table.linear("layers/mlp/fc2", f"{theirs}.mlp.c_proj", layer=layer)
    return rows
