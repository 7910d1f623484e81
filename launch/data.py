"""Converts, checks and shows data: python launch/data.py COMMAND --flag=value ...

convert   --source={rlds,human_video,video_layout,calvin,lerobot,metaworld} --input=DIR --output=DIR
stats     --store=DIR             means, quantiles and ranges of actions and states
validate  --store=DIR             damage, gaps, doubtful values and where; exit 1 on errors
preview   --store=DIR | --config=configs/gfdm.py:tiny --output=FILE.png
list      [--root=DIR]            stores, known datasets and mixtures
"""

import json

from absl import flags
from ml_collections import config_flags

from data_pipelines import commands, convert_options
from defi_jax import cli, errors

_F = flags.FLAGS
convert_options.define_flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "preview: experiment whose batch to draw."
)
flags.DEFINE_string("output", "", "convert: store to write; preview: picture to write.")
flags.DEFINE_string("store", "", "stats, validate, preview: directory of an episode store.")
flags.DEFINE_string("root", "", "list: directory of episode stores.")
flags.DEFINE_integer("count", 8, "preview: examples to draw.", 1)
flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def _convert() -> commands.Result:
    return commands.run_convert(convert_options.from_flags())


def _preview() -> commands.Result:
    from defi_jax import objectives

    if _CONFIG.value and _CONFIG.value.objective == "joint":
        _CONFIG.value.cache_features = False  # a preview shows images
    objective = _CONFIG.value and objectives.make(_CONFIG.value)
    return commands.run_preview(_F.store, _CONFIG.value, objective, _F.output, _F.count)


_COMMANDS = {
    "convert": _convert,
    "stats": lambda: commands.run_stats(_F.store),
    "validate": lambda: commands.run_validate(_F.store),
    "preview": _preview,
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
