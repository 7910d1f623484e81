import dataclasses
import functools
import json

import pytest
from absl import flags

from defi_jax import errors
from tools.data import convert_options

OPTIONS = convert_options.ConvertOptions(
    source="human_video",
    input="in/clips",
    output="out",
    name="",
    splits=(),
    embodiment="",
    captions="some/where/captions.csv",
    shorter_side=32,
    square_crop=False,
    every=1,
    sample_fps=None,
    max_frames=None,
    image_format="jpeg",
    fps=None,
    calvin_part="language",
    calvin_language="",
    calvin_actions="rel_actions",
    primary="",
    wrist="",
    subtasks="cut",
    item_seconds=60.0,
    item_memory_mb=512,
    tasks=(),
    episodes=2,
    image_size=64,
    seed=0,
    workers=0,
    strip_actions=False,
    max_damaged=0,
    dataset_version="",
    allow_missing_shards=False,
    standardization="",
    camera_fields=[],
    text_field="",
)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"workers": 7, "max_damaged": 1, "item_seconds": 1.0, "item_memory_mb": 99}, True),
        ({"input": "moved/to/clips", "captions": "captions.csv", "output": "elsewhere"}, True),
        ({"calvin_part": "play", "primary": "top", "subtasks": "first"}, True),  # of other sources
        ({"input": "in/others"}, False),
        ({"sample_fps": 2.0}, False),
        ({"image_format": "png"}, False),
        ({"strip_actions": True}, False),
    ],
)
def test_origin_holds_what_decides_the_content(change, is_same):
    changed = dataclasses.replace(OPTIONS, **change)
    assert (changed.origin() == OPTIONS.origin()) == is_same
    json.dumps(changed.origin())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("human_video", "no such video folder"),
        ("video_layout", "no annotation folder"),
        ("calvin", "no such CALVIN directory"),
        ("lerobot", "no LeRobot dataset"),
        ("rlds", "no such RLDS directory"),
    ],
)
def test_every_source_is_opened_by_its_name(source, message):
    with pytest.raises(errors.UserError, match=message):
        convert_options.open_source(dataclasses.replace(OPTIONS, source=source))


def test_input_is_needed():
    with pytest.raises(errors.UserError, match="--input"):
        convert_options.open_source(dataclasses.replace(OPTIONS, input=""))


@pytest.fixture
def command_line(monkeypatch):
    """Parses flags into `ConvertOptions`."""
    values = flags.FlagValues()
    for define in ("string", "list", "integer", "bool", "float", "enum"):
        name = f"DEFINE_{define}"
        monkeypatch.setattr(
            flags, name, functools.partial(getattr(flags, name), flag_values=values)
        )
    monkeypatch.setattr(flags, "FLAGS", values)
    convert_options.define_flags()
    flags.DEFINE_string("output", "", "of launch/data.py.")

    def parse(*arguments: str) -> convert_options.ConvertOptions:
        values(["data.py", *arguments])
        return convert_options.from_flags()

    return parse


@pytest.mark.parametrize(
    ("source", "flag"),
    [
        ("rlds", "--embodiment=robot"),
        ("rlds", "--captions=a"),
        ("rlds", "--primary=top"),
        ("rlds", "--every=2"),
        ("rlds", "--max_frames=3"),
        ("calvin", "--fps=5"),
        ("calvin", "--max_damaged=1"),
        ("human_video", "--calvin_part=play"),
        ("metaworld", "--input=a"),
        ("lerobot", "--seed=1"),
    ],
)
def test_a_flag_that_the_source_does_not_use_is_refused(command_line, source, flag):
    name = flag.split("=")[0]
    with pytest.raises(errors.UserError, match=f"--source={source} does not use {name}:"):
        command_line(f"--source={source}", flag)


@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("calvin", "calvin_part", "play"),
        ("rlds", "max_damaged", 2),
        ("lerobot", "fps", 5.0),
        ("metaworld", "seed", 7),
        ("unknown", "every", 2),  # which `run_convert` names
    ],
)
def test_flags_that_the_source_uses_are_taken(command_line, source, name, value):
    options = command_line(f"--source={source}", "--output=o", f"--{name}={value}")
    assert (getattr(options, name), options.output, options.shorter_side) == (value, "o", 256)
