import collections
import dataclasses

import pytest
from defi_rollout import bundle, errors
from defi_rollout.benchmarks import adapters, base, metaworld, metaworld_env, metaworld_tasks

BENCHMARK = metaworld.MetaWorld()


def _episodes(**changes):
    fields = {"tasks": (), "episodes": 20, "seed": 0, "language": False} | changes
    return BENCHMARK.episodes(base.Plan(**fields))


def test_default_table_is_the_demo_tasks_with_unique_ids():
    episodes = _episodes()
    assert {episode.task for episode in episodes} == set(metaworld_tasks.DEMO_TASKS)
    assert len({episode.id for episode in episodes}) == len(episodes) == 100


def test_half_of_a_paired_task_starts_half_way():
    starts = collections.Counter((e.task, e.start) for e in _episodes())
    assert starts["drawer-open-v3", "half_way"] == starts["drawer-open-v3", "usual"] == 10
    assert starts["button-press-topdown-v3", "half_way"] == 0


def test_more_episodes_keep_the_first_ones():
    few, many = _episodes(episodes=4), _episodes(episodes=8)
    assert set(few) <= set(many)


def test_seeds_are_in_the_evaluation_range_and_differ_by_run():
    zero, one = ({e.seed for e in _episodes(seed=seed)} for seed in (0, 1))
    assert min(zero) >= metaworld_env.FIRST_EVALUATION_SEED and not zero & one


def test_language_repeats_half_way_starts_with_other_instructions():
    episodes = _episodes(language=True, tasks=("drawer-open-v3", "button-press-topdown-v3"))
    by_condition = collections.defaultdict(list)
    for episode in episodes:
        by_condition[episode.condition].append(episode)
    half_way = [e for e in by_condition[base.STANDARD] if e.start == "half_way"]
    for condition in (base.OPPOSITE, base.EMPTY):
        assert [e.seed for e in by_condition[condition]] == [e.seed for e in half_way]
    opposite, empty = by_condition[base.OPPOSITE][0], by_condition[base.EMPTY][0]
    closing = metaworld_tasks.TASKS["drawer-close-v3"].instructions
    assert opposite.instruction in closing and opposite.scored_task == "drawer-close-v3"
    assert empty.instruction == "" and set(empty.ends_on) == {"drawer-open-v3", "drawer-close-v3"}
    assert len({e.id for e in episodes}) == len(episodes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ("drawer-opne-v3",)},
        {"tasks": ("assembly-v3",)},  # of metaworld-mt50 only: no part of this frozen protocol
        {"tasks": ("reach-v3", "reach-v3")},
        {"episodes": 0},
        {"episodes": 10**6},
        {"tasks": ("reach-v3",), "language": True},
    ],
)
def test_impossible_plans_are_refused(changes):
    with pytest.raises(errors.UserError):
        _episodes(**changes)


def test_protocol_digest_is_stable():
    described = base.describe_protocol(BENCHMARK)
    assert described == base.describe_protocol(metaworld.MetaWorld())
    assert (described["name"], described["version"]) == ("metaworld", metaworld.VERSION)


def test_policy_of_another_robot_or_size_is_refused(tiny_bundle):
    source = bundle.read_bundle(tiny_bundle)
    adapter = adapters.from_metadata(source.spec.metadata(source.digest), "bundle")
    BENCHMARK.check(adapter)
    with pytest.raises(errors.UserError, match="'widowx250'"):
        BENCHMARK.check(dataclasses.replace(adapter, embodiment="widowx250"))
    wide = {"observation/image": adapters.View(source="observation/image", size=(16, 32))}
    with pytest.raises(errors.UserError, match="square"):
        BENCHMARK.check(dataclasses.replace(adapter, observations=wide))
