import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.sources import base, human_video, video_clips, video_layout
from defi_jax import errors
from tests.fixtures import films, seeded

OPTIONS = video_clips.ClipOptions(shorter_side=24)
WORKERS = base.Workers()
LATENT = pathlib.Path(__file__).parents[2] / "fixtures" / "archives" / "latent.pt"
SHARED_VIDEO = pathlib.Path(__file__).parents[4] / "shared" / "data" / "video"


def _write_clip(root, clip: str, frames: int = 5, cameras: int = 1, **annotation):
    videos = []
    for camera in range(cameras):
        relative = f"videos/val/{clip}/{camera}.mp4"
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        image = np.full((48, 64, 3), 40 * camera, np.uint8)
        films.write_video(root / relative, [image] * frames, fps=3)
        videos.append({"video_path": relative})
    content = {"texts": ["pour"], "episode_id": "9", "videos": videos, **annotation}
    path = root / "annotation" / "val" / f"{clip}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _read(root, options=OPTIONS, **kwargs) -> list:
    how = video_clips.Reading(name="set", embodiment="robot", options=options, **kwargs)
    return list(video_layout.open_source(root, how).read())


def test_missing_last_action_is_neutral_and_said_so(tmp_path):
    action = np.arange(28.0).reshape(4, 7)
    state = np.arange(35.0).reshape(5, 7)
    _write_clip(tmp_path, "1", action=action.tolist(), state=state.tolist())
    (clip,) = _read(tmp_path)
    assert clip.episode_id == "set/val/1" and clip.embodiment == "robot" and clip.fps == 3
    np.testing.assert_array_equal(clip.actions[:4], action)
    np.testing.assert_array_equal(clip.actions[4], [0, 0, 0, 0, 0, 0, 27])
    np.testing.assert_array_equal(clip.states, state)
    assert clip.metadata["last_action_is_padding"] is True
    assert clip.metadata["official_episode_id"] == "9"
    (first,) = _read(tmp_path, dataclasses.replace(OPTIONS, max_frames=3))
    assert first.metadata["last_action_is_padding"] is False  # that row was cut off


@pytest.mark.parametrize("action", [None, np.zeros((5, 7)).tolist()])
def test_who_acts_follows_from_actions_unless_it_is_said(tmp_path, action):
    _write_clip(tmp_path, "1", action=action)
    source = video_layout.open_source(tmp_path, video_clips.Reading(name="s", options=OPTIONS))
    (clip,) = source.read()
    assert clip.embodiment == ("human" if action is None else "robot")


def test_two_videos_are_static_and_gripper(tmp_path):
    _write_clip(tmp_path, "1", cameras=2)
    (clip,) = _read(tmp_path)
    gripper = image_lib.decode_image(clip.frames["gripper"][0])
    assert list(clip.frames) == ["static", "gripper"] and abs(int(gripper.mean()) - 40) < 4


def test_frame_count_is_checked_against_the_annotation(tmp_path):
    _write_clip(tmp_path, "1", video_length=6)
    (reject,) = _read(tmp_path)
    assert isinstance(reject, episodes.Reject) and "5 frames, its annotation 6" in reject.reason


def test_stride_with_actions_is_refused(tmp_path):
    _write_clip(tmp_path, "1", state=np.zeros((5, 7)).tolist())
    with pytest.raises(errors.UserError, match="tear frames and actions apart"):
        _read(tmp_path, options=video_clips.ClipOptions(every=2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"videos": [{"video_path": "../../secret.mp4"}]}, "outside"),
        ({"videos": [{"video_path": "/etc/passwd"}]}, "outside"),
        ({"videos": [{"video_path": "videos/gone.mp4"}]}, "cannot be read"),
        ({"texts": "pour"}, "not a list of texts"),
        ({"state": [[1.0], [1.0, 2.0]]}, "annotation cannot be used"),
        ({"state": [[float("nan")] * 7] * 5}, "not finite"),
        ({"action": [[1.0] * 7] * 3, "video_length": 5}, "actions"),
        ({"videos": []}, "names no video"),
        ({"video_length": "5"}, "video_length"),
        ({"action": [[10**400] * 7] * 5}, "too large"),
        ({"texts": ["\ud800 hi"]}, "not UTF-8"),
    ],
)
def test_unusable_annotation_is_rejected_and_the_others_go_on(tmp_path, change, reason):
    _write_clip(tmp_path, "1", **change)
    _write_clip(tmp_path, "2")
    rejected, clip = _read(tmp_path)
    assert isinstance(rejected, episodes.Reject) and reason in rejected.reason
    assert rejected.item.endswith("1.json") and isinstance(clip, episodes.Episode)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"texts": ["a"]}', "[" * 99999])
