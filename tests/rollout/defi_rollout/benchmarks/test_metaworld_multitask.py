import pytest
from defi_rollout import errors
from defi_rollout.benchmarks import base, metaworld, metaworld_tasks, registry


def _episodes(name, **changes):
    fields = {"tasks": (), "episodes": None, "seed": 0, "language": False} | changes
    return registry.get_benchmark(name).episodes(base.Plan(**fields))


@pytest.mark.parametrize("name, count", [("metaworld-mt10", 10), ("metaworld-mt50", 50)])
def test_every_task_of_the_list_has_fifty_episodes(name, count):
    episodes = _episodes(name)
    assert len({e.task for e in episodes}) == count
    assert len({e.id for e in episodes}) == len(episodes) == 50 * count
    assert {e.max_steps for e in episodes} == {500} and {e.start for e in episodes} == {"own"}
    assert all(e.instruction for e in episodes)


def test_lists_are_those_of_meta_world():
    upstream = pytest.importorskip("metaworld.env_dict", reason="metaworld is not installed")
    assert [*upstream.MT10_V3] == [*metaworld_tasks.MT10]
    assert {*upstream.MT50_V3} == {*metaworld_tasks.MT50}


def test_seeds_of_another_run_are_others():
    zero, one = ({e.seed for e in _episodes("metaworld-mt10", seed=s)} for s in (0, 1))
    assert not zero & one


def test_protocols_differ_and_the_first_one_is_as_it_was():
    names = ("metaworld", "metaworld-mt10", "metaworld-mt50")
    found = [base.describe_protocol(registry.get_benchmark(name)) for name in names]
    assert [entry["name"] for entry in found] == [*names]
    assert len({entry["sha256"] for entry in found}) == 3
    assert set(metaworld.MetaWorld().protocol()["tasks"]) == set(metaworld_tasks.TASKS)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tasks": ("coffee-pull-v3",)}, "not a task of metaworld-mt10: coffee-pull-v3"),
        ({"tasks": ("reach-v3", "reach-v3")}, "named twice"),
        ({"episodes": 0}, "0 episodes"),
        ({"language": True}, "--language"),
    ],
)
def test_bad_plans_are_named(changes, words):
    with pytest.raises(errors.UserError, match=words):
        _episodes("metaworld-mt10", **changes)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_own_starts_have_the_hand_at_home_and_differ_by_seed():
    pytest.importorskip("metaworld", reason="the package metaworld is not installed")
    from defi_rollout.benchmarks import metaworld_env

    env = metaworld_env.MetaWorldEnv("coffee-pull-v3", cameras=())
    digests, hands = [], []
    for seed in (1, 2, 1):
        env.reset(seed, "own")
        digests.append(env.start_digest())
        hands.append(env.state()[:3])
    assert digests[0] == digests[2] != digests[1]
    assert abs(hands[0] - hands[1]).max() < 1e-3
    env.reset(1, "usual")
    assert abs(env.state()[:3] - hands[0]).max() > 5e-3
