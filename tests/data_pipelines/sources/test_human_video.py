import csv
import json

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.formats import video
from data_pipelines.sources import base, human_video, video_clips
from defi_jax import errors

OPTIONS = video_clips.ClipOptions(shorter_side=24)
WORKERS = base.Workers()
CAPTION = "Flasche öffnen 打开瓶子"


def _write_clip(path, frames: int = 5):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    video.write_video(path, [image] * frames, fps=10)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clips"
    _write_clip(root / "a.mp4")
    _write_clip(root / "more" / "b.mp4", frames=8)
    return root


def _read(root, **kwargs) -> list:
    return list(human_video.open_source(root, options=OPTIONS, workers=WORKERS, **kwargs).read())


def _caption(root, captions, name="captions.json"):
    (root / name).write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")


def test_captioned_clips_become_episodes_without_actions(folder):
    _caption(folder, {"a.mp4": CAPTION, "more/b.mp4": ["push", "shove"]})
    first, second = _read(folder)
    assert first.episode_id == "clips/a.mp4" and first.instructions == (CAPTION,)
    assert first.actions is None and first.states is None and first.fps == 10
    assert first.embodiment == "human" and first.source == "clips"
    assert second.length == 8 and second.instructions == ("push", "shove")
    assert image_lib.decode_image(first.frames["static"][0]).shape == (24, 32, 3)
    assert len(first.metadata["video_sha256"]["static"]) == 64


def test_every_and_max_frames(folder):
    _caption(folder, {"more/b.mp4": "push"})
    options = video_clips.ClipOptions(every=3, max_frames=2, fps=30)
    clip = next(
        result
        for result in human_video.open_source(folder, options=options, workers=WORKERS).read()
        if isinstance(result, episodes.Episode)
    )
    assert clip.length == 2 and clip.fps == 10  # 30 Hz claimed, every third kept


def test_csv_with_several_captions_a_file(folder):
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("file", "caption"), ("a", 'say "hi", then\nwave'), ("a", CAPTION)])
    clip = next(r for r in _read(folder) if isinstance(r, episodes.Episode))
    assert clip.instructions == ('say "hi", then\nwave', CAPTION)


def test_label_list_of_something_something(folder):
    _caption(folder, [{"id": "a", "label": "opening bottle", "template": "Opening [something]"}])
    clip = next(r for r in _read(folder) if isinstance(r, episodes.Episode))
    assert clip.instructions == ("opening bottle",)


def test_list_of_files_with_captions(folder):
    rows = [("a.mp4", "push"), ("b.mp4", "pull"), ("a.mp4", "shove")]
    _caption(folder, [{"file": file, "caption": caption} for file, caption in rows])
    assert [clip.instructions for clip in _read(folder)] == [("push", "shove"), ("pull",)]


def test_leftovers_and_damaged_files_are_named(folder):
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:500])
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    names = ("a.mp4", "broken.mp4", "list.mp4", "gone.mp4")
    _caption(folder, dict.fromkeys(names, "x"))
    results = _read(folder)
    reasons = {r.item.split("/")[-1]: r.reason for r in results if isinstance(r, episodes.Reject)}
    assert [r.episode_id for r in results if isinstance(r, episodes.Episode)] == ["clips/a.mp4"]
    assert reasons.keys() == {"broken.mp4", "list.mp4", "gone.mp4", "b.mp4"}
    assert "cut short" in reasons["broken.mp4"] and "not an mp4" in reasons["list.mp4"]
    assert reasons["gone.mp4"] == "no such video" and reasons["b.mp4"] == "no caption"


def test_caption_that_is_not_utf8_is_rejected_and_the_others_go_on(folder):
    (folder / "captions.json").write_bytes(b'{"a.mp4": "fa\xe7ade", "b.mp4": "ok"}')
    rejected, clip = _read(folder)
    assert rejected.item.endswith("a.mp4") and "not UTF-8" in rejected.reason
    assert clip.instructions == ("ok",)


def test_ambiguous_name_is_rejected_but_a_path_decides(folder):
    _write_clip(folder / "other" / "b.mp4")
    _caption(folder, {"b.mp4": "x"})
    assert "2 videos of this name" in [r.reason for r in _read(folder)]
    _caption(folder, {"more/b.mp4": "x"})
    found = [r.episode_id for r in _read(folder) if isinstance(r, episodes.Episode)]
    assert found == ["clips/more/b.mp4"]


def test_skip_leaves_clips_out(folder):
    _caption(folder, {"a.mp4": "x", "b.mp4": "y"})
    source = human_video.open_source(folder, options=OPTIONS, workers=WORKERS)
    assert source.total == 2
    assert [e.episode_id for e in source.read(skip={"clips/a.mp4"})] == ["clips/more/b.mp4"]


def test_folder_without_captions_says_what_is_expected(folder):
    with pytest.raises(errors.UserError, match=r"no captions.*captions\.json"):
        _read(folder)


def test_absent_caption_file_is_a_user_error(folder):
    with pytest.raises(errors.UserError, match=r"no such caption file: .*; check --captions") as e:
        _read(folder, captions=folder / "no.json")
    assert e.value.exit_code == 2


def test_several_caption_files_need_a_choice(folder):
    _caption(folder, {"a.mp4": "x"}, "one.json")
    _caption(folder, {"a.mp4": "y"}, "two.json")
    with pytest.raises(errors.UserError, match=r"one\.json, two\.json"):
        _read(folder)
    chosen = _read(folder, captions=folder / "two.json")
    assert chosen[-1].instructions == ("y",) or chosen[0].instructions == ("y",)


@pytest.mark.parametrize(
    "content",
    [b"{", b"3", b"{}", b'{"a.mp4": 3}', b'[{"id": "a"}]', b'["a"]'],
)
def test_damaged_caption_file_is_a_data_error(folder, content):
    (folder / "captions.json").write_bytes(content)
    with pytest.raises(errors.DataError, match=r"captions\.json"):
        _read(folder)


def test_utf16_is_said_to_be_so(folder):
    (folder / "captions.csv").write_bytes("file,caption\na.mp4,x\n".encode("utf-16"))
    with pytest.raises(errors.DataError, match="perhaps UTF-16"):
        _read(folder)


@pytest.mark.parametrize("text", ["file,text\na,b\n", "file,caption\na\n", "file,caption\n"])
def test_damaged_csv_is_a_data_error(folder, text):
    (folder / "captions.csv").write_text(text)
    with pytest.raises(errors.DataError, match=r"captions\.csv"):
        _read(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "caption,file\npush\nx,a.mp4\n"),
        ("c.csv", "file,caption\nb.mp4\na.mp4,x\n"),
        ("c.json", '{"b.mp4": null, "a.mp4": "x"}'),
        ("c.json", '[{"file": "b.mp4"}, 7, {"file": "a.mp4", "caption": "x"}]'),
    ],
)
def test_an_entry_that_is_no_caption_costs_itself_alone(folder, name, content):
    (folder / name).write_text(content)
    found = _read(folder)
    assert isinstance(found[0], episodes.Reject) and "both must be texts" in found[0].reason
    assert f"{name}, entry 1" in found[0].item
    assert [r.episode_id for r in found if isinstance(r, episodes.Episode)] == ["clips/a.mp4"]


def test_splits_of_a_folder_without_are_refused(folder):
    _caption(folder, {"a.mp4": "x"})
    with pytest.raises(errors.UserError, match=r"no split train.*leave out --splits"):
        _read(folder, splits=["train"])
