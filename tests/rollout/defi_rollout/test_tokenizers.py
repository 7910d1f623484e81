import json

import numpy as np
import pytest
from defi_rollout import bundle, errors, spec, tokenizers


def _make(tiny_bundle, **changes):
    fields = {
        "name": "bytes",
        "length": 6,
        "lower_case": False,
        "strip_punctuation": False,
        "file": "",
        "start_ids": (),
        "end_ids": (),
        "pad_id": 0,
    }
    text = spec.TextSpec(**(fields | changes))
    return tokenizers.make_tokenizer(text, bundle.read_bundle(tiny_bundle))


def test_bytes_are_shifted_by_one_and_padded_with_zero(tiny_bundle):
    ids, mask = _make(tiny_bundle)("ab")
    assert ids.tolist() == [98, 99, 0, 0, 0, 0]
    assert mask.tolist() == [True, True, False, False, False, False]
    assert ids.dtype == np.int32


def test_long_text_loses_its_end_and_empty_text_is_padding(tiny_bundle):
    tokenize = _make(tiny_bundle)
    assert tokenize("abcdefgh")[0].tolist() == [98, 99, 100, 101, 102, 103]
    assert not tokenize("")[1].any()


def test_special_ids_survive_the_cut(tiny_bundle):
    tokenize = _make(tiny_bundle, name="stand_in", start_ids=(300,), end_ids=(1,), pad_id=9)
    assert tokenize("a")[0].tolist() == [300, 99, 1, 9, 9, 9]
    assert tokenize("abcdefgh")[0].tolist() == [300, 99, 100, 101, 102, 1]
    assert tokenize("a")[1].sum() == 3


def test_text_is_normalised_first(tiny_bundle):
    both = _make(tiny_bundle, lower_case=True, strip_punctuation=True)
    assert both(" A!  b ")[0].tolist() == _make(tiny_bundle)("a b")[0].tolist()
    assert _make(tiny_bundle)("A!")[0][:2].tolist() == [66, 34]


@pytest.mark.parametrize("text", ["Öffne die Schublade", "open\tthe  drawer.", "", "🤖" * 9])
def test_bytes_equal_the_training_side(tiny_bundle, text):
    training = pytest.importorskip("defi_jax.models.frozen.tokenizers")
    for flag in (False, True):
        theirs = training.BytesTokenizer(length=16, lower_case=flag, strip_punctuation=flag)
        ids, mask = _make(tiny_bundle, length=16, lower_case=flag, strip_punctuation=flag)(text)
        wanted_ids, wanted_mask = theirs([text])
        np.testing.assert_array_equal(ids, wanted_ids[0])
        np.testing.assert_array_equal(mask, wanted_mask[0])


@pytest.mark.parametrize("text", ["Öffne die Schublade!", "", "🤖" * 9])
def test_stand_in_equals_the_training_side(tiny_bundle, text):
    training = pytest.importorskip("defi_jax.models.frozen.tokenizers")
    theirs = training.StandInTokenizer(
        length=16,
        lower_case=True,
        strip_punctuation=False,
        special=training.SpecialIds(start=40, end=41, pad=41),
    )
    ids, mask = _make(
        tiny_bundle,
        name="stand_in",
        length=16,
        lower_case=True,
        start_ids=(40,),
        end_ids=(41,),
        pad_id=41,
    )(text)
    np.testing.assert_array_equal(ids, theirs([text])[0][0])
    np.testing.assert_array_equal(mask, theirs([text])[1][0])


@pytest.mark.parametrize("repairs", [False, True])
def test_clip_equals_the_training_side(tiny_bundle, reseal, tmp_path, repairs):
    library = pytest.importorskip("tokenizers")
    training = pytest.importorskip("defi_jax.models.frozen.tokenizers")
    pytest.importorskip("ftfy")
    tokens = [*library.pre_tokenizers.ByteLevel.alphabet()]
    tokens += [token + "</w>" for token in tokens]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    theirs = training.CLIPTokenizer(
        directory=str(tmp_path),
        length=40,
        lower_case=False,
        strip_punctuation=False,
        repairs_text=repairs,
        vocab_size=600,
        special=training.SpecialIds(start=598, end=599, pad=0),
    )
    training._load_clip(str(theirs.file), 600, 599).save(str(tiny_bundle / "words.model"))
    reseal(tiny_bundle)
    ours = _make(
        tiny_bundle,
        name=theirs.describe()["name"],
        file="words.model",
        length=40,
        start_ids=(598,),
        end_ids=(599,),
        pad_id=0,
    )
    for text in ("Don\u2019t &amp;amp; \ufb01x", "\u039f\u03a3 a\u0085b", ""):
        ids, mask = ours(text)
        np.testing.assert_array_equal(ids, theirs([text])[0][0])
        np.testing.assert_array_equal(mask, theirs([text])[1][0])


@pytest.mark.parametrize(("name", "package"), [("clip", "tokenizers"), ("t5", "sentencepiece")])
def test_damaged_tokenizer_file_is_named(tiny_bundle, reseal, name, package):
    pytest.importorskip(package)
    (tiny_bundle / "words.model").write_bytes(b"nonsense")
    reseal(tiny_bundle)
    with pytest.raises(errors.BundleError, match=r"words\.model"):
        _make(tiny_bundle, name=name, file="words.model")
