import dataclasses
import io
import json
import lzma
import pathlib
import pickle

import numpy as np
import pytest

from defi_jax import errors
from defi_jax.models.frozen import tokenizers


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
        "name": "bytes",
        "length": 20,
        "lower_case": True,
        "strip_punctuation": True,
    }


REFERENCE = pathlib.Path(__file__).parents[3] / "fixtures" / "tokenizers"
PRETRAINED = {"length": 8, "lower_case": False, "strip_punctuation": False}
CLIP_IDS = tokenizers.SpecialIds(start=20, end=21, pad=21)
T5_IDS = tokenizers.SpecialIds(start=None, end=1, pad=0)


def _clip_files(directory):
    vocab = [
        *"opentdh!",
        "e</w>",
        "n</w>",
        "!</w>",
        "op",
        "en</w>",
        "open</w>",
        "th",
        "the</w>",
        "p</w>",
    ]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    merges = ["#version: 0.2", "o p", "e n</w>", "op en</w>", "t h", "th e</w>"]
    (directory / "merges.txt").write_text("\n".join(merges))
    return vocab


def test_clip_pairs_specials_padding_and_truncation(tmp_path):
    pytest.importorskip("tokenizers")
    vocab = _clip_files(tmp_path)
    tokenizer = tokenizers.CLIPTokenizer(
        directory=str(tmp_path), special=CLIP_IDS, vocab_size=22, **PRETRAINED
    )
    words = [vocab.index(token) for token in ("open</w>", "the</w>", "!</w>")]
    ids, mask = pickle.loads(pickle.dumps(tokenizer))(["Open  THE!", "", "the " * 20])
    np.testing.assert_array_equal(ids[0], [20, *words, 21, 21, 21, 21])
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(ids[1], [20] + [21] * 7)
    np.testing.assert_array_equal(ids[2], [20] + [vocab.index("the</w>")] * 6 + [21])
    assert tokenizer.describe()["name"] == "clip"


def test_digest_of_the_pair_changes_with_either_file(tmp_path):
    _clip_files(tmp_path)
    tokenizer = tokenizers.CLIPTokenizer(
        directory=str(tmp_path), special=CLIP_IDS, vocab_size=22, **PRETRAINED
    )
    digests = {tokenizer.describe()["sha256"]}
    for name in ("vocab.json", "merges.txt"):
        path = tmp_path / name
        path.write_text(path.read_text() + "\n")
        digests.add(tokenizer.describe()["sha256"])
    assert len(digests) == 3
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(errors.UserError, match=r"no merges\.txt"):
        tokenizer.describe()


def test_t5_ends_with_end_and_pads_with_zero(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["open the drawer", "close the drawer", "push it"] * 20),
        model_writer=model,
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    rules = PRETRAINED | {"length": 24, "vocab_size": 40}
    tokenizer = tokenizers.T5Tokenizer(directory=str(tmp_path), special=T5_IDS, **rules)
    ids, mask = tokenizer(["the drawer", "", "open the drawer " * 9])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    expected = [*processor.encode("the drawer"), 1]
    np.testing.assert_array_equal(ids[0], np.pad(expected, (0, 24 - len(expected))))
    np.testing.assert_array_equal(mask.sum(axis=1), [len(expected), 1, 24])
    assert ids[2, -1] == 1


def test_stand_in_keeps_the_shape_of_a_vocabulary():
    tokenizer = tokenizers.StandInTokenizer(special=CLIP_IDS, **PRETRAINED)
    ids, mask = tokenizer(["ab"])
    np.testing.assert_array_equal(ids[0], [20, ord("a") + 2, ord("b") + 2, 21, 21, 21, 21, 21])
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 0, 0, 0, 0])


# Against the published tokenizers (tests/fixtures/make_tokenizers.py)


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("tokenizers")
    return json.loads((REFERENCE / "ids.json").read_text())


def _assert_ids(tokenizer, reference, expected):
    ids, mask = tokenizer(reference["texts"])
    for text, row, real, wanted in zip(reference["texts"], ids, mask, expected, strict=True):
        assert row[real].tolist() == wanted, repr(text)
        assert (row[~real] == tokenizer.special.pad).all()


@pytest.mark.parametrize(
    ("kind", "length", "repairs"), [("clip", 20, False), ("clip_openai", 77, True)]
)
def test_clip_equals_the_reference_on_unusual_text(reference, kind, length, repairs):
    if repairs:
        pytest.importorskip("ftfy")
    size = reference["clip_vocab"]
    end = size - 1
    tokenizer = tokenizers.CLIPTokenizer(
        directory=str(REFERENCE / "clip"),
        length=length,
        lower_case=False,
        strip_punctuation=False,
        repairs_text=repairs,
        vocab_size=size,
        special=tokenizers.SpecialIds(start=end - 1, end=end, pad=0),
    )
    _assert_ids(tokenizer, reference, reference[kind])
    assert tokenizer.describe()["name"] == kind


def test_t5_equals_the_reference_on_unusual_text(reference, tmp_path, caplog):
    pytest.importorskip("sentencepiece")
    packed = (REFERENCE / "spiece.model.xz").read_bytes()
    (tmp_path / "spiece.model").write_bytes(lzma.decompress(packed))
    tokenizer = tokenizers.T5Tokenizer(
        directory=str(tmp_path),
        length=200,
        lower_case=False,
        strip_punctuation=False,
        vocab_size=200,
        special=T5_IDS,
    )
    _assert_ids(tokenizer, reference, reference["t5"])
    assert not caplog.messages
    short = dataclasses.replace(tokenizer, length=4)
    ids, _ = short(reference["texts"])
    np.testing.assert_array_equal(ids[0], [*reference["t5"][0][:3], 1])
    (message,) = caplog.messages
    assert "texts of more than 4 tokens are cut" in message


def test_vocabulary_of_other_weights_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    _clip_files(tmp_path)
    small = tokenizers.CLIPTokenizer(
        directory=str(tmp_path), special=CLIP_IDS, vocab_size=16, **PRETRAINED
    )
    with pytest.raises(errors.UserError, match="17 ids for an embedding of 16"):
        small(["open"])
    other_end = tokenizers.CLIPTokenizer(
        directory=str(REFERENCE / "clip"), special=CLIP_IDS, vocab_size=49_408, **PRETRAINED
    )
    with pytest.raises(errors.UserError, match="ends texts with id"):
        other_end(["open"])


def test_missing_and_damaged_files_are_named(tmp_path):
    tokenizer = tokenizers.CLIPTokenizer(
        directory=str(tmp_path), special=CLIP_IDS, vocab_size=22, **PRETRAINED
    )
    with pytest.raises(errors.UserError, match=r"no tokenizer.json or vocab.json"):
        tokenizer(["open"])
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(errors.DataError, match=r"refused.*tokenizer.json"):
        tokenizer(["open"])
    pytest.importorskip("sentencepiece")
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(errors.DataError, match=r"refused.*spiece.model"):
        tokenizers.T5Tokenizer(
            directory=str(tmp_path), special=T5_IDS, vocab_size=40, **PRETRAINED
        )(["open"])
