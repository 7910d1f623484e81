import csv
import json
import os
import unicodedata

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.sources import base, human_video, video_clips
from defi_jax import errors
from tests.fixtures import films

OPTIONS = video_clips.ClipOptions(shorter_side=24)
WORKERS = base.Workers()
CAPTION = "Flasche öffnen 打开瓶子"


def _write_clip(path, frames: int = 5):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.linspace(0, 255, 48 * 64 * 3).astype(np.uint8).reshape(48, 64, 3)
    films.write_video(path, [image] * frames, fps=10)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clips"
    _write_clip(root / "a.mp4")
    _write_clip(root / "more" / "b.mp4", frames=8)
    return root


def _open(root, splits=None, **kwargs):
    how = video_clips.Reading(name=root.name, splits=splits, options=OPTIONS)
    return human_video.open_source(root, how, **kwargs)


def _read(root, **kwargs) -> list:
    return list(_open(root, **kwargs).read())


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
    how = video_clips.Reading(name="clips", options=options)
    clip = next(
        result
        for result in human_video.open_source(folder, how).read()
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
    source = _open(folder)
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


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("captioned", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_names_are_compared_in_one_normal_form(tmp_path, stored, captioned, suffix):
    name = "Öffne Tür é"
    _write_clip(tmp_path / (unicodedata.normalize(stored, name) + ".mp4"))
    _caption(tmp_path, {unicodedata.normalize(captioned, name) + suffix: "open the door"})
    (clip,) = _read(tmp_path)
    assert clip.instructions == ("open the door",)


def test_names_that_differ_only_in_normal_form_are_two_videos(tmp_path):
    for form in ("NFC", "NFD"):
        _write_clip(tmp_path / (unicodedata.normalize(form, "é") + ".mp4"))
    _caption(tmp_path, {"é": "x"})
    assert "2 videos of this name" in [reject.reason for reject in _read(tmp_path)]


@pytest.mark.parametrize(
    "text",
    [
        "file, caption\na.mp4, open it\n",
        "\ufefffile,caption\r\na.mp4,open it\r\n\r\n",
        "File;Caption\na.mp4;open it\n",
        "caption\tfile\nopen it\ta.mp4\n",
        '"file" , "CAPTION" \n "a.mp4" , "open it" \n',
        "number,file,caption\n1,.\\a.mp4,open it\n",
    ],
)
def test_headers_and_cells_may_be_written_as_people_write_them(tmp_path, text):
    _write_clip(tmp_path / "a.mp4")
    (tmp_path / "captions.CSV").write_text(text, encoding="utf-8", newline="")
    (clip,) = _read(tmp_path)
    assert clip.instructions == ("open it",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,text\na,b\n", "without column file, caption; it has: name, text"),
        ("file,caption\na.mp4,open it, then close it\n", "line 2 has 3 cells for 2 columns"),
        ("file,caption,caption\na.mp4,x,y\n", "several columns caption"),
        ('file,caption\na.mp4,"open it\nb.mp4,close it\n', "a quote before line 3 is not closed"),
        (",".join(map(str, range(99_999))) + "\n", "it has: 0, 1, 2, 3, .*, 11, ..."),
    ],
)
def test_a_table_that_is_no_caption_file_says_what_is_missing(tmp_path, text, said):
    _write_clip(tmp_path / "a.mp4")
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(errors.DataError, match=said) as error:
        _read(tmp_path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_two_names_of_one_video_are_one_clip_and_repeated_lines_one_caption(tmp_path):
    _write_clip(tmp_path / "a.mp4")
    (tmp_path / "c.csv").write_text("file,caption\na,push\na.mp4,push\n./a.mp4,shove\n")
    (clip,) = _read(tmp_path)
    assert set(clip.instructions) == {"push", "shove"} and len(clip.instructions) == 2


def test_a_file_that_is_there_is_never_missing(tmp_path):
    for name in ("notes.txt", "b.mp4", "c.hevc", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"\x00\x00\x00\x01" + bytes(range(200)))
    _caption(tmp_path, {"notes.txt": "x", "b": "y", "c.hevc": "z"})
    reasons = [reject.reason for reject in _read(tmp_path)]
    assert len(reasons) == 3 and all("a bare H.264" in reason for reason in reasons)


def test_links_are_followed_and_endless_ones_end(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    _write_clip(elsewhere / "a.mp4")
    root = tmp_path / "clips"
    _write_clip(root / "real" / "b.mp4")
    (root / "links").mkdir()
    (root / "out").symlink_to(elsewhere)
    (root / "links" / "in").symlink_to("../real")
    (root / "links" / "up").symlink_to("..")
    (root / "self.mp4").symlink_to("self.mp4")
    names = ["out/a.mp4", "links/in/b.mp4", "real/b.mp4"]
    _caption(root, dict.fromkeys(["a", *names[1:], "self.mp4"], "x"))
    found = _read(root)
    ids = {r.episode_id for r in found if isinstance(r, episodes.Episode)}
    assert ids == {f"clips/{name}" for name in names}
    (reject,) = (r for r in found if isinstance(r, episodes.Reject))
    assert reject.item.endswith("self.mp4") and "symbolic links" in reject.reason


def test_a_folder_or_a_pipe_is_no_video(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    os.mkfifo(tmp_path / "b.mp4")
    _caption(tmp_path, {"a.mp4": "x", "b.mp4": "y", "../../etc/passwd": "z", "/etc/passwd": "z"})
    reasons = [reject.reason for reject in _read(tmp_path)]
    assert sorted(reason.split(":")[0] for reason in reasons) == [
        *["a folder or a device in place of a video"] * 2,
        *["no such video"] * 2,
    ]
