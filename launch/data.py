"""Converts, checks and shows data: python launch/data.py COMMAND --flag=value ...

convert   --source={rlds,human_video,video_layout,calvin,lerobot,metaworld} --input=DIR --output=DIR
stats     --store=DIR             means, quantiles and ranges of actions and states
validate  --store=DIR             damage, gaps, doubtful values and where; exit 1 on errors
preview   --store=DIR | --config=configs/gfdm.py:tiny --output=FILE.png
encode    --config=configs/gfdm.py --store=DIR | --config.data.{root,mixture}=... --output=DIR
                                  latents and text embeddings, computed once for GFDM training;
                                  goes on where it was stopped; many hosts as launch/train.py
export    --store=DIR --output=DIR [--name=NAME] [--format=tfds]
                                  an RLDS directory that tfds.load, dlimp and Octo read
bench     --config=configs/gidm.py:small --config.data.{root,mixture}=... [--seconds=20]
                                  frames a second and core, beside bare decoding and resizing
list      [--root=DIR]            stores, known datasets and mixtures
"""

import json
from typing import Any

from absl import flags
from ml_collections import config_flags

from data_pipelines.latents import cache
from defi_jax import cli, errors
from tools.data import commands, convert_options

_F = flags.FLAGS
convert_options.define_flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "preview, bench, encode: experiment whose batches to draw, or whose encoders to use.",
)
flags.DEFINE_string("output", "", "convert, encode, export, preview: what to write.")
flags.DEFINE_string("store", "", "an episode store, of all commands but convert and list.")
flags.DEFINE_string("root", "", "list: directory of episode stores.")
flags.DEFINE_integer("count", 8, "preview: examples to draw.", 1)
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


def _convert() -> commands.Result:
    return commands.run_convert(convert_options.from_flags())


def _preview() -> commands.Result:
    config, objective = _experiment()
    return commands.run_preview(_F.store, config, objective, _F.output, _F.count)


def _bench() -> commands.Result:
    return commands.run_bench(*_experiment(), _F.seconds)


def _experiment() -> tuple[Any, Any]:
    """Returns the config, if any, and its objective, of which images are wanted."""
    from defi_jax import objectives

    config = _CONFIG.value
    if not config:
        return None, None
    config.data.latents = ""
    if config.objective == "joint":
        config.cache_features = False
    return config, objectives.make(config)


def _encode() -> commands.Result:
    import jax

    from defi_jax import objectives, processes
    from defi_jax.training.caches import latents as latent_cache

    config, components = commands.open_for_encoding(_CONFIG.value, _F.store, _F.output)
    with processes.joined():
        encoder = latent_cache.make_encoder(
            config,
            objectives.make(config),
            posterior="sample" if _F.official_latents else _F.posterior,
            frames_per_device=_F.frames_per_device,
        )
        return commands.run_encode(
            config,
            components,
            encoder,
            _F.output,
            dtype=_F.dtype,
            overwrite=_F.overwrite,
            official_latents=_F.official_latents,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            barrier=processes.barrier,
        )


_COMMANDS = {
    "convert": _convert,
    "stats": lambda: commands.run_stats(_F.store),
    "validate": lambda: commands.run_validate(_F.store),
    "preview": _preview,
    "encode": _encode,
    "bench": _bench,
    "export": lambda: commands.run_export(_F.store, _F.output, _F.name),
    "list": lambda: commands.run_list(_F.root),
}


def main(argv: list[str]) -> None:
    """Runs the command that the first argument names."""
    name = commands.choose(argv, _COMMANDS)
    result, text = _COMMANDS[name]()
    print(json.dumps(result, ensure_ascii=False) if _F.json else text)
    if name == "validate" and result["errors"]:
        raise errors.CheckFailed(f"{result['errors']} errors", _F.store, "see the list above")


if __name__ == "__main__":
    cli.run(main)
