"""The writer on the real joint objective, shrunk; batches are symbolic in export."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.export
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import real_policies
import safetensors.numpy
from defi_rollout import bundle as rollout_bundle
from defi_rollout import noise as rollout_noise
from defi_rollout import policy as rollout_policy

from data_pipelines import normalization, pixels
from defi_jax import batch as batch_lib
from defi_jax import embodiment, errors, objectives
from defi_jax.checkpoints import manager
from defi_jax.export import description, writer
from defi_jax.models import params as params_lib

ENCODERS = {
    "tiny": ("space_to_depth", "bytes", "bytes", "bytes", "patches"),
    "small": ("space_to_depth", "bytes", "bytes", "bytes", "patches"),
    "full": ("svd_vae", "clip_text", "t5_encoder", "clip_openai", "dinov2"),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    with real_policies.compiled_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run of `tiny` and its bundle, not to be changed."""
    return real_policies.shared_run(tmp_path_factory)


@pytest.fixture
def stored(shared, monkeypatch):
    """What the run's checkpoint holds; tests change it before they export."""
    params, metadata = manager.load_params(shared / "run")
    content = {"params": params, "metadata": metadata}
    monkeypatch.setattr(
        writer.manager, "load_params", lambda *_: (content["params"], content["metadata"])
    )
    return content


@pytest.fixture
def no_program(monkeypatch):
    """An empty program, for exports that fail or are compared before anything calls it."""
    monkeypatch.setattr(writer.program_lib, "export_program", lambda *_: b"")


def _observations(spec, batch):
    rng = np.random.default_rng(batch)
    images = {
        camera.key: rng.integers(0, 255, (batch, camera.height, camera.width, 3), np.uint8)
        for camera in spec.cameras
    }
    return images | {"prompt": [f"open drawer {i}" for i in range(batch)]}


def _known_actions(workdir, spec, obs, seeds):
    """Actions of the checkpoint itself for observations and the client's noise."""
    params, metadata = manager.load_params(workdir)
    objective = objectives.make(ml_collections.ConfigDict(metadata["config"]))
    text = {
        role: batch_lib.TextTokens(*tokenizer(obs["prompt"]))
        for role, tokenizer in objective.tokenizers().items()
    }
    noise = {
        name: np.stack([rollout_noise.draw((seed,), name, shape) for seed in seeds])
        for name, shape in spec.noise.items()
    }
    side = spec.image.height
    views = [pixels.resize(obs[camera.key], side) for camera in spec.cameras]
    images = np.stack(views, axis=1)
    normalised = objective._sample(params, images, text, noise)
    invert = normalization.Normalizer.from_json(metadata["normalizer"]).invert
    limits = spec.action_spec
    return np.clip(invert(np.asarray(normalised)), limits.low, limits.high)


def _check_batches_of_1_and_3(root):
    """The bundle answers as the checkpoint does, whatever the size of the batch."""
    policy = rollout_policy.Policy.load(root / "bundle", warm_up=False)
    tolerance = 2e-2 if policy.spec.model["config"]["compute_dtype"] == "bfloat16" else 1e-4
    three = _observations(policy.spec, 3)
    seeds = [5, 6, 7]
    actions = policy.infer(three | {rollout_noise.SEED: seeds})["actions"]
    assert actions.shape == (3, real_policies.CHUNK, policy.spec.action_spec.dim)
    known = _known_actions(root / "run", policy.spec, three, seeds)
    np.testing.assert_allclose(actions, known, atol=tolerance)
    one = {key: value[1:2] for key, value in three.items()}
    alone = policy.infer(one | {rollout_noise.SEED: seeds[1]})["actions"]
    np.testing.assert_allclose(alone[0], actions[1], atol=tolerance)
    assert np.ptp(actions, axis=0).max() > 0.1  # rows differ: pictures, words and noise do


def test_tiny_answers_as_its_checkpoint_in_batches_of_1_and_3(shared):
    _check_batches_of_1_and_3(shared)


# Each preset's encoders once; one and two cameras with the quickest of them.
@pytest.mark.slow
@pytest.mark.parametrize(("preset", "cameras"), [("tiny", 2), ("small", 1), ("full", 2)])
def test_every_preset_answers_as_its_checkpoint(tmp_path_factory, monkeypatch, preset, cameras):
    real_policies.shrink_pretrained(monkeypatch)
    root = real_policies.shared_run(tmp_path_factory, preset, cameras)
    spec = rollout_bundle.read_bundle(root / "bundle").spec
    assert len(spec.cameras) == cameras
    sizes = [(camera.height, camera.width) for camera in spec.cameras]
    assert sizes == [(24, 32), (16, 16)] if cameras == 2 else [(spec.image.height,) * 2]
    config = spec.model["config"]
    roles = ("latents", "gfdm_text", "gidm_text", "goal_text", "features")
    assert tuple(config["encoders"][role] for role in roles) == ENCODERS[preset]
    _check_batches_of_1_and_3(root)


