import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.collect import blocks, metaworld
from data_pipelines.formats import image
from data_pipelines.store import reader
from defi_jax import errors
from tests.fixtures import films
from tools.data import commands, convert_options

DEFAULTS = {
    "input": "",
    "output": "",
    "name": "",
    "splits": (),
    "embodiment": "human",
    "captions": "",
    "shorter_side": 32,
    "square_crop": False,
    "every": 1,
    "sample_fps": None,
    "max_frames": None,
    "image_format": "jpeg",
    "fps": None,
    "calvin_part": "language",
    "calvin_language": "",
    "calvin_actions": "rel_actions",
    "primary": "",
    "wrist": "",
    "subtasks": "cut",
    "item_seconds": 60.0,
    "item_memory_mb": 1024,
    "tasks": (),
    "episodes": 2,
    "image_size": 64,
    "seed": 0,
    "workers": 0,
    "strip_actions": False,
    "max_damaged": 0,
    "dataset_version": "",
    "allow_missing_shards": False,
    "standardization": "",
    "camera_fields": [],
    "text_field": "",
}


def _convert(source: str, **changes) -> commands.Result:
    return commands.run_convert(convert_options.ConvertOptions(source=source, **DEFAULTS | changes))


@pytest.fixture
def store(write_rlds, rlds_tools, tmp_path):
    directory = write_rlds([[rlds_tools["episode"](i) for i in range(3)]])
    result, text = _convert("rlds", input=str(directory), output=str(tmp_path / "stores" / "b"))
    assert result["episodes"] == 3 and "3 episodes" in text
    return tmp_path / "stores" / "b"


def test_store_goes_through_all_commands(store, tmp_path):
    statistics, table = commands.run_stats(str(store))
    assert statistics["actions"]["count"] == 12 and "actions: 12 steps" in table
    checked, _ = commands.run_validate(str(store))
    assert checked["errors"] == 0
    assert {f["what"] for f in checked["findings"]} >= {"states dimension 6 is always 0"}
    listed, text = commands.run_list(str(store.parent))
    (entry,) = listed["stores"]
    assert entry["name"] == "b" and entry["fps"] == [5.0] and "b: 3 episodes" in text
    picture = tmp_path / "new" / "sheet.png"
    commands.run_preview(str(store), None, str(picture), 2)
    assert image.decode_image(picture.read_bytes()).shape[1] > 100
    for result in (statistics, checked, listed):
        json.dumps(result)


def test_a_damaged_store_is_listed_as_such_beside_the_others(store):
    other = store.parent / "a"
    other.mkdir()
    (other / "episodes-0-00000.index.jsonl").write_text("no index")
    listed, text = commands.run_list(str(store.parent))
    assert [entry["name"] for entry in listed["stores"]] == ["b"]
    assert list(listed["damaged"]) == ["a"] and "a: damaged, " in text and "b: 3 episodes" in text


def test_robot_data_becomes_action_free_video(write_rlds, rlds_tools, tmp_path):
    directory = write_rlds([[rlds_tools["episode"](i) for i in range(2)]])
    output = str(tmp_path / "video")
    _convert("rlds", input=str(directory), output=output, strip_actions=True)
    stripped = reader.EpisodeStore(output)
    assert len(stripped) == 2 and stripped.lengths.sum() > 0
    assert not any(stripped.meta(i).has_actions for i in range(2))
    assert stripped.states(0) is None
    with pytest.raises(errors.UserError, match="another origin"):
        _convert("rlds", input=str(directory), output=output)


def test_damaged_records_are_left_out_only_where_that_is_said(write_rlds, rlds_tools, tmp_path):
    directory = write_rlds([[rlds_tools["episode"](i) for i in range(3)]])
    path, output = write_rlds.shard(0, 1), str(tmp_path / "store")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.DataError, match="record 1"):
        _convert("rlds", input=str(directory), output=output)
    manifest, text = _convert("rlds", input=str(directory), output=output, max_damaged=1)
    assert manifest["episodes"] == 2 and "1 rejected" in text
    (rejected,) = manifest["rejected"]
    assert rejected["item"] == f"{path} record 1" and "checksum" in rejected["reason"]


def test_captioned_folder_by_flags(tmp_path):
    films.write_video(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8)] * 4, fps=10)
    (tmp_path / "captions.json").write_text('{"a.mp4": "push"}')
    output = tmp_path / "store"
    result, _ = _convert(
        "human_video", input=str(tmp_path), output=str(output), name="mine", every=2
    )
    assert (result["source"], result["frames"]) == ("mine", 2)


def test_metaworld_flags_reach_the_collector(store, monkeypatch):
    calls = []

    def collect(tasks, output, count, settings, workers):
        calls.append((tasks, count, settings))
        row = {"task": tasks[0], "start": "usual", "episodes": 2, "attempts": 3, "frames": 80}
        return [blocks.Collected(**row, steps=40.0, seconds=1.0)]

    monkeypatch.setattr(metaworld, "collect", collect)
    result, text = _convert("metaworld", output=str(store), tasks=["drawer-open-v3"], seed=7)
    assert calls[0][:2] == (["drawer-open-v3"], 2) and calls[0][2].seed == 7
    assert "2 of 3 attempts" in text and result["added"][0]["frames"] == 80


@pytest.mark.parametrize(
    ("source", "changes", "named"),
    [
        ("rdls", {"input": "x", "output": "y"}, "did you mean rlds"),
        ("rlds", {"output": "y"}, "--input"),
        ("rlds", {"input": "x"}, "--output"),
        ("metaworld", {"output": "y"}, "--tasks"),
    ],
)
def test_missing_or_unknown_flags_are_named(source, changes, named):
    with pytest.raises(errors.UserError, match=named):
        _convert(source, **changes)


@pytest.mark.parametrize("argv", [["data.py"], ["data.py", "validat"], ["data.py", "list", "list"]])
def test_one_known_command_is_expected(argv):
    with pytest.raises(errors.UserError, match="expected one command"):
        commands.choose(argv, {"list": None, "validate": None})


def test_preview_needs_something_to_draw(tmp_path):
    with pytest.raises(errors.UserError, match="--store or --config"):
        commands.run_preview("", None, str(tmp_path / "a.png"), 1)


def test_human_video_is_built_as_a_tfds_dataset(tmp_path, capsys):
    picture = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    (tmp_path / "clips").mkdir()
    films.write_video(tmp_path / "clips" / "a.mp4", [picture] * 4, fps=10)
    (tmp_path / "clips" / "captions.json").write_text('{"a.mp4": "push", "b.mp4": "pull"}')
    changes = {"input": str(tmp_path / "clips"), "output": str(tmp_path / "tfds")}
    options = convert_options.ConvertOptions(source="", **DEFAULTS | changes)
    result, text = commands.run_build("video_folder", options, None)
    assert result["splits"]["train"]["episodes"] == 1 and "1 rejected" in text
    assert next((tmp_path / "tfds").rglob("*.array_record-00000-of-00001"))
    assert not capsys.readouterr().out  # TFDS's own words must not spoil --json
    with pytest.raises(errors.UserError, match=r"unknown builder 'video_folders'.*video_folder"):
        commands.run_build("video_folders", options, None)
    with pytest.raises(errors.UserError, match="no path given: --input"):
        commands.run_build("video_folder", dataclasses.replace(options, input=""), None)
