import ml_collections
import numpy as np
import pytest

from configs import gidm
from data_pipelines import bench, commands, episodes, media
from defi_jax import errors, objectives


def _experiment(directory, **changes) -> ml_collections.ConfigDict:
    config = gidm.get_config("tiny")
    config.data.update({"root": str(directory), "mixture": "s", "pair_offset": (2, 3), **changes})
    return config


def _store(directory) -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    with episodes.EpisodeWriter(directory / "s", source="s") as writer:
        for number in range(8):
            writer.write(
                episodes.Episode(
                    episode_id=f"e{number}",
                    source="s",
                    embodiment="human",
                    instructions=("push",),
                    frames={"static": [media.encode_jpeg(image)] * 6},
                    actions=None,
                    states=None,
                    fps=5.0,
                )
            )


def test_loader_is_measured_beside_decoding_the_same_frames(tmp_path, monkeypatch):
    _store(tmp_path)
    decoded = []
    bare = bench._bare
    monkeypatch.setattr(
        bench, "_bare", lambda encoded, *rest: decoded.append(encoded) or bare(encoded, *rest)
    )
    config = _experiment(tmp_path, workers=2)
    result, text = commands.run_bench(config, objectives.make(config), 0.5)
    batch = config.global_batch
    assert len(decoded) == bench.ROUNDS and len(decoded[0]) == 8 * batch * 2
    assert result["frames"] % (2 * batch) == 0 and result["frames"] > 0
    assert 0 < result["loader"] < result["bare"] and 0 < result["ratio"] < 1
    assert min(result["rss_mib"]) > 10
    assert "frames per second and core" in text


def test_what_holds_no_encoded_frames_says_so(tmp_path):
    config = _experiment(tmp_path, mixture="synthetic")
    with pytest.raises(errors.UserError, match="'synthetic' holds no encoded frames"):
        commands.run_bench(config, objectives.make(config), 0.5)
    with pytest.raises(errors.UserError, match="no experiment: --config"):
        commands.run_bench(None, None, 0.5)
