import json

import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.store import convert, reader, shards, validate
from data_pipelines.store import writer as store_writer
from defi_jax import errors


def _images(count: int, size: tuple[int, int] = (16, 16), level: int = 90) -> list[bytes]:
    rng = np.random.default_rng(count)
    return [image.encode_jpeg(rng.integers(0, level, (*size, 3), np.uint8)) for _ in range(count)]


def _episode(name: str, length: int = 5, **changes) -> episodes.Episode:
    rng = np.random.default_rng(length)
    values = {
        "episode_id": name,
        "source": "test",
        "embodiment": "robot",
        "instructions": ("push",),
        "frames": {"static": _images(length)},
        "actions": rng.standard_normal((length, 4)).astype(np.float32),
        "states": None,
        "fps": 10.0,
    }
    return episodes.Episode(**values | changes)


def _findings(directory, *content: episodes.Episode) -> list[validate.Finding]:
    with store_writer.EpisodeWriter(directory, source="test") as writer:
        for episode in content:
            writer.write(episode)
    findings, counts = validate.validate(directory, progress=False)
    assert counts["episodes"] == len(content)
    assert counts["errors"] == sum(f.severity == "error" for f in findings)
    return findings


def test_good_store_has_no_findings(tmp_path):
    assert _findings(tmp_path, _episode("a"), _episode("b", 7)) == []


def test_damaged_jpeg_is_named_with_its_frame(tmp_path):
    frames = _images(5)
    frames[3] = frames[3][:-20]
    (finding,) = _findings(tmp_path, _episode("a"), _episode("b", frames={"static": frames}))
    assert finding.severity == "error" and "damaged JPEG" in finding.what
    assert finding.where == "episode b camera static frame 3"


def test_changing_image_size_is_an_error(tmp_path):
    frames = [*_images(3), *_images(2, (8, 8))]
    findings = _findings(tmp_path, _episode("a", frames={"static": frames}))
    assert [f.where for f in findings] == [f"episode a camera static frame {i}" for i in (3, 4)]


def test_missing_camera_is_named(tmp_path):
    both = {"static": _images(5), "gripper": _images(5)}
    (finding,) = _findings(tmp_path, _episode("a", frames=both), _episode("b"))
    assert finding.check == "camera" and "gripper" in finding.what and "b" in finding.where


def test_changing_width_is_an_error(tmp_path):
    wide = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    (finding,) = _findings(tmp_path, _episode("a"), _episode("b", actions=wide))
    assert finding.check == "width" and "6 wide, 4 in episode a" in finding.what


def test_constant_dimension_is_a_warning(tmp_path):
    actions = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    actions[:, 2] = 1
    (finding,) = _findings(tmp_path, _episode("a", actions=actions))
    assert (finding.severity, finding.what) == ("warning", "actions dimension 2 is always 1")


def test_empty_instruction_and_black_camera_are_warnings(tmp_path):
    black = {"static": _images(5, level=1)}
    findings = _findings(tmp_path, _episode("a", instructions=(" ",), frames=black))
    assert {f.check for f in findings} == {"language", "black"}
    assert all(f.severity == "warning" and "episode a" in f.where for f in findings)


def test_flipped_bits_in_the_records_are_found(tmp_path):
    with store_writer.EpisodeWriter(tmp_path, source="test") as writer:
        writer.write(_episode("a"))
    (path,) = tmp_path.glob("*.array_record")
    data = bytearray(path.read_bytes())
    data[data.find(_images(5)[0]) + 100] ^= 4
    path.write_bytes(bytes(data))
    findings, counts = validate.validate(tmp_path, progress=False)
    assert counts["errors"] >= 1 and any(f.check == "damaged" for f in findings)


def test_all_records_that_are_not_the_index_s_are_found(tmp_path):
    with store_writer.EpisodeWriter(tmp_path, source="test") as writer:
        for name in "abc":
            writer.write(_episode(name))
    (path,) = tmp_path.glob("*.index.jsonl")
    first, a, b, c = path.read_text().splitlines()
    a, c = (json.dumps(json.loads(line) | {"sha256": "0" * 64}) for line in (a, c))
    path.write_text(shards.index_text(json.loads(first), [a, b, c]))
    one, other = validate.validate(tmp_path, progress=False)[0]
    assert one.check == other.check == "damaged" and "digest" in one.what
    assert "'a'" in one.where and "'c'" in other.where


