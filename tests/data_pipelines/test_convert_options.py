import dataclasses
import json

import pytest

from data_pipelines import convert_options
from defi_jax import errors

OPTIONS = convert_options.ConvertOptions(
    source="human_video", input="in/clips", output="out", name="", splits=(), embodiment="",
    captions="some/where/captions.csv", shorter_side=32, square_crop=False, every=1,
    sample_fps=None, max_frames=None, image_format="jpeg", fps=None, calvin_part="language",
    calvin_actions="rel_actions", primary="", wrist="", item_seconds=60.0, item_memory_mb=512,
    tasks=(), episodes=2, image_size=64, seed=0, workers=0, strip_actions=False,
    max_damaged=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"workers": 7, "max_damaged": 1, "item_seconds": 1.0, "item_memory_mb": 99}, True),
        ({"input": "moved/to/clips", "captions": "captions.csv", "output": "elsewhere"}, True),
        ({"calvin_part": "play", "primary": "top"}, True),  # of other sources
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
