import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from defi_jax import errors, tensor_files
from defi_jax.models import (
    action_denoiser,
    clip_text,
    dinov2,
    gidm,
    latent_action,
    policy,
    t5_encoder,
    video_former,
)
from defi_jax.models import params as params_lib
from defi_jax.weights import importers, sources, table
from tests.fixtures import seeded

CLIP = clip_text.CLIPTextConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=6,
    max_position_embeddings=5,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    eos_token_id=10,
)
T5 = t5_encoder.T5EncoderConfig(
    vocab_size=11,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_heads=2,
    feed_forward_proj="relu",
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    layer_norm_epsilon=1e-6,
)
DINO = dinov2.DINOv2Config(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=8,
    patch_size=4,
    num_register_tokens=2,
    layer_norm_eps=1e-6,
    qkv_bias=True,
)
GIDM = gidm.GIDMConfig(
    feature_dim=8,
    text_dim=8,
    model_dim=8,
    num_heads=2,
    latent_dim=4,
    codebook_size=4,
    num_codes=2,
    encoder_blocks=2,
    decoder_blocks=2,
)
POLICY = policy.PolicyConfig(
    video_former=video_former.VideoFormerConfig(
        condition_dim=8, dim=8, depth=2, dim_head=4, heads=2, num_latents=4, num_frames=2
    ),
    gidm=latent_action.LatentActionConfig(
        **{
            name: value
            for name, value in dataclasses.asdict(GIDM).items()
            if name != "decoder_blocks"
        }
    ),
    denoiser=action_denoiser.ActionDenoiserConfig(
        action_dim=3,
        action_horizon=2,
        observation_dim=8,
        goal_dim=6,
        latent_action_dim=8,
        embed_dim=8,
        encoder_layers=2,
        decoder_layers=2,
        heads=2,
        sigma_data=0.5,
        sigma_min=0.001,
        sigma_max=80.0,
        sampling_steps=2,
        num_tokens=4,
    ),
    condition_frames=(0, 1),
)

CONFIGS = {
    "clip": {"": CLIP},
    "clip_openai": {"": CLIP},
    "t5": {"": T5},
    "dinov2": {"": DINO},
    "defi_gidm": {"gidm": GIDM, "dinov2": DINO, "t5_encoder": T5},
    "defi_policy": {"policy": POLICY, "clip_text": CLIP, "clip_openai": CLIP, "t5_encoder": T5},
}
FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "parity"
# Folder of a diffusers release -> the fixture that knows its official names.
FOLDERS = {"unet": "svd_unet_uneven", "vae": "svd_vae_odd_sides"}
EXTRA = {
    "clip": ("vision_model.embed.weight", "logit_scale"),
    "clip_openai": ("visual.proj",),
    "t5": ("decoder.block.0.weight",),
    "dinov2": ("mask_token",),
    "defi_gidm": ("lam.dino_encoder.mask_token",),
    "defi_policy": ("model.inner_model.pos_emb", "language_goal.clip_rn50.visual.proj"),
}


def _release(name: str) -> dict[str, np.ndarray]:
    """A small release: every official name, random values, mixed element types."""
    rng = np.random.default_rng(0)
    tensors = {}
    names = ["cls_token", "blocks.0.attn.proj.weight"]  # DINOv2 by the hub's names
    for part in sources.SOURCES[name].parts:
        config = CONFIGS[name][part.name]
        abstract = part.abstract_params(config)
        params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract)
        exported = table.export_params(part.table(params, config, names), params)
        tensors |= {part.prefix + key: value for key, value in exported.items()}
    first, second = sorted(tensors)[:2]
    tensors[first] = tensors[first].astype(np.float16)
    tensors[second] = tensors[second].astype(ml_dtypes.bfloat16)
    extra = {key: np.float32(rng.normal(size=(2,))) for key in EXTRA[name]}
    return tensors | extra


def _write(path, tensors):
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_import_and_reverse_give_back_every_bit(name, tmp_path):
    release = _release(name)
    path = _write(tmp_path / "release.safetensors", release)
    summary = importers.import_release(name, path, tmp_path / "ours", CONFIGS[name])
    assert set(summary.dropped) == set(EXTRA[name])
    for part in sources.SOURCES[name].parts:
        flat = safetensors.numpy.load_file(tmp_path / "ours" / part.name / importers.PARAMS)
        assert all(key.startswith(part.ours) for key in flat)
        assert {value.dtype for value in flat.values()} == {np.dtype(np.float32)}
    written = importers.export_release(tmp_path / "ours", tmp_path / "theirs")
    assert len(written) == 1
    back = safetensors.numpy.load_file(written[0])
    assert back.keys() == release.keys()
    for key, value in release.items():
        assert back[key].dtype == value.dtype, key
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def _svd_tensors(folder: str) -> dict[str, np.ndarray]:
    """What diffusers holds at small size, by its own names."""
    return seeded.load(FIXTURES / f"{FOLDERS[folder]}.safetensors")["params"]


