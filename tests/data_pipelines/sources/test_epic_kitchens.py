import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.sources import epic_kitchens, human_video, video_clips
from defi_jax import errors
from tests.fixtures import films

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
ROW = (
    "P01_102_0,P01,P01_102,00:00:01.100,00:00:00.54,00:00:01.23,27,111,take knife and plate,take,0,"
    "knife,4,\"['knife', 'plate']\",\"[4, 2]\""
)


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "P01" / "videos" / "P01_102.MP4"
    path.parent.mkdir(parents=True)
    films.write_video(path, [np.zeros((32, 48, 3), np.uint8)] * 100, fps=50)
    return tmp_path


def _write(root, *rows, split="train", header=HEADER):
    (root / "epic-kitchens-100-annotations").mkdir(exist_ok=True)
    table = root / "epic-kitchens-100-annotations" / f"EPIC_100_{split}.csv"
    table.write_text("\n".join([header, *rows]) + "\n")


def _read(root, splits=None, **kwargs) -> list:
    how = video_clips.Reading(name="epic", splits=splits)
    return list(human_video.open_source(root, how, **kwargs).read())


def test_a_segment_goes_from_start_to_stop(root):
    _write(root, ROW)
    (clip,) = _read(root)
    assert clip.episode_id == "epic/P01_102_0" and clip.instructions == ("take knife and plate",)
    assert clip.length == 62 - 27 + 1 and clip.fps == 50  # frames 27 to 61.5 of 50 Hz
    assert clip.metadata["participant"] == "P01" and clip.actions is None


def test_splits_are_tables(root):
    _write(root, ROW)
    _write(root, ROW.replace("P01_102_0", "P01_102_1"), split="validation")
    assert len(_read(root)) == 2
    (clip,) = _read(root, splits=["validation"])
    assert clip.metadata["table"] == "EPIC_100_validation.csv"
    with pytest.raises(errors.UserError, match=r"no split test.*train, validation"):
        _read(root, splits=["test"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("00:00:00.54", "00:00:02.54", "ends at 1.23 s, before it starts"),
        ("00:00:00.54", "0.54", "is no time"),
        ("take knife and plate", " ", "no narration"),
        ("00:00:00.54,00:00:01.23", "00:01:00.54,00:01:01.23", "ends at 2 s, its annotation"),
    ],
)
def test_unusable_segments_are_rejected(root, old, new, reason):
    _write(root, ROW.replace(old, new), ROW.replace("P01_102_0", "P01_102_1"))
    rejects = [result for result in _read(root) if isinstance(result, episodes.Reject)]
    assert len(rejects) == 1 and reason in rejects[0].reason and "P01_102_0" in rejects[0].item


def test_segments_without_video_are_one_reject(root):
    other = ROW.replace("P01_102", "P02_01")
    _write(root, other, other.replace("P02_01_0", "P02_01_1"), ROW)
    reject, clip = _read(root)
    assert (reject.item, reject.reason) == ("P02_01", "no such videos (2 segments)")
    assert isinstance(clip, episodes.Episode)


def test_damaged_rows_are_rejected_and_the_others_go_on(root):
    _write(root, ROW.replace("take knife and plate", "take XX"), "P01_102_7,P01,P01_102,00:00")
    (table,) = root.glob("*/EPIC_100_train.csv")
    odd = ROW.replace("P01_102,", "a: b,").replace("P01_102_0", "a_0")
    text = table.read_bytes().replace(b"XX", b"\xff") + f"{odd}\n{ROW}\n".encode()
    table.write_bytes(text.replace(b"P01_102_0", b"P01_102_1", 1))
    found = _read(root)
    reasons = [f"{r.item}: {r.reason}" for r in found if isinstance(r, episodes.Reject)]
    assert [clip.episode_id for clip in found if isinstance(clip, episodes.Episode)] == [
        "epic/P01_102_0"
    ]
    assert reasons[0].startswith("EPIC_100_train.csv, segment 2: row is cut short, without start")
    assert reasons[1] == "a: b: no such videos (1 segments)" and "not UTF-8" in reasons[2]


def test_a_repeated_segment_is_rejected(root):
    _write(root, ROW, ROW)
    assert "there already" in _read(root)[0].reason


@pytest.mark.parametrize("header", [HEADER.replace("narration,verb", "text,verb"), "narration_id"])
def test_a_table_without_a_column_is_a_data_error(root, header):
    _write(root, ROW, header=header)
    with pytest.raises(errors.DataError, match=r"without column .*EPIC_100_train\.csv"):
        _read(root)


@pytest.mark.parametrize(
    ("text", "value"), [("00:00:01.089", 1.089), ("01:02:03", 3723), ("00:00:00.14", 0.14)]
)
def test_times(text, value):
    assert epic_kitchens.seconds(text) == pytest.approx(value)
