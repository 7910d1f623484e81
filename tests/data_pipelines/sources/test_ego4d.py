import json

import av
import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.sources import ego4d, human_video, video_clips
from defi_jax import errors

OPTIONS = video_clips.ClipOptions()


def _write_video(path, frames: int, rate: int = 30):
    """Frame k has brightness 3 k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"  # pyright: ignore
        for number in range(frames):
            image = np.full((32, 48, 3), min(255, 3 * number), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            output.mux(stream.encode(frame))  # pyright: ignore
        output.mux(stream.encode(None))  # pyright: ignore


def _action(**changes) -> dict:
    """As the official schema lists the fields of an action, numbers within the whole video."""
    return {
        "uid": "a-1",
        "warnings": [],
        "is_valid_action": True,
        "is_rejected": False,
        "is_invalid_annotation": False,
        "reject_reason": None,
        "narration_text": "#C C picks up #unsure",
        "narration_timestamp_sec": 1.5,
        "critical_frames": {"pre_45": 10, "pre_frame": 40, "pnr_frame": 50, "post_frame": 70},
        "clip_critical_frames": {"pre_frame": 10, "pnr_frame": 20, "post_frame": 40},
        "frames": [],
    } | changes


def _annotate(root, actions, **interval):
    content = {
        "version": "2",
        "videos": [
            {
                "video_uid": "vid",
                "video_metadata": {"fps": 30.0, "num_frames": 90},
                "annotated_intervals": [
                    {"clip_uid": "clip", "redacted": False, "narrated_actions": actions} | interval
                ],
            }
        ],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "fho_main.json").write_text(json.dumps(content))


def _read(root, options=OPTIONS, **kwargs) -> list:
    how = video_clips.Reading(name="ego4d", options=options)
    return list(human_video.open_source(root, how, **kwargs).read())


def _numbers(clip) -> list[int]:
    assert isinstance(clip, episodes.Episode), clip
    return [round(image_lib.decode_image(frame).mean() / 3) for frame in clip.frames["static"]]


def test_an_action_goes_from_its_pre_to_its_post_frame(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action()])
    (clip,) = _read(tmp_path)
    assert _numbers(clip) == list(range(10, 41)) and clip.fps == 30
    assert clip.instructions == ("picks up something",) and clip.actions is None
    assert clip.episode_id == "ego4d/vid/000-000" and clip.embodiment == "human"
    assert clip.metadata["narration"] == "#C C picks up #unsure"


def test_without_the_clip_the_whole_video_is_used(tmp_path):
    _write_video(tmp_path / "full_scale" / "vid.mp4", 90)
    _annotate(tmp_path, [_action()])
    assert _numbers(_read(tmp_path)[0]) == list(range(40, 71))


def test_two_hertz_as_defi_has_it(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action()])
    (clip,) = _read(tmp_path, video_clips.ClipOptions(sample_fps=2, square_crop=True))
    assert _numbers(clip) == [10, 25, 40] and clip.fps == 2
    assert image_lib.image_size(clip.frames["static"][0]) == (32, 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_rejected": True, "reject_reason": "blurred"}, "annotators rejected it (blurred)"),
        ({"is_valid_action": False}, "annotators rejected it"),
        ({"narration_text": "#O man X walks"}, "not about the camera wearer"),
        ({"narration_text": "#C C "}, "not about the camera wearer"),
        ({"clip_critical_frames": None}, "no pre and post frame"),
        ({"clip_critical_frames": {"pre_frame": 5}}, "no pre and post frame"),
        ({"clip_critical_frames": {"pre_frame": 9, "post_frame": 9}}, "not before its post frame"),
    ],
)
def test_unusable_actions_are_rejected_with_a_reason(tmp_path, change, reason):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action(**change), _action()])
    reject, clip = _read(tmp_path)
    assert isinstance(reject, episodes.Reject) and reason in reject.reason
    assert reject.item.endswith("clip.mp4, action 0-0") and isinstance(clip, episodes.Episode)


def test_flags_that_an_older_file_lacks_reject_nothing(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    flags = ("is_valid_action", "is_rejected", "is_invalid_annotation", "reject_reason", "uid")
    _annotate(tmp_path, [{k: v for k, v in _action().items() if k not in flags}])
    assert isinstance(_read(tmp_path)[0], episodes.Episode)


def test_missing_videos_are_one_reject_an_interval(tmp_path):
    _annotate(tmp_path, [_action(), _action()])
    (reject,) = _read(tmp_path)
    assert reject.reason == "no such videos (2 actions)" and "vid, clip clip" in reject.item


def test_redacted_intervals_are_rejected(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action()], redacted=True)
    assert "redacted" in _read(tmp_path)[0].reason


def test_a_video_of_another_rate_is_rejected(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60, rate=25)
    _annotate(tmp_path, [_action()])
    assert "plays at 25 Hz, its annotation counts frames at 30" in _read(tmp_path)[0].reason


def test_the_recipe_says_what_was_chosen(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action()])
    source = human_video.open_source(
        tmp_path,
        video_clips.Reading(name="e", options=OPTIONS),
        captions=tmp_path / "annotations" / "fho_main.json",
    )
    assert source.recipe["kind"] == "ego4d" and "pre_frame" in source.recipe["selection"]
    assert len(source.recipe["captions"]["sha256"]) == 64


@pytest.mark.parametrize("size", [50, 400, 100_000])
def test_the_annotation_is_read_in_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr(ego4d, "_BLOCK_CHARACTERS", size)
    elements = [{"text": "x]" * n, "n": [n]} for n in range(40)]
    (tmp_path / "a.json").write_text('{"v": "1", "videos" : ' + json.dumps(elements) + ', "z": []}')
    assert list(ego4d.stream_array(tmp_path / "a.json", "videos")) == elements


def test_damage_within_an_element_does_not_read_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(ego4d, "_BLOCK_CHARACTERS", 100)
    monkeypatch.setattr(ego4d, "_ELEMENT_CHARACTERS", 1000)
    elements = json.dumps([{"text": "x" * 80} for _ in range(100)])
    (tmp_path / "a.json").write_text('{"videos": ' + elements.replace('"text"', "text", 1) + "}")
    read = []
    decode = json.JSONDecoder.raw_decode
    monkeypatch.setattr(
        json.JSONDecoder,
        "raw_decode",
        lambda own, text: read.append(len(text)) or decode(own, text),
    )
    with pytest.raises(ValueError, match="an element without an end"):
        list(ego4d.stream_array(tmp_path / "a.json", "videos"))
    assert max(read) <= 2000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"narration_text": None}, "annotation cannot be used"),
        ({"clip_critical_frames": [1]}, "annotation cannot be used"),
        ({"narration_text": "#C C \udcff"}, "not UTF-8"),
    ],
)
def test_a_damaged_action_is_rejected_and_the_others_go_on(tmp_path, change, reason):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action(**change), _action()])
    rejected, clip = _read(tmp_path)
    assert reason in rejected.reason and isinstance(clip, episodes.Episode)


@pytest.mark.parametrize("entry", [{}, 3, {"video_uid": "w", "video_metadata": {"fps": 0}}])
def test_a_damaged_video_is_rejected_and_the_others_go_on(tmp_path, entry):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action()])
    path = tmp_path / "annotations" / "fho_main.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"videos": [entry, *content["videos"]]}))
    rejected, clip = _read(tmp_path)
    assert rejected.item.endswith("fho_main.json, video 0") and "cannot be used" in rejected.reason
    assert isinstance(clip, episodes.Episode)


def test_a_byte_that_is_not_utf8_costs_its_action_alone(tmp_path):
    _write_video(tmp_path / "clips" / "clip.mp4", 60)
    _annotate(tmp_path, [_action(narration_text="#C C lifts XX"), _action()])
    path = tmp_path / "annotations" / "fho_main.json"
    path.write_bytes(path.read_bytes().replace(b"XX", b"\xff"))
    rejected, clip = _read(tmp_path)
    assert "not UTF-8" in rejected.reason and isinstance(clip, episodes.Episode)


@pytest.mark.parametrize(
    "text", ['{"videos": [{"annotated_intervals": [', '{"videos": [' + "[" * 99999]
)
def test_a_damaged_annotation_is_a_data_error(tmp_path, text):
    (tmp_path / "fho_main.json").write_text(text + " " * 10 + '"annotated_intervals"')
    with pytest.raises(errors.DataError, match=r"Ego4D annotation.*fho_main\.json"):
        _read(tmp_path)
