import dataclasses
import subprocess

import numpy as np
import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import simpler_env


def _relative(openings):
    gripper = simpler_env.StickyGripper()
    return [float(gripper.relative(np.float32(opening))) for opening in openings]


def test_a_change_of_the_gripper_is_carried_on():
    # The first step keeps; closing lasts 15 steps whatever comes; then the next change counts.
    found = _relative([1, 1, 0, *[1, 0] * 7, 1, 1, 0])
    assert found == [0, 0, *[1] * 15, -1, -1, -1]


def test_small_changes_are_passed_on_as_they_are():
    assert _relative([0.25, 0.5, 0.5, 0.25]) == [0, -0.25, 0, 0.25]


def test_a_new_instruction_forgets_the_gripper():
    gripper = simpler_env.StickyGripper()
    for opening in (1, 0):
        gripper.relative(np.float32(opening))
    gripper.reset()
    assert gripper.relative(np.float32(1)) == 0


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A checkout of one mesh in a folder, as the simulator's."""
    monkeypatch.setenv("DEFI_SIMULATORS", str(tmp_path))
    place = simpler_env.source()
    (place / "data/cup").mkdir(parents=True)
    (place / "data/cup/textured.glb").write_text("mesh")

    def git(*arguments):
        command = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "one")
    source = dataclasses.replace(simpler_env.SOURCE, url="URL", commit=git("rev-parse", "HEAD"))
    monkeypatch.setattr(simpler_env, "SOURCE", source)
    return place


def test_a_missing_or_changed_mesh_is_named(checkout):
    mesh = checkout / "data/cup/textured.glb"
    assert simpler_env.verify_files(["data/cup/"]) == 1
    mesh.write_text("mash")
    with pytest.raises(errors.CheckFailed, match=r"data/cup/textured\.glb"):
        simpler_env.verify_files(["data/cup/"])
    mesh.unlink()
    with pytest.raises(errors.CheckFailed, match=r"data/cup/textured\.glb"):
        simpler_env.verify_files(["data/cup/"])
    with pytest.raises(errors.CheckFailed, match=r"data/plate/"):
        simpler_env.verify_files(["data/plate/"])


def test_another_commit_and_no_checkout_are_refused(checkout, monkeypatch, tmp_path):
    with pytest.raises(errors.UserError, match="not installed"):
        simpler_env.versions()  # of the right commit; there is nothing to import
    other = dataclasses.replace(simpler_env.SOURCE, commit="0" * 40)
    monkeypatch.setattr(simpler_env, "SOURCE", other)
    with pytest.raises(errors.UserError, match="at commit"):
        simpler_env.versions()
    monkeypatch.setenv("DEFI_SIMULATORS", str(tmp_path / "nowhere"))
    with pytest.raises(errors.UserError, match="git clone URL"):
        simpler_env.versions()
