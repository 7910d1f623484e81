"""The data set of docs/open_x.md: the layout of the widely copied example builder."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from tests.data_pipelines import tfds_directory


def write(root: pathlib.Path, num_episodes: int = 1) -> pathlib.Path:
    """Writes the layout as far as it is used; returns the version's folder."""
    f = tfds.features
    views = {"image": f.Image(shape=(8, 12, 3)), "wrist_image": f.Image(shape=(8, 12, 3))}
    numbers = f.Tensor(shape=(10,), dtype=np.float32)
    observation = {**views, "state": numbers}
    step = {"observation": observation, "action": numbers, "language_instruction": f.Text()}

    def episode():
        def make(t):
            pictures = {view: tfds_directory.encoded() for view in views}
            row = np.full(10, t, np.float32) / 10
            return {
                "observation": {**pictures, "state": row},
                "action": row,
                "language_instruction": "dummy",
            }

        return {"steps": [make(t) for t in range(4)]}

    features = f.FeaturesDict({"steps": f.Dataset(step)})
    directory = root / "example_dataset" / "1.0.0"
    splits = {"train": [episode] * num_episodes}
    return tfds_directory.write(directory, features, splits, name="example_dataset")
