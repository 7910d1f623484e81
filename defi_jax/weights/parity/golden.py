"""Golden vectors of the official DeFI modules: an .npz of outputs, everything else from a rule.

The rule (spec/method.md 8): each weight comes from a numpy RandomState seeded with the CRC-32 of
its official name, each input from one seeded with "input:" + its tag. So a file holds outputs only,
recorded in eval mode on a CPU in fp32.
"""

import functools
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from defi_jax import errors
from defi_jax.array_typing import Params
from defi_jax.diffusion import schedules
from defi_jax.models import (
    action_denoiser,
    gidm,
    latent_action,
    vector_quantizer,
    video_former,
)
from defi_jax.models import params as params_lib
from defi_jax.weights import sources, table
from defi_jax.weights.tables import gidm as gidm_table
from defi_jax.weights.tables import policy as policy_table

KIND = "defi_golden"

Outputs = dict[str, Any]

# RuntimeError: encrypted, or a zip of a later version.
_DAMAGE = (
    *(ValueError, OSError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LARGEST = 1 << 28  # bytes; the largest recorded vector has some 100 kB

_TEXT_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
# Steps, smallest and largest noise level of the official evaluation.
_EVAL_SIGMAS = (10, 1.0, 80.0)


def read(path: str) -> dict[str, np.ndarray]:
    """Reads a golden file: names, then headers, then values; nothing in it is unpickled.

    Raises:
        UserError: a name that no module returns.
        DataError: not an .npz of plain arrays, damaged, or empty.
    """
    what, fix = "not an .npz of arrays", "use the file as it was recorded"
    with errors.DataError.instead_of(_DAMAGE, what, path, fix), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        _check_names(members)
        vectors = {name: _read_member(archive, info) for name, info in members.items()}
    if not vectors:
        raise errors.DataError("an .npz without arrays", path, fix)
    return vectors


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Reads one array (NEP 1) whose header, name and size agree.

    Raises:
        ValueError: they do not.
    """
    if not info.filename.endswith(".npy") or info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{info.filename!r} is no array of numpy")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename!r} has a header of version {version}")
        shape, is_fortran, dtype = _HEADERS[version](file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "fiub" or size > _LARGEST or size != info.file_size - file.tell():
            raise ValueError(f"{info.filename!r} holds no {dtype} of shape {shape}")
        flat = np.frombuffer(file.read(), dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def run(names: Iterable[str]) -> Outputs:
    """Returns at least the vectors asked for, of our modules; those that none needs do not run.

    Raises:
        UserError: a name that no module returns.
    """
    names = set(names)
    _check_names(names)
    outputs: Outputs = {}
    for group, compute in GROUPS:
        if names & set(group):
            outputs |= dict(zip(group, compute(), strict=True))
    return outputs


def _check_names(names: Iterable[str]) -> None:
    known = {name for group, _ in GROUPS for name in group}
    unknown = sorted(set(names) - known)
    if unknown:
        raise errors.UserError(
            f"unknown golden vector {errors.listed(unknown, 10)}",
            KIND,
            f"known: {', '.join(sorted(known))}",
        )


def seeded_weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 weight of an official name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    is_codebook = name.split(".")[-2:] == ["codebook", "weight"]  # `to_codebook` is none
    if name.endswith("weight") and len(shape) >= 2 and not is_codebook:
        values = values / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * values
    elif name.endswith("bias"):
        values = 0.1 * values
    return values.astype(np.float32)


def seeded_input(tag: str, shape: Sequence[int]) -> np.ndarray:
    """float32 input of a tag."""
    rng = np.random.RandomState(zlib.crc32(f"input:{tag}".encode()))
    return rng.standard_normal(shape).astype(np.float32)


def seeded_params(make: params_lib.Make, names: sources.Table, config: Any = None) -> Params:
    """Our parameters, filled under their official names."""
    abstract = params_lib.abstract_params(make)
    rows = names(abstract, config, ())
    specs = table.plan_export(rows, params_lib.flatten(abstract), expected=abstract).specs
    official = {name: seeded_weight(name, spec.shape) for name, spec in specs.items()}
    return table.import_params(rows, official, expected=abstract)


def _apply(
    make: params_lib.Make, *inputs: Any, names: sources.Table = gidm_table.TABLE, config: Any = None
) -> Any:
    params = seeded_params(make, names, config)
    return jax.jit(lambda params, *x: params_lib.bind(make, params)(*x))(params, *inputs)


def _encoder(order: latent_action.MaskOrder, *, with_text: bool = True) -> Sequence[Any]:
    config = latent_action.TransformerConfig(model_dim=32, num_heads=4, mask_order=order)
    text = (seeded_input("enc_lang", (3, 5, 32)), _TEXT_MASK) if with_text else ()
    output = _apply(
        lambda rngs: latent_action.Transformer(config, 24, 2, is_temporal=True, rngs=rngs),
        seeded_input("enc_x", (3, 2, 7, 24)),
        *text,
    )
    return [output]


def _decoder() -> Sequence[Any]:
    config = latent_action.TransformerConfig(model_dim=32, num_heads=4)
    sizes = {"in_dim": 32, "num_blocks": 2, "out_dim": 24}
    output = _apply(
        lambda rngs: latent_action.Transformer(config, **sizes, is_temporal=False, rngs=rngs),
        seeded_input("dec_x", (3, 1, 9, 32)),
        seeded_input("enc_lang", (3, 5, 32)),
        _TEXT_MASK,
    )
    return [output]


def _quantizer() -> Sequence[Any]:
    output = _apply(
        lambda rngs: vector_quantizer.VectorQuantizer(8, 16, rngs=rngs),
        seeded_input("vq_z", (3, 4, 16)),
    )
    usage = vector_quantizer.usage_increment(output.indices, 8)
    return [output.z_q, output.codes, output.indices, usage]


def _latent_action(order: latent_action.MaskOrder) -> Sequence[Any]:
    config = gidm.GIDMConfig(
        feature_dim=768,
        text_dim=768,
        model_dim=48,
        num_heads=4,
        latent_dim=16,
        codebook_size=8,
        num_codes=4,
        encoder_blocks=2,
        decoder_blocks=2,
        mask_order=order,
    )
    output = _apply(
        lambda rngs: latent_action.LatentActionModel(config, rngs=rngs),
        seeded_input("lam_feats", (2, 2, 16, 768)),
        seeded_input("lam_t5", (2, 6, 768)),
        np.array([[1, 1, 1, 0, 0, 0], [1] * 6], bool),
    )
    return [output.z_e, output.vq.indices, output.vq.codes, output.tokens]


def _video_former() -> Sequence[Any]:
    config = video_former.VideoFormerConfig(
        condition_dim=20, dim=48, depth=2, dim_head=8, heads=4, num_latents=32, num_frames=16
    )
    output = _apply(
        lambda rngs: video_former.VideoFormer(config, rngs=rngs),
        seeded_input("vf_x", (2, 16, 6, 20)),
        names=policy_table.video_former_entries,
        config=config,
    )
    return [output]


def _denoiser() -> Sequence[Any]:
    """The whole action denoiser at full size."""
    config = action_denoiser.PRESETS["full"]

    def make(rngs):
        return action_denoiser.ActionDenoiser(config, rngs=rngs)

    actions, noise = seeded_input("act", (2, 10, 7)), seeded_input("noise", (2, 10, 7))
    sigma = jnp.array([0.3, 5.0])

    @jax.jit
    def run_all(params):
        model = params_lib.bind(make, params)
        context = model.encode_context(
            seeded_input("lat", (2, 4, 768)),
            seeded_input("st_vf", (2, 224, 384)),
            seeded_input("goal", (2, 1, 512)),
        )
        c_in = model.preconditioner.scalings(sigma)[2][:, None, None]
        noised = actions + sigma[:, None, None] * noise
        return [
            model.embed_sigma(sigma),
            context.memory[:, :3],
            context.memory[:, -5:],
            model.predict(context, actions, sigma),
            model.denoise(context, actions, sigma),
            model.loss(context, actions, jnp.ones((2, 10)), sigma, noise),
            model.predict(context, c_in * noised, sigma),
            model.sample(context, seeded_input("x0", (2, 10, 7)) * 80, _eval_sigmas()[0]),
        ]

    return run_all(seeded_params(make, policy_table.denoiser_entries, config))


def _eval_sigmas() -> Sequence[Any]:
    return [jnp.asarray(schedules.exponential(*_EVAL_SIGMAS))]


# Names of the vectors that one run gives, in its order.
GROUPS: tuple[tuple[tuple[str, ...], Callable[[], Sequence[Any]]], ...] = (
    (("st_enc_official_tiled_mask",), functools.partial(_encoder, "tiled")),
    (("st_enc_aligned_mask",), functools.partial(_encoder, "aligned")),
    (("st_enc_nolang",), functools.partial(_encoder, "aligned", with_text=False)),
    (("sp_dec",), _decoder),
    (("vq_zq", "vq_code", "vq_idx", "vq_usage"), _quantizer),
    *(
        (
            tuple(f"lam_{order}_{name}" for name in ("emb", "idx", "z", "tokens")),
            functools.partial(_latent_action, order),
        )
        for order in ("tiled", "aligned")
    ),
    (("video_former",), _video_former),
    (
        (
            "sigma_emb",
            "dit_context_first3",
            "dit_context_last5",
            "dit_dec",
            "denoised",
            "loss",
            "loss_model_output",
            "ddim_sample",
        ),
        _denoiser,
    ),
    (("ddim_eval_sigmas",), _eval_sigmas),
)
