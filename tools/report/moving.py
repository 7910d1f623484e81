"""The demo as one moving picture: each task's rollout above what is imagined from every moment.

    film of a successful episode -> moments -> the video model's last frame for each -> GIF

Legend: H W image size.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from defi_rollout.benchmarks import pictures as encoder

from data_pipelines.formats import contact_sheet, video
from data_pipelines.formats import image as image_lib
from defi_jax import errors
from tools.imagine import model as model_lib
from tools.imagine import pictures
from tools.report import files as files_lib

MAX_BYTES = 2_000_000
_MOMENTS = 40  # of the longest film
_FPS = 8
_SIDE = 128  # pixels of a cell
_DENOISING_STEPS = 10


def write(root: pathlib.Path, output: pathlib.Path) -> int:
    """Writes the GIF of the run below `root` and returns its size, at most `MAX_BYTES`.

    Raises:
        UserError: the run lacks a file or a film, or the GIF cannot be written.
        DataError: a file is damaged.
    """
    files = files_lib.RunFiles(root)
    rows = _one_a_task(files.results()["episodes"])
    if not rows:
        raise errors.UserError("no episode was filmed", str(root), "evaluate the bundle again")
    films = [_read(files.film(row["video"])) for row in rows]
    stride = -(-max(map(len, films)) // _MOMENTS)
    films = [film[::stride] for film in films]
    model, _ = model_lib.from_workdir(str(root / "gfdm"))
    imagined = [
        [_imagine(model, frame, row["instruction"]) for frame in film]
        for film, row in zip(films, rows, strict=True)
    ]
    data = files.config("gfdm")["data"]
    ahead = data["frame_stride"] * (data["num_frames"] - 1)
    labels = [row["instruction"] for row in rows] + [f"imagined, {ahead} steps on"] * len(rows)
    gif = _animate([*films, *imagined], labels, len(rows))
    what = "moving picture cannot be written"
    with errors.UserError.instead_of(OSError, what, output, "choose another"):
        output.write_bytes(gif)
    return len(gif)


def _one_a_task(episodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first filmed success of each task, else its first film."""
    filmed = [row for row in episodes if row["video"]]
    tasks = dict.fromkeys(row["task"] for row in filmed)
    ordered = sorted(filmed, key=lambda row: not row["success"])
    return [next(row for row in ordered if row["task"] == task) for task in tasks]


def _read(path: pathlib.Path) -> list[np.ndarray]:
    with video.open_video(path) as film:
        return [frame.image() for frame in film.frames()]


def _imagine(model: model_lib.VideoModel, frame: np.ndarray, text: str) -> np.ndarray:
    """The last frame that the video model predicts from one frame, uint8[H, W, 3]."""
    given, _ = pictures.prepare_image(frame, model.image_size)
    return model.predict(given, text, [0], num_steps=_DENOISING_STEPS, max_guidance=1.0)[0, -1]


def _animate(cells: Sequence[Sequence[np.ndarray]], labels: Sequence[str], columns: int) -> bytes:
    """A GIF of films side by side, each resting at its end; of fewer moments where it is large."""
    cells = [[image_lib.resize(frame, (_SIDE, _SIDE)) for frame in cell] for cell in cells]
    moments = np.stack(
        [
            contact_sheet.contact_sheet(
                [cell[min(t, len(cell) - 1)] for cell in cells], labels, columns=columns
            )
            for t in range(max(map(len, cells)))
        ]
    )
    for step in (1, 2, 4, 8, 16):
        gif = encoder.encode_animation(moments[::step], _FPS / step)
        if len(gif) <= MAX_BYTES:
            return gif
    raise errors.UserError(f"{len(cells)} films are too many", "the run", "evaluate fewer tasks")
