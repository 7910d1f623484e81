import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="the package metaworld is not installed")

from defi_rollout import errors
from defi_rollout.benchmarks import metaworld_env, metaworld_tasks

_PAIRED = [task for pair in metaworld_tasks.PAIRS for task in pair.tasks]
_SIZE = 32

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _gl():
    try:
        metaworld_env.choose_gl()
    except errors.UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def make_env():
    made = []

    def make(task, cameras=("static", "gripper")):
        made.append(metaworld_env.MetaWorldEnv(task, image_size=_SIZE, cameras=cameras))
        return made[-1]

    yield make
    for env in made:
        env.close()


def _starts(task):
    return metaworld_env.STARTS if metaworld_tasks.pair_of(task) else ("usual",)


def _play_expert(env, seed, start):
    env.reset(seed, start)
    for step in range(env.spec.horizon):
        if env.step(env.expert_action()):
            return step + 1
    return None


# ---- starts ----


def test_same_seed_gives_the_same_start_whatever_was_played_before(make_env):
    env, fresh = make_env("button-press-topdown-v3"), make_env("button-press-topdown-v3")
    _play_expert(env, 1, "usual")
    env.reset(5)
    fresh.reset(5)
    assert env.start_digest() == fresh.start_digest()
    for key, picture in env.observe().items():
        np.testing.assert_array_equal(picture, fresh.observe()[key])


def test_starts_differ_between_seeds(make_env):
    env = make_env("drawer-open-v3", cameras=())
    digests = set()
    for seed in range(8):
        env.reset(seed)
        digests.add(env.start_digest())
    assert len(digests) == 8


