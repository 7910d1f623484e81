import numpy as np

from defi_jax.models import tokenizers


def _tokenizer(length: int = 8, lower_case: bool = False, strip_punctuation: bool = False):
    return tokenizers.BytesTokenizer(
        length=length, lower_case=lower_case, strip_punctuation=strip_punctuation
    )


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
    assert role.describe() == {
        "name": "bytes", "length": 20, "lower_case": True, "strip_punctuation": True,
    }  # fmt: skip
