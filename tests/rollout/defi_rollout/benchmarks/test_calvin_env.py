"""The simulator runs in a Python of its own: each test is a program for it that prints JSON."""

import json
import os
import pathlib
import subprocess

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import calvin, calvin_env, simulators

SIMULATOR = calvin.SIMULATOR
ROLLOUT = pathlib.Path(__file__).parents[4] / "rollout"


@pytest.fixture(scope="module", autouse=True)
def _simulator():
    try:
        simulators.python_of(SIMULATOR)
    except errors.UserError as error:
        pytest.skip(str(error).replace("BENCHMARK", "calvin-abcd-360"))


_BEGIN = """
import json
import numpy as np
from defi_rollout import errors
from defi_rollout.benchmarks import base, calvin, calvin_env

def episodes(*tasks):
    plan = base.Plan(tasks=tasks, episodes=17, seed=0, language=False)
    return calvin.Calvin(name="calvin-abcd-360").episodes(plan)

def play(env, episode, actions=None, limit=10**6):
    start, steps, made, digests = env.reset(episode), 0, [], []
    while not env.is_over and steps < limit:
        action = env.expert_action() if actions is None else actions[steps]
        made.append(np.array(action))
        reached, steps = env.step(action), steps + 1
        digests.append(env.state_digest())
    return {"start": start, "reached": reached, "digests": digests, "actions": np.array(made)}
"""


def _run(program, renderer="tiny", **environment):
    done = subprocess.run(
        [simulators.python_of(SIMULATOR), "-W", "ignore", "-c", _BEGIN + program],
        env=os.environ
        | {"PYTHONPATH": str(ROLLOUT), calvin_env.RENDERER_VARIABLE: renderer}
        | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # which shows that upstream's prints do not get there


@pytest.mark.slow
def test_a_chain_replays_to_the_last_bit_after_others_and_in_another_process(tmp_path):
    kept = tmp_path / "actions.npy"
    first = _run(f"""
env = calvin_env.CalvinEnv(360)
table = episodes()
one = play(env, table[3])
play(env, table[4], limit=150)
two = play(env, table[3], actions=one["actions"])
np.save({str(kept)!r}, one["actions"])
print(json.dumps([one["digests"], two["digests"], one["start"], two["start"], one["reached"]]))
env.close()
""")
    once, again, start, restart, reached = first
    assert all(reached.values()) and len(reached) == 5
    assert once == again and start == restart
    assert len(set(once)) == len(once)
    other = _run(f"""
env = calvin_env.CalvinEnv(360)
env.observe()
found = play(env, episodes()[3], actions=np.load({str(kept)!r}))
print(json.dumps([found["digests"], found["start"]]))
env.close()
""")
    assert other == [once, start]


def test_actions_are_left_alone_checked_and_the_gripper_closes_at_zero():
    found = _run("""
env = calvin_env.CalvinEnv(360)
env.reset(episodes()[0])
action = np.array([0.5, 0, 0, 0, 0, 0.2, 0.0], np.float32)
before = action.copy()
env.step(action)
said = []
for bad in (np.zeros(8, np.float32), np.full(7, np.nan, np.float32)):
    try:
        env.step(bad)
    except errors.UserError as error:
        said.append(str(error))
state = env.observe()["observation/state"]
env.close()
print(json.dumps([bool((action == before).all()), said, float(state[14]), state.shape]))
""")
    assert found[0] and found[2] == -1.0 and found[3] == [15]
    assert len(found[1]) == 2 and all("7 finite numbers" in text for text in found[1])


def test_instructions_follow_the_tasks_and_a_failed_task_ends_the_chain():
    found = _run("""
env = calvin_env.CalvinEnv(150)
episode = episodes()[1]
env.reset(episode)
told, reached = [env.instruction], None
while not env.is_over:
    hold = np.zeros(7, np.float32)
    reached = env.step(env.expert_action() if len(told) < 2 else hold)
    told += [env.instruction] * (env.instruction != told[-1])
print(json.dumps([told, list(reached.items())]))
""")
    told, reached = found
    assert told == [calvin.INSTRUCTIONS[task] for task in ("turn_off_led", "push_into_drawer")]
    names = ["turn_off_led", "push_into_drawer", "lift_blue_block_drawer", "place_in_slider"]
    assert reached == [[name, name == names[0]] for name in [*names, "close_drawer"]]


def test_a_single_task_starts_where_its_chain_gets_to():
    found = _run("""
env = calvin_env.CalvinEnv(360)
episode = episodes("place_in_drawer")[0]
whole = next(e for e in calvin.Calvin(name="calvin-abcd-360").episodes(
    base.Plan(tasks=(), episodes=1000, seed=0, language=False)) if e.seed == episode.seed)
env.reset(whole)
while env.instruction != episode.instruction:
    env.step(env.expert_action())
digest = env.state_digest()
env.reset(episode)
told = env.instruction
print(json.dumps([digest, env.state_digest(), told, env.is_over, play(env, episode)["reached"]]))
""")
    digest, again, told, over, reached = found
    assert digest == again and not over
    assert told == "store the grasped block in the drawer"
    assert reached == {"place_in_drawer": True}


@pytest.mark.parametrize("renderer", calvin_env.RENDERERS)
def test_pictures_equal_upstreams_and_name_their_renderer(renderer):
    found = _run(
        """
env = calvin_env.CalvinEnv(360)
env.reset(episodes()[0])
env.step(np.array([1, 1, -1, 0, 0, 1, 1], np.float32))
mine = env.observe()
theirs = {name: camera.render()[0] for name, camera in env._cameras.items()}
pairs = [("observation/image", "static"), ("observation/wrist_image", "gripper")]
equal = [bool(np.array_equal(mine[a], theirs[b])) for a, b in pairs]
kinds = [[str(mine[a].dtype), list(mine[a].shape)] for a, _ in pairs]
again = env.observe()
equal += [bool(np.array_equal(mine[a], again[a])) for a, _ in pairs]
spread = [float(mine[a].std()) for a, _ in pairs]
print(json.dumps([equal, kinds, spread, env.renderer(), env.state_digest()]))
env.close()
""",
        renderer,
    )
    equal, kinds, spread, name, digest = found
    assert equal == [True] * 4
    assert kinds == [["uint8", [200, 200, 3]], ["uint8", [84, 84, 3]]]
    assert min(spread) > 5
    assert set(name) == {"vendor", "name", "comparable"} and name["name"] and name["vendor"]
    assert (name["name"] == "TinyRenderer") == (renderer == "tiny")
    assert renderer != "tiny" or not name["comparable"]
    other = calvin_env.RENDERERS[renderer == calvin_env.RENDERERS[0]]
    assert digest == _run(
        """
env = calvin_env.CalvinEnv(360)
env.reset(episodes()[0])
env.step(np.array([1, 1, -1, 0, 0, 1, 1], np.float32))
print(json.dumps(env.state_digest()))
env.close()
""",
        other,
    )


def test_setup_can_ask_for_versions_files_and_a_picture():
    versions, files, drawn = _run("""
print(json.dumps([calvin_env.versions(), calvin_env.check_files(), calvin_env.draw_one()]))
""")
    assert versions["commit"] == calvin.SIMULATOR.sources[0].commit
    assert "pybullet 3.2.7" in versions["version"]
    assert int(files.split()[0]) > 100
    assert "TinyRenderer" in drawn
