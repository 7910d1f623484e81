"""A small bundle, made with jax alone: one linear map from images, text and noise to actions."""

import dataclasses
import pathlib
import shutil

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from defi_rollout import bundle, policy, spec

S, A, SIZE, L = 5, 4, 8, 12


def tiny_policy(params, inputs):
    """Linear in the mean colour and the text, so that every input matters."""
    colour = inputs["images"].astype(jnp.float32).mean(axis=(1, 2, 3)) / 255  # [B, 3]
    words = (inputs["text/goal"] * inputs["text_mask/goal"]).astype(jnp.float32).mean(axis=1)
    bias = colour @ params["head/kernel"] + 0.01 * words[:, None]  # [B, A]
    return {"actions": jnp.tanh(bias[:, None] + inputs["noise/actions"])}


def tiny_spec(files) -> spec.BundleSpec:
    return spec.BundleSpec(
        schema_version=spec.SCHEMA_VERSION,
        files=files,
        embodiment={"name": "fake"},
        action_spec=spec.ActionSpec(
            dim=A, names=("x", "y", "z", "gripper"), low=(-1.0,) * A, high=(1.0, 1.0, 1.0, 0.5)
        ),
        action_statistics=spec.ActionStatistics(
            method="bounds", scale=(2.0, 1.0, 1.0, 1.0), offset=(0.5, 0.0, 0.0, 0.0)
        ),
        action_horizon=S,
        execute_horizon=2,
        control_hz=10.0,
        cameras=(spec.CameraSpec(key="observation/image", name="static", height=16, width=16),),
        image=spec.ImageSpec(height=SIZE, width=SIZE, resize="pillow_bilinear"),
        text={
            "goal": spec.TextSpec(
                name="bytes",
                length=L,
                lower_case=True,
                strip_punctuation=True,
                file="",
                start_ids=(),
                end_ids=(),
                pad_id=0,
            )
        },
        noise={"actions": (S, A)},
        example_prompt="go left",
        training_starts=("seen",),
        model={"objective": "fake", "config": {}},
        provenance={"step": 7},
    )


def write_tiny_bundle(directory: pathlib.Path) -> pathlib.Path:
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    params = {"head/kernel": rng.standard_normal((3, A)).astype(np.float32)}
    safetensors.numpy.save_file(params, directory / bundle.PARAMS)
    (batch,) = jax.export.symbolic_shape("b")
    abstract = {
        "images": jax.ShapeDtypeStruct((batch, 1, SIZE, SIZE, 3), jnp.uint8),
        "text/goal": jax.ShapeDtypeStruct((batch, L), jnp.int32),
        "text_mask/goal": jax.ShapeDtypeStruct((batch, L), jnp.bool_),
        "noise/actions": jax.ShapeDtypeStruct((batch, S, A), jnp.float32),
    }
    exported = jax.export.export(jax.jit(tiny_policy), platforms=("cpu", "cuda", "tpu"))
    (directory / bundle.STABLEHLO).write_bytes(exported(params, abstract).serialize())
    example = {
        "observation/image": rng.integers(0, 255, (1, 16, 16, 3), dtype=np.uint8),
        "noise/actions": rng.standard_normal((1, S, A)).astype(np.float32),
        "expected/actions": np.zeros((1, S, A), np.float32),
    }
    safetensors.numpy.save_file(example, directory / bundle.EXAMPLE)
    seal(directory)
    return directory


def seal(directory: pathlib.Path, **changes) -> None:
    """Writes bundle.json for the files as they are."""
    names = [path.name for path in directory.iterdir() if path.name != bundle.MANIFEST]
    files = {name: bundle.hash_file(directory / name) for name in sorted(names)}
    changed = dataclasses.replace(tiny_spec(files), **changes)
    (directory / bundle.MANIFEST).write_bytes(bundle.render_manifest(changed.to_json()))


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory) -> pathlib.Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("pristine") / "bundle")


@pytest.fixture
def tiny_bundle(pristine_bundle, tmp_path) -> pathlib.Path:
    """A copy that the test may damage."""
    return shutil.copytree(pristine_bundle, tmp_path / "bundle")


@pytest.fixture
def reseal():
    return seal


@pytest.fixture(scope="session")
def tiny(pristine_bundle) -> policy.Policy:
    return policy.Policy.load(pristine_bundle)


@pytest.fixture
def obs():
    image = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return {"observation/image": image, "prompt": "go left"}
