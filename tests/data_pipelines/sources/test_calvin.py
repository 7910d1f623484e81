import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.sources import base, calvin, video_clips
from data_pipelines.store import convert, reader, validate
from defi_jax import errors

OPTIONS = video_clips.ClipOptions()
WORKERS = base.Workers()


def _write_step(folder, number: int, **changes):
    rng = np.random.default_rng(number)
    step = {
        "rgb_static": np.full((200, 200, 3), number * 8, np.uint8),
        "rgb_gripper": np.full((84, 84, 3), 255 - number * 8, np.uint8),
        "rel_actions": rng.uniform(-1, 1, 7),
        "actions": rng.uniform(-1, 1, 7),
        "robot_obs": rng.standard_normal(15),
        "scene_obs": rng.standard_normal(24),
    }
    kept = {name: value for name, value in (step | changes).items() if value is not None}
    np.savez_compressed(folder / f"episode_{number:07d}.npz", **kept)


def _write_annotation(folder, windows, texts, name="lang_annotations"):
    content = {
        "language": {"ann": list(texts), "task": ["task"] * len(texts), "emb": np.zeros((2, 384))},
        "info": {"episodes": [], "indx": list(windows)},
    }
    (folder / name).mkdir(exist_ok=True)
    np.save(folder / name / "auto_lang_ann.npy", content)  # pyright: ignore


@pytest.fixture
def calvin_root(tmp_path):
    for split, first in (("training", 3), ("validation", 20)):
        folder = tmp_path / "task_ABC_D" / split
        folder.mkdir(parents=True)
        for number in range(first, first + 8):
            _write_step(folder, number)
        np.save(folder / "ep_start_end_ids.npy", np.array([[first, first + 7]]))
        _write_annotation(
            folder, [(first, first + 3), (first + 2, first + 7)], ["open the drawer", "schieb es"]
        )
    return tmp_path / "task_ABC_D"


def _open(root, **changes) -> base.ItemSource:
    own = {key: changes.pop(key) for key in ("splits", "options", "workers") if key in changes}
    how = video_clips.Reading(**{"name": "abc", **own})
    return calvin.open_source(root, how, **changes)


def _read(root, **changes) -> list:
    return list(_open(root, **changes).read())


def test_annotated_windows_are_inclusive_and_keep_their_columns(calvin_root):
    first, second, third, _ = _read(calvin_root)
    assert first.episode_id == "abc/training/00000-0000003-0000006" and first.length == 4
    assert second.instructions == ("schieb es",) and second.length == 6
    assert third.episode_id.startswith("abc/validation/")
    step = np.load(calvin_root / "training" / "episode_0000005.npz")
    np.testing.assert_array_equal(first.actions[2], step["rel_actions"].astype(np.float32))
    np.testing.assert_array_equal(first.states[2], step["robot_obs"].astype(np.float32))
    assert first.embodiment == "franka_panda" and first.fps == 30
    assert first.metadata["task"] == "task" and first.metadata["steps"] == [3, 6]
    static = image.decode_image(first.frames["static"][2])
    assert static.shape == (200, 200, 3) and abs(int(static.mean()) - 40) <= 1
    assert image.decode_image(first.frames["gripper"][2]).shape == (84, 84, 3)


def test_absolute_actions_are_another_embodiment(calvin_root):
    first = _read(calvin_root, actions="actions", splits=["training"])[0]
    step = np.load(calvin_root / "training" / "episode_0000003.npz")
    np.testing.assert_array_equal(first.actions[0], step["actions"].astype(np.float32))
    assert first.embodiment == "franka_panda_absolute"


def test_play_is_cut_into_pieces_without_language(calvin_root, monkeypatch):
    monkeypatch.setattr(calvin, "PLAY_STEPS", 5)
    found = _read(calvin_root, part="play", splits=["training"])
    assert [e.length for e in found] == [5, 3] and {e.instructions for e in found} == {("",)}
    assert found[1].metadata["steps"] == [8, 10]


def test_one_split_can_be_the_input(calvin_root):
    found = _read(calvin_root / "validation")
    assert {e.episode_id.split("/")[1] for e in found} == {"validation"}


def test_png_keeps_pixels(calvin_root):
    options = video_clips.ClipOptions(image_format="png")
    first = _read(calvin_root, options=options)[0]
    np.testing.assert_array_equal(image.decode_image(first.frames["static"][0]), 24)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rgb_gripper": None}, "rgb_gripper"),
        ({"rgb_static": np.zeros((200, 200), np.uint8)}, "'rgb_static' is uint8[200, 200]"),
        ({"rgb_static": np.zeros((200, 200, 3))}, "'rgb_static' is float64"),
        ({"rel_actions": np.full(7, np.nan)}, "not finite at step 2"),
        ({"rel_actions": np.zeros(6)}, "same shape"),
        ({"robot_obs": np.array([object()] * 15)}, "Object arrays cannot be loaded"),
    ],
)
def test_a_bad_step_rejects_its_windows_only(calvin_root, changes, reason):
    _write_step(calvin_root / "training", 5, **changes)
    found = _read(calvin_root)
    rejects = [result for result in found if isinstance(result, episodes.Reject)]
    assert len(rejects) == 2 and reason in rejects[0].reason
    assert sum(isinstance(result, episodes.Episode) for result in found) == 2


