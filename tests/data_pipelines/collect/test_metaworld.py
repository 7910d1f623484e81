import dataclasses
import json
import os

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="the package metaworld is not installed")

from defi_rollout.benchmarks import metaworld_env, metaworld_tasks

from data_pipelines.collect import blocks, metaworld
from data_pipelines.store import reader
from defi_jax import errors

_TASK = "drawer-close-v3"  # the shortest of the paired tasks
_SETTINGS = metaworld.Settings(image_size=16)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _gl():
    try:
        metaworld_env.choose_gl()
    except errors.UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Directory with two episodes, made by the real command in a child process, and counts."""
    directory = tmp_path_factory.mktemp("metaworld")
    return directory, metaworld.collect([_TASK], directory, 2, _SETTINGS, workers=1)


@pytest.fixture
def blind(monkeypatch):
    """No OpenGL: pictures are black, for tests that are not about them."""
    black = np.zeros((16, 16, 3), np.uint8)
    views = dict.fromkeys(metaworld_env.CAMERA_KEYS.values(), black)
    monkeypatch.setattr(metaworld_env.MetaWorldEnv, "observe", lambda self: views)


def _block(directory, *indices, **changes):
    settings = dataclasses.replace(_SETTINGS, **changes)
    return blocks.Block(task=_TASK, indices=indices, directory=str(directory), settings=settings)


def test_collected_episodes_follow_the_schema(collected):
    store = reader.EpisodeStore(collected[0])
    assert len(store) == 2
    for i in range(len(store)):
        meta, actions = store.meta(i), store.actions(i)
        assert (meta.source, meta.embodiment, meta.fps) == ("metaworld", "metaworld_sawyer", 80.0)
        assert meta.instructions == metaworld_tasks.TASKS[_TASK].instructions
        assert meta.cameras == ("static", "gripper")
        assert actions.shape == (meta.length, 4) and np.abs(actions).max() <= 1.0
        assert store.states(i).shape == (meta.length, 4)
        assert store.frames(i, "gripper", [0, meta.length - 1]).shape == (2, 16, 16, 3)
        assert meta.metadata["task"] == _TASK
        assert meta.metadata["seed"] < metaworld_env.FIRST_EVALUATION_SEED
    assert {store.meta(i).metadata["start"] for i in range(2)} == {"half_way", "usual"}


def test_counts_agree_with_the_store(collected):
    directory, counts = collected
    store = reader.EpisodeStore(directory)
    assert sum(part.frames for part in counts) == store.lengths.sum()
    assert {(p.start, p.episodes) for p in counts} == {("half_way", 1), ("usual", 1)}
    for part in counts:
        assert part.frames == part.steps + metaworld.STEPS_AFTER_SUCCESS


def test_start_digest_is_that_of_the_seed(collected):
    meta = reader.EpisodeStore(collected[0]).meta(0)
    env = metaworld_env.MetaWorldEnv(_TASK, cameras=())
    env.reset(meta.metadata["seed"], meta.metadata["start"])
    assert env.start_digest() == meta.metadata["start_digest"]


def test_a_complete_store_is_left_alone_and_a_larger_one_continued(collected):
    directory, _ = collected
    assert metaworld.collect([_TASK], directory, 2, _SETTINGS) == []
    missing = blocks.missing_blocks(
        [_TASK, "reach-v3"], directory, blocks.BLOCK_EPISODES + 1, _SETTINGS
    )
    tasks_and_counts = [(block.task, len(block.indices)) for block in missing]
    many = blocks.BLOCK_EPISODES
    assert tasks_and_counts == [(_TASK, many - 2), ("reach-v3", many), (_TASK, 1), ("reach-v3", 1)]


def test_blocks_made_apart_equal_one_made_at_once(blind, tmp_path):
    metaworld._collect_block(_block(tmp_path / "once", 0, 1))
    for index in (1, 0):
        metaworld._collect_block(_block(tmp_path / "apart", index))
    once, apart = (reader.EpisodeStore(tmp_path / name) for name in ("once", "apart"))
    assert once.fingerprint() == apart.fingerprint()


def test_other_settings_are_refused(collected):
    with pytest.raises(errors.UserError, match="image_size 16, not 24") as caught:
        metaworld.collect([_TASK], collected[0], 2, metaworld.Settings(image_size=24))
    assert str(collected[0]) in str(caught.value)
    settings = json.loads((collected[0] / blocks.SETTINGS_FILE).read_text())
    assert settings == dataclasses.asdict(_SETTINGS)


def test_stripped_episodes_have_no_actions(blind, tmp_path):
    metaworld._collect_block(_block(tmp_path, 0, strip_actions=True))
    meta = reader.EpisodeStore(tmp_path).meta(0)
    assert meta.source == "metaworld_video"
    assert not meta.has_actions and not meta.has_states


def test_labels_are_the_experts_and_not_what_was_executed(blind, monkeypatch, tmp_path):
    executed, step = [], metaworld_env.MetaWorldEnv.step

    def recording_step(self, action):
        executed.append(np.array(action))
        return step(self, action)

    monkeypatch.setattr(metaworld_env.MetaWorldEnv, "step", recording_step)
    monkeypatch.setattr(blocks, "disturbances", lambda *_: np.full((1000, 4), 0.05, np.float32))
    metaworld._collect_block(_block(tmp_path, 0))
    actions = reader.EpisodeStore(tmp_path).actions(0)
    differing = np.any(np.stack(executed[-len(actions) :]) != actions, axis=1)
    assert differing[: -metaworld.STEPS_AFTER_SUCCESS].all()
    assert not differing[-metaworld.STEPS_AFTER_SUCCESS :].any()


def test_both_tasks_of_a_pair_get_the_same_half_way_starts(blind, tmp_path):
    for task in ("window-open-v3", "window-close-v3"):
        block = dataclasses.replace(_block(tmp_path, 0), task=task)
        metaworld._collect_block(block)
    store = reader.EpisodeStore(tmp_path)
    digests = {store.meta(i).metadata["start_digest"] for i in range(len(store))}
    assert len(store) == 2 and len(digests) == 1


def test_a_failing_expert_is_named_and_leaves_nothing(blind, monkeypatch, tmp_path):
    monkeypatch.setattr(metaworld, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(
        metaworld_env.MetaWorldEnv, "expert_action", lambda self: np.zeros(4, np.float32)
    )
    with pytest.raises(errors.UserError, match=f"failed 1 times in a row: {_TASK}"):
        metaworld._collect_block(_block(tmp_path, 0))
    assert list(tmp_path.iterdir()) == []


def test_episodes_that_also_bring_about_the_opposite_are_dropped(blind, monkeypatch, tmp_path):
    monkeypatch.setattr(metaworld, "MAX_ATTEMPTS", 1)
    both = {"drawer-open-v3": True, _TASK: True}
    monkeypatch.setattr(metaworld_env.MetaWorldEnv, "successes", both)
    with pytest.raises(errors.UserError, match="the expert failed"):
        metaworld._collect_block(_block(tmp_path, 0))


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0, 0.0])
def test_any_number_of_episodes_has_the_half_way_share(share):
    settings = dataclasses.replace(_SETTINGS, half_way_share=share)
    kinds = [settings.start_of(_TASK, index) for index in range(21)]
    for count in range(1, 22):
        assert kinds[:count].count("half_way") == int(np.ceil(count * share))
    assert settings.start_of("reach-v3", 0) == "usual"


def test_disturbances_come_in_bursts_of_the_share():
    noise = blocks.disturbances(20_000, 4, 0.3, np.random.default_rng(0))
    assert noise.dtype == np.float32 and not noise[:, 3].any()
    is_on = noise.any(axis=1)
    assert is_on.mean() == pytest.approx(blocks.NOISE_SHARE, abs=0.03)
    assert noise[is_on, :3].std() == pytest.approx(0.3, abs=0.03)
    bursts = np.count_nonzero(np.diff(is_on.astype(int)) == 1)
    assert is_on.sum() / bursts == pytest.approx(blocks.NOISE_BURST_STEPS, rel=0.1)


def test_bad_requests_are_one_line_that_names_them(tmp_path):
    with pytest.raises(errors.UserError, match="unknown Meta-World task: drawer"):
        metaworld.collect(["drawer"], tmp_path / "x", 2)
    with pytest.raises(errors.UserError, match="episodes_per_task=0"):
        metaworld.collect([_TASK], tmp_path / "x", 0)
    for name, value in [("image_size", 4), ("half_way_share", 1.5), ("action_noise", -1.0)]:
        with pytest.raises(errors.UserError, match="outside of"):
            dataclasses.replace(_SETTINGS, **{name: value})
    assert not (tmp_path / "x").exists()


def _die(block):
    os._exit(3)


def test_a_process_that_dies_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(metaworld, "_collect_block", _die)
    with pytest.raises(errors.UserError, match=r"process died .*exit 3.*run again to continue"):
        metaworld.collect([_TASK], tmp_path / "x", 1, workers=1)


def test_files_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(errors.UserError, match=r"holds files, but no collection\.json"):
        metaworld.collect([_TASK], tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
