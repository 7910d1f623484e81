"""Our training runs -> official names, so that PyTorch users continue from our checkpoints.

| run | source | what is written |
|---|---|---|
| gfdm | defi_gfdm | `unet/` and, where the run encodes with it, `vae/`, as diffusers folders |
| gidm | defi_gidm | `model.safetensors` with the names of the Lightning file's `state_dict` |
| joint | defi_policy | `model.safetensors` with the names of the `.pt` file's `model` |

Frozen encoders that are not the official ones have no official names and are left out, and so is
what a run never had: layers that the reference stores and does not apply, counters, CLIP's vision
tower. So PyTorch loads the file with `strict=False`, or adds the names that `Written.absent` lists.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import ml_collections

from defi_jax import errors, objectives, tensor_files
from defi_jax.checkpoints import manager
from defi_jax.models import params as params_lib
from defi_jax.weights import importers, sources

_SOURCES = {"gfdm": "defi_gfdm", "gidm": "defi_gidm", "joint": "defi_policy"}
# Parts that are frozen encoders of a run, and their role there.
_ROLES = {
    "svd_vae": "latents",
    "dinov2": "features",
    "clip_text": "gfdm_text",
    "t5_encoder": "gidm_text",
    "clip_openai": "goal_text",
}
_DIFFUSERS_CLASSES = {
    "unet": "UNetSpatioTemporalConditionModel",
    "svd_vae": "AutoencoderKLTemporalDecoder",
}
# Fields of our configs that diffusers does not have, and what it has in the place of a choice.
_FIELDS_OF_OURS = ("norm_num_groups", "remat")
_NORM_GROUPS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """The weight files, and why they lack official names, by glob pattern of these."""

    files: list[pathlib.Path]
    absent: dict[str, str]


def reverse(directory: pathlib.Path, output: pathlib.Path) -> Written:
    """Writes official names of an import or of a run; an import lacks none.

    Raises:
        UserError: neither of the two, `output` exists, or the official model cannot be this one.
        DataError: damaged, or parameters that do not fit.
    """
    if (directory / importers.RECORD).is_file():
        return Written(files=importers.export_release(directory, output), absent={})
    if not (directory / "checkpoints").is_dir() and not directory.name.isdigit():
        raise errors.UserError(
            f"neither {importers.RECORD} nor checkpoints/",
            str(directory),
            "give a directory written by an import, or a run's workdir",
        )
    return export_run(directory, output)


def export_run(workdir: pathlib.Path, output: pathlib.Path) -> Written:
    """Writes the latest verified checkpoint of a run; its moving average where there is one."""
    params, metadata = manager.load_params(str(workdir))
    config: Any = ml_collections.ConfigDict(metadata["config"])
    # Its class alone: a run's data and weights need not be on this machine.
    objective = objectives.OBJECTIVES[config.objective](config)
    flat = params_lib.flatten(params)
    exported, notes = [], {}
    parts = sources.SOURCES[_SOURCES[objective.name]].parts
    for part in parts:
        role = _ROLES.get(part.name)
        if role is not None and config.encoders[role] != part.name:
            continue
        prefix = part.ours if role is None else f"encoders/{role}/"
        model_config = _main_config(objective) if role is None else part.config
        _check_groups(model_config, workdir)
        plan = part.plan_export(model_config, tensor_files.Below(flat, prefix))
        exported.append(importers.ExportedPart(part, plan, dict.fromkeys(plan.specs, "float32")))
        if part.name in _DIFFUSERS_CLASSES:
            given = dataclasses.asdict(model_config)
            kept = {name: value for name, value in given.items() if name not in _FIELDS_OF_OURS}
            notes[part.folder] = {"_class_name": _DIFFUSERS_CLASSES[part.name], **kept}
    with importers.new_directory(output) as work:
        files = importers.write_release(exported, {}, work)
        for folder, note in notes.items():
            (work / folder / "config.json").write_text(json.dumps(note, indent=2))
    absent = _absent_names(parts, {entry.part.name for entry in exported})
    return Written(files=[output / file for file in files], absent=absent)


def _absent_names(parts: Sequence[sources.Part], exported: Collection[str]) -> dict[str, str]:
    """Returns the patterns of official names that no exported part writes, with reasons."""
    absent = {}
    for part in parts:
        folder = f"{part.folder}/" if part.folder else ""
        if part.name not in exported:
            absent[f"{folder}{part.prefix}*"] = "the run has an encoder of its own in its place"
            continue
        for pattern, reason in part.dropped:
            name = part.prefix + pattern
            # What one part leaves to another is told of that one.
            if not any(other.prefix.startswith(name.rstrip("*")) for other in parts):
                absent[folder + name] = reason
    return absent


def _main_config(objective: Any) -> Any:
    """The config of the module that the run's stage is about."""
    if objective.name == "joint":
        return objective.policy_config
    return objective.model_config.unet if objective.name == "gfdm" else objective.model_config


def _check_groups(config: Any, workdir: pathlib.Path) -> None:
    if getattr(config, "norm_num_groups", _NORM_GROUPS) != _NORM_GROUPS:
        raise errors.UserError(
            f"norm_num_groups is {config.norm_num_groups}, the official models have {_NORM_GROUPS}",
            str(workdir),
            "only runs of such widths have official names, as presets small and full",
        )