def test_missing_and_damaged_steps_are_named(calvin_root):
    (calvin_root / "training" / "episode_0000003.npz").unlink()
    path = calvin_root / "training" / "episode_0000010.npz"
    path.write_bytes(path.read_bytes()[:-200])
    first, second, *_ = _read(calvin_root)
    assert "step is missing" in first.reason and "episode_0000003" in first.reason
    assert "cannot be read" in second.reason and "episode_0000010" in second.reason


def test_flipped_bytes_of_a_step_never_raise_anything_else(calvin_root):
    path = calvin_root / "training" / "episode_0000003.npz"
    data, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        _read(calvin_root, splits=["training"])


def test_an_array_that_unpacks_to_gigabytes_is_refused(calvin_root, monkeypatch):
    monkeypatch.setattr(calvin, "_MAX_MEMBER_BYTES", 1000)
    assert "larger than a step" in _read(calvin_root)[0].reason


def test_other_number_of_texts_than_windows_is_a_data_error(calvin_root):
    _write_annotation(calvin_root / "training", [(3, 6)], ["a", "b"])
    with pytest.raises(errors.DataError, match=r"auto_lang_ann\.npy"):
        _read(calvin_root, splits=["training"])


@pytest.mark.parametrize("window", [(0.9, 3.9), ("0", "3"), (0, float("inf")), (4, 3)])
def test_windows_are_whole_numbers(calvin_root, window):
    _write_annotation(calvin_root / "training", [window], ["a"])
    with pytest.raises(errors.DataError, match="annotation 0 is from step"):
        _read(calvin_root, splits=["training"])


def test_a_recording_without_its_last_step_is_refused(calvin_root):
    np.save(calvin_root / "training" / "ep_start_end_ids.npy", np.array([[3, 2**62]]))
    with pytest.raises(errors.DataError, match=r"no last step.*ep_start_end_ids\.npy"):
        _read(calvin_root, part="play", splits=["training"])


def test_a_text_that_is_not_utf8_is_rejected(calvin_root):
    _write_annotation(calvin_root / "training", [(3, 4), (5, 6)], ["\ud800", "push"])
    rejected, found = _read(calvin_root, splits=["training"])
    assert "not UTF-8" in rejected.reason and found.length == 2


def test_usage_errors_name_what_to_do(calvin_root):
    with pytest.raises(errors.UserError, match=r"no split test.*training, validation"):
        _read(calvin_root, splits=["test"])
    with pytest.raises(errors.UserError, match="no such CALVIN directory"):
        _read(calvin_root / "nowhere")
    with pytest.raises(errors.UserError, match="tear frames and actions apart"):
        _read(calvin_root, options=video_clips.ClipOptions(every=2))
    (calvin_root / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    with pytest.raises(errors.UserError, match="--calvin_part=play"):
        _read(calvin_root, splits=["training"])


def test_embeddings_of_other_language_models_are_named_and_chosen_by_a_flag(calvin_root):
    folder = calvin_root / "training"
    (folder / "lang_annotations" / "auto_lang_ann.npy").unlink()
    names = ("lang_all-distilroberta-v1", "lang_paraphrase-MiniLM-L3-v2")
    for name in names:
        _write_annotation(folder, [(3, 6)], [f"text of {name}"], name)
    wanted = " or ".join(f"--calvin_language={name}" for name in names)
    with pytest.raises(errors.UserError, match=f"no language annotations.*give {wanted}"):
        _read(folder)
    (found,) = _read(folder, language=names[1])
    assert found.instructions == (f"text of {names[1]}",)
    with pytest.raises(errors.UserError, match=r"lang_msmarco/auto_lang_ann\.npy; found others"):
        _read(folder, language="lang_msmarco")


@pytest.mark.parametrize("part", ["language", "play"])
def test_a_split_that_cannot_be_read_does_not_stop_the_other(calvin_root, tmp_path, part):
    damaged = calvin_root / "training"
    (damaged / "lang_annotations" / "auto_lang_ann.npy").write_bytes(b"\x93NUMPY")
    (damaged / "ep_start_end_ids.npy").write_bytes(b"PK")
    source = _open(calvin_root, part=part)
    manifest = convert.convert(source, tmp_path / "store", origin={}, progress=False)
    (said,) = manifest["recipe"]["left_out"]
    assert said.startswith("split training: ") and ".npy; download it again" in said
    assert f"  left out {said}" in convert.summary(manifest, 1.0)
    store = reader.EpisodeStore(tmp_path / "store")
    assert {name.split("/")[1] for name in store.episode_ids} == {"validation"}
    findings, _ = validate.validate(tmp_path / "store", progress=False)
    assert {finding.check for finding in findings} <= {"language"}  # play has none
    with pytest.raises(errors.DataError, match="training"):  # nothing is left
        _read(calvin_root, part=part, splits=["training"])


def test_recordings_that_are_no_table_are_a_data_error(calvin_root):
    np.save(calvin_root / "training" / "ep_start_end_ids.npy", np.array([[9, 3]]))
    with pytest.raises(errors.DataError, match="ends before it starts"):
        _read(calvin_root, part="play", splits=["training"])
