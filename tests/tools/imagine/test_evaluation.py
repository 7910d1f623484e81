import json

import numpy as np
import pytest
from defi_rollout.benchmarks import base, scores, videos

from data_pipelines.formats import video
from defi_jax import errors
from tools.imagine import evaluation


class Model:
    """Stands in for a video model, which test_model.py tests: it tells what it was asked."""

    image_size = 32

    def __init__(self):
        self.asked = []

    def predict(self, image, text, seeds, *, num_steps, max_guidance):
        self.asked.append((image.shape, int(image.mean()), text, seeds, num_steps, max_guidance))
        return np.full((1, 3, 32, 32, 3), 200, np.uint8)


def _row(name, shade, **changes):
    episode = base.Episode(
        id=name,
        task="open",
        condition=base.STANDARD,
        instruction=f"open {name}",
        seed=0,
        start="usual",
        max_steps=9,
        scored_task="open",
        ends_on=("open",),
        film=True,
    )
    return episode.row() | {"status": "ok", "shade": shade} | changes


@pytest.fixture
def evaluated(tmp_path):
    """An evaluation of three episodes, two of them filmed."""
    rows = [_row("door", 40), _row("lid", 120), _row("dark", 0)]
    for row in rows[:2]:
        film = [np.full((64, 64, 3), row["shade"] + step, np.uint8) for step in range(4)]
        row["video"] = videos.write_video(tmp_path, row["id"], film, 5.0)
    results = {
        "protocol": {"name": "toy", "version": "1", "sha256": "0" * 64},
        "bundle_sha256": None,
        "policy": {"kind": "expert"},
        "simulator": {"name": "toy", "version": "2", "commit": "c"},
        "renderer": None,
        "success_mode": base.FIRST_SUCCESS,
        "summary": scores.summarise(rows),
        "episodes": rows,
        "language_episodes": [],
    }
    (tmp_path / base.RESULTS).write_text(json.dumps(results))
    return tmp_path


def _imagine(model, directory):
    numbers = {"seed": 7, "num_steps": 2, "max_guidance": 1.5, "fps": 4.0}
    return evaluation.imagine(model, str(directory), **numbers)


def test_each_film_gets_a_future_from_its_first_picture(evaluated):
    model = Model()
    assert _imagine(model, evaluated) == 2
    assert [(a[0], a[2:]) for a in model.asked] == [
        ((32, 32, 3), ("open door", [7], 2, 1.5)),
        ((32, 32, 3), ("open lid", [7], 2, 1.5)),
    ]
    assert [a[1] for a in model.asked] == pytest.approx([40, 120], abs=3)
    with video.open_video(evaluated / "videos/door-future.mp4") as film:
        assert len(list(film.frames())) == 3
    page = (evaluated / "index.html").read_text()
    assert "videos/door-future.mp4" in page and "predicted from the first picture" in page


def test_futures_that_are_there_are_left_alone(evaluated):
    _imagine(Model(), evaluated)
    model = Model()
    assert _imagine(model, evaluated) == 0 and not model.asked


def test_what_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(errors.UserError, match="no evaluation"):
        _imagine(Model(), tmp_path)
