import numpy as np

from data_pipelines.formats import contact_sheet
from data_pipelines.sources import synthetic
from defi_jax import batch as batch_lib
from tools.data import preview

GREY, GREEN = 90, np.array([60, 180, 75])


def _tokens(text: str, length: int = 40) -> batch_lib.TextTokens:
    ids = np.zeros((2, length), np.int32)
    encoded = text.encode()
    ids[:, : len(encoded)] = np.frombuffer(encoded, np.uint8).astype(np.int32) + 1
    return batch_lib.TextTokens(ids=ids, mask=ids > 0)


def _contains(sheet: np.ndarray, image: np.ndarray) -> bool:
    height, width = image.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
    corner = np.argwhere((windows[:, :, 0, 0] == image[0, 0]).all(-1))
    return any(np.array_equal(windows[y, x], image) for y, x in corner)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 255, (*shape, 3), np.uint8)


def test_clip_is_drawn_pixel_by_pixel():
    batch = batch_lib.GFDMBatch(video=_noise(2, 3, 32, 32), text=_tokens("öffne"))
    sheet = preview.batch_sheet(batch)
    assert all(_contains(sheet, frame) for clip in batch.video for frame in clip)


def test_pair_is_drawn_with_and_without_action():
    batch = batch_lib.GIDMBatch(
        frames=_noise(2, 2, 32, 32),
        text=_tokens("push"),
        action=np.ones((2, 4), np.float32),
        action_mask=np.array([True, False]),
    )
    sheet = preview.batch_sheet(batch)
    assert all(_contains(sheet, frame) for pair in batch.frames for frame in pair)


def test_observation_is_drawn_and_count_limits_rows():
    batch = batch_lib.JointBatch(
        images=_noise(2, 1, 32, 32),
        text={role: _tokens("push") for role in ("gfdm", "gidm", "goal")},
        actions=np.zeros((2, 10, 4), np.float32),
        action_mask=np.ones((2, 10), bool),
    )
    one, two = preview.batch_sheet(batch, count=1), preview.batch_sheet(batch)
    assert _contains(one, batch.images[0, 0]) and not _contains(one, batch.images[1, 0])
    assert two.shape[0] == 2 * one.shape[0]


def test_store_sheet_shows_first_and_last_frames():
    source = synthetic.SyntheticSource(image_size=32, action_dim=4)
    sheet = preview.store_sheet(source, count=2, frames=3)
    camera, last = source.meta(0).cameras[0], source.meta(0).length - 1
    for frame in source.frames(0, camera, [0, last]):
        assert _contains(sheet, frame)


def test_masked_steps_are_grey():
    actions = np.zeros((10, 2), np.float32)
    actions[:, 1] = 1
    plot = preview.plot_actions(actions, np.arange(10) < 5, (40, 100))
    top = plot[2]  # the constant 1 of dimension 1
    assert (top[:30] == GREEN).all(-1).any() and not (top[60:] == GREEN).all(-1).any()
    assert (top[60:] == GREY).all(-1).any()


def test_tokens_are_shown_as_the_model_gets_them():
    text = _tokens("öffne die Schublade")
    assert preview.describe_tokens(text.ids[0], text.mask[0]) == "öffne die Schublade"
    ids = np.array([49406, 320, 49407, 0])
    assert preview.describe_tokens(ids, ids > 0) == "ids 49406 320 49407"
    assert preview.describe_tokens(np.zeros(4, int), np.zeros(4, bool)) == "(empty text)"


def test_a_long_instruction_is_not_cut():
    caption = "pretending to pour water out of bottle but bottle is empty"
    batch = batch_lib.GFDMBatch(video=_noise(2, 1, 16, 16), text=_tokens(caption, length=80))
    sheet = preview.batch_sheet(batch)
    assert _contains(sheet, contact_sheet.text_strip(caption, contact_sheet.text_width(caption)))
    endless = batch_lib.GFDMBatch(video=_noise(2, 1, 16, 16), text=_tokens("o" * 900, length=900))
    assert preview.batch_sheet(endless).shape[1] < 900
