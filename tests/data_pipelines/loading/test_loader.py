import functools
import json

import jax
import numpy as np
import pytest

from data_pipelines import episodes
from data_pipelines.loading import loader, splits
from data_pipelines.store import reader
from data_pipelines.store import writer as store_writer
from defi_jax import batch as batch_lib
from defi_jax import errors
from defi_jax.models.frozen import tokenizers
from tests.data_pipelines import loaders


@pytest.mark.parametrize("name", ["gfdm", "gidm", "joint"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_synthetic_batches_fit_the_spec(name, split):
    batch = next(loaders.make(name, split=split))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
    assert all(len(leaf) == 8 for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize("name", ["gfdm", "gidm", "joint"])
def test_resume_in_the_middle_is_identical(name):
    straight = loaders.make(name)
    for _ in range(3):
        next(straight)
    state = json.loads(json.dumps(straight.state()))
    expected = [next(straight) for _ in range(3)]
    resumed = loaders.make(name)
    next(resumed)
    resumed.restore(state)
    for batch in expected:
        loaders.assert_equal(next(resumed), batch)
    assert resumed.state() == straight.state()


def test_four_processes_continue_as_two():
    processes = [loaders.make(process=p, count=4) for p in range(4)]
    for process in processes:
        next(process)
    state = processes[1].state()
    expected = _gathered(processes)
    halves = [loaders.make(process=p, count=2) for p in range(2)]
    for half in halves:
        half.restore(state)
    loaders.assert_equal(_gathered(halves), expected)


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path):
    loaders.write_store(tmp_path, "a")
    with_store = {"root": str(tmp_path), "mixture": "a,synthetic"}
    plain = loaders.make(**with_store)
    expected = [next(plain) for _ in range(6)]
    working = loaders.make(**with_store, workers=2)
    for batch in expected[:3]:
        loaders.assert_equal(next(working), batch)
    state = working.state()
    working.close()
    resumed = loaders.make(**with_store, workers=2)
    resumed.restore(state)
    for batch in expected[3:]:
        loaders.assert_equal(next(resumed), batch)
    resumed.close()
    assert plain.fingerprint == working.fingerprint


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_epochs_over_a_resume_on_fewer_hosts_have_each_sample_once_each(tmp_path, workers):
    loaders.write_store(tmp_path, "a")
    settings = {"root": str(tmp_path), "mixture": "a", "holdout_percent": 0, "augment": False}
    straight = loaders.make(**settings)
    expected = [next(straight) for _ in range(24)]  # two epochs, of 12 episodes x 8 pairs
    first, state = _read_by_hosts(4, 5, None, workers=workers, **settings)
    rest, _ = _read_by_hosts(2, 19, state, workers=workers, **settings)
    read = first + rest
    for batch, whole in zip(read, expected, strict=True):
        loaders.assert_equal(batch, whole)
    for batches in (read[:12], read[12:]):
        seen = [
            (bytes(text[text > 0].astype(np.uint8) - 1), int(frames[0, 0, 0, 0]))
            for batch in batches
            for text, frames in zip(batch.text.ids, batch.frames, strict=True)
        ]
        assert len(set(seen)) == len(seen) == 96


def _read_by_hosts(count, num_batches, state, **settings):
    """The next global batches and the state after them, each host's loader on its own."""
    read, states = [], []
    for process in range(count):
        own = loaders.make(**settings, process=process, count=count)
        if state is not None:
            own.restore(state)
        read.append([next(own) for _ in range(num_batches)])
        states.append(json.loads(json.dumps(own.state())))
        own.close()
    assert all(other == states[0] for other in states)
    join = functools.partial(jax.tree.map, lambda *x: np.concatenate(x))
    return [join(*batches) for batches in zip(*read, strict=True)], states[0]


def _gathered(processes):
    """The next global batch."""
    return jax.tree.map(lambda *x: np.concatenate(x), *[next(p) for p in processes])


def test_closing_keeps_the_position():
    straight, closed = loaders.make(), loaders.make()
    for _ in range(2):
        loaders.assert_equal(next(closed), next(straight))
        closed.close()


def test_state_of_another_pipeline_is_refused():
    state = loaders.make().state()
    for change, key in (
        ({"seed": 1}, "seed"),
        ({"global_batch": 4}, "global_batch"),
        ({"pair_offset": (1, 5)}, "rules"),
        ({"mixture": "synthetic:2"}, "sources"),
        ({"normalization": "none"}, "normalizer"),
    ):
        with pytest.raises(errors.UserError, match=f"{key} changed"):
            loaders.make(**change).restore(state)
    loaders.make(workers=2).restore(state)


def test_first_is_finite_and_leaves_the_position_alone():
    evaluation = loaders.make(split="eval")
    one = list(evaluation.first(2))
    loaders.assert_equal(next(evaluation), one[0])
    two = list(evaluation.first(2))
    assert len(one) == len(two) == 2
    loaders.assert_equal(one[1], two[1])


def test_splits_share_no_episode(tmp_path):
    loaders.write_store(tmp_path, "a", count=40)
    found = {}
    for split in splits.SPLITS:
        one = loaders.make(split=split, root=str(tmp_path), mixture="a", holdout_percent=30)
        ids = set()
        for batch in one.first(40):
            ids |= {row.tobytes() for row in batch.text.ids}
        found[split] = ids
        assert one.describe()[0]["episodes"] == len(ids)
    assert not found["train"] & found["eval"]
    assert len(found["train"] | found["eval"]) == 40


def test_joint_actions_are_those_after_the_image(tmp_path):
    loaders.write_store(tmp_path, "a", count=5)
    one = loaders.make(
        "joint",
        root=str(tmp_path),
        mixture="a",
        holdout_percent=0,
        augment=False,
        normalization="none",
    )
    for batch in one.first(5):
        for row in range(8):
            t = int(batch.images[row, 0, 0, 0, 0]) // 10
            length = int(batch.text["goal"].mask[row].sum())
            number = int(bytes(batch.text["goal"].ids[row, :length].astype(np.uint8) - 1)[-1:])
            left = min(4, 9 - t)
            assert batch.action_mask[row].tolist() == [k < left for k in range(4)]
            expected = [t + k + number if k < left else 0 for k in range(4)]
            assert batch.actions[row, :, 0].tolist() == expected


def test_normalisation_is_of_all_named_stores_and_leaves_the_gripper(tmp_path):
    loaders.write_store(tmp_path, "a", count=3)
    loaders.write_store(tmp_path, "b", count=9)
    one = loaders.make(
        "joint",
        root=str(tmp_path),
        mixture="a,b",
        normalization="bounds",
        unnormalized_dims=(1,),
        holdout_percent=0,
    )
    assert one.normalizer.statistics.max.tolist() == [16, 16]
    assert one.normalizer.mask == (True, False)
    actions = np.concatenate([batch.actions for batch in one.first(4)])
    assert np.abs(actions[..., 0]).max() <= 1
    assert actions[..., 1].max() > 1


def test_each_data_set_of_gidm_has_a_normalisation_of_its_own(tmp_path):
    loaders.write_store(tmp_path, "low", count=3)  # values 0 to 10
    loaders.write_store(tmp_path, "high", count=9)  # 0 to 16
    settings = {"root": str(tmp_path), "normalization": "bounds", "unnormalized_dims": ()}
    mixed = loaders.make("gidm", mixture="low,high", **settings)
    highs = {name: kind.normalizer.statistics.max[0] for name, kind in mixed.kinds.items()}
    assert highs == {"low": 10, "high": 16}
    state, alone = mixed.state(), loaders.make("gidm", mixture="low", **settings).state()
    assert "normalizers" in state["pipeline"] and "normalizers" not in alone["pipeline"]


def test_gidm_masks_what_has_no_actions(tmp_path):
    loaders.write_store(tmp_path, "video", has_actions=False)
    loaders.write_store(tmp_path, "other", width=7)
    loaders.write_store(tmp_path, "robot")
    for name, known in (("video", False), ("other", False), ("robot", True)):
        batch = next(loaders.make(root=str(tmp_path), mixture=name))
        assert (batch.action_mask == known).all()
        assert (batch.action == 0).all() == (not known)


def test_joint_refuses_what_it_cannot_train_on(tmp_path):
    loaders.write_store(tmp_path, "video", has_actions=False)
    loaders.write_store(tmp_path, "wide", width=7)
    loaders.write_store(tmp_path, "robot")
    root = str(tmp_path)
    with pytest.raises(errors.DataError, match=r"no episode has actions.*'video'.*leave it out"):
        loaders.make("joint", root=root, mixture="robot,video")
    with pytest.raises(errors.DataError, match=r"7 dimensions.*'wide'.*action_dim=7"):
        loaders.make("joint", root=root, mixture="wide")
    with pytest.raises(errors.DataError, match=r"cameras static, gripper.*available: static"):
        loaders.make("joint", root=root, mixture="robot", cameras=("static", "gripper"))


def test_joint_refuses_actions_of_other_meaning_that_gidm_mixes(tmp_path):
    for name in ("bridge_dataset", "bc_z"):
        loaders.write_store(tmp_path, name, source=name, width=7)
    mixed = {"root": str(tmp_path), "mixture": "bridge_dataset,bc_z", "action_dim": 7}
    with pytest.raises(errors.UserError, match="rotation is euler xyz in bridge_dataset"):
        loaders.make("joint", **mixed)
    next(loaders.make("gidm", **mixed))
    alone = loaders.make("joint", **mixed | {"mixture": "bridge_dataset"})
    alone.check_robot("widowx250")
    with pytest.raises(errors.UserError, match=r"bridge_dataset are not those of franka_panda: "):
        alone.check_robot("franka_panda")


def test_nothing_held_out_is_an_error(tmp_path):
    loaders.write_store(tmp_path, "a", count=2)
    with pytest.raises(errors.UserError, match=r"a is held out.*data\.holdout_percent=0"):
        loaders.make(split="eval", root=str(tmp_path), mixture="a", holdout_percent=0)


@pytest.mark.parametrize(
    ("objective", "numbers"),
    [
        ("gidm", {"pair_offset": (5, 2)}),
        ("joint", {"window_stride": 0}),
        ("joint", {"action_horizon": 0}),
        ("gfdm", {"num_frames": 0}),
    ],
)
def test_impossible_numbers_are_an_error(tmp_path, objective, numbers):
    loaders.write_store(tmp_path, "a", count=3)
    with pytest.raises(
        errors.UserError, match=r"impossible.*: data\.\w+; (give at least 1|change)"
    ):
        loaders.make(objective, root=str(tmp_path), mixture="a", **numbers)


def test_uneven_global_batch_is_an_error():
    with pytest.raises(errors.UserError, match="multiple of 3"):
        loaders.make(count=3)


def _damage(directory, episode_id):
    """Overwrites the frames of an episode's only camera by bytes that are no image."""
    store = reader.EpisodeStore(directory)
    rows = [store.episode(i) for i in range(len(store))]
    for path in directory.iterdir():
        path.unlink()
    with store_writer.EpisodeWriter(directory, source="a") as writer:
        for row in rows:
            bad = {"static": [b"not an image"] * row.length}
            frames = bad if row.episode_id == episode_id else row.frames
            values = {name: getattr(row, name) for name in row.__dataclass_fields__}
            writer.write(episodes.Episode(**(values | {"frames": frames})))


def test_damaged_episode_is_replaced_counted_and_resumed(tmp_path):
    _damage(loaders.write_store(tmp_path, "a"), "a-3")
    settings = {"root": str(tmp_path), "mixture": "a", "holdout_percent": 0}
    one = loaders.make(**settings, max_bad_fraction=0.01)
    for _ in range(12):  # 96 samples, one epoch
        next(one)
    assert one.bad_samples["a"] >= 8
    resumed = loaders.make(**settings, max_bad_fraction=0.01)
    resumed.restore(one.state())
    assert resumed.bad_samples == one.bad_samples
    loaders.assert_equal(next(resumed), next(one))


def test_too_many_damaged_samples_stop_with_their_records(tmp_path):
    _damage(loaders.write_store(tmp_path, "a"), "a-3")
    one = loaders.make(root=str(tmp_path), mixture="a", holdout_percent=0, max_bad_fraction=0.0)
    with pytest.raises(errors.DataError, match=r"max_bad_fraction=0\.0 \(last: a/a-3#"):
        for _ in range(12):
            next(one)


def _feature_loader(directory, **changes):
    """A joint loader of features, and one of images, of the same stores."""
    settings = {"root": str(directory), "mixture": "a,b", "holdout_percent": 0, "augment": False}
    config = loaders.config(**settings | changes)
    spec = loaders.spec("joint", config)
    with_features = spec.replace(images=None, features=jax.ShapeDtypeStruct((1, 1, 2), np.float16))
    tokenizer = tokenizers.utf8(length=loaders.LENGTH, lower_case=True, strip_punctuation=False)
    made = [
        loader.make_loader(
            config,
            one,
            tokenizers=dict.fromkeys(loaders.ROLES["joint"], tokenizer),
            split="train",
            seed=0,
            global_batch=8,
            process_index=0,
            process_count=1,
        )
        for one in (with_features, spec)
    ]
    return (*made, batch_lib.with_batch_size(spec, 8))


def _write_features(one, spec, path):
    """Writes mean brightness and first action of each sample."""
    rows = []
    for batch, good in one.scan(spec):
        means = batch.images.mean(axis=(1, 2, 3, 4))
        row = np.stack([means, batch.actions[:, 0, 0]], axis=1)
        rows.append(np.where(good[:, None], row, np.nan))
    rows = np.concatenate(rows)[: one.num_samples]
    np.save(path, rows[:, None].astype(np.float16))
    return rows


@pytest.mark.parametrize("stride", [1, 2])
def test_batches_carry_the_features_of_their_own_samples(tmp_path, stride):
    loaders.write_store(tmp_path, "a", count=3)
    loaders.write_store(tmp_path, "b", count=2)
    one, images, spec = _feature_loader(tmp_path, window_stride=stride)
    assert one.num_samples == 5 * len(range(0, 9, stride))
    _write_features(one, spec, tmp_path / "rows.npy")
    one.use_features(tmp_path / "rows.npy")
    for _ in range(10):
        batch, expected = next(one), next(images)
        assert batch.images is None
        loaders.assert_equal(batch.actions, expected.actions)
        loaders.assert_equal(
            batch.features[:, 0, 0], expected.images.mean(axis=(1, 2, 3, 4)).astype(np.float16)
        )
        loaders.assert_equal(batch.features[:, 0, 1], batch.actions[:, 0, 0].astype(np.float16))
    state = one.state()
    expected = next(one)
    resumed, *_ = _feature_loader(tmp_path, window_stride=stride)
    resumed.restore(state)
    resumed.use_features(tmp_path / "rows.npy")
    loaders.assert_equal(next(resumed), expected)
    with pytest.raises(errors.UserError, match="features changed"):
        images.restore(state)


def test_rows_of_other_data_are_refused(tmp_path):
    loaders.write_store(tmp_path, "a", count=3)
    loaders.write_store(tmp_path, "b", count=2)
    one, _, _ = _feature_loader(tmp_path)
    np.save(tmp_path / "rows.npy", np.zeros((44, 1, 2), np.float16))
    with pytest.raises(ValueError, match="44 rows for 45 samples"):
        one.use_features(tmp_path / "rows.npy")


def test_samples_that_could_not_be_scanned_are_replaced(tmp_path):
    _damage(loaders.write_store(tmp_path, "a", count=3), "a-1")
    loaders.write_store(tmp_path, "b", count=2)
    one, _, spec = _feature_loader(tmp_path, max_bad_fraction=0.01)
    rows = _write_features(one, spec, tmp_path / "rows.npy")
    assert np.isnan(rows[:, 0]).sum() == 9
    one.use_features(tmp_path / "rows.npy")
    for _ in range(6):
        assert np.isfinite(next(one).features).all()
    assert one.bad_samples.keys() == {"a"}


def test_window_stride_is_part_of_the_fingerprint():
    every, second = loaders.make("joint"), loaders.make("joint", window_stride=2)
    assert every.fingerprint != second.fingerprint
    assert every.num_samples == 2 * second.num_samples
