"""Episode tables that contradict themselves, the rows or the videos never give others' pixels."""

import shutil

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_pipelines import episodes
from defi_jax import errors
from tests.data_pipelines.sources import lerobot_sets
from tests.data_pipelines.sources.lerobot_sets import FPS, LENGTHS, TOP, WRIST
from tests.fixtures import films

FILE = "data/chunk-000/file-000.parquet"
FILM = f"videos/{TOP}/chunk-000/file-000.mp4"
PLACE = {f"videos/{TOP}/from_timestamp": 0.0, f"videos/{TOP}/to_timestamp": LENGTHS[1] / FPS}


def _rows(change):
    """Returns a change of one file's rows."""
    return lambda root: lerobot_sets.change_table(root / FILE, change)


def _episodes(change):
    return lambda root: lerobot_sets.change_episodes(root, change)


def _copy(name):
    return lambda root: shutil.copy(root / FILM, root / name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_episodes(lambda rows: rows[1].update(PLACE)), "episodes 0 and 1 both claim 0.00 to 0.25"),
        (
            _episodes(lambda rows: rows[1].update({f"videos/{TOP}/to_timestamp": 5.0})),
            f"episode 1 has 8 steps, 4.75 s of {TOP}",
        ),
        (
            _episodes(lambda rows: rows[0].update({f"videos/{TOP}/from_timestamp": 0.05})),
            f"no episode claims 0.00 to 0.05 s of {FILM}",
        ),
        (_episodes(lambda rows: rows[1].update(length=9)), "total_frames is 19, the table says 20"),
        (_episodes(lambda rows: rows[1].update(length=0)), "episode 1 has 0 steps"),
        (_episodes(lambda rows: rows.pop(2)), "total_episodes is 3, the table says 2"),
        (_episodes(lambda rows: rows[1].update(episode_index=0)), "episode 0 is there 2 times"),
        (
            _episodes(lambda rows: rows[1].update(dataset_from_index=6)),
            "episode 1 has rows (6, 13), not (5, 13)",
        ),
        (
            _episodes(lambda rows: rows[1].update(dataset_to_index=12)),
            "episode 2 has rows (13, 19), not (12, 18)",
        ),
        (
            _episodes(lambda rows: rows[2].update({"data/file_index": 0})),
            "no episode claims data/chunk-000/file-001.parquet",
        ),
        (
            _copy(f"videos/{TOP}/chunk-000/file-002.mp4"),
            f"no episode claims videos/{TOP}/chunk-000",
        ),
        (
            _rows(lambda rows: rows[5].update(episode_index=0)),
            "6 rows of episode 0 in file-000.parquet, the table says 5; "
            "7 rows of episode 1 in file-000.parquet, the table says 8",
        ),
        (
            _rows(lambda rows: rows[5].update(episode_index=7)),
            "1 rows of episode 7 in file-000.parquet, the table says 0",
        ),
        (_rows(lambda rows: rows.pop()), "7 rows of episode 1 in file-000.parquet"),
    ],
)
def test_a_table_that_contradicts_itself_is_one_error_of_the_dataset(tmp_path, change, said):
    lerobot_sets.write_v3(tmp_path)
    change(tmp_path)
    with pytest.raises(errors.DataError, match=r"contradicts itself or the files, \d") as caught:
        lerobot_sets.open_set(tmp_path)
    assert said in str(caught.value) and str(tmp_path / "meta") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_contradictions_are_counted_and_a_few_are_named(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    for number in range(2, 40):
        _copy(f"videos/{TOP}/chunk-000/file-{number:03d}.mp4")(tmp_path)
    with pytest.raises(errors.DataError, match=r"38 times .*and 32 more") as caught:
        lerobot_sets.open_set(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"total_episodes": 2}, "total_episodes is 2, the table says 3"),
        ({"total_frames": 20}, "total_frames is 20, the table says 19"),
        (
            {"video_path": "videos/chunk-000/{video_key}/episode_000001.mp4"},
            "episodes 0 and 2 both claim 0.00 to 0.25",
        ),
    ],
)
def test_a_v2_description_that_contradicts_itself_is_one_error(tmp_path, change, said):
    lerobot_sets.write_v2(tmp_path, **change)
    if "video_path" in change:
        (tmp_path / "videos/chunk-001" / WRIST / "episode_000002.mp4").unlink()
    with pytest.raises(errors.DataError, match="contradicts itself or the files") as caught:
        lerobot_sets.open_set(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("count", [2, 4, 14])
def test_a_v2_video_of_another_length_rejects_its_episode(tmp_path, count):
    lerobot_sets.write_v2(tmp_path)
    path = tmp_path / "videos/chunk-000" / TOP / "episode_000001.mp4"
    frames = [np.full((32, 48, 3), 90, np.uint8)] * count
    films.write_video(path, frames, fps=FPS)
    first, second, third = lerobot_sets.read_set(tmp_path)
    assert isinstance(second, episodes.Reject)
    assert f"video lasts {count / FPS:.2f} s, its episode 0.00 to 0.40 s" in second.reason
    np.testing.assert_allclose(lerobot_sets.seen(first), lerobot_sets.shown(0), atol=2)
    np.testing.assert_allclose(lerobot_sets.seen(third), lerobot_sets.shown(2), atol=2)


def test_a_v2_table_that_lacks_an_episode_or_has_another_length(tmp_path):
    lerobot_sets.write_v2(tmp_path, total_episodes=2, total_frames=11 + 1)
    lerobot_sets.change_episodes(tmp_path, lambda rows: (rows.pop(1), rows[1].update(length=7)))
    source = lerobot_sets.open_set(tmp_path)
    (_, left_out) = source.recipe["left_out"]
    assert "files that no episode claims: data/chunk-000/episode_000001.parquet" in left_out
    reject, first = source.read()
    assert "6 rows of episode 2 in episode_000002.parquet, the table says 7" in reject.reason
    assert first.episode_id == "set/000000"


def test_a_short_v3_video_rejects_its_own_episodes_only(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    grey = [np.full((32, 48, 3), level, np.uint8) for level in lerobot_sets.shown(0)]
    films.write_video(tmp_path / FILM, grey, fps=FPS)  # only the first of its two episodes
    first, second, third = lerobot_sets.read_set(tmp_path)
    assert "video lasts 0.25 s, its episode 0.25 to 0.65 s" in second.reason
    assert FILM in second.reason and "episode 1" in second.item
    np.testing.assert_allclose(lerobot_sets.seen(first), lerobot_sets.shown(0), atol=2)
    np.testing.assert_allclose(lerobot_sets.seen(third), lerobot_sets.shown(2), atol=2)


def test_the_end_of_a_v3_video_that_no_episode_claims_is_said(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    path = tmp_path / f"videos/{WRIST}/chunk-000/file-001.mp4"
    levels = lerobot_sets.shown(2) + [0] * 4
    films.write_video(path, [np.full((32, 48, 3), level, np.uint8) for level in levels], fps=FPS)
    source = lerobot_sets.open_set(tmp_path)
    (_, left_out) = source.recipe["left_out"]
    assert "ends of videos that no episode claims: 0.20 s of" in left_out and WRIST in left_out
    assert len(list(source.read())) == 3


@pytest.mark.parametrize("claim", [4 / FPS, 6 / FPS])
def test_a_claim_one_frame_off_never_shows_a_frame_of_the_next_episode(tmp_path, claim):
    lerobot_sets.write_v3(tmp_path)

    def change(rows):
        rows[0][f"videos/{TOP}/to_timestamp"] = rows[1][f"videos/{TOP}/from_timestamp"] = claim

    lerobot_sets.change_episodes(tmp_path, change)
    first, *_ = lerobot_sets.read_set(tmp_path)
    if claim < LENGTHS[0] / FPS:
        assert "step at 0.200 s is after the episode's end at 0.200 s" in first.reason
    else:
        np.testing.assert_allclose(lerobot_sets.seen(first), lerobot_sets.shown(0), atol=2)


def test_one_damaged_data_file_of_v3_rejects_its_episodes(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    (tmp_path / FILE).write_bytes(b"PAR1 not really")
    first, second, third = lerobot_sets.read_set(tmp_path)
    assert "data file cannot be read" in first.reason and "episode 1" in second.item
    assert isinstance(third, episodes.Episode)


def test_tables_of_several_files_and_any_order_are_one_table(tmp_path):
    lerobot_sets.write_v3(tmp_path)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    table = parquet.read_table(path)
    lerobot_sets.write_table(path, table.take(pyarrow.array([2, 0])))
    other = tmp_path / "meta/episodes/chunk-001/file-000.parquet"
    lerobot_sets.write_table(other, table.slice(1, 1))
    found = lerobot_sets.read_set(tmp_path)
    assert [one.episode_id for one in found] == ["set/000000", "set/000001", "set/000002"]
    for number, one in enumerate(found):
        np.testing.assert_allclose(lerobot_sets.seen(one), lerobot_sets.shown(number), atol=2)
