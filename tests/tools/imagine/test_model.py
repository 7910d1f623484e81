"""The video model out of checkpoints and bundles, on the shrunk UNet of the real stages."""

import json
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from configs import gfdm as gfdm_config
from configs import joint as joint_config
from data_pipelines.formats import image as image_lib
from defi_jax import errors
from defi_jax.models import gfdm
from defi_jax.models import params as params_lib
from defi_jax.objectives import setup
from tools.imagine import model as model_lib

ROOT = pathlib.Path(__file__).parents[3]
SIZE = 16
UNET = {
    "block_out_channels": (8, 16),
    "num_attention_heads": (1, 2),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlockSpatioTemporal",) * 2,
    "up_block_types": ("UpBlockSpatioTemporal",) * 2,
    "layers_per_block": 1,
}


def _config(objective="gfdm"):
    make = {"gfdm": gfdm_config, "joint": joint_config}[objective].get_config
    config = make("tiny").copy_and_resolve_references()
    with config.unlocked():
        config.data.image_size = SIZE
        config.encoders.latents_factor = 4
        config.encoders.text_length, config.encoders.text_dim = 12, 16
        section = config.model if objective == "gfdm" else config.model.gfdm
        section.num_frames, section.feature_block = 2, 1
        section.unet.update(UNET)
    # As it comes back from a checkpoint.
    return json.loads(json.dumps(config.to_dict()))


@pytest.fixture(scope="module")
def params():
    """Random parameters of the shrunk video model, beside a part that is none of its."""
    config = ml_collections.ConfigDict(_config())
    latents, text = setup.latent_encoder(config), setup.text_encoder(config, "gfdm")
    numbers = setup.gfdm_config(config.model, latents, text)
    abstract = params_lib.abstract_params(lambda rngs: gfdm.GFDM(numbers, rngs=rngs))
    rng = np.random.default_rng(0)
    draw = {
        path: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        for path, leaf in params_lib.flatten(abstract).items()
    }
    return {"gfdm": params_lib.unflatten(draw), "policy": {"kernel": np.ones(3, np.float32)}}


@pytest.fixture
def stored(monkeypatch, params):
    """What a checkpoint holds; tests change it."""
    content = {"params": params, "metadata": {"objective": "gfdm", "step": 7, "config": _config()}}
    monkeypatch.setattr(
        model_lib.manager,
        "load_params",
        lambda workdir, step: (content["params"], content["metadata"]),
    )
    return content


def _image():
    return np.random.default_rng(1).integers(0, 255, (SIZE, SIZE, 3), np.uint8)


def _predict(model, seeds, text="open it", **numbers):
    numbers = {"num_steps": 1, "max_guidance": 3.0} | numbers
    return model.predict(_image(), text, seeds, **numbers).astype(int)


def test_a_seed_draws_the_same_future_in_any_company(stored):
    model, step = model_lib.from_workdir("run")
    assert step == 7 and model.image_size == SIZE
    many = _predict(model, (3, 4, 5))
    assert many.shape == (3, 2, SIZE, SIZE, 3)
    assert np.abs(many[1] - _predict(model, (4,))[0]).max() <= 1
    assert np.abs(many[1] - many[0]).max() > 10


@pytest.mark.slow
def test_steps_guidance_text_and_picture_are_obeyed(stored):
    model, _ = model_lib.from_workdir("run")
    guided = _predict(model, (0,), num_steps=1, max_guidance=30.0)[0]
    plain = _predict(model, (0,), num_steps=1, max_guidance=1.0)[0]
    # Guidance is 1 at the first frame, and one step leaves no time to mix frames.
    assert np.abs(guided[0] - plain[0]).max() <= 1 and np.abs(guided[1] - plain[1]).max() > 1
    numbers = {"num_steps": 1, "max_guidance": 30.0}
    assert (_predict(model, (0,), text="close the window", **numbers)[0] != guided).any()
    other = model.predict(255 - _image(), "open it", (0,), **numbers)[0]
    assert (other != guided).any()
    assert (_predict(model, (0,), num_steps=2, max_guidance=30.0)[0] != guided).any()


@pytest.mark.slow
def test_a_joint_run_holds_the_same_video_model(stored):
    model, _ = model_lib.from_workdir("run")
    stored["metadata"] |= {"objective": "joint", "config": _config("joint")}
    joint, _ = model_lib.from_workdir("run")
    np.testing.assert_array_equal(_predict(joint, (0,)), _predict(model, (0,)))


def test_what_has_no_video_model_is_refused(stored):
    stored["metadata"] |= {"objective": "gidm"}
    with pytest.raises(errors.UserError, match="'gidm' has no video model"):
        model_lib.from_workdir("run")
    stored["metadata"] |= {"objective": "gfdm"}
    flat = params_lib.flatten(stored["params"])
    early = {path: leaf for path, leaf in flat.items() if "conv_out" not in path}
    stored["params"] = params_lib.unflatten(early)
    with pytest.raises(errors.UserError, match=r"only a part.*conv_out.*--workdir of the GFDM run"):
        model_lib.from_workdir("run")
    (name,) = (path for path in flat if path.endswith("conv_out/bias"))
    stored["params"] = params_lib.unflatten(flat | {name: flat[name][1:]})
    with pytest.raises(errors.UserError, match=rf"1 arrays do not fit the config \({name} is"):
        model_lib.from_workdir("run")
    with pytest.raises(errors.UserError, match="no bundle"):
        model_lib.from_bundle("nowhere")


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "launch/imagine.py", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'rollout'}", "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_bad_usage_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "a.png").write_bytes(image_lib.encode_png(_image()))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    image, output = f"--image={tmp_path}/a.png", f"--output={tmp_path}/o"
    for arguments, text in (
        ((image, output, "--text=a"), "one source is needed"),
        ((image, output, "--text=a", "--workdir=a", "--bundle=b"), "one source is needed"),
        ((image, output, "--text=a", "--bundle=b", "--step=3"), "a bundle has one step"),
        ((image, output, "--workdir=a"), "a flag is missing: --text"),
        (("--image=", output, "--text=a", "--workdir=a"), "picture cannot be read"),
        ((image, "--output=", "--text=a", "--workdir=a"), "no path given: --output"),
        ((image, output, "--text=a", "--workdir=nowhere"), "no checkpoint"),
        (
            (image, f"--output={tmp_path}/used", "--text=a", "--workdir=a"),
            "output holds other files",
        ),
    ):
        done = _run(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"error: {text}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
