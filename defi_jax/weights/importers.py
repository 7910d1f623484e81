"""Official releases -> directories of our parameters, and back.

An import writes, for each part of the release, `<part>/params.safetensors` under our flattened
paths; beside them `import.json` (source, configs, element types, dropped names with reasons),
`passthrough.safetensors` (the dropped tensors under their official names), `notes/` (the release's
small JSON and text files) and its tokenizer files. `export_release` reads such a directory and
writes the official names back, bit-equal, in the release's folders. Tensors pass one at a time in
both directions, and nothing is left behind when one fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from defi_rollout import files as rollout_files

from defi_jax import errors, tensor_files
from defi_jax.weights import sources, table
from defi_jax.weights.torch_file import archive

PARAMS = "params.safetensors"
PASSTHROUGH = "passthrough.safetensors"
RECORD = "import.json"
NOTES = "notes"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
# Element types of a release beside float32, by numpy's names.
_OTHER_DTYPES = ("float16", "bfloat16")
# transformers opens no file without it.
_PYTORCH = {"format": "pt"}
_NOTE_SUFFIXES = (".json", ".txt")
_LARGEST_NOTE = 4 * 2**20  # bytes; vocabularies are the largest
# Names of weight files in releases, best first; fp16 copies only when there is nothing better.
_WEIGHT_FILES = tuple(
    pattern.format(stem)
    for pattern in (
        "{}.safetensors",
        "{}.safetensors.index.json",
        "{}.fp16.safetensors",
        "{}.safetensors.index.fp16.json",
        "{}.fp16.safetensors.index.json",
        "{}.bin",
    )
    for stem in ("model", "diffusion_pytorch_model", "pytorch_model")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What an import did.

    Attributes:
        parameters: part name to number of scalars.
        dropped: official name to reason.
    """

    parameters: Mapping[str, int]
    dropped: Mapping[str, str]


def open_weights(path: pathlib.Path, keys: tuple[str, ...]) -> tensor_files.Tensors:
    """Opens a weights file, or the best one of a release's folder.

    Raises:
        UserError: nothing there. DataError: damaged, or of another kind.
    """
    if path.is_dir():
        found = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not found and any(path.glob("*.bin.index.json")):
            raise errors.UserError(
                "no weights but shards of pickles, which are not read",
                str(path),
                "take the release's .safetensors, or save the model so from PyTorch",
            )
        if not found:
            raise errors.UserError(
                "no weights", str(path), f"expected one of {', '.join(_WEIGHT_FILES[:4])}, ..."
            )
        path = found[0]
    if not path.is_file():
        raise errors.UserError("no such file", str(path), "give a release's file or folder")
    if path.name.endswith((".safetensors", *tensor_files.INDEX_ENDS)):
        return tensor_files.SafetensorsFiles(path)
    return archive.TorchArchive(path, keys)


def import_release(
    source_name: str,
    input_path: pathlib.Path,
    output: pathlib.Path,
    configs: Mapping[str, Any] | None = None,
) -> ImportSummary:
    """Writes a release's parameters under our names.

    Args:
        source_name: key of `sources.SOURCES`.
        input_path: file or folder of the release.
        output: directory to create.
        configs: part name to config, for releases of other sizes without a config.json.

    Returns:
        Counts, and what was dropped.

    Raises:
        UserError: unknown source, nothing at `input_path`, `output` exists.
        DataError: damaged files, or names that do not fit, all parts together.
    """
    if source_name not in sources.SOURCES:
        known = f"known: {', '.join(sources.SOURCES)}"
        raise errors.UserError(f"unknown source {source_name!r}", "--source", known)
    with new_directory(output) as work:
        return _write(source_name, input_path, work, configs or {})


