import av
import numpy as np
import PIL.Image
import pytest

from data_pipelines.formats import image as image_lib
from defi_jax import errors
from tools.imagine import pictures

SIZE = 16


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (2, 3, SIZE, SIZE, 3), np.uint8)


def _write(output, drawn, **changes):
    given = np.full((SIZE, SIZE, 3), 90, np.uint8)
    return pictures.write(str(output), given, drawn, (5, 6), "open it", **{"fps": 4.0} | changes)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (9, 7), (SIZE, SIZE)])
def test_pictures_are_resized_as_frames_of_training(tmp_path, height, width):
    image = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(image_lib.encode_png(image))
    found, note = pictures.prepare_image(pictures.read_image(str(path)), SIZE)
    np.testing.assert_array_equal(found, image_lib.resize(image, (SIZE, SIZE)))
    assert (f"{width} x {height}" in note) == (height != SIZE)
    assert ("aspect ratio" in note) == (height != width)


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(errors.UserError, match="picture cannot be read") as caught:
        pictures.read_image(str(tmp_path / "none.png"))
    assert caught.value.exit_code == 2
    (tmp_path / "cut.png").write_bytes(image_lib.encode_png(np.zeros((9, 9, 3), np.uint8))[:-20])
    with pytest.raises(errors.DataError, match=r"cut\.png"):
        pictures.read_image(str(tmp_path / "cut.png"))


def test_film_animation_and_sheet_show_every_frame_of_every_seed(tmp_path, drawn):
    paths = _write(tmp_path / "new" / "out", drawn)
    with av.open(paths["video"]) as film:
        assert len(list(film.decode(video=0))) == 3 and film.streams.video[0].average_rate == 4
    with PIL.Image.open(paths["animation"]) as animation:
        assert animation.n_frames == 3 and animation.info["duration"] == 250
    sheet = image_lib.decode_image((tmp_path / "new" / "out" / "future.png").read_bytes())
    assert _shows(sheet, drawn[1, 2], 128 // SIZE) and not _shows(sheet, drawn[1, 2][::-1], 8)


def _shows(sheet, frame, factor):
    """Whether a frame is somewhere on a sheet, enlarged."""
    side = factor * len(frame)
    rows, columns = np.nonzero((sheet[:-side, :-side] == frame[0, 0]).all(axis=-1))
    cells = (
        sheet[row : row + side : factor, column : column + side : factor]
        for row, column in zip(rows, columns, strict=True)
    )
    return any((cell == frame).all() for cell in cells)


def test_nothing_is_left_of_a_failure(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(pictures.pictures, "encode_animation", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _write(tmp_path / "out", drawn)
    assert list(tmp_path.iterdir()) == []


def test_output_of_others_is_never_replaced(tmp_path, drawn):
    _write(tmp_path / "out", drawn)
    with pytest.raises(errors.UserError, match="output exists"):
        pictures.check_output(str(tmp_path / "out"), overwrite=False)
    pictures.check_output(str(tmp_path / "out"), overwrite=True)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(errors.UserError, match="other files"):
        pictures.check_output(str(tmp_path / "out"), overwrite=True)
    pictures.check_output(str(tmp_path / "free"), overwrite=False)
