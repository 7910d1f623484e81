"""The writer on a stand-in for the joint objective: a few linear maps with the same doors."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import safetensors.numpy
from defi_rollout import bundle as rollout_bundle
from defi_rollout import policy as rollout_policy

from data_pipelines import normalization
from defi_jax import batch as batch_lib
from defi_jax import embodiment, errors
from defi_jax.export import description, writer
from defi_jax.models import params as params_lib
from defi_jax.models.frozen import tokenizers as tokenizers_lib
from defi_jax.objectives import joint

S, A, SIZE, L = 5, 4, 8, 12

CONFIG = {
    "objective": "joint",
    "embodiment": "metaworld_sawyer",
    "execute_horizon": 2,
    "compute_dtype": "float32",
    "data": {"image_size": SIZE, "cameras": ["static", "gripper"]},
}


class LinearObjective(joint.JointObjective):
    """Actions are linear in colour, words and noise; parameters are nested two deep."""

    def __init__(self, config):
        self.config = config

    def tokenizers(self):
        return {
            "goal": tokenizers_lib.BytesTokenizer(length=L, lower_case=True, strip_punctuation=True)
        }

    def image_batch_spec(self, batch_size):
        return batch_lib.JointBatch(
            images=jax.ShapeDtypeStruct((batch_size, 2, SIZE, SIZE, 3), jnp.uint8),
            text={"goal": batch_lib.tokens_spec(batch_size, L)},
            actions=jax.ShapeDtypeStruct((batch_size, S, A), jnp.float32),
            action_mask=jax.ShapeDtypeStruct((batch_size, S), jnp.bool_),
        )

    def video_noise_shape(self, batch_size):
        return (batch_size, 2, 3)

    def action_noise_shape(self, batch_size):
        return (batch_size, S, A)

    def sample_actions(self, params, images, text, noise):
        colour = images.astype(jnp.float32).mean(axis=(1, 2, 3)) / 255
        words = (text["goal"].ids * text["goal"].mask).mean(axis=1, keepdims=True)
        video = noise["video"].sum(axis=(1, 2))[:, None]
        bias = colour @ params["policy"]["head"]["kernel"] + 0.001 * words + 0.01 * video
        bias = bias * params["policy"]["gain"]
        return jnp.tanh(bias[:, None] + 0.1 * noise["actions"])


def _metadata():
    column = normalization.compute(np.array([[-1.0, 0.0, 2.0, -1.0], [1.0, 0.5, 4.0, 1.0]]))
    normalizer = normalization.Normalizer(
        kind="bounds", statistics=column, mask=(True, True, True, False)
    )
    return {
        "objective": "joint",
        "config": CONFIG,
        "step": 7,
        "normalizer": normalizer.to_json(),
        "trained_on": [
            {"name": "a", "frames": 10, "start_digests": ["bb", "aa"]},
            {"name": "b", "frames": 5, "start_digests": []},
        ],
        "pipeline_fingerprint": "f" * 8,
        "versions": {"jax": "0"},
    }


def _params():
    kernel = np.random.default_rng(0).standard_normal((A, 3)).astype(np.float32)
    # Not contiguous, as restored arrays may be, and a scalar.
    return {"policy": {"head": {"kernel": kernel.T}, "gain": np.float32(0.5)}}


@pytest.fixture
def checkpoint(monkeypatch):
    """Parameters and metadata that the writer will find, whatever the workdir."""
    stored = {"params": _params(), "metadata": _metadata()}
    monkeypatch.setattr(
        writer.manager,
        "load_params",
        lambda workdir, step: (stored["params"], stored["metadata"]),
    )
    monkeypatch.setattr(
        writer.objectives, "make", lambda c: LinearObjective(ml_collections.ConfigDict(c))
    )
    return stored


def _export(output, **changes):
    return writer.export_bundle(
        "run",
        output,
        make_inverse=lambda stored: normalization.Normalizer.from_json(stored).invert,
        **changes,
    )


def test_parameters_come_back_bit_equal(checkpoint, tmp_path):
    report = _export(tmp_path / "bundle")
    source = rollout_bundle.read_bundle(tmp_path / "bundle")
    params = safetensors.numpy.load_file(source.path(rollout_bundle.PARAMS))
    for path, value in params_lib.flatten(checkpoint["params"]).items():
        assert params[path].shape == np.shape(value)
        np.testing.assert_array_equal(params[path], value)
    assert report.step == 7 and report.digest == source.digest
    assert report.rel_l2 <= writer.PARITY_TOLERANCE


def test_half_precision_parameters_come_back_bit_equal(checkpoint, tmp_path):
    policy = checkpoint["params"]["policy"]
    kernel = policy["head"]["kernel"] = policy["head"]["kernel"].astype(jnp.bfloat16)
    _export(tmp_path / "bundle")
    params = safetensors.numpy.load_file(tmp_path / "bundle" / rollout_bundle.PARAMS)
    assert params["policy/head/kernel"].dtype == kernel.dtype
    np.testing.assert_array_equal(params["policy/head/kernel"], kernel)


def test_specification_says_what_training_knew(checkpoint, tmp_path):
    _export(tmp_path / "bundle")
    spec = rollout_bundle.read_bundle(tmp_path / "bundle").spec
    assert [camera.key for camera in spec.cameras] == [
        "observation/image",
        "observation/wrist_image",
    ]
    assert spec.noise == {"video": (2, 3), "actions": (S, A)}
    assert spec.training_starts == ("aa", "bb")
    assert (spec.action_horizon, spec.execute_horizon, spec.control_hz) == (S, 2, 80.0)
    assert spec.model["config"] == CONFIG and spec.provenance["step"] == 7


def test_actions_are_unnormalised_as_training_normalised_them(checkpoint, tmp_path):
    _export(tmp_path / "bundle")
    spec = rollout_bundle.read_bundle(tmp_path / "bundle").spec
    normalised = np.random.default_rng(0).uniform(-1, 1, (6, A)).astype(np.float32)
    invert = normalization.Normalizer.from_json(checkpoint["metadata"]["normalizer"]).invert
    np.testing.assert_allclose(
        spec.unnormalise(normalised), np.clip(invert(normalised), -1, 1), atol=1e-6
    )


def test_bundle_of_a_bundle_answers_the_same(checkpoint, tmp_path):
    _export(tmp_path / "old")
    report = writer.rebuild_bundle(tmp_path / "old", tmp_path / "new")
    old, new = (rollout_bundle.read_bundle(tmp_path / name) for name in ("old", "new"))
    assert new.spec.provenance["rebuilt_from"] == old.digest
    assert new.spec.files[rollout_bundle.PARAMS] == old.spec.files[rollout_bundle.PARAMS]
    assert new.spec.files[rollout_bundle.EXAMPLE] == old.spec.files[rollout_bundle.EXAMPLE]
    assert report.rel_l2 <= writer.PARITY_TOLERANCE
    images = {camera.key: np.zeros((SIZE, SIZE, 3), np.uint8) for camera in new.spec.cameras}
    policy = rollout_policy.Policy.load(tmp_path / "new")
    assert policy.infer({**images, "prompt": "go"})["actions"].shape == (S, A)


def test_bundle_that_answers_otherwise_is_refused_and_leaves_nothing(
    checkpoint, tmp_path, monkeypatch
):
    export_program = writer.program_lib.export_program
    monkeypatch.setattr(
        writer.program_lib,
        "export_program",
        lambda program, params, spec: export_program(
            lambda p, i: {"actions": program(p, i)["actions"] + 0.1}, params, spec
        ),
    )
    with pytest.raises(errors.CheckFailed, match="differ"):
        _export(tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("part", ["_write_parts", "_write_example", "_seal"])
def test_interrupted_export_leaves_nothing(checkpoint, tmp_path, monkeypatch, part):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, part, interrupt)
    with pytest.raises(KeyboardInterrupt):
        _export(tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_output_is_kept_unless_overwritten(checkpoint, tmp_path):
    output = tmp_path / "bundle"
    first = _export(output)
    checkpoint["metadata"]["step"] = 8
    with pytest.raises(errors.UserError, match="output exists"):
        _export(output)
    assert rollout_bundle.read_bundle(output).digest == first.digest
    assert _export(output, overwrite=True).step == 8


def test_overwrite_spares_what_is_not_a_bundle(checkpoint, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(errors.UserError, match="not a bundle"):
        _export(tmp_path, overwrite=True)


def test_checkpoint_of_another_stage_is_refused(checkpoint, tmp_path):
    checkpoint["metadata"]["objective"] = "gfdm"
    with pytest.raises(errors.UserError, match="'gfdm'"):
        _export(tmp_path / "bundle")


def test_damaged_old_bundle_is_a_data_error(checkpoint, tmp_path):
    _export(tmp_path / "old")
    path = pathlib.Path(tmp_path / "old" / rollout_bundle.PARAMS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.DataError, match=rollout_bundle.PARAMS):
        writer.rebuild_bundle(tmp_path / "old", tmp_path / "new")


def test_normaliser_of_another_width_is_refused(checkpoint, tmp_path):
    config = json.loads(json.dumps(CONFIG)) | {"embodiment": "franka_panda"}
    checkpoint["metadata"]["config"] = config
    with pytest.raises(errors.UserError, match="franka_panda"):
        _export(tmp_path / "bundle")


@pytest.mark.parametrize("kind", ["bounds", "none"])
def test_limits_that_no_robot_documents_are_those_of_the_training(kind):
    robot = dataclasses.replace(
        embodiment.get("metaworld_sawyer"),
        action_low=(-1.0, None, None, 0.0),
        action_high=(1.0, None, 5.0, None),
    )
    normalizer = _metadata()["normalizer"]
    seen = normalizer["statistics"] if kind == "bounds" else None
    low, high = description.limits(robot, seen)
    largest = float(np.finfo(np.float32).max)
    assert low == ((-1.0, 0.0, 2.0, 0.0) if seen else (-1.0, -largest, -largest, 0.0))
    assert high == ((1.0, 0.5, 5.0, 1.0) if seen else (1.0, largest, 5.0, largest))
    clipped = np.clip(np.float32([9, 9, 9, 9]), np.float32(low), np.float32(high))
    assert np.isfinite(clipped).all()
