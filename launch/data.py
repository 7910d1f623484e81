"""Converts, checks and shows data: python launch/data.py COMMAND --flag=value ...

convert   --source={rlds,human_video,video_layout,calvin,lerobot,metaworld} --input=DIR --output=DIR
          [--runner=direct]       through Apache Beam, see requirements-beam.txt
build     --builder={something_something_v2,ego4d_fho,epic_kitchens100,video_folder} --input=DIR
          --output=DATA_DIR       human video as a TFDS dataset, array_record
stats     --store=DIR             means, quantiles and ranges of actions and states
validate  --store=DIR             damage, gaps, doubtful values and where; exit 1 on errors
preview   --store=DIR | --config=configs/gfdm.py:tiny --output=FILE.png
encode    --config=configs/gfdm.py --store=DIR | --config.data.{root,mixture}=... --output=DIR
                                  latents and text embeddings, computed once for GFDM training;
                                  goes on where it was stopped; many hosts as launch/train.py
export    --store=DIR --output=DIR [--name=NAME] [--file_format=array_record]
                                  an RLDS directory that tfds, dlimp and Octo read
bench     --config=configs/gidm.py:small --config.data.{root,mixture}=... [--seconds=20]
                                  frames a second and core, beside bare decoding and resizing
list      [--root=DIR]            stores, known datasets and mixtures
"""

import json

from absl import flags
from ml_collections import config_flags

from defi_jax import cli, errors
from tools.data import commands, convert_options

_F = flags.FLAGS
convert_options.define_flags()
commands.define_flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "preview, bench, encode: experiment whose batches or encoders to use."
)

_COMMANDS = {
    "convert": lambda: commands.run_convert(convert_options.from_flags(), _F.runner, _F.beam_flags),
    "build": lambda: commands.run_build(
        _F.builder, convert_options.from_flags("build"), _F.file_format
    ),
    "stats": lambda: commands.run_stats(_F.store),
    "validate": lambda: commands.run_validate(_F.store),
    "preview": lambda: commands.run_preview(_F.store, _CONFIG.value, _F.output, _F.count),
    "encode": lambda: commands.run_encode(
        _CONFIG.value,
        _F.store,
        _F.output,
        dtype=_F.dtype,
        overwrite=_F.overwrite,
        official_latents=_F.official_latents,
        posterior=_F.posterior,
        frames_per_device=_F.frames_per_device,
    ),
    "bench": lambda: commands.run_bench(_CONFIG.value, _F.seconds),
    "export": lambda: commands.run_export(_F.store, _F.output, _F.name, _F.file_format),
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
