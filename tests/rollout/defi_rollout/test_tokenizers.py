import numpy as np
import pytest
from defi_rollout import bundle, errors, spec, tokenizers


def _text(**changes):
    fields = {
        "name": "bytes",
        "length": 8,
        "lower_case": False,
        "strip_punctuation": False,
        "file": "",
        "start_ids": (),
        "end_ids": (),
        "pad_id": 0,
    }
    return spec.TextSpec(**(fields | changes))


def _tokenizer(**changes):
    return tokenizers.Tokenizer(text=_text(**changes))


# Rules without files


def test_bytes_ids_are_utf8_plus_one_padded_with_zero():
    ids, mask = _tokenizer()(["Ab é", ""])
    np.testing.assert_array_equal(ids[0], [66, 99, 33, 0xC3 + 1, 0xA9 + 1, 0, 0, 0])
    np.testing.assert_array_equal(mask.sum(axis=1), [5, 0])
    assert ids.dtype == np.int32
    assert mask.dtype == np.bool_


def test_long_text_loses_its_end_and_surrogates_do_not_crash():
    ids, mask = _tokenizer(length=4)(["abcdefgh", "\ud800x"])
    np.testing.assert_array_equal(ids[0] - 1, list(b"abcd"))
    np.testing.assert_array_equal(ids[1, :2] - 1, list(b"?x"))
    assert mask[0].all()


def test_normalisation_is_part_of_the_tokenizer():
    plain, _ = _tokenizer(length=20)(["open the drawer"])
    role = _tokenizer(length=20, lower_case=True, strip_punctuation=True)
    np.testing.assert_array_equal(role(["  Open the\n DRAWER!"])[0], plain)


def test_special_ids_survive_the_cut():
    special = {"start_ids": (20,), "end_ids": (21,), "pad_id": 21}
    tokenizer = _tokenizer(name="stand_in", length=6, **special)
    ids, mask = tokenizer(["a", "abcdefgh"])
    np.testing.assert_array_equal(ids[0], [20, ord("a") + 2, 21, 21, 21, 21])
    np.testing.assert_array_equal(mask.sum(axis=1), [3, 6])
    np.testing.assert_array_equal(ids[1], [20, 99, 100, 101, 102, 21])


# From a bundle


@pytest.mark.parametrize(("name", "package"), [("clip", "tokenizers"), ("t5", "sentencepiece")])
def test_damaged_tokenizer_file_is_named(tiny_bundle, reseal, name, package):
    pytest.importorskip(package)
    (tiny_bundle / "words.model").write_bytes(b"nonsense")
    reseal(tiny_bundle)
    text = _text(name=name, file="words.model", end_ids=(1,))
    with pytest.raises(errors.DataError, match=r"refused.*words\.model"):
        tokenizers.from_bundle(text, bundle.read_bundle(tiny_bundle))
    source = bundle.read_bundle(tiny_bundle)
    (tiny_bundle / "words.model").write_bytes(b"another nonsense")
    with pytest.raises(errors.BundleError, match="changed"):
        tokenizers.from_bundle(text, source)
