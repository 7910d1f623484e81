import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.sources import base, rlds, video_clips
from data_pipelines.sources import human_video as source_lib
from data_pipelines.tfds_builders import human_video, rlds_writer
from defi_jax import errors
from tests.fixtures import films

OPTIONS = video_clips.ClipOptions(shorter_side=24, image_format="png")
TEXT = "Flasche öffnen 打开瓶子"
HERE = base.Workers()  # in this process


def _write_clip(path, frames: int = 5, shade: int = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.linspace(shade, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    films.write_video(path, [np.roll(picture, 3 * t, axis=1) for t in range(frames)], fps=10)


def _dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def ssv2(tmp_path):
    """Label files as the data set ships them; a clip is absent and one is damaged."""
    root = tmp_path / "ssv2"
    for number in range(4):
        _write_clip(root / "clips" / f"{number}.mp4", frames=4 + number, shade=10 * number)
    (root / "clips" / "5.mp4").write_bytes(b"\0\0\0 ftypisom" + b"x" * 200)
    labels = [{"id": str(i), "label": f"{TEXT} {i}", "template": "t"} for i in (0, 1, 2, 5, 9)]
    _dump(root / "labels" / "train.json", labels)
    _dump(root / "labels" / "validation.json", [{"id": "3", "label": "closing a box"}])
    _dump(root / "labels" / "test.json", [{"id": "4"}])
    return root


def _build(builder_class, root, data_dir, **settings):
    builder = builder_class(
        input_dir=root,
        data_dir=data_dir,
        options=OPTIONS,
        workers=HERE,
        progress=False,
        **settings,
    )
    builder.download_and_prepare()
    return builder


def test_something_something_is_read_back_by_tfds_alone(ssv2, tmp_path):
    builder = _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")
    assert "tensorflow" not in sys.modules
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 3,
        "validation": 1,
    }
    read = tfds.builder_from_directory(builder.data_dir)
    assert read.info.features["steps"]["observation"]["image_0"].encoding_format == "png"
    (one,) = read.as_data_source("validation")
    steps = list(one["steps"])
    assert len(steps) == 7 and "action" not in steps[0]
    assert [step["is_first"] for step in steps] == [True] + [False] * 6
    assert [step["is_last"] for step in steps] == [False] * 6 + [True]
    assert steps[0]["language_instruction"].decode() == "closing a box"
    captions = {"captions": ssv2 / "labels" / "validation.json"}
    how = video_clips.Reading(name="x", options=OPTIONS, workers=HERE)
    source = source_lib.open_source(ssv2, how, **captions)
    wanted = next(found for found in source.read() if hasattr(found, "frames"))
    for step, frame in zip(steps, wanted.frames["static"], strict=True):
        np.testing.assert_array_equal(step["observation"]["image_0"], image_lib.decode_image(frame))


@pytest.mark.parametrize("file_format", rlds_writer.FILE_FORMATS)
def test_our_reader_gives_back_the_very_clips(ssv2, tmp_path, file_format):
    labels = [{"id": str(i), "label": f"{TEXT} {i}"} for i in range(4)]
    _dump(ssv2 / "labels" / "train.json", labels)
    builder = _build(
        human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds", file_format=file_format
    )
    read = list(rlds.RldsSource(builder.data_path.parent).read())
    captions = ssv2 / "labels" / "train.json"
    name = "something_something_v2"
    how = video_clips.Reading(name=name, embodiment="human", options=OPTIONS, workers=HERE)
    source = source_lib.open_source(ssv2, how, captions=captions)
    clips = {e.episode_id: e for e in source.read() if isinstance(e, episodes.Episode)}
    by_hash = sorted(clips, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert [episode.metadata["exported_id"] for episode in read] == by_hash != list(clips)
    for episode in read:
        clip = clips[episode.metadata["exported_id"]]
        assert episode.actions is None and episode.states is None
        for field in ("source", "embodiment", "instructions", "frames", "fps"):
            assert getattr(episode, field) == getattr(clip, field), field


def test_by_name_and_in_a_loader_process(ssv2, tmp_path):
    built = _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")
    builder = tfds.builder("something_something_v2", data_dir=tmp_path / "tfds")
    source = builder.as_data_source("train")
    texts = {next(iter(one["steps"]))["language_instruction"].decode() for one in source}
    assert texts == {f"{TEXT} {i}" for i in range(3)}
    for one in (built.as_data_source("train"), source):
        assert len(pickle.loads(pickle.dumps(one))) == 3


def test_metadata_say_what_was_chosen_and_what_was_rejected(ssv2, tmp_path):
    builder = _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")
    metadata = tfds.builder_from_directory(builder.data_dir).info.metadata["train"]
    assert metadata["episodes"] == 3 and metadata["frames"] == 4 + 5 + 6
    assert metadata["recipe"]["captions"]["file"] == "train.json"
    assert metadata["recipe"]["frames"]["shorter_side"] == 24
    assert metadata["fps"] == {"10": 3} and metadata["sizes"] == {"24x32": 3}
    reasons = {reject["item"]: reject["reason"] for reject in metadata["rejected"]}
    assert any("no such video" in reason for reason in reasons.values())
    assert any(item.endswith("5.mp4") for item in reasons)
    # `3.mp4` has its caption in the other split.
    assert any(item.endswith("3.mp4") and "caption" in reason for item, reason in reasons.items())


def test_bytes_do_not_depend_on_workers(ssv2, tmp_path):
    found = []
    for count in (0, 2):
        data_dir = tmp_path / f"tfds{count}"
        builder = human_video.SomethingSomethingV2(
            input_dir=ssv2, data_dir=data_dir, options=OPTIONS, workers=base.Workers(count=count)
        )
        builder.download_and_prepare()
        files = sorted(builder.data_path.glob("*"))
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 5
    assert found[0] == found[1]


def test_a_dataset_of_other_clips_in_its_place_is_refused(ssv2, tmp_path):
    first = _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")
    before = {path.name: path.read_bytes() for path in first.data_path.iterdir()}
    _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")  # the same: nothing to do
    other = human_video.SomethingSomethingV2(
        input_dir=ssv2, data_dir=tmp_path / "tfds", options=video_clips.ClipOptions()
    )
    with pytest.raises(errors.UserError, match=r"made otherwise .*shorter_side 24, not 256"):
        other.download_and_prepare()
    assert before == {path.name: path.read_bytes() for path in first.data_path.iterdir()}


def test_a_split_without_episodes_is_an_error_and_leaves_no_dataset(ssv2, tmp_path):
    _dump(ssv2 / "labels" / "validation.json", [{"id": "77", "label": "x"}])
    with pytest.raises(errors.DataError, match=r"split validation gave no episode .* the first:"):
        _build(human_video.SomethingSomethingV2, ssv2, tmp_path / "tfds")
    assert not list((tmp_path / "tfds" / "something_something_v2").glob("[!.]*"))


@pytest.mark.parametrize("name", sorted(human_video.BUILDERS))
def test_a_folder_of_another_kind_names_what_is_needed(tmp_path, name):
    (tmp_path / "empty").mkdir()
    builder = human_video.BUILDERS[name](input_dir=tmp_path / "empty", data_dir=tmp_path / "tfds")
    with pytest.raises(errors.UserError):
        builder.download_and_prepare()
    with pytest.raises(errors.UserError, match="no such video folder"):
        human_video.BUILDERS[name](
            input_dir=tmp_path / "nowhere", data_dir=tmp_path / "tfds"
        ).download_and_prepare()


def test_ego4d(tmp_path):
    root = tmp_path / "ego4d"
    _write_clip(root / "clips" / "c1.mp4", frames=30)
    action = {
        "clip_critical_frames": {"pre_frame": 5, "post_frame": 20},
        "narration_text": "#C C picks up #unsure",
    }
    other = action | {"narration_text": "#O A man walks"}
    interval = {"clip_uid": "c1", "narrated_actions": [action, other]}
    entry = {"video_uid": "v1", "video_metadata": {"fps": 10.0}, "annotated_intervals": [interval]}
    _dump(root / "annotations" / "fho_main.json", {"videos": [entry]})
    builder = _build(human_video.Ego4dFho, root, tmp_path / "tfds")
    (one,) = builder.as_data_source("train")
    steps = list(one["steps"])
    assert len(steps) == 16
    assert steps[0]["language_instruction"] == b"picks up something"
    assert builder.info.metadata["train"]["rejected_by_reason"]


def test_epic_kitchens_has_its_splits(tmp_path):
    root = tmp_path / "epic"
    _write_clip(root / "P01" / "P01_01.MP4", frames=40)
    head = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration"
    row = "P01_01_{0},P01,P01_01,00:00:0{0}.00,00:00:0{0}.90,open door {0}"
    for split, numbers in (("train", (0, 1)), ("validation", (2,))):
        rows = [head, *(row.format(number) for number in numbers)]
        (root / f"EPIC_100_{split}.csv").write_text("\n".join(rows))
    builder = _build(human_video.EpicKitchens100, root, tmp_path / "tfds")
    lengths = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert lengths == {"train": 2, "validation": 1}
    (one,) = builder.as_data_source("validation")
    assert next(iter(one["steps"]))["language_instruction"] == b"open door 2"


def test_a_folder_keeps_its_own_name_and_the_layout_its_splits(tmp_path):
    root = tmp_path / "my clips"
    _write_clip(root / "a.mp4")
    _dump(root / "captions.json", {"a.mp4": "push"})
    builder = _build(human_video.VideoFolder, root, tmp_path / "tfds")
    (one,) = builder.as_data_source("train")
    kept = json.loads(one["episode_metadata"]["defi_jax_episode"])
    assert kept["source"] == "my clips" and kept["episode_id"] == "my clips/a.mp4"
    layout = tmp_path / "layout"
    for split in ("train", "val"):
        _write_clip(layout / "videos" / split / "0.mp4", frames=4)
        entry = {"texts": ["lift"], "videos": [{"video_path": f"videos/{split}/0.mp4"}]}
        entry |= {"episode_id": 0, "video_length": 4, "action": [[0.0] * 7] * 3}
        _dump(layout / "annotation" / split / "0.json", entry)
    builder = _build(human_video.VideoFolder, layout, tmp_path / "tfds2")
    assert set(builder.info.splits) == {"train", "val"}
    (one,) = builder.as_data_source("val")
    assert "action" not in next(iter(one["steps"]))


SLOW_BUILD = """
import sys, time
from data_pipelines.sources import base
from data_pipelines.tfds_builders import human_video, rlds_writer
whole = rlds_writer.example
rlds_writer.example = lambda episode: (print("one", flush=True), time.sleep(60), whole(episode))[2]
builder = human_video.VideoFolder(
    input_dir=sys.argv[1], data_dir=sys.argv[2], workers=base.Workers(), progress=False
)
builder.download_and_prepare()
"""


@pytest.mark.slow
def test_a_killed_build_leaves_no_dataset_and_the_next_one_clears_up(tmp_path):
    root, data_dir = tmp_path / "clips", tmp_path / "tfds"
    _write_clip(root / "a.mp4")
    _dump(root / "captions.json", {"a.mp4": "push"})
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "one\n" in iter(process.stdout.readline, "")
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert list((data_dir / "video_folder").glob("incomplete*"))
    builder = _build(human_video.VideoFolder, root, data_dir)
    assert [path.name for path in (data_dir / "video_folder").glob("[!.]*")] == ["1.0.0"]
    assert len(builder.as_data_source("train")) == 1