def test_other_json_is_rejected(tmp_path, text):
    _write_clip(tmp_path, "1")
    (tmp_path / "annotation" / "val" / "1.json").write_text(text)
    (reject,) = _read(tmp_path)
    assert "annotation cannot be used" in reject.reason


def test_a_name_that_is_not_utf8_is_rejected_and_the_others_go_on(tmp_path):
    _write_clip(tmp_path, "1")
    _write_clip(tmp_path, "2")
    path = tmp_path / "annotation" / "val" / "1.json"
    path.rename(path.with_name("x\udcff.json"))
    clip, rejected = _read(tmp_path)
    assert clip.episode_id == "set/val/2" and "not UTF-8" in rejected.reason


def test_human_video_finds_the_layout(tmp_path):
    _write_clip(tmp_path, "1")
    how = video_clips.Reading(name="sthv2", options=OPTIONS)
    (clip,) = human_video.open_source(tmp_path, how).read()
    assert clip.episode_id == "sthv2/val/1" and clip.embodiment == "human"


def test_calvins_annotation_folder_has_another_name(tmp_path):
    _write_clip(tmp_path, "1")
    (tmp_path / "annotation").rename(tmp_path / "annotation_abc_13")
    assert len(_read(tmp_path)) == 1
    shutil.copytree(tmp_path / "annotation_abc_13", tmp_path / "annotation_d")
    with pytest.raises(errors.UserError, match=r"several annotation folders .annotation_abc_13, "):
        _read(tmp_path)


def test_directory_without_annotations_is_a_usage_error(tmp_path):
    with pytest.raises(errors.UserError, match="no annotation folder"):
        _read(tmp_path)
    (tmp_path / "annotation" / "val").mkdir(parents=True)
    with pytest.raises(errors.UserError, match="no annotation json"):
        _read(tmp_path)
    with pytest.raises(errors.UserError, match=r"no split train.*val"):
        _read(tmp_path, splits=["train"])


@pytest.mark.skipif(not SHARED_VIDEO.exists(), reason="real clips are not on this machine")
@pytest.mark.parametrize(
    ("folder", "lengths"),
    [
        ("bridge", {"10": 24, "14": 37, "2": 40, "8": 43}),
        ("rt1", {"1": 57, "10": 54, "6": 29, "8": 66}),
        ("sthv2", {"1023": 47, "1113": 55, "2100": 69, "2645": 53, "872": 39}),
    ],
)
def test_real_clips(folder, lengths):
    found = _read(SHARED_VIDEO / folder)
    assert {e.episode_id.split("/")[-1]: e.length for e in found} == lengths
    assert all((e.actions is not None) == (folder != "sthv2") for e in found)
    assert all(e.instructions[0] for e in found)


@pytest.mark.parametrize("folder", ["latent_videos", "latent_videos_svd"])
def test_latents_are_read_from_either_folder(tmp_path, folder):
    named = [{"latent_video_path": "latent_videos/val/1/0.pt"}]
    _write_clip(tmp_path, "1", video_length=5, latent_videos=named)
    _write_clip(tmp_path, "2", video_length=5)
    path = tmp_path / folder / "val" / "1" / "0.pt"
    path.parent.mkdir(parents=True)
    shutil.copy(LATENT, path)
    files = video_layout.LatentFiles(tmp_path)
    wanted = np.moveaxis(seeded.noise("latent", (5, 4, 2, 3)), 1, -1)
    np.testing.assert_array_equal(files("set/val/1", "static"), wanted)
    for episode, camera in (("set/val/2", "static"), ("set/val/1", "gripper"), ("set/1", "static")):
        with pytest.raises(errors.DataError, match="no latents of"):
            files(episode, camera)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("latent_videos/1.pt", "no such latent file"),
        ("../0.pt", "outside of the dataset"),
        ("videos/val/1/0.mp4", "not a PyTorch archive"),
    ],
)
def test_unusable_latents_are_a_data_error(tmp_path, path, reason):
    named = [{"latent_video_path": path}]
    _write_clip(tmp_path, "1", video_length=5, latent_videos=named)
    (tmp_path / "latent_videos").mkdir()
    shutil.copy(LATENT, tmp_path / "latent_videos" / "0.pt")
    with pytest.raises(errors.DataError, match=reason):
        video_layout.LatentFiles(tmp_path)("set/val/1", "static")


@pytest.mark.parametrize("entries", [5, [5], [{"path": "0.pt"}], {"a": 1}])
def test_a_damaged_list_of_latents_names_its_file(tmp_path, entries):
    _write_clip(tmp_path, "1", video_length=5, latent_videos=entries)
    with pytest.raises(errors.DataError, match=r"annotation cannot be used.*1\.json"):
        video_layout.LatentFiles(tmp_path)
