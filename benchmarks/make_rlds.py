"""Synthetic RLDS of any size, as TFDS writes BridgeData V2; without TensorFlow.

    python -m benchmarks.make_rlds --output=DIR --size_mib=1024

    DIR/bridge_dataset/1.0.0/{dataset_info.json, features.json, bridge_dataset-train.tfrecord-*}

Frames are noise that moves, as JPEG; actions and states are random, texts a few. Bytes follow from
the flags alone.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.formats import image as image_lib
from data_pipelines.formats import tfrecord

NAME = "bridge_dataset"
SHARD_MIB = 64
TEXTS = ("open the drawer", "put the cup on the plate", "wipe the table", "öffne die Schublade")

_F = flags.FLAGS
_CLASSES = "tensorflow_datasets.core.features"


def main(_) -> None:
    """Writes what the flags say."""
    made = write(
        pathlib.Path(_F.output), size_mib=_F.size_mib, image_size=_F.image_size, seed=_F.seed
    )
    print(f"{made['directory']}: {made['episodes']} episodes, {made['bytes'] >> 20} MiB")


def write(output: pathlib.Path, *, size_mib: float, image_size: int, seed: int) -> dict[str, Any]:
    """Writes the dataset below `output`.

    Args:
        output: directory, created when absent.
        size_mib: size of all files, at least.
        image_size: pixels of a frame's side.
        seed: seed of all content.

    Returns:
        `directory, episodes, bytes`.
    """
    directory = output / NAME / "1.0.0"
    directory.mkdir(parents=True)
    count = max(2, round(size_mib / SHARD_MIB))
    records = _records(image_size, seed)
    lengths, num_bytes = [], 0
    for number in range(count):
        path = directory / f"{NAME}-train.tfrecord-{number:05d}-of-{count:05d}"
        with path.open("wb") as file:
            lengths.append(0)
            while file.tell() < size_mib * 2**20 / count:
                tfrecord.write_record(file, next(records))
                lengths[-1] += 1
            num_bytes += file.tell()
    split = {"name": "train", "shardLengths": [str(n) for n in lengths], "numBytes": str(num_bytes)}
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    (directory / "features.json").write_text(json.dumps(_describe(image_size)))
    return {"directory": str(directory), "episodes": sum(lengths), "bytes": num_bytes}


def _records(image_size: int, seed: int) -> Iterator[bytes]:
    """Yields one episode after the other, without end, each of a length of its own."""
    rng = np.random.default_rng(seed)
    while True:
        length = int(rng.integers(5, 50))
        coarse = rng.integers(0, 256, (image_size // 8, image_size // 8, 3), np.uint8)
        image = image_lib.resize(coarse, (image_size, image_size))
        frames = [
            image_lib.encode_jpeg(np.roll(image, 2 * step, axis=1), 85) for step in range(length)
        ]
        action = rng.standard_normal((length, 7)).astype(np.float32)
        action[:, -1] = rng.random(length)  # a gripper's opening
        yield _serialize(
            {
                "steps/action": action,
                "steps/observation/state": rng.standard_normal((length, 7)).astype(np.float32),
                "steps/observation/image_0": frames,
                "steps/observation/image_1": frames[::-1],
                "steps/language_instruction": [str(rng.choice(TEXTS)).encode()] * length,
                "steps/is_first": np.arange(length) == 0,
            }
        )


def _serialize(features: dict[str, np.ndarray | list[bytes]]) -> bytes:
    """Returns a tf.train.Example; arrays are flattened."""
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    for name, values in features.items():
        feature = example.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif np.issubdtype(values.dtype, np.floating):
            feature.float_list.value.extend(values.ravel().tolist())
        else:
            feature.int64_list.value.extend(values.ravel().astype(int).tolist())
    return example.SerializeToString(deterministic=True)


def _describe(image_size: int) -> dict[str, Any]:
    """Returns features.json."""
    shape = {"shape": _shape(image_size, image_size, 3), "dtype": "uint8"}
    image = _feature("image_feature.Image", image=shape)
    observation = {"state": _tensor("float32", 7), "image_0": image, "image_1": image}
    step = {
        "action": _tensor("float32", 7),
        "observation": _dict(observation),
        "language_instruction": _feature("text_feature.Text", text={}),
        "is_first": _tensor("bool"),
    }
    sequence = {"feature": _dict(step), "length": "-1"}
    return _dict({"steps": _feature("dataset_feature.Dataset", sequence=sequence)})


def _dict(features: dict[str, Any]) -> dict[str, Any]:
    return _feature("features_dict.FeaturesDict", featuresDict={"features": features})


def _tensor(dtype: str, *shape: int) -> dict[str, Any]:
    kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
    return _feature(kind, tensor={"shape": _shape(*shape), "dtype": dtype, "encoding": "none"})


def _shape(*sizes: int) -> dict[str, Any]:
    return {"dimensions": [str(size) for size in sizes]} if sizes else {}


def _feature(kind: str, **content: Any) -> dict[str, Any]:
    return {"pythonClassName": f"{_CLASSES}.{kind}", **content}


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "Directory.", required=True)
    flags.DEFINE_float("size_mib", 64, "Of all files.", 0.01)
    flags.DEFINE_integer("image_size", 256, "Pixels of a frame's side.", 16)
    flags.DEFINE_integer("seed", 0, "Of all content.")
    app.run(main)
