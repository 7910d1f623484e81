"""Text -> token ids, on the host, with numpy only; one class each, files read on first use.

Every tokenizer first normalises the text as its role asks (the official stages differ: the inverse
model was trained on lower-cased text without punctuation, the video model on raw text), then pads
and cuts to a fixed length, so that a compiled step sees one shape.

The bytes rule, complete, for the rollout client that re-implements it:

1. if `lower_case`: Python `str.lower`; if `strip_punctuation`: delete the 32 characters of
   `string.punctuation`; then (always) join `str.split()` by single spaces.
2. encode as UTF-8, keep the first `length` bytes, id = byte + 1.
3. fill with id 0 up to `length`; mask = (id != 0).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import html
import importlib
import json
import logging
import pathlib
import string
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from defi_jax import errors

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer(Protocol):
    """A callable from texts to fixed-length ids."""

    @property
    def length(self) -> int:
        """Ids of a text, L."""
        ...

    @property
    def lower_case(self) -> bool:
        """See `normalize_text`."""
        ...

    @property
    def strip_punctuation(self) -> bool:
        """See `normalize_text`."""
        ...

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32[B, L] and mask bool[B, L], True for real tokens."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts from which a rollout client rebuilds the tokenizer."""
        ...


def normalize_text(text: str, *, lower_case: bool, strip_punctuation: bool) -> str:
    """Returns the text as a role's encoder wants it.

    Before: "Open  the drawer!", after with both flags: "open the drawer".
    """
    if lower_case:
        text = text.lower()
    if strip_punctuation:
        text = text.translate(_DELETE_PUNCTUATION)
    return " ".join(text.split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytesTokenizer:
    """UTF-8 bytes plus one; needs no files.

    Attributes:
        length: number of ids per text; longer texts lose their end.
        lower_case: see `normalize_text`.
        strip_punctuation: see `normalize_text`.
    """

    length: int
    lower_case: bool
    strip_punctuation: bool

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        ids = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            clean = normalize_text(
                text, lower_case=self.lower_case, strip_punctuation=self.strip_punctuation
            )
            data = clean.encode("utf-8", errors="replace")[: self.length]
            row[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
        return ids, ids != 0

    def describe(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"name": "bytes"} | dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids around a text.

    Attributes:
        start: put first; None for none.
        end: put last, also when the text is cut.
        pad: fills up to the length.
    """

    start: int | None
    end: int
    pad: int

    def wrap(self, ids: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32[L] with specials and padding, and mask bool[L]."""
        first = [] if self.start is None else [self.start]
        body = list(ids)[: length - len(first) - 1]
        real = [*first, *body, self.end]
        padded = np.full(length, self.pad, np.int32)
        padded[: len(real)] = real
        return padded, np.arange(length) < len(real)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WrappedTokenizer:
    """Normalise, split into ids, add specials, pad.

    Attributes:
        length: number of ids per text, specials included.
        lower_case: see `normalize_text`.
        strip_punctuation: see `normalize_text`.
        special: ids around the text.
    """

    length: int
    lower_case: bool
    strip_punctuation: bool
    special: SpecialIds

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        rows = [self.special.wrap(self._split(self._clean(text)), self.length) for text in texts]
        ids = np.array([row for row, _ in rows], np.int32).reshape(-1, self.length)
        mask = np.array([mask for _, mask in rows], bool).reshape(-1, self.length)
        return ids, mask

    def _clean(self, text: str) -> str:
        return normalize_text(
            text, lower_case=self.lower_case, strip_punctuation=self.strip_punctuation
        )

    def _split(self, text: str) -> list[int]:
        raise NotImplementedError

    def _describe(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "length": self.length,
            "lower_case": self.lower_case,
            "strip_punctuation": self.strip_punctuation,
            "pad_id": self.special.pad,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandInTokenizer(_WrappedTokenizer):
    """Bytes plus two in place of a vocabulary, for pretrained shapes without their files.

    Lets every preset run on synthetic data; the words mean nothing to published weights.
    """

    def _split(self, text: str) -> list[int]:
        return [byte + 2 for byte in text.encode("utf-8", errors="replace")]

    def describe(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return self._describe("stand_in")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTokenizer(_WrappedTokenizer):
    """CLIP's byte-pair encoding from local files, by the `tokenizers` library.

    Attributes:
        directory: holds tokenizer.json, or vocab.json and merges.txt.
        vocab_size: rows of the embedding that the ids index.
        repairs_text: first repair the text by `ftfy` and resolve HTML entities twice, as OpenAI's
            own tokenizer does and Hugging Face's does not.
    """

    directory: str
    vocab_size: int
    repairs_text: bool = False

    @property
    def file(self) -> pathlib.Path:
        """What a bundle must carry, or the first file of the pair."""
        return _first_file(self.directory, ("tokenizer.json", "vocab.json"))

    def _clean(self, text: str) -> str:
        if self.repairs_text:
            # Lower case here: Python knows the final sigma, the library's normalizer does not.
            text = html.unescape(html.unescape(_import("ftfy").fix_text(text))).lower()
        return super()._clean(text)

    def _split(self, text: str) -> list[int]:
        tokenizer = _load_clip(str(self.file), self.vocab_size, self.special.end)
        return tokenizer.encode(text, add_special_tokens=False).ids

    def describe(self) -> dict[str, Any]:
        """See `Tokenizer`; the digest identifies the vocabulary and, of the pair, the merges."""
        files = [self.file]
        if self.file.name == "vocab.json":
            files.append(_first_file(self.directory, ("merges.txt",)))
        return self._describe("clip_openai" if self.repairs_text else "clip") | {
            "sha256": _digest(*files)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Tokenizer(_WrappedTokenizer):
    """T5's SentencePiece model from a local file, by the `sentencepiece` library.

    The reference pads to the longest text of a batch and cuts none. Padding is masked, so a fixed
    length changes no feature; a text that does not fit is cut before its end id, with a warning.

    Attributes:
        directory: holds spiece.model.
        vocab_size: rows of the embedding that the ids index.
    """

    directory: str
    vocab_size: int

    @property
    def file(self) -> pathlib.Path:
        """What a bundle must carry."""
        return _first_file(self.directory, ("spiece.model",))

    def _split(self, text: str) -> list[int]:
        file = str(self.file)
        ids = _load_sentencepiece(file, self.vocab_size, self.special.end).encode(text)
        if len(ids) >= self.length:
            _warn_of_cuts(file, self.length)
        return ids

    def describe(self) -> dict[str, Any]:
        """See `Tokenizer`; the digest identifies the vocabulary."""
        return self._describe("t5") | {"sha256": _digest(self.file)}


def _first_file(directory: str, names: Sequence[str]) -> pathlib.Path:
    for name in names:
        path = pathlib.Path(directory) / name
        if path.is_file():
            return path
    raise errors.UserError(
        f"no {' or '.join(names)}", directory, "put the tokenizer's files of the release there"
    )


def _digest(*paths: pathlib.Path) -> str:
    """SHA-256 of the files, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@functools.lru_cache(maxsize=8)
def _load_clip(path: str, vocab_size: int, end: int) -> Any:
    """Returns a `tokenizers.Tokenizer`; cached by path, so that instances stay picklable."""
    library = _import("tokenizers")
    file = pathlib.Path(path)
    try:
        if file.name == "tokenizer.json":
            tokenizer = library.Tokenizer.from_file(path)
            tokenizer.no_truncation()
            tokenizer.no_padding()
        else:
            tokenizer = _clip_from_pair(library, file, file.with_name("merges.txt"))
    except Exception as error:  # the library raises bare Exception
        raise errors.DataError(
            f"tokenizer file is refused ({error})", path, "use the files of the CLIP release"
        ) from error
    _check_fits(path, tokenizer.get_vocab_size(), vocab_size, tokenizer.token_to_id(_CLIP_END), end)
    return tokenizer


def _check_fits(path: str, size: int, rows: int, file_end: int | None, end: int) -> None:
    """Raises UserError for a file of another vocabulary than the weights'.

    Args:
        path: the tokenizer's file.
        size: number of its ids.
        rows: of the embedding.
        file_end: its id for the end of a text, None where it has none.
        end: the weights' id for that.
    """
    what = ""
    if size > rows:
        what = f"tokenizer with {size} ids for an embedding of {rows}"
    elif file_end is not None and file_end != end:
        what = f"tokenizer ends texts with id {file_end}, the weights with {end}"
    if what:
        raise errors.UserError(what, path, "use the tokenizer of the weights' own release")


@functools.lru_cache(maxsize=8)
def _warn_of_cuts(path: str, length: int) -> None:
    """Says it once per tokenizer and process."""
    logging.warning(
        "%s: texts of more than %d tokens are cut; a larger --config.encoders.text_length keeps"
        " them whole",
        path,
        length,
    )


_CLIP_END = "<|endoftext|>"
_CLIP_SPECIALS = ("<|startoftext|>", _CLIP_END)

# How CLIP splits text before byte pairs: contractions, words, single digits, runs of symbols.
_CLIP_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def _clip_from_pair(library: Any, vocab: pathlib.Path, merges: pathlib.Path) -> Any:
    """Builds the tokenizer that the slow reference describes, from its two files."""
    pairs = [
        tuple(line.split())
        for line in merges.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#version")
    ]
    model = library.models.BPE(
        json.loads(vocab.read_text(encoding="utf-8")),
        pairs,
        unk_token=_CLIP_END,
        end_of_word_suffix="</w>",
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.add_special_tokens(
        [token for token in _CLIP_SPECIALS if model.token_to_id(token) is not None]
    )
    normalizers, splitters = library.normalizers, library.pre_tokenizers
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(library.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = splitters.Sequence(
        [
            splitters.Split(library.Regex(_CLIP_PATTERN), behavior="removed", invert=True),
            splitters.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _load_sentencepiece(path: str, vocab_size: int, end: int) -> Any:
    library = _import("sentencepiece")
    try:
        processor = library.SentencePieceProcessor(model_proto=pathlib.Path(path).read_bytes())
    except RuntimeError as error:
        raise errors.DataError(
            f"tokenizer file is refused ({error})", path, "use spiece.model of the T5 release"
        ) from error
    _check_fits(path, processor.get_piece_size(), vocab_size, processor.eos_id(), end)
    return processor


def _import(package: str) -> Any:
    """Imports a library that only pretrained text encoders need."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise errors.UserError(
            "the tokenizer needs a package", package, f"pip install {package}"
        ) from error
