import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from defi_rollout import batching, errors, main, server
from defi_rollout.benchmarks import base, policy_thread, runner

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """The fake benchmark, which worker processes import by its name."""
    monkeypatch.syspath_prepend(str(HERE))
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    import fake_benchmark

    return fake_benchmark


def _options(policy, output, tasks, *, episodes=2, workers=1, **options):
    return {
        "policy": str(policy),
        "benchmark_name": "fake_benchmark:FakeBenchmark",
        "plan": base.Plan(tasks=tasks, episodes=episodes, seed=0, language=False),
        "output": output,
        "options": runner.Options(num_workers=workers, **options),
    }


def _without_times(results):
    document = json.loads(json.dumps(results))
    del document["summary"]["policy_latency_ms_p50"]
    for row in document["episodes"]:
        del row["seconds"], row["infer_ms_p50"]
    return document


@pytest.mark.slow
def test_results_hold_what_the_design_promises(tiny_bundle, tmp_path):
    output = tmp_path / "out"
    results = runner.evaluate(**_options(tiny_bundle, output, ("win", "lose"), workers=2))
    assert results == json.loads((output / "results.json").read_text())
    assert results["summary"]["success_rate"] == 0.5
    assert results["summary"]["success_by_task"] == {"win": 1.0, "lose": 0.0}
    assert results["protocol"]["name"] == "fake" and len(results["protocol"]["sha256"]) == 64
    assert results["renderer"] == {"vendor": "none", "name": "numpy", "comparable": True}
    assert [row["id"] for row in results["episodes"]] == ["win-0", "win-1", "lose-0", "lose-1"]
    assert [row["steps"] for row in results["episodes"]] == [5, 5, 8, 8]
    assert {row["status"] for row in results["episodes"]} == {"ok"}
    assert all(row["start_unseen"] for row in results["episodes"])
    for row in results["episodes"]:
        is_filmed = row["id"].endswith("-0") or not row["success"]  # every failure is kept
        assert (row["video"] is not None) == is_filmed
    assert (output / results["episodes"][0]["video"]).stat().st_size > 0
    assert "win now" in (output / "index.html").read_text()


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same_results_to_the_last_bit(tiny_bundle, tmp_path):
    one, three = (
        runner.evaluate(
            **_options(tiny_bundle, tmp_path / str(n), ("slow", "lose"), episodes=3, workers=n)
        )
        for n in (1, 3)
    )
    assert _without_times(one) == _without_times(three)
    ends = [row["end_digest"] for row in one["episodes"]]
    assert len(set(ends)) == 6  # the digest of all actions: each episode has noise of its own


@pytest.mark.slow
def test_lost_episodes_become_rows_and_the_others_are_played(fake, tmp_path, monkeypatch):
    monkeypatch.setenv(fake.MARKER, str(tmp_path / "died"))
    tasks = ("die", "raise", "die_once", "win")
    options = _options("expert", tmp_path / "out", tasks, episodes=1)
    rows = {row["task"]: row for row in runner.evaluate(**options)["episodes"]}
    assert {task: row["status"] for task, row in rows.items()} == {
        "die": "crashed",
        "raise": "failed",
        "die_once": "retried",
        "win": "ok",
    }
    assert not rows["die"]["success"] and rows["die_once"]["success"]
    assert "the simulator is confused" in rows["raise"]["error"]


@pytest.mark.slow
def test_a_hanging_simulator_is_given_up_and_the_rest_is_played(tmp_path):
    options = _options("expert", tmp_path / "out", ("hang", "win"), episodes=1, step_seconds=2)
    rows = {row["task"]: row for row in runner.evaluate(**options)["episodes"]}
    assert rows["hang"]["status"] == "crashed" and "hung" in rows["hang"]["error"]
    assert rows["win"]["status"] == "ok" and rows["win"]["success"]


