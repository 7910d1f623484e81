"""What `launch/data.py` does: each function returns a JSON-able result and a text for people.

Their parameters are the flags of the same names, whose help is in `define_flags`; `options` are
those of `convert_options`, and `config` is an experiment, None where none is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from defi_rollout import files as rollout_files

from data_pipelines import normalization
from data_pipelines.formats import image
from data_pipelines.latents import cache
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import mixtures, named_mixtures
from data_pipelines.open_x import registry
from data_pipelines.sources import video_layout
from data_pipelines.store import beam, convert, export, reader, validate
from defi_jax import cli, errors
from tools.data import convert_options, preview, step_batch

if TYPE_CHECKING:
    from data_pipelines.loading import loader

Result = tuple[dict[str, Any], str]

_SHOWN_FINDINGS = 40


def define_flags() -> None:
    """Defines the flags of all commands but `convert`, which has its own."""
    flags.DEFINE_string("output", "", "convert, encode, export, preview: what to write.")
    flags.DEFINE_string("store", "", "an episode store, of all commands but convert and list.")
    flags.DEFINE_string("root", "", "list: directory of episode stores.")
    flags.DEFINE_integer("count", 8, "preview: examples to draw.", 1)
    flags.DEFINE_string("workdir", "", "preview: run of which to draw the batch of --step.")
    flags.DEFINE_integer("step", None, "preview: step of that run, from 1.", 1)
    flags.DEFINE_enum("dtype", "float16", cache.DTYPES, "encode: of what is stored.")
    flags.DEFINE_enum("format", "tfds", ["tfds"], "export: of what is written.")
    flags.DEFINE_enum("posterior", "mode", ["mode", "sample"], "encode: of the latents.")
    flags.DEFINE_string(
        "official_latents", "", "encode: video layout whose latents to take; they are samples."
    )
    flags.DEFINE_integer("frames_per_device", 16, "encode: frames encoded at once.", 1)
    flags.DEFINE_float("seconds", 20, "bench: time in the loader.", 0.1)
    flags.DEFINE_bool("overwrite", False, "encode: delete a cache of something else.")
    flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def run_convert(
    options: convert_options.ConvertOptions, runner: str = "", beam_flags: Sequence[str] = ()
) -> Result:
    """Makes an episode store, from a dataset on disk or from the simulator.

    Raises:
        UserError: unknown source, or a path is missing.
    """
    if options.source not in convert_options.SOURCES:
        hint = cli.nearest(options.source, convert_options.SOURCES)
        raise errors.UserError(f"unknown source '{options.source}'", "--source", hint)
    _require(options.output, "--output")
    if options.source in convert_options.SIMULATED:
        return _collect(options)
    start = time.monotonic()
    open_source = functools.partial(convert_options.open_source, options)
    copy = None
    if runner:
        copy = functools.partial(
            beam.copy, open_source=open_source, runner=runner, flags=beam_flags
        )
    manifest = convert.convert(open_source(), options.output, origin=options.origin(), copy=copy)
    return manifest, convert.summary(manifest, time.monotonic() - start)


def _collect(options: convert_options.ConvertOptions) -> Result:
    # needs the simulator, the other sources do not
    source = importlib.import_module(f"data_pipelines.collect.{options.source}")
    if not options.tasks:
        raise errors.UserError(
            "no task to collect", "--tasks", f"give --tasks={source.EXAMPLE},..."
        )
    settings = source.Settings(
        **{
            f.name: getattr(options, f.name)
            for f in dataclasses.fields(source.Settings)
            if hasattr(options, f.name)
        }
    )
    collected = source.collect(
        options.tasks, options.output, options.episodes, settings, workers=options.workers
    )
    store = reader.EpisodeStore(options.output)
    lines = [
        f"{row.task} ({row.start}): {row.episodes} of {row.attempts} attempts kept, "
        f"{row.steps:.0f} steps, {row.seconds:.0f} s"
        for row in collected
    ]
    lines.append(f"{options.output}: {len(store)} episodes")
    result = {"episodes": len(store), "frames": int(store.lengths.sum())}
    return result | {"added": [dataclasses.asdict(row) for row in collected]}, "\n".join(lines)


def run_stats(store: str) -> Result:
    """Computes (or reads) the statistics of actions and states."""
    _require(store, "--store")
    source: Any = reader.EpisodeStore(store)
    found = normalization.cached(source, pathlib.Path(store))
    lines = []
    for column, values in found.items():
        lines.append(f"{column}: {values.count} steps")
        table = {key: getattr(values, key) for key in ("mean", "std", "min", "q01", "q99", "max")}
        lines.append("  dim " + " ".join(f"{key:>10}" for key in table))
        for dim in range(len(values.mean)):
            numbers = " ".join(f"{array[dim]:10.4g}" for array in table.values())
            lines.append(f"  {dim:3d} {numbers}")
    result = {column: values.to_json() for column, values in found.items()}
    return result, "\n".join(lines) or "no actions and no states"


def run_validate(store: str) -> Result:
    """Checks a store; the result's `errors` says how many findings are errors."""
    _require(store, "--store")
    findings, counts = validate.validate(store)
    lines = [f"{f.severity} [{f.check}] {f.what}: {f.where}" for f in findings[:_SHOWN_FINDINGS]]
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"and {len(findings) - _SHOWN_FINDINGS} more, see --json")
    lines.append(", ".join(f"{value} {key}" for key, value in counts.items()))
    result = {**counts, "findings": [dataclasses.asdict(finding) for finding in findings]}
    return result, "\n".join(lines)


