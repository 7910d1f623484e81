"""What official releases hold: which architectures, under which prefixes, in which files.

A release (`Source`) is made of parts; each part is one of our modules, with its table, its place in
the release and its place in what the importer writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from defi_jax.array_typing import Params
from defi_jax.models import clip_text, dinov2, gidm, policy, svd_unet, svd_vae, t5_encoder
from defi_jax.models import params as params_lib
from defi_jax.weights import fields, table
from defi_jax.weights.tables import clip_openai as clip_openai_table
from defi_jax.weights.tables import clip_text as clip_text_table
from defi_jax.weights.tables import diffusers_names
from defi_jax.weights.tables import dinov2 as dinov2_table
from defi_jax.weights.tables import gidm as gidm_table
from defi_jax.weights.tables import policy as policy_table
from defi_jax.weights.tables import t5_encoder as t5_encoder_table

DEFAULT_FILE = "model.safetensors"

# (abstract parameters, config, official names of the part; none for the release's own) -> table
Table = Callable[[Params, Any, Iterable[str]], list[table.Entry]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One module of a release.

    Attributes:
        module: our class, built as module(config, rngs=rngs).
        config: full-size numbers, used unless the release brings a config.json.
        table: makes the table.
        dropped: official names without a place in ours.
        name: directory of the output; "" when the release has one part.
        folder: subfolder of the release; "" for its top.
        file: name of the weights file that the reverse writes; parts in one folder share it.
        prefix: what stands before the table's official names in the release.
        ours: path under which training expects the module.
    """

    module: Callable[..., nnx.Module]
    config: Any
    table: Table
    dropped: table.Dropped = ()
    name: str = ""
    folder: str = ""
    file: str = DEFAULT_FILE
    prefix: str = ""
    ours: str = ""

    def plan_import(
        self, config: Any, source: Mapping[str, np.ndarray], where: str = "weights"
    ) -> table.ImportPlan:
        """Plans the import of official tensors without `prefix`; errors of `table.plan_import`."""
        params = self.abstract_params(config)
        rows = self.table(params, config, source)
        return table.plan_import(rows, source, expected=params, dropped=self.dropped, where=where)

    def plan_export(
        self, config: Any, source: Mapping[str, Any], names: Iterable[str] = ()
    ) -> table.ExportPlan:
        """Plans the export of our parameters without `ours`; errors of `table.plan_export`.

        Args:
            config: numbers of the module.
            source: our flattened path to array.
            names: official names of the release that the parameters came from.
        """
        params = self.abstract_params(config)
        return table.plan_export(self.table(params, config, names), source, expected=params)

    def abstract_params(self, config: Any) -> Params:
        """Returns the shapes and element types of our parameters."""
        return params_lib.abstract_params(lambda rngs: self.module(config, rngs=rngs))

    def read_config(self, given: Mapping[str, Any], where: str) -> Any:
        """Returns the config of a release's config.json; fields that are not ours are ignored.

        Hugging Face's files mix numbers of the architecture with notes on its use. A number that
        differs from training's shows as misshapen tensors or, where it shapes none (heads,
        activations, scales), when training compares the config recorded here with its own.
        """
        fields.check_object(given, where)
        return _rebuild(self.config, given.get("text_config", given), where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One official release.

    Attributes:
        parts: its modules.
        keys: where the state dict is inside a pickled archive.
        dropped: names of the release that belong to no part.
        other_folders: subfolders with weights that belong to no part, read where they exist, and
            why they are dropped.
    """

    parts: tuple[Part, ...]
    keys: tuple[str, ...] = ()
    dropped: table.Dropped = ()
    other_folders: table.Dropped = ()


def _rebuild(template: Any, given: Mapping[str, Any], where: str) -> Any:
    """`template` with the known fields of `given`; fields that are configs are rebuilt too."""
    fields.check_object(given, where)
    values = {field.name: getattr(template, field.name) for field in dataclasses.fields(template)}
    for name in values.keys() & given.keys():
        if dataclasses.is_dataclass(values[name]):
            values[name] = _rebuild(values[name], given[name], where)
        else:
            values[name] = given[name]
    return fields.make_config(type(template), values, where)


_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
_SVD_OTHERS = (("image_encoder", "CLIP's vision tower: DeFI conditions on text"),)

UNET = Part(
    module=svd_unet.SVDUNet,
    config=svd_unet.PRESETS["full"],
    table=diffusers_names.TABLE,
    name="unet",
    folder="unet",
    file=_DIFFUSERS_FILE,
    ours="gfdm/unet/",
)
VAE = Part(
    module=svd_vae.SVDVAE,
    config=svd_vae.PRESETS["full"],
    table=diffusers_names.TABLE,
    name="svd_vae",
    folder="vae",
    file=_DIFFUSERS_FILE,
)
CLIP = Part(
    module=clip_text.CLIPText,
    config=clip_text.PRESETS["full"],
    table=clip_text_table.TABLE,
    dropped=clip_text_table.DROPPED,
)
_CLIP_OPENAI = dataclasses.replace(
    CLIP, table=clip_openai_table.TABLE, dropped=clip_openai_table.DROPPED
)
T5 = Part(
    module=t5_encoder.T5Encoder,
    config=t5_encoder.PRESETS["full"],
    table=t5_encoder_table.TABLE,
    dropped=t5_encoder_table.DROPPED,
)
DINOV2 = Part(
    module=dinov2.DINOv2,
    config=dinov2.PRESETS["full"],
    table=dinov2_table.entries,
    dropped=dinov2_table.DROPPED,
)
GIDM = Part(
    module=gidm.GIDM,
    config=gidm.PRESETS["full"],
    table=gidm_table.TABLE,
    dropped=gidm_table.DROPPED,
    name="gidm",
    prefix="lam.",
    ours="gidm/",
)
POLICY = Part(
    module=policy.Policy,
    config=policy.PRESETS["full"],
    table=policy_table.entries,
    dropped=policy_table.DROPPED,
    name="policy",
    ours="policy/",
)

SOURCES: dict[str, Source] = {
    "svd": Source(parts=(UNET, VAE), other_folders=_SVD_OTHERS),
    "clip": Source(parts=(CLIP,)),
    "clip_openai": Source(parts=(_CLIP_OPENAI,)),
    "t5": Source(parts=(T5,)),
    "dinov2": Source(parts=(DINOV2,)),
    "defi_gfdm": Source(parts=(UNET, VAE), other_folders=_SVD_OTHERS),
    "defi_gidm": Source(
        parts=(
            GIDM,
            dataclasses.replace(DINOV2, name="dinov2", prefix="lam.dino_encoder."),
            dataclasses.replace(T5, name="t5_encoder", prefix="lam.text_encoder."),
        ),
        keys=("state_dict",),
    ),
    "defi_policy": Source(
        parts=(
            POLICY,
            dataclasses.replace(CLIP, name="clip_text", prefix="TVP_encoder.text_encoder."),
            dataclasses.replace(
                _CLIP_OPENAI, name="clip_openai", prefix="language_goal.clip_rn50."
            ),
            dataclasses.replace(T5, name="t5_encoder", prefix="lam.text_encoder."),
        ),
        keys=("model",),
    ),
}