def test_parameters_come_back_bit_equal(shared):
    stored, _ = manager.load_params(shared / "run")
    params = safetensors.numpy.load_file(shared / "bundle" / rollout_bundle.PARAMS)
    flat = params_lib.flatten(stored)
    assert params.keys() == flat.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(params[path], value)


def test_half_precision_scalar_and_strided_parameters_come_back_bit_equal(
    stored, tmp_path, no_program, monkeypatch
):
    # Not what a program could be called with: one leaf of each kind that a checkpoint may hold.
    layer = stored["params"]["policy"]["goal_emb"]["fc1"]
    kernel = layer["kernel"].astype(jnp.bfloat16)
    layer |= {"kernel": kernel.T, "gain": np.float32(0.5)}
    monkeypatch.setattr(writer, "_write_example", lambda directory, *_: _touch_example(directory))
    monkeypatch.setattr(writer, "_check_parity", lambda *_: (0.0, 1.0, ""))
    real_policies.export("run", tmp_path / "bundle")
    params = safetensors.numpy.load_file(tmp_path / "bundle" / rollout_bundle.PARAMS)
    assert params["policy/goal_emb/fc1/kernel"].dtype == kernel.dtype
    np.testing.assert_array_equal(params["policy/goal_emb/fc1/kernel"], kernel.T)
    assert params["policy/goal_emb/fc1/gain"].shape == ()


def _touch_example(directory):
    (directory / rollout_bundle.EXAMPLE).touch()


@pytest.mark.slow
def test_bfloat16_halves_the_weights_and_says_so(shared, tmp_path, monkeypatch):
    report = real_policies.export(shared / "run", tmp_path / "half", weights_dtype="bfloat16")
    assert 1e-4 < report.rel_l2 <= report.tolerance == 5e-2
    whole, half = (
        rollout_bundle.read_bundle(path).spec for path in (shared / "bundle", tmp_path / "half")
    )
    sizes = [spec.files[rollout_bundle.PARAMS].bytes for spec in (half, whole)]
    assert sizes[0] < 0.6 * sizes[1]
    assert half.provenance["weights_dtype"] == "bfloat16" and half.provenance["weights"] == "raw"
    assert whole.provenance["weights_dtype"] == "float32"
    loaded = rollout_policy.Policy.load(tmp_path / "half", warm_up=False)
    assert loaded.run_example() <= writer.PARITY_TOLERANCE
    monkeypatch.setattr(writer, "_BF16_WEIGHTS_TOLERANCE", 1e-5)
    monkeypatch.setattr(writer.program_lib, "export_program", lambda *_: b"")
    with pytest.raises(errors.CheckFailed, match="float32 weights"):
        real_policies.export(shared / "run", tmp_path / "none", weights_dtype="bfloat16")


def test_the_program_is_for_every_platform(shared):
    program = (shared / "bundle" / rollout_bundle.STABLEHLO).read_bytes()
    assert jax.export.deserialize(bytearray(program)).platforms == ("cpu", "cuda", "tpu")


def test_specification_says_what_training_knew(shared):
    spec = rollout_bundle.read_bundle(shared / "bundle").spec
    assert [camera.key for camera in spec.cameras] == ["observation/image"]
    chunk = (real_policies.CHUNK, spec.action_spec.dim)
    assert spec.noise == {"video": (1, 2, 4, 4, 48), "actions": chunk}
    assert spec.training_starts == real_policies.STARTS
    assert (spec.action_horizon, spec.execute_horizon, spec.control_hz) == (chunk[0], 2, 80.0)
    assert spec.provenance["step"] == real_policies.STEP
    assert spec.provenance["origins"] == ["self-made"]  # of one of two data sets
    assert spec.provenance["made_from"] == real_policies.MADE_FROM
    assert (spec.provenance["weights"], spec.provenance["weights_dtype"]) == ("raw", "float32")
    written = json.loads(json.dumps(real_policies.config("tiny", 1).to_dict()))
    assert spec.model["config"] == written


def test_actions_are_unnormalised_as_training_normalised_them(shared):
    spec = rollout_bundle.read_bundle(shared / "bundle").spec
    rng = np.random.default_rng(0)
    normalised = rng.uniform(-1, 1, (6, spec.action_spec.dim)).astype(np.float32)
    stored = manager.load_metadata(shared / "run")["normalizer"]
    invert = normalization.Normalizer.from_json(stored).invert
    np.testing.assert_allclose(
        spec.unnormalise(normalised), np.clip(invert(normalised), -1, 1), atol=1e-6
    )