def test_an_absent_asset_costs_its_episode_and_the_run_goes_on(fake, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["evaluate", "expert", f"--benchmark={fake.NAME}", "--tasks=lacks,win"]
    command += ["--episodes=1", f"--output={output}"]
    assert main.main(command) == 1
    assert "success 50.0% of 2 episodes" in capsys.readouterr().out
    rows = {
        row["task"]: row for row in json.loads((output / "results.json").read_text())["episodes"]
    }
    assert rows["lacks"]["error"] == "a mesh is missing: cup.obj; install it again"
    assert rows["lacks"]["status"] == "failed" and rows["win"]["success"]


def test_a_policy_that_cannot_act_ends_the_run_with_one_error_and_keeps_the_rows(tmp_path):
    output = tmp_path / "out"
    options = _options("expert", output, ("win", "unscripted"), episodes=1)
    with pytest.raises(errors.UserError, match="no scripted expert"):
        runner.evaluate(**options)
    assert json.loads((output / runner.ROWS).read_text())["id"] == "win-0"


def test_the_expert_plays_without_policy_and_drawing(tmp_path):
    results = runner.evaluate(**_options("expert", tmp_path / "out", ("win",), workers=2))
    assert results["policy"] == {"kind": "expert"} and results["bundle_sha256"] is None
    assert results["summary"]["success_rate"] == 1 and results["summary"]["seen_starts"] == 0
    assert {row["start_unseen"] for row in results["episodes"]} == {None}


class Elsewhere:
    """A policy of others: its own keys, a window axis, a gripper that goes the other way."""

    def prepare(self, obs, noise, max_rows):
        assert set(obs) == {"image_primary", "task"} and obs["task"] == "win now"
        assert obs["image_primary"].shape == (1, 32, 32, 3)
        return {"row": np.zeros((1, 1), np.float32)}, False

    def run(self, inputs):
        return np.ones((1, 5, 4), np.float32)


ELSEWHERE = {
    "embodiment": "metaworld_sawyer",
    "observations": {
        "image_primary": {
            "source": "observation/image",
            "size": [32, 32],
            "resize": "stretch",
            "leading_axes": 1,
        }
    },
    "prompt": "task",
    "action_dim": 4,
    "execute_horizon": 2,
    "factors": [1, 1, 1, -1],
}


def test_a_server_of_others_is_scored_through_an_adapter(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps(ELSEWHERE))
    batcher = batching.Batcher(Elsewhere(), max_rows=1)
    with policy_thread.serving(batcher, {}, server.Options(port=0)) as url:
        options = _options(url, tmp_path / "out", ("win",), adapter=str(tmp_path / "other.json"))
        results = runner.evaluate(**options)
        with pytest.raises(errors.UserError, match="--adapter="):
            runner.evaluate(**_options(url, tmp_path / "none", ("win",)))
    assert results["policy"]["url"] == url and results["execute_horizon"] == 2
    assert results["policy"]["adapter"]["factors"] == (1, 1, 1, -1)
    assert results["summary"]["success_rate"] == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_results(tiny_bundle, tmp_path):
    straight = runner.evaluate(
        **_options(tiny_bundle, tmp_path / "straight", ("slow",), episodes=6)
    )
    output = tmp_path / "killed"
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import pathlib, fake_benchmark\n"
        "from defi_rollout.benchmarks import base, runner\n"
        f"runner.evaluate({str(tiny_bundle)!r}, fake_benchmark.NAME,\n"
        "    base.Plan(tasks=('slow',), episodes=6, seed=0, language=False),\n"
        f"    pathlib.Path({str(output)!r}), runner.Options(num_workers=1))\n"
    )
    (tmp_path / "run.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    rows = output / runner.ROWS
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not rows.exists() or rows.read_text().count("\n") < 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with rows.open("a") as file:
        file.write('{"id": "slow-5", "task"')  # as a kill in the middle of a line leaves it
    assert not (output / "results.json").exists()
    resumed = runner.evaluate(**_options(tiny_bundle, output, ("slow",), episodes=6, resume=True))
    assert _without_times(resumed) == _without_times(straight)
    assert rows.read_text().count("\n") == 6


@pytest.mark.slow
def test_start_seen_in_training_fails_the_check_but_keeps_the_rows(
    fake, tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv(fake.STARTS_SEEN, "1")
    options = _options(tiny_bundle, tmp_path / "out", ("win",), episodes=1)
    with pytest.raises(errors.CheckFailed, match="seen in training"):
        runner.evaluate(**options)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["episodes"][0]["start_unseen"] is False


def test_output_of_another_run_is_refused(tiny_bundle, tmp_path):
    output = tmp_path / "out"
    options = _options(tiny_bundle, output, ("win",), episodes=1)
    output.mkdir()
    (output / "run.json").write_text("{}")
    with pytest.raises(errors.UserError, match="add --resume"):
        runner.evaluate(**options)
    with pytest.raises(errors.UserError, match="bundle_sha256"):
        runner.evaluate(**_options(tiny_bundle, output, ("win",), episodes=1, resume=True))


def test_directory_with_other_files_is_refused(tiny_bundle, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(errors.UserError, match="not empty"):
        runner.evaluate(**_options(tiny_bundle, tmp_path / "out", ("win",)))


def test_finished_run_resumes_without_playing(tiny_bundle, tmp_path, monkeypatch):
    options = _options(tiny_bundle, tmp_path / "out", ("win",), episodes=1)
    row = {
        "id": "win-0",
        "task": "win",
        "condition": "standard",
        "instruction": "win now",
        "start": "usual",
        "success": True,
        "status": "ok",
        "stages": [],
        "start_digest": "0" * 16,
        "error": None,
        "start_unseen": True,
        "steps": 5,
        "infer_ms_p50": 1.0,
        "video": None,
        "first_success": {"win": 5},
    }
    monkeypatch.setattr(runner.workers, "play_all", lambda *_: (one for one in [row]))
    first = runner.evaluate(**options)
    monkeypatch.setattr(runner.workers, "play_all", lambda *_: pytest.fail("played again"))
    again = runner.evaluate(
        **_options(tiny_bundle, tmp_path / "out", ("win",), episodes=1, resume=True)
    )
    assert again == first
