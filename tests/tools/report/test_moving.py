import numpy as np
import PIL.Image
import pytest
import tiny_run

from defi_jax import errors
from tools.report import moving


class Inverting:
    """Imagines the picture's negative: a stand-in, since the tiny run holds no video model."""

    image_size = tiny_run.SIDE

    def predict(self, image, text, seeds, *, num_steps, max_guidance):
        assert text in tiny_run.SAID.values()
        return np.stack([image, 255 - image])[None]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(moving.model_lib, "from_workdir", lambda workdir: (Inverting(), 1))
    return tiny_run.write(tmp_path / "run")


def _frames(path):
    with PIL.Image.open(path) as gif:
        frames = []
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGB")))
        return frames


def test_every_task_is_shown_above_what_was_imagined(root, tmp_path):
    size = moving.write(root, tmp_path / "demo.gif")
    assert size == (tmp_path / "demo.gif").stat().st_size <= moving.MAX_BYTES
    frames = _frames(tmp_path / "demo.gif")
    assert len(frames) == tiny_run.FRAMES
    height, width = frames[0].shape[:2]
    above, below = frames[0][: height // 2], frames[0][height // 2 :]
    assert width > 3 * 128  # three tasks
    middle = (60, 20)  # of the first cell, background
    np.testing.assert_allclose(below[middle], 255 - above[middle].astype(int), atol=25)


def test_large_films_are_thinned(root, tmp_path, monkeypatch):
    whole = moving.write(root, tmp_path / "a.gif")
    monkeypatch.setattr(moving, "MAX_BYTES", whole - 1)
    assert moving.write(root, tmp_path / "b.gif") < whole
    assert len(_frames(tmp_path / "b.gif")) == 2
    monkeypatch.setattr(moving, "MAX_BYTES", 10)
    with pytest.raises(errors.UserError, match="too many"):
        moving.write(root, tmp_path / "c.gif")


def test_run_without_films_and_output_that_cannot_be_written(root, tmp_path):
    with pytest.raises(errors.UserError, match="cannot be written"):
        moving.write(root, tmp_path / "absent" / "demo.gif")
    for film in (root / "evaluation" / "videos").iterdir():
        film.write_bytes(b"no film")
    with pytest.raises(errors.DataError, match="not an mp4"):
        moving.write(root, tmp_path / "demo.gif")
