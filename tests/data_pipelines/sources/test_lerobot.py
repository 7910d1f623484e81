"""LeRobot datasets: what is read of a sound one, and what of one with damage."""

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.sources import video_clips
from defi_jax import errors
from tests.data_pipelines.sources import lerobot_sets
from tests.data_pipelines.sources.lerobot_sets import FPS, LENGTHS, TOP, WRIST


@pytest.mark.parametrize("write", [lerobot_sets.write_v2, lerobot_sets.write_v3])
def test_both_versions_give_the_same_episodes(tmp_path, write):
    write(tmp_path)
    found = lerobot_sets.read_set(tmp_path)
    assert [e.episode_id for e in found] == ["set/000000", "set/000001", "set/000002"]
    for number, episode in enumerate(found):
        columns = lerobot_sets.columns(number)
        np.testing.assert_array_equal(episode.actions, np.float32(columns["action"]))
        np.testing.assert_array_equal(episode.states, np.float32(columns["observation.state"]))
        assert list(episode.frames) == ["static", "gripper"] and episode.fps == FPS
        for frames in episode.frames.values():
            seen = [image.decode_image(frame).mean() for frame in frames]
            wanted = [lerobot_sets.brightness(number, step) for step in range(LENGTHS[number])]
            np.testing.assert_allclose(seen, wanted, atol=2)
    assert [e.instructions for e in found] == [("öffnen",), ("push",), ("öffnen",)]
    assert found[0].embodiment == "so101_follower"


