"""How tests compile; a tiny RLDS writer, independent of the reader under test."""

import collections
import os
import signal
import struct

# Programs of tests run once: their compilation is what takes time. Read by jax when it is imported,
# here and in the processes that tests start; the demo is compiled as users compile it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info

from data_pipelines.formats import image as image_lib
from data_pipelines.formats import tfrecord

# A suite in the background of a shell inherits these as ignored, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Files of slow tests come first: were they last, one worker would wait for the other."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def serialize_example(features: dict[str, np.ndarray | list[bytes]]) -> bytes:
    """tf.train.Example bytes: float arrays, integer arrays or lists of bytes."""
    entries = b""
    for name, values in features.items():
        if isinstance(values, list):
            kind, content = 1, b"".join(_field(1, value) for value in values)
        elif np.issubdtype(values.dtype, np.floating):
            kind, content = 2, _field(1, values.astype("<f4").tobytes())
        else:
            packed = b"".join(_varint(int(v) & (2**64 - 1)) for v in values.ravel())
            kind, content = 3, _field(1, packed)
        entry = _field(1, name.encode()) + _field(2, _field(kind, content))
        entries += _field(1, entry)
    return _field(1, entries)


def write_records(path, records: list[bytes]) -> None:
    """TFRecord file."""
    data = b""
    for record in records:
        header = struct.pack("<Q", len(record))
        data += header + struct.pack("<I", tfrecord.masked_crc(header))
        data += record + struct.pack("<I", tfrecord.masked_crc(record))
    path.write_bytes(data)


def raw_episode(seed: int, steps: int = 6, text: str = "öffne die Schublade") -> dict:
    """Features of one Bridge-like episode, as TFDS flattens them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (16, 24, 3), np.uint8)
    action = rng.standard_normal((steps, 7)).astype(np.float32)
    action[:, -1] = rng.random(steps)  # an opening
    return {
        "steps/action": action,
        "steps/observation/state": rng.standard_normal((steps, 7)).astype(np.float32),
        "steps/observation/image_0": [
            image_lib.encode_jpeg(np.roll(image, step, axis=1)) for step in range(steps)
        ],
        "steps/observation/image_1": [image_lib.encode_png(image[:, ::-1])] * steps,
        "steps/language_instruction": [text.encode()] * steps,
        "steps/is_first": np.arange(steps) == 0,
        "episode_metadata/episode_id": np.array([-seed - 1]),
        "episode_metadata/file_path": [f"raw/{seed}".encode()],
    }


def features(state_dim: int = 7) -> tfds.features.FeaturesDict:
    """Feature types of such episodes."""
    image = tfds.features.Image(shape=(16, 24, 3))
    state = tfds.features.Tensor(shape=(state_dim,), dtype=np.float32)
    step = {
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "observation": {"state": state, "image_0": image, "image_1": image},
        "language_instruction": tfds.features.Text(),
        "is_first": tfds.features.Scalar(dtype=np.bool_),
    }
    about = {"episode_id": tfds.features.Scalar(np.int32), "file_path": tfds.features.Text()}
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": about}
    )


class RldsWriter:
    """Writes a dataset folder by TFDS's descriptions; every part of it can be spoilt afterwards."""

    def __init__(self, root):
        self.directory = root / "bridge_dataset" / "1.0.0"

    def shard(self, index: int, count: int, split: str = "train"):
        """Path of a shard."""
        return self.directory / f"bridge_dataset-{split}.tfrecord-{index:05d}-of-{count:05d}"

    def __call__(self, shards: list[list[dict]], state_dim: int = 7):
        """Writes shards of episodes and both descriptions; returns the version folder."""
        self.directory.mkdir(parents=True)
        for index, episodes in enumerate(shards):
            write_records(self.shard(index, len(shards)), [serialize_example(e) for e in episodes])
        template = tfds.core.ShardedFileTemplate(
            data_dir=self.directory,
            dataset_name="bridge_dataset",
            split="train",
            filetype_suffix="tfrecord",
        )
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=[len(shard) for shard in shards],
            num_bytes=1,
            filename_template=template,
        )
        identity = dataset_info.DatasetIdentity(
            name="bridge_dataset",
            version=tfds.core.Version("1.0.0"),
            data_dir=str(self.directory),
            module_name="builder",
        )
        info = tfds.core.DatasetInfo(builder=identity, features=features(state_dim))
        info.set_file_format("tfrecord")
        info.set_splits(tfds.core.SplitDict([split]))
        info.write_to_directory(self.directory)
        return self.directory


@pytest.fixture
def as_users_compile():
    """Programs of a test are compiled with all optimizations."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


@pytest.fixture
def write_rlds(tmp_path):
    """Writer of a dataset below the test's directory."""
    return RldsWriter(tmp_path)


@pytest.fixture(scope="session")
def rlds_writer():
    """The writer itself, for a directory of the test's own."""
    return RldsWriter


@pytest.fixture(scope="session")
def rlds_tools():
    """The functions above, for tests of the layers below a dataset."""
    return {"example": serialize_example, "records": write_records, "episode": raw_episode}
