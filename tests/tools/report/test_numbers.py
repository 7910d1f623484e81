import pytest
import tiny_run

from defi_jax import errors
from tools.report import files, numbers


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("numbers") / "run")


@pytest.fixture(scope="module")
def report(root):
    return numbers.compute(files.RunFiles(root))


def test_success_counts_the_standard_rows_and_no_stored_summary(report):
    assert report["success_rate"] == 4 / 6 and report["episodes"] == 6
    assert report["success_by_task"] == {
        tiny_run.OPEN: 2 / 3,
        tiny_run.CLOSE: 0.0,
        tiny_run.PRESS: 1.0,
    }
    # Wilson score interval of 4 of 6 at 95 %.
    assert report["ci95"] == pytest.approx([0.2999, 0.9032], abs=1e-4)
    by_start = report["tasks"][0]["by_start"]
    assert (by_start["half_way"]["successes"], by_start["half_way"]["episodes"]) == (2, 2)
    assert (by_start["usual"]["successes"], by_start["usual"]["episodes"]) == (0, 1)


def test_language_scores_both_tasks_of_the_starts_that_were_varied(report):
    language = report["language"]
    shares = ("episodes", "task_success", "opposite_success", "task_first", "opposite_first")
    cells = {name: [cell[s] for s in shares] for name, cell in language["conditions"].items()}
    assert cells == {
        # drawer-open 0 and 2, drawer-close 0; in the second the wrong one came first.
        "right": [3, 2 / 3, 1 / 3, 1 / 3, 1 / 3],
        "opposite": [3, 1 / 3, 1.0, 1 / 3, 2 / 3],
        "empty": [3, 1 / 3, 1 / 3, 1 / 3, 1 / 3],
    }
    # Instructed: 2 of 3 with the right instruction, 3 of 3 with the opposite; first in 1 and 2.
    assert language["instructed_success"] == 5 / 6
    assert language["instructed"] == 3 / 6 and language["instructed_episodes"] == 6
    assert language["text_blind_at_most"] == 0.5
    assert [(c["task"], c["instruction"], c["episodes"]) for c in language["table"]] == [
        (tiny_run.CLOSE, "right", 1),
        (tiny_run.CLOSE, "opposite", 1),
        (tiny_run.CLOSE, "empty", 1),
        (tiny_run.OPEN, "right", 2),
        (tiny_run.OPEN, "opposite", 2),
        (tiny_run.OPEN, "empty", 2),
    ]


def test_latency_is_the_median_of_the_episodes_that_have_one(report):
    # 6, 30, nine times 10; one without.
    assert report["policy_latency_ms_p50"] == 10.0


def test_held_out_numbers_are_those_of_the_last_evaluation(report):
    assert report["gfdm_psnr"] == 24.25 and report["gfdm_psnr_repeat"] == 21.5
    assert report["gidm_code_usage"] == 0.75 and report["gidm_code_perplexity"] == 5.5
    assert (report["probe_r2"], report["probe_r2_shuffled"]) == (0.625, -0.125)
    assert report["action_mae"] == {"x": 0.05, "y": 0.06, "z": 0.09, "gripper": 0.2}


def test_sources_are_those_of_the_checkpoints(report):
    assert report["trained_on"] == {"metaworld": 18000, "human": 2000}
    metaworld, human = report["sources"]
    assert metaworld["has_actions"] and metaworld["is_simulated"]
    assert not human["has_actions"] and not human["is_simulated"]
    assert metaworld["shares"] == {"gfdm": 0.75, "gidm": 0.75, "joint": 1.0}
    assert human["shares"] == {"gfdm": 0.25, "gidm": 0.25}


def test_curve_leaves_out_steps_without_a_finite_loss(report):
    curve = report["stages"]["gfdm"]["curve"]
    assert curve["step"] == [20, 40, 60, 100, 120, 140, 160]
    assert report["stages"]["gfdm"]["steps"] == 160
    # Seven points: each is averaged with one neighbour on either side.
    assert curve["smoothed"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert curve["smoothed"][3] == pytest.approx((1 / 3 + 1 / 5 + 1 / 6) / 3)


def test_shown_films_are_the_first_successes_and_failures(report):
    shown = [(row["id"], row["success"]) for row in report["shown"]["rollouts"]]
    assert shown == [
        ("drawer-open-v3-0000", True),
        ("drawer-open-v3-0001", False),
        ("drawer-close-v3-0000", False),
        ("button-press-topdown-v3-0000", True),
    ]
    assert [row["id"] for row in report["shown"]["language"]][:3] == [
        "drawer-open-v3-0000",
        "drawer-open-v3-0000-opposite",
        "drawer-open-v3-0000-empty",
    ]


def test_phases_but_setup_must_have_a_time(root, report, tmp_path):
    assert report["phase_seconds"] == tiny_run.PHASES
    (tmp_path / "phases.json").write_text('{"collect": 1, "gfdm": 2}')
    with pytest.raises(errors.UserError, match=r"no time of phase gidm, joint, export, evaluate: "):
        numbers.compute(files.RunFiles(tmp_path))