def run_preview(
    store: str, config: Any, output: str, count: int, workdir: str = "", step: int | None = None
) -> Result:
    """Writes a contact sheet as PNG: of a store, or of what a model or a run's step receives.

    Raises:
        UserError: no store, config or run, no output, or it cannot be written.
    """
    _require(output, "--output")
    facts: dict[str, Any] = {}
    if workdir or step is not None:
        batch, facts = step_batch.rebuild(workdir, step, open_loader)
        sheet = preview.batch_sheet(batch, count=count)
    elif config is None:
        _require(store, "--store or --config")
        source: Any = reader.EpisodeStore(store)
        sheet = preview.store_sheet(source, count=count)
    else:
        batch = next(open_loader(config, _image_objective(config)).first(1))
        sheet = preview.batch_sheet(batch, count=count)
    path, what, fix = pathlib.Path(output), "sheet cannot be written", "choose another --output"
    with errors.UserError.instead_of(OSError, what, output, fix):
        path.parent.mkdir(parents=True, exist_ok=True)
        rollout_files.write(path, image.encode_png(sheet))
    height, width = sheet.shape[:2]
    lines = [f"wrote {output}", *(f"{name}: {value}" for name, value in facts.items())]
    return {"output": output, "width": width, "height": height, **facts}, "\n".join(lines)


def _image_objective(config: Any) -> Any:
    """Returns an experiment's objective, told to read images, not what was made of them."""
    from defi_jax import objectives

    config.data.latents = ""
    if config.objective == "joint":
        config.cache_features = False
    return objectives.make(config)


def open_loader(config: Any, objective: Any) -> loader.Loader:
    """Opens the loader that training with this objective uses, as the only process of a run."""
    from data_pipelines.loading import loader  # takes a second, the other commands need it not

    return loader.make_loader(
        config.data,
        objective.batch_spec(config.global_batch),
        tokenizers=objective.tokenizers(),
        split="train",
        seed=config.seed,
        global_batch=config.global_batch,
        process_index=0,
        process_count=1,
    )


