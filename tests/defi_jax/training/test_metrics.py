import json
import math
import sys
import types

import av
import numpy as np
import pytest
import toy_run
from etils import epath
from PIL import Image

from defi_jax import errors
from defi_jax.training import loop, metrics, start


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_scalars_are_json_lines_with_null_for_nan(tmp_path):
    writer = metrics.MetricWriter(tmp_path, toy_run.config(), 0)
    writer.scalars(3, "train", {"loss": np.float32(0.5), "psnr": math.nan})
    writer.scalars(4, "eval", {"psnr": 20})
    writer.close()
    first, second = lines(tmp_path)
    assert first == {"step": 3, "time": first["time"], "split": "train", "loss": 0.5, "psnr": None}
    assert (second["step"], second["split"], second["psnr"]) == (4, "eval", 20.0)


def test_lines_after_the_start_step_are_dropped(tmp_path):
    rows = [{"step": n, "split": "train"} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"st')
    metrics.MetricWriter(tmp_path, toy_run.config(), 2).close()
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_the_runs_ledger_is_read_before_lines_are_dropped(tmp_path):
    rows = [{"step": n, "split": split} for n in (1, 2, 3) for split in ("run", "train")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last, kept = metrics.MetricWriter(tmp_path, toy_run.config(), 2).run_rows
    assert (last["step"], kept["step"]) == (3, 2)
    assert metrics.MetricWriter(tmp_path, toy_run.config(), 0).run_rows[1] == {}


def test_media_can_be_read_back(tmp_path):
    video = np.zeros((3, 17, 21, 3), np.uint8)
    video[1] = 255
    writer = metrics.MetricWriter(tmp_path, toy_run.config(), 0)
    writer.media(7, "eval", {"a/b": video[1]}, {"clip": video})
    assert np.asarray(Image.open(tmp_path / "media/eval_a_b_00000007.png")).min() == 255
    with av.open(str(tmp_path / "media/eval_clip_00000007.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(18, 22, 3)] * 3
    assert frames[0].mean() < 5 and frames[1].mean() > 250
    assert Image.open(tmp_path / "media/eval_clip_00000007.gif").n_frames == 3


def test_tensorboard_receives_scalars_and_media(tmp_path):
    pytest.importorskip("tensorboardX")
    config = toy_run.config(**{"logging.tensorboard": True})
    writer = metrics.MetricWriter(tmp_path, config, 0)
    writer.scalars(1, "train", {"loss": 1.0})
    writer.media(1, "eval", {"a": np.zeros((4, 4, 3), np.uint8)}, {})
    writer.close()
    (file,) = (tmp_path / "logs").glob("events*")
    assert b"train/loss" in file.read_bytes() and b"eval/a" in file.read_bytes()


@pytest.mark.parametrize(("key", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_absent_package_is_a_clear_error(tmp_path, monkeypatch, key, module):
    monkeypatch.setitem(sys.modules, module, None)
    config = toy_run.config(**{f"logging.{key}": True})
    with pytest.raises(errors.UserError, match=f"{module} is not installed: logging.{key}"):
        start.check(config)
    with (
        toy_run.compilations() as programs,
        pytest.raises(errors.UserError, match="is not installed"),
    ):
        loop.train(config, toy_run.ToyObjective(hidden=8), toy_run.make_loader(), tmp_path / "run")
    assert not programs and not (tmp_path / "run/config.json").exists()


def test_a_run_that_goes_on_is_one_run_in_wandb(tmp_path, monkeypatch):
    # Not installed here, and it would need its server: this says what it was asked for.
    wandb, asked = types.ModuleType("wandb"), []
    wandb.init = lambda **options: (
        asked.append(options) or types.SimpleNamespace(finish=lambda: None)
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = toy_run.config(**{"logging.wandb": True})
    for workdir in ("run", "run", "other"):
        (tmp_path / workdir).mkdir(exist_ok=True)
        metrics.MetricWriter(epath.Path(tmp_path / workdir), config, 0).close()
    first, second, other = (options["id"] for options in asked)
    assert first == second != other
    assert {options["resume"] for options in asked} == {"allow"}


def test_seconds_are_readable():
    assert metrics.format_seconds(59.6) == "1:00"
    assert metrics.format_seconds(3723) == "1:02:03"
    assert metrics.format_seconds(math.inf) == "?"
