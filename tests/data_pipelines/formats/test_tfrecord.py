import numpy as np
import pytest

from data_pipelines.formats import tfrecord
from defi_jax import errors

RECORDS = [b"first", b"", b"x" * 1000]


@pytest.fixture
def path(tmp_path, rlds_tools):
    rlds_tools["records"](tmp_path / "a.tfrecord", RECORDS)
    return tmp_path / "a.tfrecord"


def _read(path, **kwargs) -> list[bytes]:
    records = list(tfrecord.salvage_records(path, **kwargs))
    for record in records:
        if isinstance(record, errors.DataError):
            raise record
    return records


def test_masked_crc_matches_the_published_check_value():
    # CRC32C("123456789") = 0xE3069283 (RFC 3720), rotated right by 15 plus the delta.
    assert tfrecord.masked_crc(b"123456789") == 0xC78AB0E5


def test_records_are_read_in_order(path):
    assert _read(path) == RECORDS


@pytest.mark.parametrize("size", [3, 12, 18, 20, 22, 40, 1000])
def test_truncation_is_found_wherever_it_happens(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(errors.DataError, match=r"a\.tfrecord record"):
        _read(path)


@pytest.mark.parametrize("position", [0, 7, 9, 14, 18, 50, 500, 1040])
def test_flipped_bit_is_found_wherever_it_is(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(errors.DataError, match=r"a\.tfrecord record"):
        _read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(errors.DataError, match=r"gone\.tfrecord"):
        _read(tmp_path / "gone.tfrecord")


def test_example_gives_back_what_was_written(rlds_tools):
    features = {
        "floats": np.array([0.5, -2.0, np.pi], np.float32),
        "ints": np.array([0, 1, 127, 128, 300, -1, 2**62, -(2**63)], np.int64),
        "bytes": [b"", b"\xff\x00", "für".encode()],
        "one": np.array([7]),
        "flags": np.array([True, False]),
        "nothing": np.zeros(0, np.float32),
    }
    parsed = tfrecord.parse_example(rlds_tools["example"](features), where="here")
    assert parsed.keys() == features.keys() and parsed["bytes"] == features["bytes"]
    for name in ("floats", "ints", "one", "flags", "nothing"):
        np.testing.assert_array_equal(parsed[name], features[name])
    assert parsed["floats"].dtype == np.float32 and parsed["ints"].dtype == np.int64


def test_unpacked_numbers_are_read_too():
    int_list = b"\x08\x05\x08\xac\x02"  # field 1 as two varints: 5 and 300
    float_list = b"\x0d" + np.float32(1.5).tobytes()  # field 1 as one fixed32

    def entry(name: bytes, feature: bytes) -> bytes:
        body = b"\x0a\x01" + name + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(body)]) + body

    features = entry(b"i", b"\x1a\x05" + int_list) + entry(b"f", b"\x12\x05" + float_list)
    parsed = tfrecord.parse_example(b"\x0a" + bytes([len(features)]) + features, where="here")
    assert parsed["i"].tolist() == [5, 300] and parsed["f"].tolist() == [1.5]


@pytest.mark.parametrize(
    "data", [b"\x0a\xff", b"\xff" * 20, b"\x0f", b"\x0a\x03\x0a\x05a", b"\x08"]
)
def test_other_bytes_are_not_an_example(data):
    with pytest.raises(errors.DataError, match="here"):
        tfrecord.parse_example(data, where="here")


def test_cut_example_never_escapes_as_another_error(rlds_tools):
    data = rlds_tools["example"](rlds_tools["episode"](0))
    for size in range(1, len(data), 97):
        with pytest.raises(errors.DataError):
            tfrecord.parse_example(data[:size], where="here")


def test_records_can_be_passed_over(tmp_path, rlds_tools):
    path = tmp_path / "x.tfrecord"
    rlds_tools["records"](path, [b"one", b"two", b"three"])
    assert _read(path, start=1) == [b"two", b"three"]
    assert _read(path, start=3) == []
    data = bytearray(path.read_bytes())
    data[12] ^= 1  # in the first record, which is not read
    path.write_bytes(bytes(data))
    assert _read(path, start=2) == [b"three"]
    data[0] ^= 1  # in its header, which is
    path.write_bytes(bytes(data))
    with pytest.raises(errors.DataError, match="record 0"):
        _read(path, start=2)


def test_records_are_written_as_tfrecord_frames_them(tmp_path, rlds_tools):
    with (tmp_path / "b.tfrecord").open("wb") as file:
        for one in (RECORDS[0], b""):
            tfrecord.write_record(file, one)
    rlds_tools["records"](tmp_path / "c.tfrecord", [RECORDS[0], b""])
    assert (tmp_path / "b.tfrecord").read_bytes() == (tmp_path / "c.tfrecord").read_bytes()


def test_record_behind_a_damaged_one_is_found(tmp_path, rlds_tools):
    path = tmp_path / "x.tfrecord"
    rlds_tools["records"](path, [b"one", b"two", b"three"])
    data = bytearray(path.read_bytes())
    data[12 + 3 + 4 + 12] ^= 1  # of "two"
    path.write_bytes(data)
    one, damaged, three = tfrecord.salvage_records(path)
    assert (one, three) == (b"one", b"three")
    assert isinstance(damaged, errors.DataError) and damaged.where == f"{path} record 1"
    data[12 + 3 + 4] ^= 1  # of its length
    path.write_bytes(data)
    records = tfrecord.salvage_records(path)
    assert next(records) == b"one"
    with pytest.raises(errors.DataError, match=r"the rest of the file is lost.*record 1"):
        next(records)
