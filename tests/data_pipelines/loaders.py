"""Loaders and stores small enough for tests, and what is compared of batches."""

import jax
import ml_collections
import numpy as np

from configs import common
from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.loading import loader
from data_pipelines.store import writer as store_writer
from defi_jax import batch as batch_lib
from defi_jax.models.frozen import tokenizers

LENGTH = 24
ROLES = {"gfdm": ("gfdm",), "gidm": ("gidm",), "joint": ("gfdm", "gidm", "goal")}


def config(**changes):
    values = {
        "root": "",
        "mixture": "synthetic",
        "image_size": 16,
        "cameras": ("static",),
        "num_frames": 3,
        "frame_stride": 4,
        "pair_offset": (2, 5),
        "action_horizon": 4,
        "window_stride": 1,
        "action_dim": 2,
        "normalization": "bounds_q99",
        "unnormalized_dims": (),
        "holdout_percent": 10,
        "augment": True,
        "workers": 0,
        "max_bad_fraction": 0.001,
    }
    return ml_collections.ConfigDict(common.data().to_dict() | values | changes)


def spec(name, config):
    text = batch_lib.tokens_spec(1, LENGTH)
    size = (config.image_size, config.image_size, 3)

    def leaf(dtype, *shape):
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    if name == "gfdm":
        return batch_lib.GFDMBatch(video=leaf(np.uint8, config.num_frames, *size), text=text)
    if name == "gidm":
        return batch_lib.GIDMBatch(
            frames=leaf(np.uint8, 2, *size),
            text=text,
            action=leaf(np.float32, config.action_dim),
            action_mask=leaf(np.bool_),
        )
    return batch_lib.JointBatch(
        images=leaf(np.uint8, len(config.cameras), *size),
        text=dict.fromkeys(ROLES["joint"], text),
        actions=leaf(np.float32, config.action_horizon, config.action_dim),
        action_mask=leaf(np.bool_, config.action_horizon),
    )


def make(name="gidm", *, split="train", seed=0, global_batch=8, process=0, count=1, **changes):
    data = config(**changes)
    tokenizer = tokenizers.utf8(LENGTH, lower_case=True, strip_punctuation=False)
    return loader.make_loader(
        data,
        spec(name, data),
        tokenizers=dict.fromkeys(ROLES[name], tokenizer),
        split=split,
        seed=seed,
        global_batch=global_batch,
        process_index=process,
        process_count=count,
    )


def write_store(
    directory,
    name,
    count=12,
    *,
    source="lab",
    width=2,
    cameras=("static",),
    has_actions=True,
    length=9,
):
    """Writes a store whose pixels tell the frame's number."""
    encoded = [image.encode_png(np.full((16, 16, 3), 10 * t, np.uint8)) for t in range(length)]
    with store_writer.EpisodeWriter(directory / name, source=name) as writer:
        for number in range(count):
            rows = np.arange(length, dtype=np.float32)[:, None] + number
            writer.write(
                episodes.Episode(
                    episode_id=f"{name}-{number}",
                    source=source,
                    embodiment="robot",
                    instructions=(f"{name} {number}",),
                    frames=dict.fromkeys(cameras, encoded),
                    actions=np.tile(rows, (1, width)) if has_actions else None,
                    states=None,
                    fps=10.0,
                )
            )
    return directory / name


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)
