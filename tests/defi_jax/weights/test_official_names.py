"""Every name of the official checkpoints, with its shape, has a place or a reason to have none.

`official_names.txt.xz` lists the state dicts: "# <list>", then "<name> <shape>" a line.
"""

import ast
import functools
import lzma
import math
import pathlib

import numpy as np
import pytest

from defi_jax import errors, tensor_files
from defi_jax.weights import sources

NAMES = pathlib.Path(__file__).with_name("official_names.txt.xz")
_CLIP_TEXT, _T5, _DINOV2 = 63_428_096, 109_628_544, 86_583_552
# List -> source, its parts (None for all), published numbers of scalars of what we map.
LISTS = {
    "keys_svd_unet": ("defi_gfdm", ["unet"], 1_524_623_082),
    "keys_svd_vae": ("defi_gfdm", ["svd_vae"], 97_742_847),
    # DINOv2 without its mask token.
    "keys_stage2_lam": ("defi_gidm", None, 201_554_560 + _DINOV2 - 768 + _T5),
    "keys_stage3_policy": ("defi_policy", None, 156_841_607 + 2 * _CLIP_TEXT + _T5),
}


@functools.cache
def _official(name: str) -> dict[str, np.ndarray]:
    """Official names to arrays of the right shapes that take no memory."""
    lines = lzma.decompress(NAMES.read_bytes()).decode().split(f"# {name}\n")[1].split("# ")[0]
    pairs = (line.split(" ", 1) for line in lines.splitlines())
    return {key: np.broadcast_to(np.float32(0), ast.literal_eval(shape)) for key, shape in pairs}


def _plan(name: str, official: dict[str, np.ndarray]) -> int:
    """Plans the import of the list's parts; returns their number of scalars."""
    source, parts, _ = LISTS[name]
    count = 0
    for part in sources.SOURCES[source].parts:
        if parts is None or part.name in parts:
            below = tensor_files.Below(official, part.prefix)
            specs = part.plan_import(part.config, below).specs
            count += sum(math.prod(spec.shape) for spec in specs.values())
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS)
def test_every_official_name_fits_the_full_size_model(name):
    assert _plan(name, _official(name)) == LISTS[name][2]


def test_a_name_of_nobody_is_refused():
    official = _official("keys_stage2_lam") | {"lam.extra.weight": np.zeros(1, np.float32)}
    with pytest.raises(errors.DataError, match=r"unknown name extra\.weight"):
        _plan("keys_stage2_lam", official)
