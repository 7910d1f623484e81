import itertools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import toy_run
from etils import epath

from configs import common
from data_pipelines import episodes
from data_pipelines.formats import image
from data_pipelines.loading import loader
from data_pipelines.store import writer as store_writer
from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.models.frozen import tokenizers
from defi_jax.objectives import base
from defi_jax.training import loop
from defi_jax.training.caches import features as feature_cache

SIZE, LENGTH, BATCH = 8, 16, 4
DATA = common.data().to_dict() | {
    "mixture": "a",
    "image_size": SIZE,
    "cameras": ("static",),
    "num_frames": 2,
    "frame_stride": 1,
    "pair_offset": (1, 2),
    "action_horizon": 2,
    "action_dim": 2,
    "window_stride": 2,
    "normalization": "none",
    "unnormalized_dims": (),
    "holdout_percent": 30,
    "augment": False,
    "workers": 0,
    "max_bad_fraction": 0.001,
}


class Killed(Exception):
    """Stands for the sudden end of a process."""


class FeatureObjective(base.FeatureObjective):
    """Actions from frozen features of image and text; the features are linear."""

    name = "joint"

    def __init__(self, *, caches_features=True, gain=1.0):
        self.caches_features, self.gain, self.batches_computed = caches_features, gain, 0
        self.seen = []

    def pixel_batch_spec(self, batch_size):
        return batch_lib.JointBatch(
            images=jax.ShapeDtypeStruct((batch_size, 1, SIZE, SIZE, 3), jnp.uint8),
            text={"gfdm": batch_lib.tokens_spec(batch_size, LENGTH)},
            actions=jax.ShapeDtypeStruct((batch_size, 2, 2), jnp.float32),
            action_mask=jax.ShapeDtypeStruct((batch_size, 2), jnp.bool_),
        )

    def batch_spec(self, batch_size):
        spec = self.pixel_batch_spec(batch_size)
        if not self.caches_features:
            return spec
        features = jax.ShapeDtypeStruct((batch_size, 1, 6), jnp.float16)
        return spec.replace(images=None, features=features)

    def init_params(self, rng):
        return {
            "gfdm": {"kernel": self.gain * jax.random.normal(jax.random.key(1), (6, 6))},
            "policy": {"kernel": 0.1 * jax.random.normal(rng, (6, 4))},
        }

    def init_extra(self):
        return {}

    def is_trainable(self, path):
        return path.startswith("policy/")

    def feature_params(self, params):
        return {"gfdm": params["gfdm"]}

    def feature_facts(self):
        return {"width": 6}

    def precompute_features(self, params, batch):
        jax.debug.callback(self._count)
        pixels = batch.images[:, 0, ::4, 0, :].reshape(len(batch.images), 6) / 255
        words = jnp.sum(batch.text["gfdm"].ids, axis=1, keepdims=True) / 1000
        features = ((pixels + words) @ params["gfdm"]["kernel"])[:, None]
        return jax.lax.reduce_precision(features, 5, 10).astype(jnp.float16)

    def _count(self):
        self.batches_computed += 1

    def loss_fn(self, params, extra, batch, rng):
        features = batch.features
        if features is None:
            features = self.precompute_features(params, batch)
        actions = features[:, 0].astype(jnp.float32) @ params["policy"]["kernel"]
        loss = jnp.square(actions.reshape(-1, 2, 2) - batch.actions).mean()
        loss += 0.01 * jax.random.normal(rng)
        return loss, base.LossOutput(metrics={}, extra=extra)

    def after_step(self, params, extra, step, rng):
        return params, extra

    def evaluate(self, params, batches, rng):
        self.seen = [
            batch.features if batch.images is None else self.precompute_features(params, batch)
            for batch in batches
        ]
        return base.EvalOutput(scalars={"batches": float(len(self.seen))})

    def warm_starts(self):
        return []

    def describe(self):
        return {}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of 12 episodes with 3 windows each, all of their own colours."""
    directory = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    with store_writer.EpisodeWriter(directory / "a", source="a") as writer:
        for number in range(12):
            frames = rng.integers(0, 255, (5, SIZE, SIZE, 3), np.uint8)
            episode = episodes.Episode(
                episode_id=f"a-{number}",
                source="a",
                embodiment="robot",
                instructions=(f"do {number}",),
                frames={"static": [image.encode_png(frame) for frame in frames]},
                actions=rng.standard_normal((5, 2)).astype(np.float32),
                states=None,
                fps=10.0,
            )
            writer.write(episode)
    return directory


class _Interrupted:
    """A loader that does something before a batch."""

    def __init__(self, inner, at, action):
        self._inner, self._at, self._action, self._taken = inner, at, action, 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __iter__(self):
        return self

    def __next__(self):
        self._taken += 1
        if self._taken > self._at:
            self._action()
        return next(self._inner)


def train(root, workdir, objective=None, *, kill_at=None, **changes):
    objective = objective or FeatureObjective()
    tokenizer = tokenizers.utf8(LENGTH, lower_case=True, strip_punctuation=False)
    data = ml_collections.ConfigDict({**DATA, "root": str(root)})

    def make_loader(spec, *, split, **options):
        one = loader.make_loader(data, spec, tokenizers={"gfdm": tokenizer}, split=split, **options)
        if kill_at is None or split == "eval":
            return one

        def kill():
            raise Killed

        return _Interrupted(one, kill_at, kill)

    settings = {"global_batch": BATCH, "eval_batches": 1, **changes}
    config = toy_run.config(embodiment="robot", **settings)
    return loop.train(config, objective, make_loader, workdir)


def assert_equal(left, right):
    left, right = toy_run.leaves(left), toy_run.leaves(right)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        np.testing.assert_array_equal(leaf, right[path], err_msg=path)


def files(workdir):
    return sorted((pathlib.Path(workdir) / "cache").iterdir())


def test_training_on_features_equals_training_on_images(tmp_path, root):
    cached, direct = FeatureObjective(), FeatureObjective(caches_features=False)
    one = train(root, tmp_path / "cached", cached)
    two = train(root, tmp_path / "direct", direct)
    assert_equal(one, two)
    assert not (tmp_path / "direct" / "cache").exists()
    # A row a training sample, and one a place in the held-out batches.
    shapes = {np.load(path).shape for path in files(tmp_path / "cached")}
    samples = json.loads((tmp_path / "cached/checkpoints/4/metadata/metadata").read_text())
    assert shapes == {(samples["trained_on"][0]["samples"], 1, 6), (BATCH, 1, 6)}
    np.testing.assert_array_equal(cached.seen[0], direct.seen[0])


def test_resume_after_a_crash_reuses_the_files_and_is_exact(tmp_path, root):
    straight = train(root, tmp_path / "straight")
    with pytest.raises(Killed):
        train(root, tmp_path / "killed", kill_at=3)
    written = [path.stat().st_mtime_ns for path in files(tmp_path / "killed")]
    again = FeatureObjective()
    resumed = train(root, tmp_path / "killed", again)
    assert_equal(straight, resumed)
    assert [path.stat().st_mtime_ns for path in files(tmp_path / "killed")] == written
    assert again.batches_computed == 0


def test_the_step_and_the_features_compile_once(tmp_path, root, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        train(root, tmp_path, eval_every=2)
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    for name in ("train_step", "precompute_features"):
        assert len([text for text in compiled if name in text]) == 1


def test_a_file_that_was_not_finished_is_continued_to_the_same_bytes(tmp_path, root, monkeypatch):
    straight = FeatureObjective()
    train(root, tmp_path / "straight", straight)
    asked = itertools.count()
    with monkeypatch.context() as patch, pytest.raises(errors.Preempted, match="of 8 training"):
        # SIGTERM comes while the third batch is read.
        patch.setattr(
            feature_cache.watchdog.Supervisor, "stop_requested", lambda _: next(asked) > 1
        )
        train(root, tmp_path / "run")
    (left,) = files(tmp_path / "run")
    assert left.name.endswith(".npy.partial")
    with left.open("ab") as file:  # a kill may leave a part of the next batch
        file.write(b"\1" * 40)
    again = FeatureObjective()
    train(root, tmp_path / "run", again)
    assert again.batches_computed == straight.batches_computed - 2
    ours, theirs = files(tmp_path / "run"), files(tmp_path / "straight")
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_a_file_that_is_short_of_bytes_is_computed_anew(tmp_path, root):
    train(root, tmp_path)
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-9])
    again = FeatureObjective()
    train(root, tmp_path, again)
    assert again.batches_computed > 1


def test_other_frozen_parameters_make_another_file(tmp_path, root):
    train(root, tmp_path)
    before = files(tmp_path)
    for name in ("checkpoints", "metrics.jsonl"):
        epath.Path(tmp_path / name).rename(tmp_path / f"old {name}")
    train(root, tmp_path, FeatureObjective(gain=2.0))
    assert len(files(tmp_path)) == 2 * len(before)


def test_features_that_are_not_finite_stop_the_run(tmp_path, root):
    with pytest.raises(errors.NumericsError, match=r"features of training samples.*init\.gfdm"):
        train(root, tmp_path, FeatureObjective(gain=np.inf))


def test_a_request_to_stop_is_heard(tmp_path, root, monkeypatch):
    monkeypatch.setattr("defi_jax.training.watchdog.Supervisor.stop_requested", lambda self: True)
    with pytest.raises(errors.Preempted, match=r"before step 1.*goes on from there"):
        train(root, tmp_path)


def test_what_the_cache_cannot_do_is_named(tmp_path, monkeypatch):
    objective = FeatureObjective()

    def prepare(workdir):
        feature_cache.prepare(toy_run.config(), objective, {}, None, None, None, workdir, None)

    with pytest.raises(errors.UserError, match=r"local workdir.*gs://.*cache_features=False"):
        prepare(epath.Path("gs://bucket/run"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(errors.UserError, match=r"one process, not in 2: --config\.cache_features"):
        prepare(epath.Path(tmp_path))


def test_a_full_disk_is_an_error_before_anything_is_computed(tmp_path, root, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    # The checkpoints would fit.
    monkeypatch.setattr("defi_jax.checkpoints.manager.Checkpointer.check_space", lambda *_: None)
    objective = FeatureObjective()
    with pytest.raises(errors.StorageError, match=r"GiB.*make space"):
        train(root, tmp_path, objective)
    assert objective.batches_computed == 0