def export_release(directory: pathlib.Path, output: pathlib.Path) -> list[pathlib.Path]:
    """Writes the official names of an imported directory, dropped tensors included.

    The parameters may have been replaced since `import_release` wrote the directory.

    Returns:
        The weight files written, one per file or folder of the release.

    Raises:
        UserError: not an imported directory, or `output` exists.
        DataError: damaged files, or parameters that do not fit the recorded configs.
    """
    if not (directory / RECORD).is_file():
        raise errors.UserError(
            f"no {RECORD}", str(directory), "give a directory written by an import"
        )
    record = _read_record(directory / RECORD)
    exported = []
    for part in sources.SOURCES[record["source"]].parts:
        fields = record["parts"][part.name]
        params = tensor_files.SafetensorsFiles(directory / part.name / PARAMS)
        config = part.read_config(fields["config"], str(directory / RECORD))
        below = tensor_files.Below(params, part.ours)
        plan = part.plan_export(config, below, fields["names"])
        missing = sorted(set(fields["names"]) - plan.specs.keys())
        if missing:
            raise _damaged_record(f"unknown names {errors.listed(missing, 10)}", directory / RECORD)
        dtypes = {name: fields["dtypes"].get(name, "float32") for name in fields["names"]}
        exported.append(ExportedPart(part, plan, dtypes))
    with new_directory(output) as work:
        if (directory / NOTES).is_dir():
            shutil.copytree(directory / NOTES, work, dirs_exist_ok=True)
        path = directory / PASSTHROUGH
        passthrough = tensor_files.SafetensorsFiles(path) if path.is_file() else {}
        files = write_release(exported, passthrough, work)
    return [output / file for file in files]


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    """Reads what an import wrote of itself.

    Raises:
        DataError: not JSON, or not of the form that `_write` gives it.
    """
    record = tensor_files.read_json(path)
    source = record.get("source") if isinstance(record, dict) else None
    if not isinstance(source, str) or source not in sources.SOURCES:
        raise _damaged_record("no known source", path)
    parts = record.get("parts")
    for part in sources.SOURCES[source].parts:
        fields = parts.get(part.name) if isinstance(parts, dict) else None
        if not isinstance(fields, dict) or not _is_part_record(fields):
            raise _damaged_record(f"no whole part {part.name or source!r}", path)
    return record


def _is_part_record(fields: Mapping[str, Any]) -> bool:
    kinds = {"config": dict, "names": list, "dtypes": dict}
    return (
        all(isinstance(fields.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(name, str) for name in fields["names"])
        and all(dtype in _OTHER_DTYPES for dtype in fields["dtypes"].values())
    )


def _damaged_record(what: str, path: pathlib.Path) -> errors.DataError:
    return errors.DataError(what, str(path), "import the release again")


@dataclasses.dataclass(frozen=True)
class ExportedPart:
    """One part of a release to be written.

    Attributes:
        part: where it goes.
        plan: its tensors.
        dtypes: official name to element type, for the names to write.
    """

    part: sources.Part
    plan: table.ExportPlan
    dtypes: Mapping[str, str]

    @property
    def specs(self) -> dict[str, tensor_files.TensorSpec]:
        """Official name in the file to shape and element type."""
        return {
            self.part.prefix + name: self.plan.specs[name]._replace(dtype=np.dtype(dtype))
            for name, dtype in self.dtypes.items()
        }

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors of `specs`, one at a time."""
        for name, value in self.plan.tensors():
            if name in self.dtypes:
                yield self.part.prefix + name, value.astype(self.dtypes[name], copy=False)


def write_release(
    parts: list[ExportedPart], passthrough: Mapping[str, np.ndarray], directory: pathlib.Path
) -> list[pathlib.Path]:
    """Writes parts and what was never ours into a release's folders below `directory`.

    Args:
        parts: what to write; parts of one folder share a file.
        passthrough: "<folder>/<official name>" to tensor.

    Returns:
        The files, relative to `directory`.
    """
    others: dict[str, list[str]] = {}
    for path in passthrough:
        others.setdefault(path.partition("/")[0], []).append(path)
    files = {entry.part.folder: entry.part.file for entry in parts}
    files |= {folder: sources.DEFAULT_FILE for folder in others if folder not in files}
    written = []
    for folder, file in files.items():
        here = [entry for entry in parts if entry.part.folder == folder]
        kept = {path.partition("/")[2]: path for path in others.get(folder, ())}
        specs = {name: spec for entry in here for name, spec in entry.specs.items()}
        specs |= {name: tensor_files.spec_of(passthrough, kept[name]) for name in kept}
        (directory / folder).mkdir(parents=True, exist_ok=True)
        path = directory / folder / file
        with tensor_files.SafetensorsWriter(path, specs, _PYTORCH) as writer:
            for entry in here:
                writer.write_all(entry.tensors())
            writer.write_all((name, passthrough[path]) for name, path in kept.items())
        written.append(pathlib.Path(folder, file))
    return written


def new_directory(output: pathlib.Path) -> contextlib.AbstractContextManager[pathlib.Path]:
    """Gives a directory that becomes `output` on success and vanishes on an error.

    Raises:
        UserError: `output` exists or cannot be made.
    """
    if output.exists():
        raise errors.UserError("output exists", str(output), "name a new directory")
    return rollout_files.new_directory(output)


def _write(
    source_name: str, input_path: pathlib.Path, work: pathlib.Path, configs: Mapping[str, Any]
) -> ImportSummary:
    """Imports every part into `work`; all parts' problems become one error."""
    source = sources.SOURCES[source_name]
    folders = {part.folder for part in source.parts}
    folders |= {name for name, _ in source.other_folders if (input_path / name).is_dir()}
    opened = {
        folder: open_weights(input_path / folder if folder else input_path, source.keys)
        for folder in sorted(folders)
    }
    record: dict[str, Any] = {"source": source_name, "parts": {}}
    plans: list[tuple[sources.Part, table.ImportPlan]] = []
    problems: list[str] = []
    for part in source.parts:
        below = tensor_files.Below(opened[part.folder], part.prefix)
        config = configs.get(part.name) or _read_config(part, input_path)
        try:
            plan = part.plan_import(config, below)
        except errors.DataError as error:
            problems.append(f"{part.name or source_name}: {error.what}")
            continue
        plans.append((part, plan))
        dtypes = {name: below.spec(name).dtype.name for name in plan.names}
        record["parts"][part.name] = {
            "config": dataclasses.asdict(config),
            "names": list(plan.names),
            # Those other than float32, which our parameters have.
            "dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != "float32"},
        }
    dropped, unknown = _dropped(source, opened, record["parts"])
    problems += unknown
    if problems:
        raise errors.DataError(
            "; ".join(problems), str(input_path), "check that the files are what --source says"
        )
    for part, plan in plans:
        (work / part.name).mkdir(exist_ok=True)
        specs = {part.ours + path: spec for path, spec in plan.specs.items()}
        with tensor_files.SafetensorsWriter(work / part.name / PARAMS, specs) as writer:
            for entry, value in plan.pieces():
                writer.write(part.ours + entry.ours, value, entry.layer)
    _write_passthrough(opened, dropped, work)
    record["dropped"] = {path.partition("/")[2]: reason for path, reason in dropped.items()}
    (work / RECORD).write_text(json.dumps(record, indent=1))
    _copy_notes(input_path, folders, work)
    counts = {
        part.name or source_name: sum(math.prod(spec.shape) for spec in plan.specs.values())
        for part, plan in plans
    }
    return ImportSummary(parameters=counts, dropped=record["dropped"])


def _dropped(
    source: sources.Source,
    opened: Mapping[str, tensor_files.Tensors],
    records: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, str], list[str]]:
    """Returns {"<folder>/<official name>": reason} of what no part reads, and unknown names.

    A name below a part's prefix that the part neither reads nor drops is that part's problem.
    """
    dropped, unknown = {}, []
    others = dict(source.other_folders)
    for folder, weights in opened.items():
        parts = [part for part in source.parts if part.folder == folder]
        used = {
            part.prefix + name
            for part in parts
            if part.name in records
            for name in records[part.name]["names"]
        }
        for name in sorted(set(weights) - used):
            reason = others.get(folder) or table.drop_reason(name, source.dropped)
            owners = [part for part in parts if name.startswith(part.prefix)]
            for part in owners:
                reason = reason or table.drop_reason(name.removeprefix(part.prefix), part.dropped)
            if reason:
                dropped[f"{folder}/{name}"] = reason
            elif not owners:
                unknown.append(f"unknown name {name}")
    return dropped, unknown


