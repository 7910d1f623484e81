"""Weight tables of the SVD UNet and VAE, by rule: our modules carry diffusers' names.

Paths equal names up to the leaf (`kernel` and `scale` are `weight` there), the GEGLU layers, which
diffusers keeps in a list, and the names of our shared layers (`_NAMES`). The layout follows from
the leaf's kind and rank.
"""

from defi_jax.models import params as params_lib
from defi_jax.weights import table

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mix_factor": "mix_factor"}
_GEGLU = {"proj": "net.0.proj", "out": "net.2"}
_NAMES = {"to_out": "to_out.0", "fc1": "linear_1", "fc2": "linear_2"}
_KERNEL_LAYOUTS = {2: "linear", 3: "conv3d_time", 4: "conv2d", 5: "conv3d"}


def entries(make: params_lib.Make) -> list[table.Entry]:
    """Returns one table row per parameter of a module with diffusers' attribute names."""
    flat = params_lib.flatten(params_lib.abstract_params(make))
    return [_entry(path, leaf.ndim) for path, leaf in flat.items()]


def _entry(path: str, rank: int) -> table.Entry:
    *parents, leaf = path.split("/")
    names = [
        _GEGLU[name] if parent in ("ff", "ff_in") else _NAMES.get(name, name)
        for parent, name in zip(["", *parents], parents, strict=False)
    ]
    return table.Entry(path, ".".join([*names, _LEAVES[leaf]]), _layout(parents, leaf, rank))


def _layout(parents: list[str], leaf: str, rank: int) -> str:
    if leaf == "mix_factor":
        return "scalar"
    if leaf != "kernel":
        return "same"
    is_pointwise = parents[-1] in ("conv_shortcut", "quant_conv")
    return "conv1x1_linear" if is_pointwise else _KERNEL_LAYOUTS[rank]