def test_another_process_imports_no_framework_and_draws_the_same_start(make_env):
    script = f"""
import json, sys
from defi_rollout.benchmarks import metaworld_env
env = metaworld_env.MetaWorldEnv("window-open-v3", image_size={_SIZE})
env.reset(3, "half_way")
heavy = sorted({{"jax", "flax", "tensorflow", "torch"}} & set(sys.modules))
print(json.dumps([env.start_digest(), int(env.observe()["observation/image"].sum()), heavy]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=dict(metaworld_env.headless_gl.os.environ, PYTHONPATH=":".join(sys.path)),
        capture_output=True,
        text=True,
        check=True,
    )
    env = make_env("window-open-v3")
    env.reset(3, "half_way")
    total = int(env.observe()["observation/image"].sum())
    assert json.loads(done.stdout.splitlines()[-1]) == [env.start_digest(), total, []]


@pytest.mark.parametrize("pair", metaworld_tasks.PAIRS, ids=lambda pair: pair.body)
def test_half_way_pictures_do_not_tell_the_tasks_apart(make_env, pair):
    opening, closing = make_env(pair.opens), make_env(pair.closes)
    # Different pasts must not show either.
    opening.reset(9)
    _play_expert(closing, 8, "usual")
    for seed in (0, 1, metaworld_env.FIRST_EVALUATION_SEED):
        opening.reset(seed, "half_way")
        closing.reset(seed, "half_way")
        assert opening.start_digest() == closing.start_digest()
        np.testing.assert_array_equal(opening.state(), closing.state())
        for key, picture in opening.observe().items():
            np.testing.assert_array_equal(picture, closing.observe()[key])


@pytest.mark.parametrize("task", _PAIRED)
def test_half_way_starts_are_half_open_and_not_yet_successful(make_env, task):
    env, pair = make_env(task, cameras=()), metaworld_tasks.pair_of(task)
    for seed in range(5):
        env.reset(seed, "half_way")
        joint = env._env.data.joint(pair.joint)
        low, high = env._env.model.joint(pair.joint).range
        assert 0.35 <= (joint.qpos[0] - low) / (high - low) <= 0.65
        env.step(np.zeros(4))
        assert env.successes == dict.fromkeys(pair.tasks, False)


# ---- success ----


@pytest.mark.parametrize("task", metaworld_tasks.DEMO_TASKS)
def test_expert_succeeds_at_its_own_task_only(make_env, task):
    env = make_env(task, cameras=())
    for start in _starts(task):
        steps = _play_expert(env, 2, start)
        assert steps is not None and steps <= env.spec.horizon // 2
        assert env.successes.pop(task)
        assert not env.successes.get(metaworld_tasks.opposite(task), False)


def test_success_stays_once_reached(make_env):
    env = make_env("drawer-close-v3", cameras=())
    _play_expert(env, 2, "half_way")
    joint = env._env.data.joint("goal_slidey")
    joint.qpos[0] = -0.09
    assert env.step(np.zeros(4))


def test_only_half_way_starts_score_both_tasks(make_env):
    env = make_env("window-open-v3", cameras=())
    env.reset(0)
    assert env.successes == {"window-open-v3": False}
    env.reset(0, "half_way")
    assert env.successes == {"window-open-v3": False, "window-close-v3": False}


def test_pair_success_by_goal_or_by_displacement():
    drawer, window = metaworld_tasks.PAIRS  # the drawer opens towards negative values
    cases = [
        (drawer, "open", -0.161, -0.11, True),  # at the goal, 5 cm moved
        (drawer, "open", -0.131, -0.07, True),  # 6.1 cm moved
        (drawer, "open", -0.128, -0.07, False),
        (drawer, "close", -0.031, -0.07, True),
        (drawer, "close", -0.04, -0.09, False),
        (drawer, "close", -0.16, -0.09, False),
        (window, "open", 0.161, 0.1, True),
        (window, "open", 0.155, 0.1, False),
        (window, "close", 0.039, 0.09, True),
        (window, "close", 0.051, 0.112, True),
        (window, "close", 0.19, 0.1, False),
    ]
    for pair, direction, joint, start, expected in cases:
        task = pair.opens if direction == "open" else pair.closes
        assert pair.succeeds(task, joint, start) == expected, (task, joint, start)


@pytest.mark.parametrize("task", _PAIRED)
def test_goals_of_the_pairs_are_those_of_meta_world(make_env, task):
    """With the start at the goal no displacement counts, so that only the goals are compared."""
    env, pair = make_env(task, cameras=()), metaworld_tasks.pair_of(task)
    env.reset(4, "half_way")
    upstream = env._env
    low, high = upstream.model.joint(pair.joint).range
    for joint in np.linspace(low - 0.002, high + 0.002, 97):
        upstream.data.joint(pair.joint).qpos[0] = joint
        env._mujoco.mj_forward(upstream.model, upstream.data)
        _, info = upstream.evaluate_state(upstream._get_obs(), np.zeros(4, np.float32))
        goal = pair.done_open if task == pair.opens else pair.done_closed
        if abs(joint - goal) > 1e-3:
            assert pair.succeeds(task, joint, joint) == bool(info["success"]), joint


# ---- pictures and steps ----


def test_pictures_have_the_asked_size_and_stand_upright(make_env):
    env = make_env("push-v3")
    env.reset(0)
    views = env.observe()
    assert set(views) == set(metaworld_env.CAMERA_KEYS.values())
    for view in views.values():
        assert view.shape == (_SIZE, _SIZE, 3) and view.dtype == np.uint8
    picture = views["observation/image"].astype(int)
    redness = picture[..., 0] - picture[..., 2]
    assert redness[-4:].mean() > 20  # wood below
    assert abs(redness[2:6, -8:].mean()) < 10  # grey wall and sky above


def test_only_asked_cameras_are_drawn(make_env):
    env = make_env("reach-v3", cameras=("gripper",))
    env.reset(0)
    assert set(env.observe()) == {"observation/wrist_image"}
    assert make_env("reach-v3", cameras=()).observe() == {}


def test_goal_markers_are_hidden(make_env):
    env = make_env("reach-v3")
    env.reset(0)
    before = env.observe()
    env._env.model.site("goal").pos = env.state()[:3]
    env._mujoco.mj_forward(env._env.model, env._env.data)
    for key, picture in env.observe().items():
        np.testing.assert_array_equal(picture, before[key])


def test_control_rate_and_action_scale(make_env):
    env = make_env("reach-v3", cameras=())
    env.reset(0)
    assert 1.0 / env._env.dt == pytest.approx(metaworld_env.CONTROL_HZ)
    height = env.state()[2]
    for _ in range(10):
        env.step(np.array([0.0, 0.0, 7.0, 0.0]))  # clipped to 1: 1 cm a step
    assert 0.05 < env.state()[2] - height <= 0.105


def test_expert_actions_are_clipped_and_silent(make_env):
    env = make_env("window-close-v3", cameras=())
    env.reset(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        action = env.expert_action()
    assert action.dtype == np.float32 and action.shape == (4,) and np.abs(action).max() <= 1.0


# ---- tables and errors ----


def test_tasks_have_distinct_paraphrases_and_experts():
    from metaworld import policies

    said = [text for task in metaworld_tasks.TASKS.values() for text in task.instructions]
    assert len(set(said)) == len(said)
    assert all(len(task.instructions) >= 4 for task in metaworld_tasks.TASKS.values())
    assert set(metaworld_tasks.TASKS) <= set(policies.ENV_POLICY_MAP)
    assert set(metaworld_tasks.DEMO_TASKS) >= set(_PAIRED)


def test_opposites():
    assert metaworld_tasks.opposite("drawer-open-v3") == "drawer-close-v3"
    assert metaworld_tasks.opposite("window-close-v3") == "window-open-v3"
    assert metaworld_tasks.opposite("button-press-topdown-v3") is None


def test_bad_input_names_the_thing_and_the_fix(make_env, monkeypatch):
    with pytest.raises(errors.UserError, match=r"drawer-opn-v3.*drawer-open-v3"):
        metaworld_env.MetaWorldEnv("drawer-opn-v3")
    with pytest.raises(errors.UserError, match="unknown camera: wrist"):
        metaworld_env.MetaWorldEnv("reach-v3", cameras=("wrist",))
    env = make_env("button-press-topdown-v3", cameras=())
    with pytest.raises(errors.UserError, match="no half-way start"):
        env.reset(0, "half_way")
    with pytest.raises(errors.UserError, match="unknown start: halfway"):
        env.reset(0, "halfway")
    for action in (np.zeros(7), np.array([0.0, np.nan, 0.0, 0.0])):
        with pytest.raises(errors.UserError, match="4 finite numbers"):
            env.step(action)
    monkeypatch.setattr(env._mujoco, "__version__", "4.0.0")
    with pytest.raises(errors.UserError, match=r"too new.*mujoco 4\.0\.0"):
        metaworld_env.MetaWorldEnv("reach-v3", cameras=())


# ---- slow ----


@pytest.mark.slow
@pytest.mark.parametrize("task", metaworld_tasks.DEMO_TASKS)
def test_expert_success_rate(make_env, task):
    env = make_env(task, cameras=())
    for start in _starts(task):
        solved = [_play_expert(env, seed, start) is not None for seed in range(40)]
        assert np.mean(solved) >= 0.95, start


@pytest.mark.slow
@pytest.mark.parametrize("task", metaworld_tasks.OTHER_TASKS)
def test_expert_of_the_other_tasks_often_succeeds(make_env, task):
    env = make_env(task, cameras=())
    assert np.mean([_play_expert(env, seed, "usual") is not None for seed in range(10)]) >= 0.5
