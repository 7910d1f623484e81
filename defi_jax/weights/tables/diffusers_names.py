"""Weight tables of the SVD UNet and VAE: our modules carry diffusers' names.

The exceptions are the GEGLU layers, which diffusers keeps in a list, and our shared layers.
"""

from defi_jax.weights import table

TABLE = table.Names(
    levels={
        "ff/proj": "ff.net.0.proj",
        "ff/out": "ff.net.2",
        "ff_in/proj": "ff_in.net.0.proj",
        "ff_in/out": "ff_in.net.2",
        "to_out": "to_out.0",
        "fc1": "linear_1",
        "fc2": "linear_2",
    },
    layouts={
        "mix_factor": "scalar",
        "conv_shortcut/kernel": "conv1x1_linear",
        "quant_conv/kernel": "conv1x1_linear",
    },
)
