import pytest
from defi_rollout.benchmarks import base, scores


def _row(task, seed, condition, first_success, scored, **changes):
    return {
        "task": task,
        "seed": seed,
        "condition": condition,
        "start": "half_way",
        "first_success": first_success,
        "scored_task": scored,
        "stages": [],
        "status": "ok",
        "success": first_success.get(scored) is not None,
        "start_unseen": True,
        "infer_ms_p50": 2.0,
    } | changes


def test_wilson_interval_of_known_cases():
    # Table values of the Wilson score interval at 95 %.
    assert scores.wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert scores.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert scores.wilson_interval(0, 0) == (0.0, 1.0)


def test_language_counts_the_task_that_succeeded_first():
    rows = [
        _row("open", 1, base.STANDARD, {"open": 9, "close": 4}, "open"),
        _row("open", 2, base.STANDARD, {"open": 3, "close": None}, "open"),
        _row("open", 1, base.OPPOSITE, {"open": None, "close": 7}, "close"),
        _row("open", 2, base.OPPOSITE, {"open": 2, "close": None}, "close"),
        _row("open", 1, base.EMPTY, {"open": None, "close": None}, "open"),
        _row("open", 2, base.EMPTY, {"open": 2, "close": None}, "open"),
        _row("open", 3, base.STANDARD, {"open": 3}, "open", start="usual"),  # not varied: left out
    ]
    language = scores.summarise(rows)["language"]
    assert language["instructed"] == 0.5 and language["instructed_episodes"] == 4
    shares = {c: (v["task_first"], v["opposite_first"]) for c, v in language["conditions"].items()}
    assert shares == {"right": (0.5, 0.5), "opposite": (0.5, 0.5), "empty": (0.5, 0.0)}


def test_language_also_counts_what_succeeded_at_all():
    rows = [
        _row("open", 1, base.STANDARD, {"open": 9, "close": 4}, "open"),
        _row("open", 1, base.OPPOSITE, {"open": 2, "close": 7}, "close"),
        _row("open", 1, base.EMPTY, {"open": None, "close": None}, "open"),
    ]
    language = scores.summarise(rows)["language"]
    assert language["instructed_success"] == 1.0 and language["instructed"] == 0.0
    cells = language["conditions"].values()
    assert [(c["task_success"], c["opposite_success"]) for c in cells] == [(1, 1), (1, 1), (0, 0)]


def test_success_rate_is_over_standard_episodes_alone():
    rows = [
        _row("open", 1, base.STANDARD, {"open": 9}, "open"),
        _row("close", 1, base.STANDARD, {"close": None}, "close", start="usual"),
        _row("open", 1, base.EMPTY, {"open": 1}, "open"),
    ]
    summary = scores.summarise(rows)
    assert summary["success_rate"] == 0.5 and summary["episodes"] == 2
    assert summary["success_by_task"] == {"open": 1.0, "close": 0.0}
    assert summary["success_by_start"] == {"half_way": 1.0, "usual": 0.0}


def test_no_language_rows_no_language_table():
    assert scores.summarise([_row("a", 1, base.STANDARD, {"a": 1}, "a")])["language"] is None


def _chain(*done):
    stages = ["open", "lift", "push", "close", "turn"]
    first = {task: 10 * (i + 1) for i, task in enumerate(stages[: len(done)])}
    return _row("chain", 0, base.STANDARD, first, "turn", stages=stages)


def test_chains_are_counted_by_position_and_task():
    rows = [_chain(*range(count)) for count in (0, 2, 2, 5)]
    summary = scores.summarise(rows)
    chains = summary["chains"]
    assert chains["success_rates"] == [0.75, 0.75, 0.25, 0.25, 0.25]
    assert chains["average_length"] == sum(chains["success_rates"]) == 2.25
    assert chains["average_length_ci95"][0] < 2.25 < chains["average_length_ci95"][1]
    tried = {task: (r["successes"], r["episodes"]) for task, r in summary["by_task"].items()}
    assert tried == {
        "open": (3, 4),
        "lift": (3, 3),
        "push": (1, 3),
        "close": (1, 1),
        "turn": (1, 1),
    }
    assert summary["success_rate"] == 0.25


def test_a_chain_breaks_at_its_first_failure():
    row = _chain(0, 1)
    row["first_success"] = {"open": 3, "lift": None, "push": 9}  # met by chance, later
    assert scores.completed(row) == 1
