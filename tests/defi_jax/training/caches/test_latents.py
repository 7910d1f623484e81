import dataclasses
import functools
import logging
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import real_stages

from data_pipelines.latents import cache, encode
from data_pipelines.loading import config as config_lib
from data_pipelines.loading import loader, mixtures
from defi_jax import errors, objectives
from defi_jax.models import svd_vae
from defi_jax.models.frozen import pretrained
from defi_jax.objectives import gfdm, setup
from defi_jax.training import loop, step
from defi_jax.training.caches import latents as latent_cache

_BIND = gfdm.params_lib.bind

BATCH = 4
VAE = svd_vae.SVDVAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    block_out_channels=(4, 4),
    layers_per_block=1,
    norm_num_groups=2,
)


def _config(**changes):
    config = real_stages.get_config("gfdm").copy_and_resolve_references()
    with config.unlocked():
        config.global_batch = BATCH
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (config[section] if section else config)[name] = value
    return config


SVD_VAE = pytest.param("svd_vae", marks=pytest.mark.slow)


@pytest.fixture(params=["space_to_depth", SVD_VAE])
def latents_name(request, monkeypatch):
    """Both kinds of latents; the VAE is shrunk."""
    if request.param == "svd_vae":
        monkeypatch.setattr(
            setup, "latent_encoder", lambda config: pretrained.SVDVAELatents(config=VAE)
        )
    return request.param


@pytest.fixture
def few_episodes(monkeypatch):
    """Few and short made-up episodes."""
    make = mixtures.synthetic.SyntheticSource
    monkeypatch.setattr(
        mixtures.synthetic, "SyntheticSource", functools.partial(make, num_episodes=6, length=6)
    )


def _encode(config, root, frozen=None, *, dtype="float32", posterior="mode"):
    objective = objectives.make(config)
    frozen = frozen or _frozen(config, objective)
    encoder = latent_cache.Encoder(
        config, objective, frozen["encoders"], posterior=posterior, frames_per_device=16
    )
    (component,) = mixtures.open_components(config_lib.DataConfig.of(config.data))
    encode.encode(
        component.source,
        root / component.name,
        encoder,
        cameras=config.data.cameras,
        dtype=dtype,
        overwrite=False,
        max_bad_fraction=0.001,
        progress=False,
    )
    return encoder


def _loader(config, objective, split="train"):
    spec = objective.batch_spec(BATCH)
    return loader.make_loader(
        config.data,
        spec,
        tokenizers=objective.tokenizers(),
        split=split,
        seed=config.seed,
        global_batch=BATCH,
        process_index=0,
        process_count=1,
    )


class _Mixer:
    """In the UNet's place: a cheap network that everything it is given goes through."""

    def velocity(self, noisy, sigma, condition, text):
        x = noisy / (1 + sigma)[:, None, None, None, None]
        words = jnp.square(text).mean(axis=(1, 2))[:, None, None, None, None]
        return x + condition[:, None] + 3 * words


def _frozen(config, objective):
    return {"encoders": latent_cache._initial_encoders(config, objective)}


def _loss(config, frozen):
    """Loss of a run's first batch, and that batch."""
    objective = objectives.make(config)
    batch = next(_loader(config, objective).first(1))
    loss = step.jit_init(lambda p, b: objective.loss_fn(p, {}, b, jax.random.key(5))[0])
    with mock.patch.object(
        gfdm.params_lib, "bind", lambda make, p: _BIND(make, p) if p else _Mixer()
    ):
        return float(loss({"gfdm": {}, **frozen}, batch)), batch


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_loss_from_the_cache_is_the_loss_from_pixels(tmp_path, latents_name, dtype, tolerance):
    plain = _config(text_dropout=0.5)
    frozen = _frozen(plain, objectives.make(plain))
    _encode(plain, tmp_path, frozen, dtype=dtype)
    loss, batch = _loss(_config(text_dropout=0.5, data__latents=str(tmp_path)), frozen)
    assert batch.video is None and batch.latents.dtype == np.float32
    assert loss == pytest.approx(_loss(plain, frozen)[0], rel=tolerance)


