import json
import logging
import math

import jax
import pytest
import real_stages
import toy_run

from defi_jax import objectives
from defi_jax.training import hardware, ledger, loop, progress


def test_means_speed_and_where_the_time_went(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    spent = ledger.Ledger()
    now[0] += 60  # start-up, of no interval
    work = progress.Work(examples=8, frames=24, peak_share=0.6)
    said = progress.Progress(10, 20, work, spent)
    spent.enter("device")
    said.add({"loss": 1.0})
    said.add({"loss": math.nan})
    said.add({"loss": 2.0})
    now[0] += 4
    spent.move(1, "device", "data_wait")
    with spent.during("evaluation"):
        now[0] += 10
    with caplog.at_level(logging.INFO):
        report = said.report(12)
    assert report["loss"] == 1.5
    assert report["steps_per_second"] == 0.5
    assert (report["examples_per_second"], report["frames_per_second"]) == (4, 12)
    assert report["mfu"] == 0.3
    assert [report[f"seconds/{kind}"] for kind in ("data_wait", "device", "evaluation")] == [
        1,
        3,
        10,
    ]
    assert "step 12/20  60%" in caplog.text and "left 0:16" in caplog.text
    assert "data wait 25%" in caplog.text
    said.add({"loss": 1.0})
    now[0] += 1
    assert said.report(13)["seconds/evaluation"] == 0


def test_a_steps_work(monkeypatch):
    monkeypatch.setattr(hardware, "peak_flops", lambda kind: 1e12)  # this device has none
    config = real_stages.get_config("gidm")
    work = progress.Work.of(config, objectives.make(config))
    assert (work.examples, work.frames) == (8, 16)
    assert work.peak_share is not None
    total = work.peak_share * 1e12 * jax.device_count()
    assert total == pytest.approx(progress.model_flops(config).total) and total > 1e6
    assert work.rates(2.0)["mfu"] == 2 * work.peak_share


def test_a_runs_lines_have_the_split_of_its_time(tmp_path):
    config = toy_run.config(steps=4, eval_every=2, eval_batches=1, log_every=2)
    loader = toy_run.make_loader(seconds=0.2)
    loop.train(config, toy_run.ToyObjective(hidden=8), loader, tmp_path / "run")
    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    first, second = (row for row in rows if row["split"] == "train")
    assert second["examples_per_second"] == pytest.approx(16 * second["steps_per_second"])
    assert first["seconds/data_wait"] > 0  # the devices need less time than the loader
    assert second["seconds/evaluation"] > 0 and second["seconds/checkpoint"] > 0
    assert "mfu" not in second  # of this device no peak is known


def test_memory_is_reported_where_the_backend_tells(monkeypatch):
    assert progress.device_memory() == {}

    class Device:  # a backend that tells is not at hand
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5)])
    assert progress.device_memory() == {"memory/in_use_bytes": 5, "memory/peak_bytes": 10}
    assert hardware.peak_flops("TPU v5 lite") == 197e12
    assert hardware.peak_flops("abacus") is None
