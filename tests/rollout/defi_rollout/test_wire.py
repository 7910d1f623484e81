"""Messages of openpi's clients, as bytes, and what must not pass."""

import contextlib

import msgpack
import numpy as np
import pytest
from defi_rollout import wire

# What openpi-client 0.1.2 packs for this observation.
OBSERVATION = {"observation/state": np.array([1, 2], np.float32), "prompt": "pick"}
GOLDEN = bytes.fromhex(
    "82b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c4080000803f"
    "00000040c4056474797065a33c6634c40573686170659102a670726f6d7074a47069636b"
)


def array(**changes):
    entry = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2], **changes}
    return msgpack.packb({"a": {key.encode(): value for key, value in entry.items()}})


def scalar(data, dtype):
    return msgpack.packb({"a": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}})


def test_packs_as_openpi_does_to_the_byte():
    assert wire.pack(OBSERVATION) == GOLDEN
    found = wire.unpack(GOLDEN)
    assert found["prompt"] == "pick" and found["observation/state"].dtype == np.float32
    np.testing.assert_array_equal(found["observation/state"], [1, 2])
    assert not found["observation/state"].flags.writeable


@pytest.mark.parametrize("dtype", sorted(wire.DTYPES))
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_dtype_comes_back(dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = wire.unpack(wire.pack({"a": np.asfortranarray(values), "b": values.astype(dtype).T}))
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], values.T)
    assert found["a"].dtype.str == dtype


def test_numbers_lists_and_big_endian_come_back():
    sent = {"f": np.float64(2.5), "g": np.float32(3), "l": [1, None, True, "x"], "m": {"n": 1}}
    found = wire.unpack(wire.pack(sent | {"t": (1, 2), "e": np.array([1, 2], ">i4")}))
    np.testing.assert_array_equal(found.pop("e"), [1, 2])
    assert found == sent | {"t": [1, 2]} and isinstance(found["g"], np.float32)


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, complex),
        np.zeros(2, "M8[s]"),
        np.zeros(2, [("x", "<f4")]),
        {1, 2},
        1 << 70,
    ],
)
def test_what_the_format_does_not_hold_is_not_sent(value):
    with pytest.raises(wire.WireError):
        wire.pack({"a": value})


@pytest.mark.parametrize(
    "message",
    [
        b"",
        GOLDEN[:-1],
        GOLDEN + b"\x00",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # a list of 2^32 entries, with none behind
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        b"\x82\xa1a\x01\xa1a\x02",  # one key twice
        msgpack.packb({1: 2}),
        msgpack.packb({"a": {b"nd": True, b"type": "<f4"}}),  # msgpack-numpy's dialect
        msgpack.packb([0] * 5000),
        msgpack.packb([[[]] * 4096] * 20),
        msgpack.packb("x" * (1 << 17)),
        msgpack.packb([[[[[[[[[[1]]]]]]]]]]),
        b"\x91" * 100_000,
        array(dtype="|O"),
        array(dtype="|V4"),
        array(dtype="<U2"),
        array(dtype="<M8[s]"),
        array(dtype=["<f4"]),
        array(shape=[-2]),
        array(shape=[3]),
        array(shape=[1]),
        array(shape=[2.0]),
        array(shape=[True, 2]),
        array(shape=2),
        array(shape=[2, 1, 1, 1, 1, 1, 1]),
        array(shape=[0, 1 << 40], data=b""),
        array(data="aaaaaaaa"),
        array(more=1),
        scalar(1 << 28, "|V1"),
        scalar(300, "|u1"),
        scalar("1", "<f4"),
        scalar([1], "<f4"),
    ],
)
def test_hostile_messages_are_refused(message):
    with pytest.raises(wire.WireError):
        wire.unpack(message)


def test_random_damage_is_refused_or_decoded_but_nothing_else():
    rng = np.random.default_rng(0)
    whole = wire.pack(OBSERVATION | {"image": np.zeros((4, 4, 3), np.uint8), "n": np.float32(1)})
    for _ in range(3000):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        with contextlib.suppress(wire.WireError):
            wire.unpack(bytes(damaged))
