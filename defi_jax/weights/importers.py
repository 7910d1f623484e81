"""Official releases -> directories of our parameters, and back.

An import writes, for each part of the release, `<part>/params.safetensors` under our flattened
paths; beside them `import.json` (source, configs, element types, dropped names with reasons),
`passthrough.safetensors` (the dropped tensors under their official names) and the release's
tokenizer files. `export_release` reads such a directory and writes the official names back,
bit-equal. Nothing is left behind when an import fails.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from defi_jax import errors
from defi_jax.models import params as params_lib
from defi_jax.weights import sources, table, torch_archive

PARAMS = "params.safetensors"
PASSTHROUGH = "passthrough.safetensors"
RECORD = "import.json"
EXPORTED = "model.safetensors"

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
# Names of weight files in releases, best first; fp16 copies only when there is nothing better.
_SAFETENSORS = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
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


class SafetensorsSource(Mapping):
    """Names to arrays of one safetensors file or of the shards of an index, read on access.

    Raises:
        DataError: a file is missing, damaged, or does not hold what the index says.
    """

    def __init__(self, path: pathlib.Path):
        self._path = str(path)
        shards = [path]
        if path.name.endswith(".index.json"):
            shards = sorted(
                {path.parent / name for name in _read_json(path)["weight_map"].values()}
            )
        self._files: dict[str, Any] = {}
        for shard in shards:
            try:
                file = safetensors.safe_open(shard, "numpy")
            except (safetensors.SafetensorError, OSError) as error:
                raise errors.DataError(
                    f"not a safetensors file ({error})", str(shard), "download it again"
                ) from error
            self._files |= dict.fromkeys(file.keys(), file)
        if path.name.endswith(".index.json"):
            missing = sorted(_read_json(path)["weight_map"].keys() - self._files.keys())
            if missing:
                raise errors.DataError(
                    f"shards lack {', '.join(missing)}", self._path, "download them again"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Below(Mapping):
    """The part of a mapping below a prefix, without the prefix."""

    def __init__(self, source: Mapping[str, np.ndarray], prefix: str):
        self._source, self._prefix = source, prefix

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        size = len(self._prefix)
        return (name[size:] for name in self._source if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def open_weights(path: pathlib.Path, keys: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """Opens a weights file, or the best one of a release's folder.

    Raises:
        UserError: nothing there. DataError: damaged, or of another kind.
    """
    if path.is_dir():
        found = [path / name for name in _SAFETENSORS if (path / name).is_file()]
        if not found:
            raise errors.UserError(
                "no weights", str(path), f"expected one of {', '.join(_SAFETENSORS)}"
            )
        path = found[0]
    if not path.is_file():
        raise errors.UserError("no such file", str(path), "give a release's file or folder")
    if path.name.endswith((".safetensors", ".index.json")):
        return SafetensorsSource(path)
    return torch_archive.TorchArchive(path, keys)


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
    source = _source(source_name)
    if output.exists():
        raise errors.UserError("output exists", str(output), "name a new directory")
    output.parent.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        summary = _write(source_name, source, input_path, work, configs or {})
        work.rename(output)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return summary


def export_release(directory: pathlib.Path, output: pathlib.Path) -> list[pathlib.Path]:
    """Writes the official names of an imported directory, dropped tensors included.

    Args:
        directory: what `import_release` wrote; its parameters may have been replaced since.
        output: directory to create.

    Returns:
        The files written, one per file or folder of the release.

    Raises:
        UserError: not an imported directory, or `output` exists.
        DataError: parameters that do not fit the recorded configs.
    """
    if not (directory / RECORD).is_file():
        raise errors.UserError(
            f"no {RECORD}", str(directory), "give a directory written by an import"
        )
    if output.exists():
        raise errors.UserError("output exists", str(output), "name a new directory")
    record = _read_json(directory / RECORD)
    files = _group_passthrough(directory)
    for part in _source(record["source"]).parts:
        fields = record["parts"][part.name]
        params = safetensors.numpy.load_file(directory / part.name / PARAMS)
        flat = {path.removeprefix(part.ours): value for path, value in params.items()}
        config = part.read_config(fields["config"], str(directory))
        entries = part.entries(config, fields["names"])
        exported = table.export_params(entries, params_lib.unflatten(flat))
        for name in fields["names"]:
            dtype = _dtype(fields["dtypes"].get(name, "float32"))
            files.setdefault(part.folder, {})[part.prefix + name] = exported[name].astype(
                dtype, order="C"
            )
    written = []
    for folder, tensors in files.items():
        path = output / folder / EXPORTED
        path.parent.mkdir(parents=True)
        safetensors.numpy.save_file(tensors, path)
        written.append(path)
    return written


def _write(
    source_name: str,
    source: sources.Source,
    input_path: pathlib.Path,
    work: pathlib.Path,
    configs: Mapping[str, Any],
) -> ImportSummary:
    """Imports every part into `work`; all parts' problems become one error."""
    opened = {
        folder: open_weights(input_path / folder if folder else input_path, source.keys)
        for folder in sorted({part.folder for part in source.parts})
    }
    record: dict[str, Any] = {"source": source_name, "parts": {}}
    parameters, problems, used = {}, [], {folder: set() for folder in opened}
    for part in source.parts:
        below = _Below(opened[part.folder], part.prefix)
        config = configs.get(part.name) or _read_config(part, input_path)
        try:
            names, count = _write_part(part, config, below, work / part.name)
        except errors.DataError as error:
            problems.append(f"{part.name or source_name}: {error.what}")
            continue
        parameters[part.name or source_name] = count
        used[part.folder] |= {part.prefix + name for name in names}
        record["parts"][part.name] = {
            "config": dataclasses.asdict(config),
            "names": sorted(names),
            "dtypes": _other_dtypes(below, names),
        }
    if problems:
        raise errors.DataError(
            "; ".join(problems), str(input_path), "check that the files are what --source says"
        )
    record["dropped"] = _write_passthrough(source, opened, used, work)
    (work / RECORD).write_text(json.dumps(record, indent=1))
    for name in _TOKENIZER_FILES:
        if (input_path / name).is_file():
            shutil.copyfile(input_path / name, work / name)
    return ImportSummary(parameters=parameters, dropped=record["dropped"])