def _write_passthrough(
    opened: Mapping[str, tensor_files.Tensors], dropped: Mapping[str, str], work: pathlib.Path
) -> None:
    """Keeps what no part read."""
    if not dropped:
        return
    places = {path: path.partition("/")[::2] for path in dropped}
    specs = {path: opened[folder].spec(name) for path, (folder, name) in places.items()}
    with tensor_files.SafetensorsWriter(work / PASSTHROUGH, specs) as writer:
        writer.write_all((path, opened[folder][name]) for path, (folder, name) in places.items())


def _copy_notes(input_path: pathlib.Path, folders: set[str], work: pathlib.Path) -> None:
    """Keeps tokenizer files for training, and all small texts of the release for its reverse."""
    if not input_path.is_dir():
        return
    paths = [*input_path.glob("*"), *(input_path.glob("*/*") if folders != {""} else ())]
    for path in sorted(paths):
        relative = path.relative_to(input_path)
        is_note = path.suffix in _NOTE_SUFFIXES or path.name in _TOKENIZER_FILES
        if not is_note or path.name.endswith(tensor_files.INDEX_ENDS) or not path.is_file():
            continue
        if path.stat().st_size <= _LARGEST_NOTE:
            (work / NOTES / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, work / NOTES / relative)
    for name in _TOKENIZER_FILES:
        if (input_path / name).is_file():
            shutil.copyfile(input_path / name, work / name)


def _read_config(part: sources.Part, input_path: pathlib.Path) -> Any:
    path = input_path / part.folder / "config.json"
    if not path.is_file():
        return part.config
    return part.read_config(tensor_files.read_json(path), str(path))
