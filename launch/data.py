"""Converts, checks and shows data: python launch/data.py COMMAND --flag=value ...

convert   --source={rlds,human_video,video_layout,calvin,lerobot} --input=DIR --output=DIR
          --source={metaworld,calvin_sim,libero_sim} --tasks=TASK,... --output=DIR   by experts
          [--runner=direct]       through Apache Beam, see requirements-beam.txt
build     --builder={something_something_v2,ego4d_fho,epic_kitchens100,video_folder} --input=DIR
          --output=DATA_DIR       human video as a TFDS dataset, array_record
stats     --store=DIR             means, quantiles and ranges of actions and states
validate  --store=DIR             damage, gaps, doubtful values and where; exit 1 on errors
preview   --store=DIR | --config=configs/gfdm.py:tiny | --workdir=RUN --step=N  --output=FILE.png
                                  what is stored, what a model receives, what a step received
encode    --config=configs/gfdm.py --store=DIR | --config.data.{root,mixture}=... --output=DIR
                                  latents and text embeddings, computed once for GFDM training;
                                  goes on where it was stopped; many hosts as launch/train.py
export    --store=DIR --output=DIR [--name=NAME] [--file_format=array_record]
                                  an RLDS directory that tfds, dlimp and Octo read
bench     --config=configs/gidm.py:small --config.data.{root,mixture}=... [--seconds=20]
                                  frames a second and core, beside bare decoding and resizing
list      [--root=DIR]            stores, known datasets and mixtures
"""

import inspect
import json

from absl import flags
from ml_collections import config_flags

from defi_jax import cli, errors
from tools.data import commands, convert_options

convert_options.define_flags()
commands.define_flags()
config_flags.DEFINE_config_file(
    "config", None, "preview, bench, encode: experiment whose batches or encoders to use."
)


def main(argv: list[str]) -> None:
    """Runs the command that the first argument names; its parameters are flags."""
    name = commands.choose(argv, commands.COMMANDS)
    command, values = commands.COMMANDS[name], flags.FLAGS
    wanted = inspect.signature(command).parameters
    arguments = {key: values[key].value for key in wanted if key != "options"}
    if "options" in wanted:
        arguments["options"] = convert_options.from_flags(name)
    result, text = command(**arguments)
    print(json.dumps(result, ensure_ascii=False) if values.json else text)
    if name == "validate" and result["errors"]:
        raise errors.CheckFailed(f"{result['errors']} errors", values.store, "see the list above")


if __name__ == "__main__":
    cli.run(main)