@pytest.mark.usefixtures("few_episodes")
def test_text_drops_out_of_cached_batches(tmp_path):
    _encode(_config(), tmp_path)
    losses = [
        _loss(_config(text_dropout=share, data__latents=str(tmp_path)), {})[0]
        for share in (0.0, 1.0)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=0.05)


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize("latents_name", [SVD_VAE], indirect=True)
def test_other_weights_make_the_cache_stale(tmp_path, latents_name):
    config = _config(data__latents=str(tmp_path), weights__clip_text=str(tmp_path))
    objective = objectives.make(_config(data__latents=str(tmp_path)))
    frozen = _frozen(config, objective)
    _encode(config, tmp_path, frozen)
    changed = jax.tree.map(lambda leaf: leaf * 1.001, frozen)
    batches = _loader(config, objective)
    latent_cache.check(config, objective, frozen, batches)
    with pytest.raises(errors.UserError) as caught:
        latent_cache.check(config, objective, changed, batches)
    text = str(caught.value)
    assert "stale latent cache" in text and "latents.weights" in text and "text" not in text[:120]
    assert "python launch/data.py encode --config=configs/gfdm.py:tiny" in text
    assert f"--config.weights.clip_text={tmp_path}" in text and f"--output={tmp_path}" in text
    assert "\n" not in text


@pytest.mark.usefixtures("few_episodes")
def test_another_resolution_or_text_encoder_makes_the_cache_stale(tmp_path):
    _encode(_config(), tmp_path)
    cached = cache.LatentCache(tmp_path / "synthetic")
    for changes, named in (
        ({"data__image_size": 32}, r"frames\.image_size 16, not 32"),
        ({"encoders__text_dim": 32}, r"text\.dim 16, not 32"),
        ({"encoders__latents_frequencies": 2}, r"latents\.frequencies 4, not 2"),
    ):
        config = _config(**changes)
        facts = latent_cache.encoder_facts(config, objectives.make(config), {})
        with pytest.raises(errors.UserError, match=named):
            cached.check_encoder(facts, "")


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize("latents_name", [SVD_VAE], indirect=True)
def test_samples_of_the_posterior_are_drawn_once(tmp_path, latents_name, caplog):
    config = _config()
    encoder = _encode(config, tmp_path / "a", posterior="sample")
    frames = np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), np.uint8)
    keys = np.stack([np.arange(16), np.arange(16) % 3], axis=1).astype(np.uint32)
    first, shuffled = encoder.frames(frames, keys), encoder.frames(frames[::-1], keys[::-1])
    np.testing.assert_allclose(first, shuffled[::-1], rtol=1e-4, atol=1e-5)
    for word in ([1, 0], [0, 1]):  # who and when
        other = encoder.frames(frames, keys + np.array(word, np.uint32))
        assert np.abs(other - first).max(axis=(1, 2, 3)).min() > 1e-3
    cached = _config(data__latents=str(tmp_path / "a"))
    objective = objectives.make(cached)
    with caplog.at_level(logging.INFO):
        latent_cache.check(
            cached, objective, _frozen(cached, objective), _loader(cached, objective)
        )
    assert "come from" in caplog.text
    with pytest.raises(errors.UserError, match=r"another cache.*posterior sample, not mode"):
        _encode(config, tmp_path / "a", {"encoders": encoder._params})


@pytest.mark.usefixtures("few_episodes")
def test_held_out_batches_keep_their_pixels(tmp_path):
    config = _config()
    _encode(config, tmp_path)
    cached = _config(data__latents=str(tmp_path))
    spec = objectives.make(cached).pixel_batch_spec(BATCH)
    assert spec == objectives.make(config).batch_spec(BATCH)
    assert dataclasses.replace(spec, video=None) != objectives.make(cached).batch_spec(BATCH)


def test_what_cannot_be_encoded_is_refused():
    config = _config()
    with pytest.raises(errors.UserError, match="no posterior to sample"):
        latent_cache.make_encoder(
            config, objectives.make(config), posterior="sample", frames_per_device=1
        )
    config = real_stages.get_config("gidm")
    with pytest.raises(errors.UserError, match="gidm has no latent cache"):
        latent_cache.make_encoder(
            config, objectives.make(config), posterior="mode", frames_per_device=1
        )
    with pytest.raises(errors.UserError, match="cannot be augmented"):
        objectives.make(_config(data__latents="somewhere", data__augment=True))


@pytest.mark.slow
@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize("latents_name", [SVD_VAE], indirect=True)
def test_a_run_takes_its_own_cache_and_evaluates_on_pixels(tmp_path, latents_name):
    config = _config(steps=1, eval_batches=1, save_every=0)
    _encode(config, tmp_path / "cache")
    cached = _config(steps=1, eval_batches=1, save_every=0, data__latents=str(tmp_path / "cache"))
    objective = objectives.make(cached)
    make_loader = functools.partial(
        loader.make_loader, cached.data, tokenizers=objective.tokenizers()
    )
    loop.train(cached, objective, make_loader, tmp_path / "run")
    assert '"psnr"' in (tmp_path / "run" / "metrics.jsonl").read_text()