class _Spoilt(reader.EpisodeStore):
    """A store as older or other tools might have left it."""

    def actions(self, i):
        column = super().actions(i)
        column[3, 1] = np.nan
        return column[:-1]


def test_values_that_the_writer_refuses_are_still_looked_for(tmp_path, monkeypatch):
    with store_writer.EpisodeWriter(tmp_path, source="test") as writer:
        writer.write(_episode("a"))
    monkeypatch.setattr(reader, "EpisodeStore", _Spoilt)
    findings, _ = validate.validate(tmp_path, progress=False)
    assert {f.check: f.where for f in findings} == {
        "length": "episode a",
        "finite": "episode a step 3",
    }


@pytest.mark.parametrize("kept", [[], ["a"]])
def test_columns_without_rows_are_reported(tmp_path, monkeypatch, kept):
    class Empty(reader.EpisodeStore):
        def actions(self, i):
            column = super().actions(i)
            return column if self.meta(i).episode_id in kept else column[:0]

    with store_writer.EpisodeWriter(tmp_path, source="test") as writer:
        for name in ("a", "b"):
            writer.write(_episode(name, embodiment="franka_panda"))
    monkeypatch.setattr(reader, "EpisodeStore", Empty)
    findings, _ = validate.validate(tmp_path, progress=False)
    found = [f.where for f in findings if f.what == "0 actions for 5 frames"]
    assert found == [f"episode {name}" for name in ("a", "b") if name not in kept]


def test_interrupted_conversion_is_an_error(tmp_path):
    (tmp_path / convert.MANIFEST).write_text('{"complete": false}')
    (finding,) = _findings(tmp_path, _episode("a"))
    assert finding.check == "incomplete"


def test_missing_store_is_a_usage_error(tmp_path):
    with pytest.raises(errors.UserError, match="no such data directory"):
        validate.validate(tmp_path / "nothing", progress=False)


def _grasps(starts: list[float], end: float, embodiment: str = "robot") -> list[episodes.Episode]:
    """Episodes whose gripper begins at a value and ends at another."""
    found = []
    for number, start in enumerate(starts):
        actions = np.random.default_rng(number).uniform(-1, 1, (6, 7)).astype(np.float32)
        actions[:3, -1], actions[3:, -1] = start, end
        frames = {"static": _images(6)}
        found.append(
            _episode(f"e{number}", 6, actions=actions, embodiment=embodiment, frames=frames)
        )
    return found


def _grippers(findings: list[validate.Finding]) -> list[str]:
    return [f"{f.what} @ {f.where}" for f in findings if f.check == "gripper"]


@pytest.mark.parametrize("embodiment", ["robot", "franka_panda"])
def test_grippers_that_begin_closed_are_suspicious(tmp_path, embodiment):
    findings = _findings(tmp_path, *_grasps([-1, -1, -1, 1], 1, embodiment))
    (found,) = _grippers(findings)
    assert "begins closed in 3 of 4 episodes if 1 opens" in found
    assert found.endswith(f"@ test, {embodiment}, for example e0")


def test_grippers_that_begin_open_are_not(tmp_path):
    assert not _grippers(_findings(tmp_path / "a", *_grasps([1, 1, 1, -1], -1)))
    closing = np.float32([[0, 0, 0, -1]] * 3 + [[0, 0, 0, 1]] * 2)  # of this robot, +1 closes
    sawyer = [
        _episode(f"e{i}", 5, embodiment="metaworld_sawyer", actions=closing) for i in range(4)
    ]
    assert not _grippers(_findings(tmp_path / "b", *sawyer))


def test_gripper_values_of_another_convention_are_named(tmp_path):
    (found,) = _grippers(_findings(tmp_path / "a", *_grasps([1, 1], 0, "franka_panda")))
    assert "goes from 0 to 1, its convention is '+1 opens, -1 closes'" in found
    (found,) = _grippers(_findings(tmp_path / "b", *_grasps([100, 100], 0, "franka_panda")))
    assert "goes from 0 to 100" in found


def test_a_single_frame_is_a_warning(tmp_path):
    (finding,) = _findings(tmp_path, _episode("a"), _episode("b", 1, frames={"static": _images(1)}))
    assert (finding.check, finding.where) == ("length", "episode b")
