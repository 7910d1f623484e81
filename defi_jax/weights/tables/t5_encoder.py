"""Weight table of the T5 encoder under Hugging Face names (`T5EncoderModel`, `T5Model`)."""

from defi_jax.models import t5_encoder
from defi_jax.weights import table

DROPPED = (
    ("decoder.*", "T5's decoder: DeFI only encodes"),
    ("lm_head.*", "T5's decoder: DeFI only encodes"),
)


def entries(config: t5_encoder.T5EncoderConfig) -> list[table.Entry]:
    """Returns the table for one size of the encoder.

    The reference stores the token embedding twice, as `shared` and `encoder.embed_tokens` (one tied
    tensor, counted once in the parameter count); safetensors files keep only one of the two names.
    """
    rows = [
        table.Entry("shared/embedding", "shared.weight"),
        table.Entry("shared/embedding", "encoder.embed_tokens.weight"),
        table.Entry(
            "relative_attention_bias/embedding",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        table.Entry("final_layer_norm/scale", "encoder.final_layer_norm.weight"),
    ]
    inputs = ("wi_0", "wi_1") if config.is_gated else ("wi",)
    for layer in range(config.num_layers):
        attention = f"encoder.block.{layer}.layer.0"
        feed_forward = f"encoder.block.{layer}.layer.1"
        norms = (("attention_norm", attention), ("feed_forward_norm", feed_forward))
        rows += [
            table.Entry(f"block/{ours}/scale", f"{theirs}.layer_norm.weight", layer=layer)
            for ours, theirs in norms
        ]
        projections = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out": "o"}
        linears = [
            (f"attention/{ours}", f"{attention}.SelfAttention.{name}")
            for ours, name in projections.items()
        ]
        linears += [(name, f"{feed_forward}.DenseReluDense.{name}") for name in (*inputs, "wo")]
        for ours, theirs in linears:
            rows += table.linear(f"block/{ours}", theirs, use_bias=False, layer=layer)
    return rows
