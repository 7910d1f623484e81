import queue
import threading
import time

import ml_collections
import numpy as np
import pytest

from configs import gidm
from data_pipelines import episodes
from data_pipelines.formats import image as image_lib
from data_pipelines.store import writer as store_writer
from defi_jax import errors
from tools.data import bench, commands


def _experiment(directory, **changes) -> ml_collections.ConfigDict:
    config = gidm.get_config("tiny")
    config.data.update({"root": str(directory), "mixture": "s", "pair_offset": (2, 3), **changes})
    return config


def _store(directory) -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    with store_writer.EpisodeWriter(directory / "s", source="s") as writer:
        for number in range(8):
            writer.write(
                episodes.Episode(
                    episode_id=f"e{number}",
                    source="s",
                    embodiment="human",
                    instructions=("push",),
                    frames={"static": [image_lib.encode_jpeg(image)] * 6},
                    actions=None,
                    states=None,
                    fps=5.0,
                )
            )


def test_loader_is_measured_beside_decoding_the_same_frames(tmp_path, monkeypatch):
    _store(tmp_path)
    monkeypatch.setattr(bench, "ROUNDS", 2)
    decoded = []
    bare = bench._bare
    monkeypatch.setattr(
        bench, "_bare", lambda encoded, *rest: decoded.append(encoded) or bare(encoded, *rest)
    )
    config = _experiment(tmp_path, workers=2)
    result, text = commands.run_bench(config, 0.5)
    batch = config.global_batch
    assert len(decoded) == bench.ROUNDS and len(decoded[0]) == 8 * batch * 2
    assert result["frames"] % (2 * batch) == 0 and result["frames"] > 0
    assert 0 < result["loader"] < result["bare"] and 0 < result["ratio"] < 1
    assert min(result["rss_mib"]) > 10
    assert "frames per second and core" in text


def test_what_holds_no_encoded_frames_says_so(tmp_path):
    config = _experiment(tmp_path, mixture="synthetic")
    with pytest.raises(errors.UserError, match="'synthetic' holds no encoded frames"):
        commands.run_bench(config, 0.5)
    with pytest.raises(errors.UserError, match="no experiment: --config"):
        commands.run_bench(None, 0.5)


class _ReadsAhead:
    """A loader that spends `SECONDS` of CPU time on a batch, in a thread, four batches ahead."""

    SECONDS = 0.02

    def __init__(self):
        self.taken = 0
        self._ready = queue.Queue(4)
        threading.Thread(target=self._fill, daemon=True).start()

    def _fill(self):
        while True:
            stop = time.thread_time() + self.SECONDS
            while time.thread_time() < stop:
                pass
            self._ready.put(None)

    def __next__(self):
        self.taken += 1
        return self._ready.get()


def test_each_batch_that_is_counted_is_paid_for():
    one = _ReadsAhead()
    time.sleep(0.2)  # some are ready before the clock starts
    count, wall, cpu = bench._through_loader(one, 0.1)
    assert count == one.taken - 1 and wall >= 0.1
    assert cpu / count == pytest.approx(one.SECONDS, rel=0.2)


def test_bare_work_is_decoding_and_resizing_each_frame(monkeypatch):
    sizes = []
    resize = image_lib.resize
    monkeypatch.setattr(
        image_lib, "resize", lambda image, size: sizes.append(size) or resize(image, size)
    )
    encoded = [image_lib.encode_jpeg(np.zeros((32, 48, 3), np.uint8))] * 3
    start, rate = time.process_time(), bench._bare(encoded, 16, 0.05)
    spent = time.process_time() - start
    assert set(sizes) == {(16, 16)} and len(sizes) % 3 == 0
    assert rate == pytest.approx(len(sizes) / spent, rel=0.2)