def test_the_recipe_keeps_what_actions_are_called(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    recipe = lerobot_sets.open_set(tmp_path).recipe
    assert recipe["names"]["action"] == {"motors": ["a", "b"]} and recipe["version"] == "v2.1"
    assert recipe["cameras"] == {"static": TOP, "gripper": WRIST}  # and no depth


@pytest.mark.parametrize("version", ["v1.6", "v3.1", "v2", None])
def test_an_unknown_version_names_those_that_are_known(tmp_path, version):
    lerobot_sets.write_v2(tmp_path, codebase_version=version)
    with pytest.raises(
        errors.UserError, match=rf"unknown LeRobot version '{version}'.*v2\.1, v3\.0"
    ):
        lerobot_sets.read_set(tmp_path)


def test_cameras_are_chosen_not_guessed(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    with pytest.raises(errors.UserError, match=r"--primary, one of: top, left_wrist"):
        lerobot_sets.open_set(tmp_path, primary="", wrist="")
    with pytest.raises(errors.UserError, match=r"no one camera 'front': --primary; cameras: top"):
        lerobot_sets.open_set(tmp_path, primary="front")
    assert (
        lerobot_sets.open_set(tmp_path, primary="", wrist="left_wrist").recipe["cameras"]["static"]
        == TOP
    )
    named = lerobot_sets.open_set(tmp_path, primary=WRIST, wrist="").recipe["cameras"]
    assert named == {"static": WRIST, "top": TOP}


def test_splits_and_max_frames(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    (episode,) = lerobot_sets.read_set(
        tmp_path, splits=["test"], options=video_clips.ClipOptions(max_frames=4)
    )
    assert episode.episode_id == "set/000002" and episode.length == 4 == len(episode.actions)
    with pytest.raises(errors.UserError, match=r"no split val.*train, test"):
        lerobot_sets.read_set(tmp_path, splits=["val"])


def test_small_drift_of_a_concatenated_video_finds_the_same_frames(tmp_path):
    lerobot_sets.write_v3(tmp_path, drift=0.4 / FPS)
    second = lerobot_sets.read_set(tmp_path)[1]
    seen = [image.decode_image(frame).mean() for frame in second.frames["static"]]
    np.testing.assert_allclose(
        seen, [lerobot_sets.brightness(1, step) for step in range(8)], atol=2
    )


def test_drift_beyond_half_a_frame_is_rejected(tmp_path):
    lerobot_sets.write_v3(tmp_path, drift=0.6 / FPS)
    reject = lerobot_sets.read_set(tmp_path)[1]
    assert isinstance(reject, episodes.Reject) and "video has no frame at" in reject.reason


def test_images_in_the_table_keep_their_bytes(tmp_path):
    features = lerobot_sets.info("v2.1")["features"] | {
        TOP: {"dtype": "image", "shape": [32, 48, 3]}
    }
    features.pop(WRIST)
    lerobot_sets.write_v2(tmp_path, features=features)
    png = image.encode_png(lerobot_sets.frames(0)[1])
    for episode, length in enumerate(LENGTHS):
        rows = [{"bytes": png, "path": f"frame_{step}.png"} for step in range(length)]
        path = tmp_path / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        lerobot_sets.write_table(path, lerobot_sets.columns(episode) | {TOP: rows})
    first = lerobot_sets.read_set(tmp_path, wrist="")[0]
    assert first.frames["static"] == [png] * 5
    small = lerobot_sets.read_set(
        tmp_path, wrist="", options=video_clips.ClipOptions(shorter_side=16)
    )[0]
    assert image.image_size(small.frames["static"][0]) == (16, 24)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action": [[np.nan, 0.0]] * 5}, "actions are not finite at step 0"),
        ({"action": [[1.0]] * 5}, "'action' is 1 wide, info.json says 2"),
        ({"action": [[1.0, 2.0]] * 4 + [[1.0]]}, "cannot be read"),
        ({"frame_index": [0, 1, 2, 4, 3]}, "rows of frame_index are not 0 to 4"),
        ({"episode_index": [0, 0, 0, 0, 1]}, "4 rows of episode 0 in episode_000000.parquet, the"),
        ({"task_index": [7] * 5}, "task_index 7 is not in meta/tasks"),
        (
            {"timestamp": [0.0, 0.05, 0.1, 0.15, 0.9]},
            "step at 0.900 s is after the episode's end at 0.250 s",
        ),
    ],
)
def test_a_bad_episode_is_rejected_and_the_others_go_on(tmp_path, change, reason):
    lerobot_sets.write_v2(tmp_path)
    lerobot_sets.write_table(
        tmp_path / "data/chunk-000/episode_000000.parquet", lerobot_sets.columns(0) | change
    )
    reject, second, third = lerobot_sets.read_set(tmp_path)
    assert isinstance(reject, episodes.Reject) and reason in reject.reason
    assert "episode_000000.parquet, episode 0" in reject.item
    assert isinstance(second, episodes.Episode) and isinstance(third, episodes.Episode)


def test_missing_truncated_and_flipped_files_are_named(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    (tmp_path / "data/chunk-000/episode_000000.parquet").unlink()
    table = tmp_path / "data/chunk-000/episode_000001.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    film = tmp_path / "videos/chunk-001" / TOP / "episode_000002.mp4"
    film.write_bytes(film.read_bytes()[:300])
    first, second, third = lerobot_sets.read_set(tmp_path)
    assert "data file is missing" in first.reason and "Parquet" in second.reason
    assert "cut short" in third.reason and "episode_000002.mp4" in third.reason


def test_flipped_bytes_of_a_table_never_raise_anything_else(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    options = video_clips.ClipOptions(max_frames=1)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert len(lerobot_sets.read_set(tmp_path, options=options, splits=["train"])) == 2


@pytest.mark.parametrize("write", [lerobot_sets.write_v2, lerobot_sets.write_v3])
@pytest.mark.parametrize(
    "change",
    [
        {"data_path": "data/{x}"},
        {"fps": "x"},
        {"fps": 0},
        {"fps": 10**400},
        {"splits": {"train": "2:1"}},
        {"splits": {"train": "3:9"}},
        {"splits": {"train": "0:50%"}},
        {"splits": {"train": [0, 1]}},
    ],
)
def test_a_description_that_contradicts_itself_is_a_data_error(tmp_path, write, change):
    write(tmp_path, **change)
    with pytest.raises(errors.DataError, match="cannot be used"):
        lerobot_sets.read_set(tmp_path, splits=["train"] if "splits" in change else None)


@pytest.mark.parametrize(
    ("file", "text"),
    [("info.json", "[" * 99999), ("tasks.jsonl", "[" * 99999), ("info.json", None)],
)
def test_an_unusable_description_is_a_data_error(tmp_path, file, text):
    lerobot_sets.write_v2(tmp_path, chunks_size=0)
    path = tmp_path / "meta" / file
    if text:
        lerobot_sets.write_v2(tmp_path)
        path.write_text(text)
    with pytest.raises(errors.DataError, match=r"cannot be used.*meta"):
        lerobot_sets.read_set(tmp_path)


def test_a_task_that_is_not_utf8_is_rejected(tmp_path):
    lerobot_sets.write_v2(tmp_path)
    tasks = [{"task_index": 0, "task": "\ud800 hi"}, {"task_index": 1, "task": "push"}]
    lerobot_sets.write_lines(tmp_path / "meta" / "tasks.jsonl", tasks)
    first, second, _ = lerobot_sets.read_set(tmp_path)
    assert "not UTF-8" in first.reason and isinstance(second, episodes.Episode)


def test_paths_stay_inside_the_dataset(tmp_path):
    lerobot_sets.write_v2(tmp_path, data_path="../episode_{episode_index}.parquet")
    with pytest.raises(errors.DataError, match="outside of the dataset"):
        lerobot_sets.read_set(tmp_path)


def test_usage_errors(tmp_path):
    with pytest.raises(errors.UserError, match=r"no LeRobot dataset.*info\.json"):
        lerobot_sets.read_set(tmp_path)
    lerobot_sets.write_v2(tmp_path)
    with pytest.raises(errors.UserError, match="tear frames and actions apart"):
        lerobot_sets.read_set(tmp_path, options=video_clips.ClipOptions(sample_fps=5))
