"""Numbers and pictures of a run: `metrics.jsonl` and console, TensorBoard and W&B on request.

Scalars are lines `{"step": ..., "time": ..., "split": ..., name: value}`; `time` is in seconds
since 1970. Pictures go to `media/<split>_<name>_<step>.png`, videos to the same as .gif and .mp4.
"""

import contextlib
import errno
import importlib
import io
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from defi_rollout.benchmarks import pictures
from etils import epath

from defi_jax import errors, processes
from defi_jax.checkpoints import digests

FILE = "metrics.jsonl"
MEDIA = "media"
LOGS = "logs"

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_WANDB_ID = "wandb_run_id"
_VIDEO_FPS = 4
_REMOTE_FLUSH_SECONDS = 30.0


class MetricWriter:
    """Writes what a run reports; a no-op on all processes but the first.

    Args:
        workdir: local or in a bucket.
        config: resolved config; `logging.tensorboard`, `logging.wandb` are read.
        start_step: the run goes on after this step; lines of later steps, left by a run that was
            killed after its last checkpoint, are dropped.

    Attributes:
        run_rows: lines of the split "run" that an earlier process of the run left: the last of all
            and the last that is kept; {} where there is none.
    """

    def __init__(self, workdir: epath.Path, config: Any, start_step: int):
        self._active = processes.is_primary()
        self.run_rows: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
        if not self._active:
            return
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / FILE
        self._is_local = "://" not in str(workdir)
        rows = read(self._path)
        kept = [row for row in rows if row["step"] <= start_step]
        self.run_rows = (last(rows, "run"), last(kept, "run"))
        self._lines = [json.dumps(row) + "\n" for row in kept]
        digests.write_whole(self._path, "".join(self._lines))
        self._lines = [] if self._is_local else self._lines
        self._flushed, self._is_late = time.monotonic(), False
        self._sinks: list[Any] = []
        if config.logging.tensorboard:
            self._sinks.append(_TensorBoard(str(self._workdir / LOGS)))
        if config.logging.wandb:
            self._sinks.append(_Wandb(config, self._workdir))

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line; values that are not finite become null, as JSON has no NaN."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        row = {"step": step, "time": round(time.time(), 3), "split": split, **finite}
        self._append(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink.scalars(step, split, numbers)

    def media(
        self,
        step: int,
        split: str,
        images: Mapping[str, np.ndarray],
        videos: Mapping[str, np.ndarray],
    ) -> None:
        """Writes pictures, uint8[H, W, 3], and videos, uint8[T, H, W, 3]."""
        if not self._active:
            return
        for name, image in images.items():
            self._write_bytes(f"{split}_{name}_{step:08d}.png", pictures.encode_png(image))
        for name, video in videos.items():
            film = f"{split}_{name}_{step:08d}"
            self._write_bytes(f"{film}.gif", pictures.encode_animation(video, _VIDEO_FPS))
            self._write_bytes(f"{film}.mp4", pictures.encode_mp4(video, _VIDEO_FPS))
        for sink in self._sinks:
            sink.media(step, split, images, videos)

    def close(self) -> None:
        """Flushes everything."""
        if not self._active:
            return
        self._flush()
        for sink in self._sinks:
            sink.close()

    def _append(self, line: str) -> None:
        # Objects in a bucket can't be appended to: write the whole file, now and then.
        self._lines.append(line)
        if self._is_local or time.monotonic() - self._flushed > _REMOTE_FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Writes what is not written yet; where that fails the lines wait for the next time."""
        with self._or_later():
            if not self._is_local:
                self._path.write_text("".join(self._lines))
                self._flushed = time.monotonic()
                return
            data = "".join(self._lines).encode()
            with open(self._path, "ab", buffering=0) as file:
                end = file.tell()
                if (file.write(data) or 0) < len(data):  # the disk is full: leave no torn line
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._lines = []

    @contextlib.contextmanager
    def _or_later(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a bucket's library has no common type
            if not self._is_late:
                text = " ".join(str(error).split())[:200]
                logging.warning("%s: not written, trying on: %s", self._workdir, text)
            self._is_late = True
        else:
            self._is_late = False

    def _write_bytes(self, name: str, data: bytes) -> None:
        folder = self._workdir / MEDIA
        with self._or_later():  # a picture is not tried again
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name.replace("/", "_")).write_bytes(data)


class _TensorBoard:
    def __init__(self, directory: str):
        self._writer = _import("tensorboard").SummaryWriter(directory)

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def media(self, step: int, split: str, images: Mapping, videos: Mapping) -> None:
        for name, image in images.items():
            self._writer.add_image(f"{split}/{name}", image, step, dataformats="HWC")
        for name, video in videos.items():
            # A strip of frames: the library's own video support needs moviepy.
            strip = np.concatenate(list(video), axis=1)
            self._writer.add_image(f"{split}/{name}", strip, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, config: Any, workdir: epath.Path):
        self._wandb = _import("wandb")
        kept = workdir / LOGS / _WANDB_ID
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(secrets.token_hex(4))
        self._run = self._wandb.init(
            project="defi-jax",
            name=workdir.name,
            id=kept.read_text(),  # a run that goes on is one run there too
            resume="allow",
            config=config.to_dict(),
            allow_val_change=True,
        )

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def media(self, step: int, split: str, images: Mapping, videos: Mapping) -> None:
        shown = {f"{split}/{name}": self._wandb.Image(image) for name, image in images.items()}
        for name, video in videos.items():
            gif = io.BytesIO(pictures.encode_animation(video, _VIDEO_FPS))
            shown[f"{split}/{name}"] = self._wandb.Video(gif, format="gif")
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def check_packages(config: Any) -> None:
    """Raises UserError where a package is missing that `config.logging` asks for."""
    for option in _PACKAGES:
        if config.logging[option] and processes.is_primary():
            _import(option)


def _import(option: str) -> Any:
    package = _PACKAGES[option]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        fix = f"pip install {package}, or --config.logging.{option}=False"
        raise errors.UserError(f"{package} is not installed", f"logging.{option}", fix) from error


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03; "?" where unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def read(path: epath.Path) -> list[dict[str, Any]]:
    """Lines of a file of metrics, or of anything else by steps, without torn ones."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), **row})
        except (KeyError, TypeError, ValueError):
            logging.warning("%s: a torn line", path)
    return rows


def last(rows: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The last line of a split; {} where there is none."""
    return next((row for row in reversed(rows) if row.get("split") == split), {})
