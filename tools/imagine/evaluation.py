"""What the video model expected of an evaluation's episodes, beside what happened.

videos/ID.mp4           the film of an episode, as `defi_rollout evaluate` left it
videos/ID-future.mp4    predicted from its first picture and its instruction
index.html              the page, with both side by side
"""

import json
import pathlib

import numpy as np
import tqdm
from defi_rollout.benchmarks import base, page, videos

from data_pipelines.formats import video
from defi_jax import errors
from tools.imagine import model as model_lib
from tools.imagine import pictures


def imagine(
    model: model_lib.VideoModel,
    directory: str,
    *,
    seed: int,
    num_steps: int,
    max_guidance: float,
    fps: float,
) -> int:
    """Predicts a future for each filmed episode that has none yet, and writes the page anew.

    Args:
        model: the video model, of the evaluated policy or another one.
        directory: what `evaluate --output` wrote.
        seed: which of the possible futures.
        num_steps, max_guidance: of the sampling.
        fps: frames a second of the predictions.

    Returns:
        How many were predicted now.

    Raises:
        UserError: there is no evaluation, or it has no films.
        DataError: a film is damaged.
    """
    root = pathlib.Path(directory)
    with errors.UserError.instead_of(
        (OSError, ValueError), "no evaluation", root, "give what `evaluate --output` wrote"
    ):
        results = json.loads((root / base.RESULTS).read_text())
    rows = [row for row in results["episodes"] + results["language_episodes"] if row["video"]]
    if not rows:
        raise errors.UserError("no episode was filmed", root, "evaluate with av installed")
    todo = [row for row in rows if videos.future_of(root, row["video"]) is None]
    for row in tqdm.tqdm(todo, unit="future", leave=False):
        given, _ = pictures.prepare_image(_first_picture(root / row["video"]), model.image_size)
        (drawn,) = model.predict(
            given, row["instruction"], [seed], num_steps=num_steps, max_guidance=max_guidance
        )
        videos.write_video(root, row["id"] + videos.FUTURE, list(drawn), fps)
    page.write_page(root, results)
    return len(todo)


def _first_picture(path: pathlib.Path) -> np.ndarray:
    with video.open_video(path) as film:
        return next(film.frames()).image()