def run_bench(config: Any, seconds: float) -> Result:
    """Measures the loader of an experiment; see `bench.run`.

    Raises:
        UserError: no experiment, or its mixture holds no encoded frames.
    """
    from tools.data import bench

    _require_experiment(config)
    config.data.workers = 0
    result = bench.run(
        open_loader(config, _image_objective(config)),
        image_size=config.data.image_size,
        seconds=seconds,
    )
    first, last = result.rss_mib
    text = (
        f"{config.objective} at {config.data.image_size} pixels, {result.frames} frames in "
        f"{result.seconds:.1f} s\n"
        f"loader {result.loader:.0f} frames per second and core, decoding and resizing alone "
        f"{result.bare:.0f}: {100 * result.ratio:.0f} %\n"
        f"memory {first:.0f} MiB after the first round, {last:.0f} MiB after the last "
        f"({100 * (last / first - 1):+.1f} %)"
    )
    return dataclasses.asdict(result), text


def run_encode(
    config: Any,
    store: str,
    output: str,
    *,
    dtype: str,
    overwrite: bool,
    official_latents: str,
    posterior: str,
    frames_per_device: int,
) -> Result:
    """Writes the latent caches of a config's mixture (or `store`), one a store; see `encode`.

    Raises:
        UserError: there is no experiment, no place to write to, or stores are absent.
    """
    import jax

    from data_pipelines.latents import encode
    from defi_jax import objectives, processes
    from defi_jax.training.caches import latents as latent_cache

    _require_experiment(config)
    _require(output, "--output")
    components = _open_pixels(config, store)
    data = config_lib.DataConfig.of(config.data)
    sources = {one.name: one.source.meta(0).source for one in components}
    own = data.by_dataset(sources, config.seed)
    given = video_layout.LatentFiles(official_latents) if official_latents else None
    start, caches = time.monotonic(), {}
    with processes.joined():
        objective, posterior = objectives.make(config), "sample" if given else posterior
        encoder: Any = latent_cache.make_encoder(
            config, objective, posterior=posterior, frames_per_device=frames_per_device
        )
        for component in components:
            caches[component.name] = encode.encode(
                component.source,
                pathlib.Path(output) / component.name,
                encoder,
                cameras=own[component.name].cameras,
                dtype=dtype,
                overwrite=overwrite,
                max_bad_fraction=config.data.max_bad_fraction,
                given=given,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                barrier=processes.barrier,
            )
    lines = [
        f"{name}: {m['frames']} frames ({m['damaged']} damaged), {m['texts']} texts"
        for name, m in caches.items()
    ]
    result = {"output": output, "seconds": time.monotonic() - start, "caches": caches}
    return result, "\n".join([*lines, f"train with --config.data.latents={output}"])


def _open_pixels(config: Any, store: str) -> list[mixtures.Component]:
    """Opens what caches are made from: a config's mixture, or one store where it is given."""
    if store:
        path = pathlib.Path(store)
        config.data.root, config.data.mixture = str(path.parent), path.name
    config.data.latents = ""
    return mixtures.open_components(config_lib.DataConfig.of(config.data))


def run_build(
    builder: str, options: convert_options.ConvertOptions, file_format: str | None
) -> Result:
    """Writes human video as a TFDS dataset, by the builder of this name.

    Raises:
        UserError: no such builder, a path is missing, or see `human_video`.
    """
    from data_pipelines.tfds_builders import human_video  # registers the builders

    if builder not in human_video.BUILDERS:
        hint = cli.nearest(builder, human_video.BUILDERS)
        raise errors.UserError(f"unknown builder '{builder}'", "--builder", hint)
    _require(options.input, "--input")
    _require(options.output, "--output")
    start = time.monotonic()
    made = human_video.BUILDERS[builder](
        input_dir=options.input,
        data_dir=options.output,
        options=options.clip_options(),
        captions=options.captions,
        source_name=options.name,
        embodiment=options.embodiment or "human",
        workers=convert_options.workers(options),
        file_format=file_format or "array_record",
    )
    with contextlib.redirect_stdout(sys.stderr):  # where TFDS says what it does
        made.download_and_prepare()
    found = dict(made.info.metadata or {})
    lines = [
        f"{split}: {convert.summary(counts, time.monotonic() - start, where='metadata.json')}"
        for split, counts in found.items()
    ]
    return {"directory": made.data_dir, "splits": found}, "\n".join([*lines, made.data_dir])