def _write_svd(folder, *, shards: bool):
    """A release's folder as diffusers writes it: sharded half precision, or whole (stage 1)."""
    for name, fixture in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        config = seeded.load(FIXTURES / f"{fixture}.safetensors")["config"]
        config |= {"_class_name": name, "_diffusers_version": "0.28.0"}
        (folder / name / "config.json").write_text(json.dumps(config))
        stem, tensors = "diffusion_pytorch_model", _svd_tensors(name)
        if not shards:
            _write(folder / name / f"{stem}.safetensors", tensors)
            continue
        halves = {key: value.astype(np.float16) for key, value in tensors.items()}
        files = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
        index = {key: files[i % 2] for i, key in enumerate(sorted(halves))}
        for file in files:
            _write(folder / name / file, {k: halves[k] for k, f in index.items() if f == file})
        (folder / name / f"{stem}.safetensors.index.fp16.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )


@pytest.mark.slow
def test_svd_folder_of_half_precision_shards_comes_back_in_its_folders(tmp_path):
    folder = tmp_path / "svd"
    _write_svd(folder, shards=True)
    (folder / "image_encoder").mkdir()
    vision = {"vision_model.proj.weight": np.ones((2, 3), np.float16)}
    _write(folder / "image_encoder" / "model.fp16.safetensors", vision)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    summary = importers.import_release("svd", folder, tmp_path / "ours")
    assert set(summary.parameters) == {"unet", "svd_vae"}
    assert list(summary.dropped) == ["vision_model.proj.weight"]
    importers.export_release(tmp_path / "ours", tmp_path / "theirs")
    assert sorted(
        str(path.relative_to(tmp_path / "theirs")) for path in (tmp_path / "theirs").glob("*/*")
    ) == [
        "image_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    for name in FOLDERS:
        path = tmp_path / "theirs" / name / "diffusion_pytorch_model.safetensors"
        back, tensors = safetensors.numpy.load_file(path), _svd_tensors(name)
        assert back.keys() == tensors.keys()
        for key, value in tensors.items():
            assert back[key].dtype == np.float16
            np.testing.assert_array_equal(back[key], value.astype(np.float16), err_msg=key)


@pytest.mark.slow
def test_official_stage_1_folder_is_where_training_looks_for_it(tmp_path):
    _write_svd(tmp_path / "checkpoint-100000", shards=False)
    importers.import_release("defi_gfdm", tmp_path / "checkpoint-100000", tmp_path / "ours")
    unet = safetensors.numpy.load_file(tmp_path / "ours" / "unet" / importers.PARAMS)
    kernel = _svd_tensors("unet")["conv_in.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(unet["gfdm/unet/conv_in/kernel"], kernel)
    vae = safetensors.numpy.load_file(tmp_path / "ours" / "svd_vae" / importers.PARAMS)
    assert "encoder/conv_in/kernel" in vae


def test_shards_configs_and_tokenizer_files_of_a_folder(tmp_path):
    release, folder = _release("t5"), tmp_path / "t5"
    folder.mkdir()
    names = sorted(release)
    _write(folder / "a.safetensors", {name: release[name] for name in names[::2]})
    _write(folder / "b.safetensors", {name: release[name] for name in names[1::2]})
    index = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(T5) | {"dropout_rate": 0.1}))
    (folder / "spiece.model").write_bytes(b"pieces")
    summary = importers.import_release("t5", folder, tmp_path / "ours")
    assert summary.parameters == {
        "t5": params_lib.count(
            params_lib.abstract_params(lambda rngs: t5_encoder.T5Encoder(T5, rngs=rngs))
        )
    }
    assert (tmp_path / "ours" / "spiece.model").read_bytes() == b"pieces"
    (folder / "b.safetensors").unlink()
    with pytest.raises(errors.DataError, match="not a safetensors file"):
        importers.import_release("t5", folder, tmp_path / "again")


def test_problems_of_all_parts_are_listed_and_nothing_is_left(tmp_path):
    release = _release("defi_gidm")
    release["lam.action_up.renamed"] = release.pop("lam.action_up.bias")
    release["lam.dino_encoder.norm.bias"] = np.zeros(99, np.float32)
    path = _write(tmp_path / "release.safetensors", release)
    with pytest.raises(errors.DataError) as caught:
        importers.import_release("defi_gidm", path, tmp_path / "ours", CONFIGS["defi_gidm"])
    for text in ("missing name action_up.bias", "unknown name action_up.renamed", "(99,)"):
        assert text in str(caught.value)
    stray = _release("defi_gidm") | {"stray.weight": np.zeros(1, np.float32)}
    _write(path, stray)
    with pytest.raises(errors.DataError, match=r"unknown name stray\.weight"):
        importers.import_release("defi_gidm", path, tmp_path / "ours", CONFIGS["defi_gidm"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["release.safetensors"]


@pytest.mark.parametrize("reverse", [False, True])
def test_damage_found_on_the_way_leaves_nothing(reverse, tmp_path, monkeypatch):
    path = _write(tmp_path / "release.safetensors", _release("t5"))
    if reverse:
        importers.import_release("t5", path, tmp_path / "ours", CONFIGS["t5"])
    before = sorted(tmp_path.iterdir())
    reads = []

    def damaged_read(self, name, index):
        reads.append(name)
        if len(reads) == 9:
            raise errors.DataError("damaged archive (Bad CRC-32)", name, "download it again")
        return read(self, name, index)

    read = tensor_files.SafetensorsFiles.read
    monkeypatch.setattr(tensor_files.SafetensorsFiles, "read", damaged_read)
    monkeypatch.setattr(
        tensor_files.SafetensorsFiles,
        "__getitem__",
        lambda self, name: damaged_read(self, name, ()),
    )
    with pytest.raises(errors.DataError, match="Bad CRC"):
        if reverse:
            importers.export_release(tmp_path / "ours", tmp_path / "theirs")
        else:
            importers.import_release("t5", path, tmp_path / "ours", CONFIGS["t5"])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("block/attention/to_q/kernel", lambda x: np.concatenate([x, x[:1]])),
        ("block/attention/to_q/kernel", lambda x: x[:1]),
        ("block/attention/to_q/kernel", lambda x: x[0]),
        ("shared/embedding", lambda x: x[:, :3]),
    ],
    ids=["a layer more", "a layer less", "an axis less", "narrower"],
)
def test_replaced_parameters_of_another_shape_are_not_exported(path, change, tmp_path):
    release = _write(tmp_path / "release.safetensors", _release("t5"))
    importers.import_release("t5", release, tmp_path / "ours", CONFIGS["t5"])
    ours = tmp_path / "ours" / importers.PARAMS
    params = dict(safetensors.numpy.load_file(ours))
    params[path] = np.ascontiguousarray(change(params[path]))
    _write(ours, params)
    with pytest.raises(errors.DataError, match=f"misshapen {path}"):
        importers.export_release(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    "text", ["[1]", "null", '{"text_config": null}', '{"num_layers": "2"}', '{"num_heads": 0}']
)
def test_config_of_a_release_that_is_no_config_is_one_line(text, tmp_path):
    _write(tmp_path / "model.safetensors", _release("t5"))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(errors.UserError, match=r"config.*: .*config\.json"):
        importers.import_release("t5", tmp_path, tmp_path / "ours")


@pytest.mark.parametrize(
    "change",
    [
        lambda record: [],
        lambda record: {},
        lambda record: record | {"source": ["t5"]},
        lambda record: record | {"source": "t6"},
        lambda record: {"source": "t5"},
        lambda record: record | {"parts": []},
        lambda record: record | {"parts": {"": None}},
        lambda record: record | {"parts": {"": record["parts"][""] | {"config": [1]}}},
        lambda record: record | {"parts": {"": record["parts"][""] | {"names": [[]]}}},
        lambda record: record | {"parts": {"": record["parts"][""] | {"names": ["other"]}}},
        lambda record: record | {"parts": {"": record["parts"][""] | {"dtypes": {"a": "f99"}}}},
        lambda record: record | {"parts": {"": record["parts"][""] | {"dtypes": {"a": []}}}},
    ],
)
def test_damaged_record_of_an_import_is_a_data_error(change, tmp_path):
    release = _write(tmp_path / "release.safetensors", _release("t5"))
    importers.import_release("t5", release, tmp_path / "ours", CONFIGS["t5"])
    record = tmp_path / "ours" / importers.RECORD
    record.write_text(json.dumps(change(json.loads(record.read_text()))))
    with pytest.raises(errors.DataError, match=r"import\.json; import the release again"):
        importers.export_release(tmp_path / "ours", tmp_path / "theirs")


def test_output_below_a_file_is_a_user_error(tmp_path):
    path = _write(tmp_path / "release.safetensors", _release("t5"))
    with pytest.raises(errors.UserError, match="output cannot be made"):
        importers.import_release("t5", path, path / "ours", CONFIGS["t5"])


def test_wrong_paths_are_user_errors(tmp_path):
    with pytest.raises(errors.UserError, match="unknown source 'svd2'"):
        importers.import_release("svd2", tmp_path, tmp_path / "ours")
    with pytest.raises(errors.UserError, match="no weights"):
        importers.import_release("t5", tmp_path, tmp_path / "ours")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text("{}")
    with pytest.raises(errors.UserError, match="shards of pickles, which are not read"):
        importers.import_release("t5", tmp_path, tmp_path / "ours")
    index.unlink()
    with pytest.raises(errors.UserError, match="no such file"):
        importers.import_release("t5", tmp_path / "absent", tmp_path / "ours")
    with pytest.raises(errors.UserError, match="output exists"):
        importers.import_release("t5", tmp_path, tmp_path)
    with pytest.raises(errors.UserError, match=r"no import\.json"):
        importers.export_release(tmp_path, tmp_path / "theirs")
    text = tmp_path / "model.safetensors"
    text.write_text("<html>not found</html>")
    with pytest.raises(errors.DataError, match="not a safetensors file"):
        importers.import_release("t5", tmp_path, tmp_path / "ours")
