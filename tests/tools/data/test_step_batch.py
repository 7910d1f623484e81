import json

import jax
import numpy as np
import pytest
import real_stages

from data_pipelines.formats import image
from defi_jax import errors
from tools.data import commands, step_batch


def written(tmp_path, name):
    """The config of a run in `tmp_path`, as training leaves it there."""
    config = real_stages.get_config(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    return config


def rebuilt(tmp_path, step):
    return step_batch.rebuild(str(tmp_path), step, commands.open_loader)


@pytest.mark.parametrize("name", ["gfdm", "gidm", "joint"])
def test_the_batch_of_a_step_is_the_one_that_training_took(tmp_path, name):
    config = written(tmp_path, name)
    objective, _ = real_stages.make(config)
    loader = commands.open_loader(config, objective)
    for _ in range(3):
        taken = next(loader)
    loader.close()
    batch, facts = rebuilt(tmp_path, 3)
    jax.tree.map(np.testing.assert_array_equal, taken, batch)
    assert len(facts["samples"]) == config.global_batch == len(set(facts["samples"]))
    assert facts["samples"][0].startswith("synthetic/") and not facts["not_finite"]


def test_where_features_were_cached_the_images_are_those_of_the_same_samples(tmp_path):
    config = written(tmp_path, "joint_cached")
    objective, _ = real_stages.make(config)
    loader = commands.open_loader(config, objective)
    batch, _ = rebuilt(tmp_path, 2)
    want = loader.batches[1]  # without features, which nothing has computed
    np.testing.assert_array_equal(batch.actions, want["arrays"]["actions"])
    for role, (ids, mask) in want["text"].items():
        np.testing.assert_array_equal(batch.text[role].ids, ids)
        np.testing.assert_array_equal(batch.text[role].mask, mask)
    assert batch.images.shape == objective.pixel_batch_spec(8).images.shape


def test_samples_that_are_not_finite_are_named(tmp_path, monkeypatch):
    written(tmp_path, "gidm")
    numbered = commands.open_loader

    def harmed(config, objective):
        loader = numbered(config, objective)
        batch, samples, damaged = loader.numbered(0, objective.pixel_batch_spec(8))
        batch.action[5] = np.nan
        loader.numbered = lambda number, spec: (batch, samples, damaged)
        return loader

    _, facts = step_batch.rebuild(str(tmp_path), 1, harmed)
    assert facts["not_finite"] == [facts["samples"][5]]


def test_preview_draws_it_and_says_what_is_missing(tmp_path):
    written(tmp_path, "gidm")
    output = tmp_path / "sheet.png"
    result, text = commands.run_preview("", None, str(output), 2, str(tmp_path), 4)
    assert image.decode_image(output.read_bytes()).shape[1] == result["width"]
    assert result["step"] == 4 and "samples: ['synthetic/" in text
    with pytest.raises(errors.UserError, match="give both"):
        commands.run_preview("", None, str(output), 2, str(tmp_path))
    with pytest.raises(errors.UserError, match="no run"):
        commands.run_preview("", None, str(output), 2, str(tmp_path / "none"), 1)
