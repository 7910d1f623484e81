"""Converts, checks and shows data: python launch/data.py COMMAND --flag=value ...

convert   --source={rlds,human_video,video_layout,calvin,lerobot,metaworld} --input=DIR --output=DIR
stats     --store=DIR             means, quantiles and ranges of actions and states
validate  --store=DIR             damage, gaps, doubtful values and where; exit 1 on errors
preview   --store=DIR | --config=configs/gfdm.py:tiny --output=FILE.png
list      [--root=DIR]            stores, known datasets and mixtures
"""

import dataclasses
import json
from typing import Any

from absl import flags
from ml_collections import config_flags

from data_pipelines import commands
from defi_jax import cli, errors

_F = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "preview: experiment whose batch to draw."
)
flags.DEFINE_string("source", "", "convert: kind of the raw data.")
flags.DEFINE_string("input", "", "convert: directory of the raw data.")
flags.DEFINE_string("output", "", "convert: store to write; preview: picture to write.")
flags.DEFINE_string("store", "", "stats, validate, preview: directory of an episode store.")
flags.DEFINE_string("root", "", "list: directory of episode stores.")
flags.DEFINE_string("name", "", "convert: name of the dataset instead of its own.")
flags.DEFINE_list("splits", [], "convert: splits to read; all by default.")
flags.DEFINE_string("embodiment", "", "convert: who acts in videos; human without actions.")
flags.DEFINE_string("captions", "", "convert: caption file of a video folder.")
flags.DEFINE_integer("shorter_side", 256, "convert: shrink video frames to this, pixels.", 16)
flags.DEFINE_bool("square_crop", False, "convert: keep the centre square of video frames.")
flags.DEFINE_integer("every", 1, "convert: keep every n-th video frame.", 1)
flags.DEFINE_float("sample_fps", None, "convert: video frames to keep a second, by their times.", 0)
flags.DEFINE_integer("max_frames", None, "convert: video frames kept a clip.", 1)
flags.DEFINE_float("fps", None, "convert: true frame rate of the videos, Hz.", 0.01)
flags.DEFINE_enum("image_format", "jpeg", ["jpeg", "png"], "convert: of decoded frames.")
flags.DEFINE_enum("calvin_part", "language", ["language", "play"], "calvin: what to read.")
flags.DEFINE_enum(
    "calvin_actions", "rel_actions", ["rel_actions", "actions"], "calvin: relative or absolute."
)
flags.DEFINE_string("primary", "", "lerobot: camera that becomes 'static'.")
flags.DEFINE_string("wrist", "", "lerobot: camera that becomes 'gripper'.")
flags.DEFINE_float("item_seconds", 600, "convert: time limit of a clip or episode.", 1)
flags.DEFINE_integer("item_memory_mb", 2048, "convert: memory limit of a clip or episode.", 64)
flags.DEFINE_list("tasks", [], "metaworld: tasks.")
flags.DEFINE_integer("episodes", 50, "metaworld: episodes a task.", 1)
flags.DEFINE_integer("image_size", 64, "metaworld: side of a picture, pixels.", 8)
flags.DEFINE_integer("seed", 0, "metaworld: seed of starts and noise.", 0)
flags.DEFINE_integer("workers", 2, "convert: parallel processes.", 1)
flags.DEFINE_bool("strip_actions", False, "Write action-free video.")
flags.DEFINE_integer("count", 8, "preview: examples to draw.", 1)
flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")


def _convert() -> commands.Result:
    names = (field.name for field in dataclasses.fields(commands.ConvertOptions))
    values: dict[str, Any] = {name: _F[name].value for name in names}
    return commands.run_convert(commands.ConvertOptions(**values))


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
