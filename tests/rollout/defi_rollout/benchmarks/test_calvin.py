import dataclasses

import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import (
    adapters,
    base,
    calvin,
    calvin_chains,
    calvin_env,
    calvin_expert,
)

BENCHMARK = calvin.Calvin(name="calvin-abcd-360")
ADAPTER = adapters.Adapter(
    embodiment="franka_panda",
    observations={
        "image": adapters.View(source="observation/image", size=(224, 224), resize="stretch")
    },
    prompt="prompt",
    action_dim=7,
    action_horizon=10,
    execute_horizon=5,
    factors=(1.0,) * 7,
)


def _plan(*tasks, episodes=None, **changes):
    return base.Plan(
        **({"tasks": tasks, "episodes": episodes, "seed": 0, "language": False} | changes)
    )


def test_chains_are_the_first_of_the_official_list():
    episodes = BENCHMARK.episodes(_plan(episodes=3))
    assert [episode.id for episode in episodes] == ["chain-0000", "chain-0001", "chain-0002"]
    first = episodes[0]
    assert first.instruction == "take the blue block and rotate it to the right"
    assert (first.seed, first.max_steps, first.scored_task) == (0, 1800, "turn_off_lightbulb")
    assert len(BENCHMARK.episodes(_plan())) == 1000
    longer = dataclasses.replace(BENCHMARK, name="calvin-abcd-720")
    assert longer.episodes(_plan(episodes=1))[0].max_steps == 3600
    assert base.describe_protocol(longer) != base.describe_protocol(BENCHMARK)


def test_single_tasks_start_where_chains_have_them_the_earliest_first():
    episodes = BENCHMARK.episodes(_plan("stack_block", "open_drawer", episodes=5))
    chains = calvin_chains.chains()
    assert [episode.task for episode in episodes] == ["stack_block"] * 5 + ["open_drawer"] * 5
    places = [chains[episode.seed].tasks.index(episode.task) for episode in episodes]
    assert places == [1] * 5 + [0] * 5  # a block must be lifted before it is stacked
    assert {episode.max_steps for episode in episodes} == {360}
    assert len({episode.id for episode in episodes}) == 10


def test_every_task_has_a_sentence_and_an_expert():
    named = {task for chain in calvin_chains.chains() for task in chain.tasks}
    assert named == set(calvin.INSTRUCTIONS) == set(calvin_expert.TASKS)
    assert len(named) == 34
    assert len(set(calvin.INSTRUCTIONS.values())) == 34


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (_plan("fly"), "not a task of calvin-abcd-360: fly"),
        (_plan("open_drawer", "open_drawer"), "named twice"),
        (_plan(episodes=1001), "1001 episodes of 1000 chains"),
        (_plan(episodes=0), "0 episodes"),
        (_plan("lift_pink_block_drawer", episodes=18), "18 episodes of 17 starts"),
        (_plan(seed=1), "seed"),
        (_plan(language=True), "language"),
    ],
)
def test_what_the_protocol_does_not_have_is_refused(plan, says):
    with pytest.raises(errors.UserError, match=says):
        BENCHMARK.episodes(plan)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embodiment": "franka_panda_absolute"}, "franka_panda_absolute"),
        ({"action_dim": 8}, "8 action dimensions"),
        (
            {"observations": {"x": adapters.View(source="depth", size=None, resize="none")}},
            "'depth'",
        ),
    ],
)
def test_other_robots_actions_and_cameras_are_refused(changes, says):
    BENCHMARK.check(ADAPTER)
    with pytest.raises(errors.UserError, match=says):
        BENCHMARK.check(dataclasses.replace(ADAPTER, **changes))


def test_an_unknown_renderer_is_refused(monkeypatch):
    monkeypatch.setenv(calvin_env.RENDERER_VARIABLE, "vulkan")
    with pytest.raises(errors.UserError, match="egl or tiny"):
        calvin_env.CalvinEnv(360)
