"""Writes the files of a tiny run of the whole road, with numbers chosen by hand."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from defi_rollout.benchmarks import pictures

from defi_jax.checkpoints import manager, train_state
from defi_jax.training import metrics

SIDE, FRAMES, PAIRS = 16, 3, 4
OPEN, CLOSE, PRESS = "drawer-open-v3", "drawer-close-v3", "button-press-topdown-v3"
SAID = {OPEN: "open the drawer", CLOSE: "close the drawer", PRESS: "press <the> button"}
PHASES = {
    "setup": 60,
    "collect": 120.0,
    "gfdm": 300.0,
    "gidm": 90.0,
    "joint": 400.0,
    "export": 30.0,
    "evaluate": 200.0,
}
TRAINED_ON = {
    "metaworld": {"episodes": 225, "frames": 18000, "episodes_with_actions": 225},
    "human": {"episodes": 40, "frames": 2000, "episodes_with_actions": 0},
}
MIXTURES = {
    "gfdm": {"metaworld": 3.0, "human": 1.0},
    "gidm": {"metaworld": 3.0, "human": 1.0},
    "joint": {"metaworld": 1.0},
}
EVALUATIONS = {
    "gfdm": {"psnr": 24.25, "ssim": 0.875, "psnr_repeat": 21.5},
    "gidm": {
        "code_usage": 0.75,
        "code_perplexity": 5.5,
        "probe_r2": 0.625,
        "probe_r2_shuffled": -0.125,
        "reconstruction": 0.0125,
        "reconstruction_copy": 0.05,
    },
    "joint": {
        "action_mse": 0.02,
        "action_mae": 0.1,
        "action_mae/dim0": 0.05,
        "action_mae/dim1": 0.06,
        "action_mae/dim2": 0.09,
        "action_mae/dim3": 0.2,
    },
}


def row(task, index, condition, first_success, *, start="half_way", film=True, **changes):
    """One episode as `defi_rollout evaluate` writes it."""
    other = {OPEN: CLOSE, CLOSE: OPEN}.get(task)
    scored = other if condition == "opposite" else task
    name = f"{task}-{index:04d}" + ("" if condition == "standard" else f"-{condition}")
    return {
        "id": name,
        "task": task,
        "condition": condition,
        "instruction": "" if condition == "empty" else SAID[scored],
        "seed": 1000 + index,
        "start": start,
        "start_digest": name,
        "start_unseen": True,
        "scored_task": scored,
        "stages": [],
        "success": first_success.get(scored) is not None,
        "first_success": first_success,
        "steps": 80,
        "infer_ms_p50": 10.0,
        "seconds": 1.0,
        "video": f"videos/{name}.mp4" if film else None,
        "status": "ok",
    } | changes


def standard_rows():
    """Successes: drawer-open 2 of 3, drawer-close 0 of 1, button 2 of 2."""
    return [
        row(OPEN, 0, "standard", {OPEN: 40, CLOSE: None}, infer_ms_p50=6.0),
        row(OPEN, 1, "standard", {OPEN: None}, start="usual"),
        row(OPEN, 2, "standard", {OPEN: 50, CLOSE: 10}, film=False),
        row(CLOSE, 0, "standard", {OPEN: None, CLOSE: None}),
        row(PRESS, 0, "standard", {PRESS: 30}, start="usual", infer_ms_p50=30.0),
        row(PRESS, 1, "standard", {PRESS: 30}, start="usual", film=False),
    ]


def language_rows():
    """Starts 0 and 2 of drawer-open and start 0 of drawer-close, told otherwise."""
    return [
        row(OPEN, 0, "opposite", {OPEN: None, CLOSE: 20}),
        row(OPEN, 2, "opposite", {OPEN: 5, CLOSE: 20}, film=False),
        row(CLOSE, 0, "opposite", {OPEN: 33, CLOSE: None}),
        row(OPEN, 0, "empty", {OPEN: 12, CLOSE: None}),
        row(OPEN, 2, "empty", {OPEN: None, CLOSE: None}, film=False),
        row(CLOSE, 0, "empty", {OPEN: 12, CLOSE: None}, infer_ms_p50=None),
    ]


def clip(shift):
    """uint8[T, H, W, 3] of a square that moves."""
    video = np.full((FRAMES, SIDE, SIDE, 3), (40, 60, 90), np.uint8)
    for time in range(FRAMES):
        video[time, 4:9, shift + 3 * time : shift + 3 * time + 5] = (230, 180, 60)
    return video


def write(root: pathlib.Path) -> pathlib.Path:
    """Writes everything below `root` and returns it."""
    (root / "data").mkdir(parents=True)
    for name in TRAINED_ON:
        PIL.Image.fromarray(clip(1)[0]).save(root / "data" / f"{name}.png")
    (root / "phases.json").write_text(json.dumps(PHASES))
    for stage in MIXTURES:
        _write_stage(root / stage, stage)
    (root / "bundle").mkdir()
    bundle = {"action_spec": {"names": ["x", "y", "z", "gripper"]}}
    (root / "bundle" / "bundle.json").write_text(json.dumps(bundle))
    _write_evaluation(root / "evaluation")
    return root


def _write_stage(workdir: pathlib.Path, stage: str) -> None:
    workdir.mkdir()
    data = {"num_frames": FRAMES, "image_size": SIDE, "frame_stride": 10}
    config = {"preset": "tiny", "seed": 7, "global_batch": 16, "data": data}
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": 20 * (i + 1), "split": "train", "loss": None if i == 3 else 1 / (i + 1)}
        for i in range(8)
    ]
    lines.insert(4, {"step": 80, "split": "eval", **dict.fromkeys(EVALUATIONS[stage], 0.0)})
    lines.append({"step": 160, "split": "eval", **EVALUATIONS[stage]})
    (workdir / metrics.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_pictures(workdir / metrics.MEDIA, stage)
    parts = [
        {
            "name": name,
            "weight": weight,
            "samples": 100,
            **TRAINED_ON[name],
            "start_digests": ["ab"] if name == "metaworld" else [],
        }
        for name, weight in MIXTURES[stage].items()
    ]
    facts = {"trained_on": parts, "versions": {"jax": "1.2.3"}}
    with manager.Checkpointer(workdir, keep=1) as checkpoints:
        assert checkpoints.save(_state(), metadata=facts, data_state={})


def _state() -> train_state.TrainState:
    number = jnp.int32(160)
    return train_state.TrainState(
        step=number,
        params={"w": jnp.zeros(2)},
        frozen={},
        ema_params=None,
        opt_state=(),
        extra={},
        rng=jax.random.key(0),
        bad_steps=number,
        skipped_steps=number,
    )


def _write_pictures(folder: pathlib.Path, stage: str) -> None:
    folder.mkdir()
    if stage == "gfdm":
        rows = [np.concatenate(list(clip(shift)), axis=1) for shift in (0, 1, 2, 3)]
        picture, name = np.concatenate(rows), "true_above_predicted"
    elif stage == "gidm":
        picture = np.full((2 * (SIDE + 4), PAIRS * (2 * SIDE + 4), 3), 255, np.uint8)
        for code, count in enumerate((1, 3)):
            for i in range(count):
                x, y = i * (2 * SIDE + 4), code * (SIDE + 4)
                picture[y : y + SIDE, x : x + 2 * SIDE] = np.concatenate(clip(i)[:2], axis=1)
        name = "pairs_by_code"
    else:
        return
    PIL.Image.fromarray(picture).save(folder / f"eval_{name}_00000160.png")


def _write_evaluation(folder: pathlib.Path) -> None:
    (folder / "videos").mkdir(parents=True)
    for episode in standard_rows() + language_rows():
        if episode["video"]:
            (folder / episode["video"]).write_bytes(pictures.encode_mp4(clip(2), 4))
    results = {
        "protocol": {"name": "metaworld", "version": "1", "sha256": "c0ffee" * 10},
        "bundle_sha256": "beef" * 16,
        "simulator": {"name": "metaworld", "version": "3.0.0", "commit": "none"},
        "renderer": {"vendor": "Mesa", "name": "llvmpipe", "comparable": False},
        "seed": 0,
        "summary": {"success_rate": 0.123},  # wrong on purpose: the report must not believe it
        "episodes": standard_rows(),
        "language_episodes": language_rows(),
    }
    (folder / "results.json").write_text(json.dumps(results))