def _write_part(
    part: sources.Part, config: Any, below: Mapping[str, np.ndarray], directory: pathlib.Path
) -> tuple[set[str], int]:
    """Writes one part; returns the official names it used and its number of scalars."""
    entries = part.entries(config, below.keys())
    params = table.import_params(
        entries,
        below,
        dropped=part.dropped,
        expected=params_lib.abstract_params(part.make(config)),
        where=part.name,
    )
    flat = {part.ours + path: value for path, value in params_lib.flatten(params).items()}
    directory.mkdir(exist_ok=True)
    safetensors.numpy.save_file(flat, directory / PARAMS)
    return {entry.theirs for entry in entries} & set(below), params_lib.count(params)


def _write_passthrough(
    source: sources.Source,
    opened: Mapping[str, Mapping[str, np.ndarray]],
    used: Mapping[str, set[str]],
    work: pathlib.Path,
) -> dict[str, str]:
    """Keeps what no part used, under "<folder>/<official name>"; returns the reasons."""
    reasons, kept = {}, {}
    for folder, weights in opened.items():
        patterns = [*source.dropped]
        for part in source.parts:
            if part.folder == folder:
                patterns += [(part.prefix + glob, reason) for glob, reason in part.dropped]
        for name in sorted(set(weights) - used[folder]):
            reasons[name] = table.drop_reason(name, patterns)
            kept[f"{folder}/{name}"] = weights[name]
        unexplained = sorted(name for name, reason in reasons.items() if reason is None)
        if unexplained:
            raise errors.DataError(
                f"unknown names {', '.join(unexplained)}", folder, "check the source"
            )
    if kept:
        safetensors.numpy.save_file(kept, work / PASSTHROUGH)
    return reasons


def _group_passthrough(directory: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    files: dict[str, dict[str, np.ndarray]] = {}
    if (directory / PASSTHROUGH).is_file():
        for path, tensor in safetensors.numpy.load_file(directory / PASSTHROUGH).items():
            folder, _, name = path.partition("/")
            files.setdefault(folder, {})[name] = tensor
    return files


def _other_dtypes(below: Mapping[str, np.ndarray], names: set[str]) -> dict[str, str]:
    """Element types other than float32, which our parameters have."""
    dtypes = {name: below[name].dtype.name for name in sorted(names)}
    return {name: dtype for name, dtype in dtypes.items() if dtype != "float32"}


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _read_config(part: sources.Part, input_path: pathlib.Path) -> Any:
    path = input_path / part.folder / "config.json"
    if not path.is_file():
        return part.config
    return part.read_config(_read_json(path), str(path))


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise errors.DataError(f"not JSON ({error})", str(path), "restore the file") from error


def _source(name: str) -> sources.Source:
    if name not in sources.SOURCES:
        raise errors.UserError(
            f"unknown source {name!r}", "--source", f"known: {', '.join(sources.SOURCES)}"
        )
    return sources.SOURCES[name]