def run_export(store: str, output: str, name: str, file_format: str | None) -> Result:
    """Writes a store as a TFDS dataset below `output`; see `export.export_tfds`."""
    file_format = file_format or "tfrecord"
    _require(store, "--store")
    _require(output, "--output")
    start = time.monotonic()
    name = name or pathlib.Path(store).resolve().name
    result = export.export_tfds(
        reader.EpisodeStore(store), output, name=name, file_format=file_format
    )
    call = "load" if file_format == "tfrecord" else "data_source"
    text = (
        f"{result['directory']}: {result['episodes']} episodes, {result['frames']} frames, "
        f"{result['shards']} files, {result['bytes']} bytes, {time.monotonic() - start:.1f} s\n"
        f"read it with tfds.{call}({name!r}, data_dir={output!r})"
    )
    return result, text


def choose(argv: Sequence[str], table: Mapping[str, Callable[..., Result]]) -> str:
    """Returns the command that the command line names.

    Raises:
        UserError: none, several or an unknown one.
    """
    words = list(argv[1:])
    if len(words) != 1 or words[0] not in table:
        hint = cli.nearest(words[0] if words else "", table)
        raise errors.UserError(f"expected one command, found {words}", "launch/data.py", hint)
    return words[0]


def run_list(root: str) -> Result:
    """Lists the episode stores below a directory, and what can be converted and mixed."""
    stores, damaged, directory = [], {}, pathlib.Path(root)
    if root and not directory.is_dir():
        raise errors.UserError("no such directory", root, "check --root")
    for path in sorted(directory.iterdir()) if root else []:
        if not any(path.glob("episodes-*.index.jsonl")):
            continue
        try:
            stores.append(_describe_store(path))
        except errors.DataError as error:
            damaged[path.name] = str(error)
    result = {
        "stores": stores,
        "damaged": damaged,
        "sources": list(convert_options.SOURCES),
        "rlds_datasets": sorted(registry.standards()),
        "mixtures": sorted(named_mixtures.NAMED),
    }
    lines = [
        f"{s['name']}: {s['episodes']} episodes, {s['frames']} frames, "
        f"{'with' if s['actions'] else 'without'} actions, cameras {', '.join(s['cameras'])}"
        for s in stores
    ]
    lines += [f"{name}: damaged, {text}" for name, text in damaged.items()]
    lines += [f"{key}: {', '.join(result[key]) or 'none'}" for key in list(result)[2:]]
    return result, "\n".join(lines)


def _describe_store(path: pathlib.Path) -> Mapping[str, Any]:
    store = reader.EpisodeStore(path)
    meta = [store.meta(i) for i in range(len(store))]
    return {
        "name": path.name,
        "episodes": len(store),
        "frames": int(store.lengths.sum()),
        "actions": any(m.has_actions for m in meta),
        "cameras": sorted({camera for m in meta for camera in m.cameras}),
        "embodiments": sorted({m.embodiment for m in meta}),
        "fps": sorted({m.fps for m in meta}),
    }


def _require(value: str, flag: str) -> None:
    if not value:
        raise errors.UserError("no path given", flag, f"give {flag}=PATH")


def _require_experiment(config: Any) -> None:
    if not config:
        raise errors.UserError(
            "no experiment", "--config", "give --config=configs/{gfdm,gidm,joint}.py[:preset]"
        )


COMMANDS: dict[str, Callable[..., Result]] = {
    "convert": run_convert,
    "build": run_build,
    "stats": run_stats,
    "validate": run_validate,
    "preview": run_preview,
    "encode": run_encode,
    "bench": run_bench,
    "export": run_export,
    "list": run_list,
}
