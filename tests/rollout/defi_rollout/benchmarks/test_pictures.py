import io

import numpy as np
import pytest
from defi_rollout.benchmarks import pictures

av = pytest.importorskip("av")
image_lib = pytest.importorskip("PIL.Image")

COLOURS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128))


def _frames(count: int = 3, height: int = 33, width: int = 47) -> list[np.ndarray]:
    return [np.full((height, width, 3), COLOURS[number], np.uint8) for number in range(count)]


def test_mp4_names_its_colours_and_pads_odd_sizes():
    with av.open(io.BytesIO(pictures.encode_mp4(_frames(4), 12.5))) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)
        assert stream.average_rate == 12.5 and (codec.height, codec.width) == (34, 48)
        decoded = [frame.to_ndarray(format="rgb24")[8, 8] for frame in container.decode(stream)]
    np.testing.assert_allclose(decoded, COLOURS, atol=4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animations_play_for_ever_at_their_rate(kind):
    with image_lib.open(io.BytesIO(pictures.encode_animation(_frames(), 4, kind))) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (3, 0)
        animation.seek(1)
        animation.load()
        assert animation.info["duration"] == 250
        np.testing.assert_allclose(np.asarray(animation.convert("RGB"))[8, 8], COLOURS[1], atol=8)


def test_png_is_lossless():
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    with image_lib.open(io.BytesIO(pictures.encode_png(noise))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), noise)


def test_a_video_without_frames_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        pictures.encode_mp4([], 10)
