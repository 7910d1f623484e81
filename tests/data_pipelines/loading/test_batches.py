import collections
import zlib

import numpy as np
import pytest

from data_pipelines.loading import batches as batches_lib
from data_pipelines.loading import sample_kinds
from data_pipelines.sources import synthetic
from data_pipelines.transforms import text
from defi_jax import errors


def _part(name, counts, weight=1.0, reader=None):
    table = batches_lib.Table(np.arange(len(counts)), np.array(counts))
    source = synthetic.SyntheticSource(image_size=8, action_dim=2, num_episodes=len(counts))
    return batches_lib.Part(name=name, weight=weight, source=source, reader=reader, table=table)


def test_table_by_hand():
    table = batches_lib.Table(np.array([4, 5, 7]), np.array([3, 0, 2]))
    assert len(table) == 5
    assert [table(k) for k in range(5)] == [(4, 0), (4, 1), (4, 2), (7, 0), (7, 1)]
    assert table.episodes.tolist() == [4, 7]
    assert len(batches_lib.Table(np.array([1]), np.array([0]))) == 0


def test_every_sample_exactly_once_an_epoch_and_parts_by_weight():
    parts = [_part("a", [5, 4], weight=3.0), _part("b", [6], weight=1.0)]
    order = batches_lib.order(parts, seed=1)
    drawn = [order[k] for k in range(72)]
    shares = collections.Counter(number for number, _ in drawn)
    assert shares == {0: 54, 1: 18}
    for number, size in ((0, 9), (1, 6)):
        stream = [sample for part, sample in drawn if part == number]
        epochs = [stream[k : k + size] for k in range(0, len(stream), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_depends_on_the_seed():
    parts = [_part("a", [50])]
    one, two, other = (batches_lib.order(parts, seed) for seed in (1, 1, 2))
    drawn = [[order[k] for k in range(50)] for order in (one, two, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_held_out_split_is_by_id_alone():
    ids = [f"episode {k}" for k in range(2000)]
    share = np.mean([batches_lib.is_held_out(name, 10) for name in ids])
    assert 0.07 < share < 0.13
    assert not any(batches_lib.is_held_out(name, 0) for name in ids)
    assert all(batches_lib.is_held_out(name, 100) for name in ids)
    small = np.mean([batches_lib.is_held_out(f"episode {k}", 0.5) for k in range(50_000)])
    assert 0.004 < small < 0.006
    assert batches_lib.is_held_out("episode 0", 10) == (zlib.crc32(b"episode 0") % 100 < 10)
    nested = [name for name in ids if batches_lib.is_held_out(name, 5)]
    assert all(batches_lib.is_held_out(name, 10) for name in nested)


class _Lengths:
    length = 1

    def __call__(self, texts):
        ids = np.array([[len(entry)] for entry in texts], np.int32)
        return ids, ids > 0

    def describe(self):
        return {}


class _Failing:
    """Tells the episode; some are damaged, the odd ones in their pixels, some without motion."""

    def __init__(self, bad, still=()):
        self._bad, self._still = bad, still

    def __call__(self, source, i, sample, rng):
        if i in self._bad and i % 2 == 0:
            raise errors.DataError("damaged", f"episode {i}")

        def read():
            if i in self._bad:
                raise errors.DataError("damaged", f"episode {i}")
            if i in self._still:
                raise sample_kinds.Still("0.00")
            return {"episode": np.array(i), "draw": rng.random()}

        return read


def _batches(bad=(), still=(), **changes):
    reader = _Failing(set(bad), set(still))
    parts = (_part("a", [1] * 8, reader=reader), _part("b", [1] * 4, reader=reader))
    return batches_lib.Batches(**(_values(*parts) | changes))


def _values(*parts):
    return {
        "parts": parts,
        "choose": text.ChooseParaphrase(draw=True),
        "tokenize": text.Tokenize(by_role={"gfdm": _Lengths()}),
        "seed": 3,
        "global_batch": 4,
        "process_index": 0,
        "process_count": 1,
    }


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


def test_starting_at_shifts_the_index():
    batches = _batches()
    np.testing.assert_array_equal(
        batches.starting_at(5)[2]["arrays"]["draw"], batches[7]["arrays"]["draw"]
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
    assert {entry.part for entry in seen} == {"a", "b"}
    assert {entry.record for entry in seen} == {"synthetic-000002#0"}


def test_still_pairs_are_replaced_alike_and_counted_apart():
    plain, counted = _batches(), {}
    for k in range(12):
        expected, got = plain[k]["arrays"], _batches(bad=[1], still=[2])[k]
        again = _batches(bad=[1], still=[2])[k]
        np.testing.assert_array_equal(again["arrays"]["draw"], got["arrays"]["draw"])
        assert not {1, 2} & set(got["arrays"]["episode"].tolist())
        kept = ~np.isin(expected["episode"], [1, 2])
        np.testing.assert_array_equal(got["arrays"]["draw"][kept], expected["draw"][kept])
        assert {entry.record for entry in got["replaced"].bad} <= {"synthetic-000001#0"}
        for name, count in got["replaced"].still.items():
            counted[name] = counted.get(name, 0) + count
    assert counted.keys() == {"a", "b"}
    assert sum(counted.values()) >= 6


def test_many_still_pairs_in_a_row_are_no_end_but_all_of_them_are():
    counts = [1] * 40
    most = batches_lib.Batches(
        **_values(_part("a", counts, reader=_Failing(set(), set(range(38)))))
    )
    assert set(most[0]["arrays"]["episode"].tolist()) <= {38, 39}
    assert most[0]["replaced"].still["a"] > batches_lib.MAX_BAD
    every = batches_lib.Batches(
        **_values(_part("a", counts, reader=_Failing(set(), set(range(40)))))
    )
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

    def describe(self):
        return {}


class _Numbers:
    def __call__(self, source, i, sample, rng):
        return lambda: {"place": np.array([source.lengths[0], i, sample])}


class _Noting:
    """Notes the order of its two steps."""

    def __init__(self):
        self.steps = []

    def __call__(self, source, i, sample, rng):
        self.steps.append("small")

        def read():
            self.steps.append("pixels")
            return {"episode": np.array(i)}

        return read


def test_small_work_of_a_batch_comes_before_its_pixels():
    reader = _Noting()
    _batches(parts=(_part("a", [1] * 8, reader=reader),))[0]
    assert reader.steps == ["small"] * 4 + ["pixels"] * 4


@pytest.mark.parametrize("fixed", [True, False])
def test_fixed_text_gives_a_sample_one_paraphrase(fixed):
    batches = _batches(
        parts=(_part("a", [2] * 8, reader=_Numbers()),),
        tokenize=text.Tokenize(by_role={"gfdm": _Texts()}),
        fixed_text=fixed,
    )
    seen = collections.defaultdict(set)
    for k in range(40):
        batch = batches[k]
        for place, words in zip(batch["arrays"]["place"], batch["text"]["gfdm"][0], strict=True):
            seen[tuple(place[1:])].add(int(words[0]))
    assert len(seen) == 16
    assert (max(len(texts) for texts in seen.values()) == 1) == fixed
    # Windows of one episode have different ones.
    assert any(seen[i, 0] != seen[i, 1] for i in range(8))


def test_features_are_looked_up_by_part_and_replaced_sample():
    def features(part_number, sample):
        if (part_number, sample) == (0, 2):
            raise errors.DataError("damaged", "row")
        return np.array([part_number, sample])

    batches = _batches(features=features)
    bad = []
    for k in range(12):
        batch = batches[k]
        bad += batch["replaced"].bad
        # Sample k of either part is of episode k.
        np.testing.assert_array_equal(batch["arrays"]["features"][:, 1], batch["arrays"]["episode"])
        assert set(batch["arrays"]["features"][:, 0]) == {0, 1}
    assert {entry.record for entry in bad} == {"synthetic-000002#0"}
    assert {entry.part for entry in bad} == {"a"}
