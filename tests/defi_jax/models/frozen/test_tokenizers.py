"""Tokenizers beside published weights; those of a bundle: tests/rollout."""

import io
import json
import lzma
import pathlib
import pickle

import numpy as np
import pytest
from defi_rollout import spec

from defi_jax import errors
from defi_jax.models.frozen import tokenizers

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures" / "tokenizers"
CLIP_IDS = {"start_ids": (20,), "end_ids": (21,), "pad_id": 21}
T5_IDS = {"end_ids": (1,)}


def _tokenizer(directory, vocab_size, **changes):
    fields = {
        "length": 8,
        "lower_case": False,
        "strip_punctuation": False,
        "start_ids": (),
        "end_ids": (),
        "pad_id": 0,
    }
    text = spec.TextSpec(**(fields | changes))
    return tokenizers.ReleaseTokenizer(text=text, directory=str(directory), vocab_size=vocab_size)


def _clip_files(directory):
    vocab = [*"opentdh!", "e</w>", "n</w>", "!</w>", "op", "en</w>"]
    vocab += ["open</w>", "th", "the</w>", "p</w>"]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    merges = ["#version: 0.2", "o p", "e n</w>", "op en</w>", "t h", "th e</w>"]
    (directory / "merges.txt").write_text("\n".join(merges))
    return vocab


def _clip_pair(directory, vocab_size=22):
    return _tokenizer(directory, vocab_size, name="clip", file="vocab.json", **CLIP_IDS)


def test_clip_pairs_specials_padding_and_truncation(tmp_path):
    pytest.importorskip("tokenizers")
    vocab = _clip_files(tmp_path)
    tokenizer = _clip_pair(tmp_path)
    words = [vocab.index(token) for token in ("open</w>", "the</w>", "!</w>")]
    ids, mask = pickle.loads(pickle.dumps(tokenizer))(["Open  THE!", "", "the " * 20])
    np.testing.assert_array_equal(ids[0], [20, *words, 21, 21, 21, 21])
    np.testing.assert_array_equal(mask[0], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(ids[1], [20] + [21] * 7)
    np.testing.assert_array_equal(ids[2], [20] + [vocab.index("the</w>")] * 6 + [21])


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
    tokenizer = _tokenizer(tmp_path, 40, name="t5", file="spiece.model", length=24, **T5_IDS)
    ids, mask = tokenizer(["the drawer", "", "open the drawer " * 9])
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    expected = [*processor.encode("the drawer"), 1]
    np.testing.assert_array_equal(ids[0], np.pad(expected, (0, 24 - len(expected))))
    np.testing.assert_array_equal(mask.sum(axis=1), [len(expected), 1, 24])
    assert ids[2, -1] == 1


# Against the published tokenizers (tests/fixtures/make_tokenizers.py)


@pytest.fixture(scope="module")
def reference():
    pytest.importorskip("tokenizers")
    return json.loads((FIXTURES / "ids.json").read_text())


def _assert_ids(tokenizer, reference, expected):
    ids, mask = tokenizer(reference["texts"])
    for text, row, real, wanted in zip(reference["texts"], ids, mask, expected, strict=True):
        assert row[real].tolist() == wanted, repr(text)
        assert (row[~real] == tokenizer.text.pad_id).all()


@pytest.mark.parametrize(("name", "length"), [("clip", 20), ("clip_openai", 77)])
def test_clip_equals_the_reference_on_unusual_text(reference, name, length):
    if name == "clip_openai":
        pytest.importorskip("ftfy")
    size = reference["clip_vocab"]
    special = {"start_ids": (size - 2,), "end_ids": (size - 1,)}
    tokenizer = _tokenizer(
        FIXTURES / "clip", size, name=name, file="vocab.json", length=length, **special
    )
    _assert_ids(tokenizer, reference, reference[name])


def test_t5_equals_the_reference_on_unusual_text(reference, tmp_path, caplog):
    pytest.importorskip("sentencepiece")
    packed = (FIXTURES / "spiece.model.xz").read_bytes()
    (tmp_path / "spiece.model").write_bytes(lzma.decompress(packed))
    options = {"name": "t5", "file": "spiece.model", **T5_IDS}
    _assert_ids(_tokenizer(tmp_path, 200, length=200, **options), reference, reference["t5"])
    assert not caplog.messages
    ids, _ = _tokenizer(tmp_path, 200, length=4, **options)(reference["texts"])
    np.testing.assert_array_equal(ids[0], [*reference["t5"][0][:3], 1])
    (message,) = caplog.messages
    assert "texts of more than 4 tokens are cut" in message


def test_vocabulary_of_other_weights_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    _clip_files(tmp_path)
    with pytest.raises(errors.UserError, match="17 ids for an embedding of 16"):
        _clip_pair(tmp_path, vocab_size=16)(["open"])
    with pytest.raises(errors.UserError, match="ends texts with id"):
        _clip_pair(FIXTURES / "clip", vocab_size=49_408)(["open"])


def test_missing_files_are_named(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(errors.UserError, match=r"no tokenizer\.json or vocab\.json: .*release"):
        tokenizers.find_file(str(tmp_path), ("tokenizer.json", "vocab.json"))
    with pytest.raises(errors.UserError, match=r"no tokenizer\.json"):
        _tokenizer(tmp_path, 22, name="clip", file="tokenizer.json", **CLIP_IDS)(["open"])
