import collections
import dataclasses
import zlib

import numpy as np
import pytest

from data_pipelines.loading import features, mixtures, sample_kinds, splits, store_batches
from data_pipelines.loading import reading as reading_lib
from data_pipelines.sources import synthetic
from defi_jax import errors


def _set(name, counts, weight=1.0):
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=len(counts))
    component = mixtures.Component(name=name, weight=weight, source=source, directory=None)
    return store_batches.SampleSet.of(component, np.arange(len(counts)), np.array(counts))


def test_sample_set_by_hand():
    component = _set("a", [1]).component
    samples = store_batches.SampleSet.of(component, np.array([4, 5, 7]), np.array([3, 0, 2]))
    assert len(samples) == 5
    places = [samples.place(k) for k in range(5)]
    assert [(p.episode, p.sample) for p in places] == [(4, 0), (4, 1), (4, 2), (7, 0), (7, 1)]
    assert [place.row for place in places] == [0, 1, 2, 3, 4]
    assert samples.episodes.tolist() == [4, 7]
    assert len(store_batches.SampleSet.of(component, np.array([1]), np.array([0]))) == 0


def test_every_sample_exactly_once_an_epoch_and_parts_by_weight():
    parts = [_set("a", [5, 4], weight=3.0), _set("b", [6], weight=1.0)]
    order = store_batches.order(parts, seed=1)
    drawn = [order[k] for k in range(72)]
    shares = collections.Counter(number for number, _ in drawn)
    assert shares == {0: 54, 1: 18}
    for number, size in ((0, 9), (1, 6)):
        stream = [sample for part, sample in drawn if part == number]
        epochs = [stream[k : k + size] for k in range(0, len(stream), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_depends_on_the_seed():
    parts = [_set("a", [50])]
    one, two, other = (store_batches.order(parts, seed) for seed in (1, 1, 2))
    drawn = [[order[k] for k in range(50)] for order in (one, two, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_held_out_split_is_by_id_alone():
    ids = [f"episode {k}" for k in range(2000)]
    share = np.mean([splits.is_held_out(name, 10) for name in ids])
    assert 0.07 < share < 0.13
    assert not any(splits.is_held_out(name, 0) for name in ids)
    assert all(splits.is_held_out(name, 100) for name in ids)
    small = np.mean([splits.is_held_out(f"episode {k}", 0.5) for k in range(50_000)])
    assert 0.004 < small < 0.006
    assert splits.is_held_out("episode 0", 10) == (zlib.crc32(b"episode 0") % 100 < 10)
    nested = [name for name in ids if splits.is_held_out(name, 5)]
    assert all(splits.is_held_out(name, 10) for name in nested)


class _Lengths:
    length = 1

    def __call__(self, texts):
        ids = np.array([[len(entry)] for entry in texts], np.int32)
        return ids, ids > 0


class _Failing:
    """Tells the episode; some are damaged, the odd ones in their pixels, some without motion."""

    has_fixed_text = False

    def __init__(self, bad, still=()):
        self._bad, self._still = bad, still

    def begin(self, place, instruction, rng):
        i = place.episode
        if i in self._bad and i % 2 == 0:
            raise errors.DataError("damaged", f"episode {i}")

        def read():
            if i in self._bad:
                raise errors.DataError("damaged", f"episode {i}")
            if i in self._still:
                raise sample_kinds.Still("0.00")
            return {"episode": np.array(i), "draw": rng.random()}

        return read


def _batches(bad=(), still=(), *, sets=None, kind=None, **changes):
    kind = kind or _Failing(set(bad), set(still))
    sets = sets or (_set("a", [1] * 8), _set("b", [1] * 4))
    values = {
        "tokenizers": {"gfdm": _Lengths()},
        "split": "train",
        "seed": 3,
        "global_batch": 4,
        "process_index": 0,
        "process_count": 1,
    }
    reading = reading_lib.Reading(
        kinds=dict.fromkeys((one.component.name for one in sets), kind),
        request=splits.Request(**values | changes),
    )
    return store_batches.StoreBatches(sets=sets, reading=reading)


def test_global_batches_do_not_depend_on_the_number_of_processes():
    whole = _batches()
    for count in (2, 4):
        processes = [_batches(process_index=p, process_count=count) for p in range(count)]
        for k in range(6):
            shares = [process[k]["arrays"] for process in processes]
            for name in ("episode", "draw"):
                joined = np.concatenate([share[name] for share in shares])
                np.testing.assert_array_equal(joined, whole[k]["arrays"][name])


def test_every_sample_draws_anew():
    draws = np.concatenate([_batches()[k]["arrays"]["draw"] for k in range(8)])
    assert len(set(draws.tolist())) == 32


def test_first_shifts_the_index():
    batches = _batches()
    np.testing.assert_array_equal(
        dataclasses.replace(batches, first=5)[2]["arrays"]["draw"], batches[7]["arrays"]["draw"]
    )


def test_bad_samples_are_replaced_within_their_part_and_named():
    good, damaged = _batches(), _batches(bad=[2])
    seen = []
    for k in range(12):
        expected, got = good[k]["arrays"], damaged[k]
        seen += got["replaced"].bad
        for position in range(4):
            if expected["episode"][position] == 2:
                assert got["arrays"]["episode"][position] != 2
            else:
                assert got["arrays"]["draw"][position] == expected["draw"][position]
        again = _batches(bad=[2])[k]["arrays"]
        np.testing.assert_array_equal(again["draw"], got["arrays"]["draw"])
    assert {name for name, _, _ in seen} == {"a", "b"}
    assert {sample for _, sample, _ in seen} == {"synthetic-000002#0"}


def test_still_pairs_are_replaced_alike_and_counted_apart():
    plain, counted = _batches(), {}
    for k in range(12):
        expected, got = plain[k]["arrays"], _batches(bad=[1], still=[2])[k]
        again = _batches(bad=[1], still=[2])[k]
        np.testing.assert_array_equal(again["arrays"]["draw"], got["arrays"]["draw"])
        assert not {1, 2} & set(got["arrays"]["episode"].tolist())
        kept = ~np.isin(expected["episode"], [1, 2])
        np.testing.assert_array_equal(got["arrays"]["draw"][kept], expected["draw"][kept])
        assert {sample for _, sample, _ in got["replaced"].bad} <= {"synthetic-000001#0"}
        for name, count in got["replaced"].still.items():
            counted[name] = counted.get(name, 0) + count
    assert counted.keys() == {"a", "b"}
    assert sum(counted.values()) >= 6


def test_many_still_pairs_in_a_row_are_no_end_but_all_of_them_are():
    counts = [1] * 40
    most, every = (_batches(sets=(_set("a", counts),), still=range(number)) for number in (38, 40))
    assert set(most[0]["arrays"]["episode"].tolist()) <= {38, 39}
    assert most[0]["replaced"].still["a"] > reading_lib.MAX_BAD
    with pytest.raises(errors.DataError, match=r"256 frame pairs in a row .*drop_still"):
        every[0]


def test_a_part_without_good_samples_stops_with_its_records():
    batches = _batches(bad=range(8))
    with pytest.raises(errors.DataError, match=r"16 samples in a row.*synthetic-.*data set '[ab]'"):
        batches[0]


class _Texts:
    """Tells instructions apart; texts of one sample are collected over many batches."""

    length = 1

    def __call__(self, texts):
        ids = np.array([[hash(entry) % 10**6] for entry in texts], np.int32)
        return ids, ids > 0


class _Numbers:
    def __init__(self, has_fixed_text):
        self.has_fixed_text = has_fixed_text

    def begin(self, place, instruction, rng):
        return lambda: {"place": np.array([place.episode, place.sample])}


class _Noting:
    """Notes the order of its two steps."""

    has_fixed_text = False

    def __init__(self):
        self.steps = []

    def begin(self, place, instruction, rng):
        self.steps.append("small")

        def read():
            self.steps.append("pixels")
            return {"episode": np.array(place.episode)}

        return read


def test_small_work_of_a_batch_comes_before_its_pixels():
    kind = _Noting()
    _batches(sets=(_set("a", [1] * 8),), kind=kind)[0]
    assert kind.steps == ["small"] * 4 + ["pixels"] * 4


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_text_gives_a_sample_one_paraphrase(fixed):
    batches = _batches(
        sets=(_set("a", [2] * 8),), kind=_Numbers(fixed), tokenizers={"gfdm": _Texts()}
    )
    seen = collections.defaultdict(set)
    for k in range(40):
        batch = batches[k]
        for place, words in zip(batch["arrays"]["place"], batch["text"]["gfdm"][0], strict=True):
            seen[tuple(place)].add(int(words[0]))
    assert len(seen) == 16
    assert (max(len(texts) for texts in seen.values()) == 1) == fixed
    # Windows of one episode have different ones.
    assert any(seen[i, 0] != seen[i, 1] for i in range(8))


def test_paraphrases_are_drawn_in_training_only():
    place = _set("a", [1]).place(0)
    rng, seen = np.random.default_rng(0), {}
    for split in splits.SPLITS:
        reading = _batches(split=split).reading
        seen[split] = {reading._instruction(place, rng) for _ in range(50)}
    first, *_ = place.meta.instructions
    assert seen == {"train": set(place.meta.instructions), "eval": {first}}


class _Placed:
    """Reads the numbers of episode and sample; episode 1 is damaged."""

    has_fixed_text = True

    def begin(self, place, instruction, rng):
        if place.episode == 1:
            raise errors.DataError("damaged", "episode 1")
        return lambda: {"place": np.array([place.episode, place.sample]), "unused": np.zeros(3)}


def _each_once(batch_size, tokenizer=None):
    sets = (_set("a", [2, 1, 2]), _set("b", [3]))
    reading = _batches(sets=sets, kind=_Placed(), tokenizers={"gfdm": tokenizer or _Lengths()})
    return features.EachOnce(
        sets=sets,
        reading=reading.reading,
        batch_size=batch_size,
        blank={"place": np.full(2, -1)},
    )


def test_each_once_reads_every_sample_in_the_order_of_rows():
    scan = _each_once(3)
    assert len(scan) == 3
    read = [scan[k] for k in range(3)]
    places = np.concatenate([batch["arrays"]["place"] for batch in read]).tolist()
    good = np.concatenate([batch["good"] for batch in read]).tolist()
    assert places == [[0, 0], [0, 1], [-1, -1], [2, 0], [2, 1], [0, 0], [0, 1], [0, 2], [-1, -1]]
    assert good == [True, True, False, True, True, True, True, True, False]


def test_each_once_reads_the_same_text_at_any_batch_size():
    small, large = _each_once(2, _Texts()), _each_once(8, _Texts())
    read = np.concatenate([small[k]["text"]["gfdm"][0] for k in range(4)])
    np.testing.assert_array_equal(read, large[0]["text"]["gfdm"][0])
