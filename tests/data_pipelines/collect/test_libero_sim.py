import numpy as np
import pytest

from data_pipelines.collect import libero_sim
from defi_jax import errors

_TASK = "pick_up_the_milk_and_place_it_in_the_basket"


def test_starts_are_drawn_from_the_seed_and_not_those_of_the_evaluation():
    settings = libero_sim.Settings()
    starts = [settings.draw_start(_TASK, 0, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]
    assert {start["start"] for start in starts} == {"drawn"}  # an evaluation's are "fixed"
    facts = settings.facts(_TASK, 0, starts[2])
    assert facts == {"suite": "libero_object", "start_seed": starts[2]["seed"]}


def test_tasks_without_an_expert_are_refused():
    with pytest.raises(errors.UserError, match=r"no scripted expert.*libero_object"):
        libero_sim.Settings().check_task("turn_on_the_stove")