@pytest.mark.slow
def test_bundle_of_a_bundle_answers_the_same(shared, tmp_path):
    report = writer.rebuild_bundle(shared / "bundle", tmp_path / "new")
    old, new = (rollout_bundle.read_bundle(path) for path in (shared / "bundle", tmp_path / "new"))
    assert new.spec.provenance["rebuilt_from"] == old.digest
    for name in (rollout_bundle.PARAMS, rollout_bundle.EXAMPLE):
        assert new.spec.files[name] == old.spec.files[name]
    assert report.rel_l2 <= writer.PARITY_TOLERANCE


@pytest.mark.slow
def test_bundle_that_answers_otherwise_is_refused_and_leaves_nothing(shared, tmp_path, monkeypatch):
    export_program = writer.program_lib.export_program
    monkeypatch.setattr(
        writer.program_lib,
        "export_program",
        lambda program, params, spec: export_program(
            lambda p, i: {"actions": program(p, i)["actions"] + 0.1}, params, spec
        ),
    )
    with pytest.raises(errors.CheckFailed, match="differ"):
        real_policies.export(shared / "run", tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("part", ["_write_parts", "_write_example"])
def test_interrupted_export_leaves_nothing(shared, tmp_path, monkeypatch, no_program, part):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, part, interrupt)
    with pytest.raises(KeyboardInterrupt):
        real_policies.export(shared / "run", tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_output_is_kept_unless_overwritten(shared, stored, tmp_path, monkeypatch):
    output = shutil.copytree(shared / "bundle", tmp_path / "bundle")
    digest = rollout_bundle.read_bundle(output).digest
    with pytest.raises(errors.UserError, match="output exists"):
        real_policies.export("run", output)
    assert rollout_bundle.read_bundle(output).digest == digest
    with pytest.raises(errors.UserError, match="output exists"):
        writer.rebuild_bundle(shared / "bundle", output)


@pytest.mark.slow
def test_overwriting_replaces_an_older_bundle(shared, stored, tmp_path):
    output = shutil.copytree(shared / "bundle", tmp_path / "bundle")
    stored["metadata"]["step"] = 8
    assert real_policies.export("run", output, overwrite=True).step == 8
    assert rollout_bundle.read_bundle(output).spec.provenance["step"] == 8


def test_overwrite_spares_what_is_not_a_bundle(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(errors.UserError, match="not a bundle"):
        real_policies.export("run", tmp_path, overwrite=True)


def test_checkpoint_of_another_stage_is_refused(stored, tmp_path):
    stored["metadata"]["objective"] = "gfdm"
    with pytest.raises(errors.UserError, match="'gfdm'"):
        real_policies.export("run", tmp_path / "bundle")


def test_damaged_old_bundle_is_a_data_error(shared, tmp_path):
    old = shutil.copytree(shared / "bundle", tmp_path / "old")
    path = pathlib.Path(old / rollout_bundle.PARAMS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.DataError, match=rollout_bundle.PARAMS):
        writer.rebuild_bundle(old, tmp_path / "new")


def test_normaliser_of_another_width_is_refused(stored, tmp_path):
    stored["metadata"]["config"]["embodiment"] = "franka_panda"
    with pytest.raises(errors.UserError, match="franka_panda"):
        real_policies.export("run", tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["bounds", "none"])
def test_limits_that_no_robot_documents_are_those_of_the_training(kind):
    robot = dataclasses.replace(
        embodiment.get("metaworld_sawyer", 4),
        action_low=(-1.0, None, None, 0.0),
        action_high=(1.0, None, 5.0, None),
    )
    rows = np.array([[-1.0, 0.0, 2.0, -1.0], [1.0, 0.5, 4.0, 1.0]])
    seen = {"min": rows[0].tolist(), "max": rows[1].tolist()} if kind == "bounds" else None
    low, high = description.limits(robot, seen)
    largest = float(np.finfo(np.float32).max)
    assert low == ((-1.0, 0.0, 2.0, 0.0) if seen else (-1.0, -largest, -largest, 0.0))
    assert high == ((1.0, 0.5, 5.0, 1.0) if seen else (1.0, largest, 5.0, largest))
    clipped = np.clip(np.float32([9, 9, 9, 9]), np.float32(low), np.float32(high))
    assert np.isfinite(clipped).all()


@pytest.mark.skipif(bool(importlib.util.find_spec("gcsfs")), reason="gcsfs is installed")
def test_a_bucket_without_its_package_is_one_line(shared):
    with pytest.raises(errors.UserError, match=r"gs://bucket/new; pip install 'defi-jax\[gcs\]'"):
        writer.rebuild_bundle(shared / "bundle", "gs://bucket/new")
