"""Texts to fixed-length token ids: the one rule of training and serving.

Every role first normalises the text: lower case and deleted ASCII punctuation where it asks for
them, then words joined by single spaces. The ids of the text are cut so that start and end ids fit
in, and padded, so that a compiled step sees one shape. `bytes` is UTF-8 byte + 1 and `stand_in`
byte + 2, without a file; `clip` reads a Hugging Face tokenizer.json (or vocab.json and merges.txt)
and `t5` a sentencepiece model. `clip_openai` is `clip` after the repairs of OpenAI's own tokenizer:
ftfy, and HTML entities twice.

Legend: B texts, L tokens.
"""

import contextlib
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
from typing import Any

import numpy as np

from defi_rollout import bundle, errors, spec

_BYTE_SHIFTS = {"bytes": 1, "stand_in": 2}  # below are padding and special ids
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PAIR, _MERGES = "vocab.json", "merges.txt"
_CLIP_END = "<|endoftext|>"
_CLIP_SPECIALS = ("<|startoftext|>", _CLIP_END)
# How CLIP splits text before byte pairs: contractions, words, single digits, runs of symbols.
_CLIP_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """One text role's tokenizer; its file is read on first use.

    Attributes:
        text: the rule; its `file` lies in `directory`.
        directory: where the vocabulary lies, "" where the rule needs none.
        vocab_size: rows of the embedding that the ids index, to refuse the vocabulary of other
            weights; None where the file came with the weights, as in a bundle.
    """

    text: spec.TextSpec
    directory: str = ""
    vocab_size: int | None = None

    @property
    def length(self) -> int:
        """L."""
        return self.text.length

    @property
    def room(self) -> int:
        """Tokens of a text that are kept, without those that begin and end every text."""
        return self.text.length - len(self.text.start_ids) - len(self.text.end_ids)

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than what is kept of it."""
        return len(self._encode(self._normalise(text))) > self.room

    @property
    def path(self) -> pathlib.Path:
        """The vocabulary's file."""
        return pathlib.Path(self.directory) / self.text.file

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32[B, L] and mask bool[B, L], True for real tokens.

        Raises:
            UserError: the library is not installed, or the file belongs to other weights.
            DataError: its library refuses the file.
        """
        rule = self.text
        ids = np.full((len(texts), rule.length), rule.pad_id, np.int32)
        counts = np.zeros(len(texts), int)
        for row, text in enumerate(texts):
            body = self._encode(self._normalise(text))
            if len(body) > self.room and rule.name == "t5":
                _warn_of_cuts(str(self.path), rule.length)
            real = [*rule.start_ids, *body[: self.room], *rule.end_ids]
            ids[row, : len(real)], counts[row] = real, len(real)
        return ids, np.arange(rule.length) < counts[:, None]

    def describe(self) -> dict[str, Any]:
        """JSON-able facts on which ids depend; the digest identifies the vocabulary."""
        rule, paths = self.text, [self.path]
        names = ["name", "length", "lower_case", "strip_punctuation"]
        names += ["pad_id"] if rule.name != "bytes" else []
        facts = {name: getattr(rule, name) for name in names}
        if rule.file:
            paths += [self.path.with_name(_MERGES)] if self.path.name == _PAIR else []
            content = b"".join(_read(path) for path in paths)
            facts["sha256"] = hashlib.sha256(content).hexdigest()
        return facts

    def _normalise(self, text: str) -> str:
        """Before: "Open  the drawer!"; after with both flags: "open the drawer"."""
        if self.text.name == "clip_openai":
            # Lower case here: Python knows the final sigma, the library's normalizer does not.
            text = html.unescape(html.unescape(_import("ftfy").fix_text(text))).lower()
        if self.text.lower_case:
            text = text.lower()
        if self.text.strip_punctuation:
            text = text.translate(_DELETE_PUNCTUATION)
        return " ".join(text.split())

    def _encode(self, text: str) -> list[int]:
        name = self.text.name
        if name in _BYTE_SHIFTS:
            return [byte + _BYTE_SHIFTS[name] for byte in text.encode(errors="replace")]
        load = _load_sentencepiece if name == "t5" else _load_clip
        library = load(str(self.path), self.vocab_size, self.text.end_ids[-1:])
        if name == "t5":
            return library.encode(text)
        return library.encode(text, add_special_tokens=False).ids


def utf8(length: int, *, lower_case: bool, strip_punctuation: bool) -> Tokenizer:
    """Returns the `bytes` tokenizer: no file, no special ids, padding 0."""
    return Tokenizer(
        text=spec.TextSpec(
            name="bytes",
            length=length,
            lower_case=lower_case,
            strip_punctuation=strip_punctuation,
            file="",
            start_ids=(),
            end_ids=(),
            pad_id=0,
        )
    )


def from_bundle(text: spec.TextSpec, source: bundle.Bundle) -> Tokenizer:
    """Returns the tokenizer of one text role, its file verified and read.

    Raises:
        BundleError: the file has changed.
        DataError: its library refuses the file.
        UserError: the library is not installed.
    """
    if text.file:
        source.read(text.file)
    tokenizer = Tokenizer(text=text, directory=str(source.directory))
    tokenizer([""])  # what is missing shows now, not at the first instruction
    return tokenizer


def find_file(directory: str, names: Sequence[str]) -> str:
    """Returns the first of the names that `directory` holds.

    Raises:
        UserError: none of them.
    """
    for name in names:
        if (pathlib.Path(directory) / name).is_file():
            return name
    raise errors.UserError(
        f"no {' or '.join(names)}", directory, "put the tokenizer's files of the release there"
    )


def _read(path: pathlib.Path) -> bytes:
    find_file(str(path.parent), [path.name])
    return path.read_bytes()


# Loaded vocabularies are cached by path, so that tokenizers stay picklable.


@functools.lru_cache(maxsize=8)
def _load_clip(path: str, vocab_size: int | None, end_ids: tuple[int, ...]) -> Any:
    library, file = _import("tokenizers"), pathlib.Path(path)
    content, is_pair = _read(file), file.name == _PAIR
    merges = _read(file.with_name(_MERGES)) if is_pair else b""
    with _refusal(Exception, path, "CLIP"):  # the library raises bare Exception
        if is_pair:
            tokenizer = _clip_from_pair(library, content, merges)
        else:
            tokenizer = library.Tokenizer.from_str(content.decode())
            tokenizer.no_truncation()
            tokenizer.no_padding()
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(_CLIP_END)
    _check_fits(path, size, vocab_size, end, end_ids)
    return tokenizer


@functools.lru_cache(maxsize=8)
def _load_sentencepiece(path: str, vocab_size: int | None, end_ids: tuple[int, ...]) -> Any:
    library, content = _import("sentencepiece"), _read(pathlib.Path(path))
    with _refusal(RuntimeError, path, "T5"):
        processor = library.SentencePieceProcessor(model_proto=content)
    _check_fits(path, processor.get_piece_size(), vocab_size, processor.eos_id(), end_ids)
    return processor


def _check_fits(
    path: str, size: int, rows: int | None, file_end: int | None, end_ids: tuple[int, ...]
) -> None:
    """Raises UserError for a file of another vocabulary than the weights'.

    Args:
        path: the tokenizer's file.
        size: number of its ids.
        rows: size of the embedding; None for no check.
        file_end: its id for the end of a text, None where it has none.
        end_ids: the weights' id for that.
    """
    if rows is None:
        return
    what = ""
    if size > rows:
        what = f"tokenizer with {size} ids for an embedding of {rows}"
    elif file_end is not None and (file_end,) != end_ids:
        what = f"tokenizer ends texts with id {file_end}, the weights with {end_ids[0]}"
    if what:
        raise errors.UserError(what, path, "use the tokenizer of the weights' own release")


def _clip_from_pair(library: Any, vocab: bytes, merges: bytes) -> Any:
    """Builds the tokenizer that the slow reference describes, from its two files."""
    lines = merges.decode().splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    model = library.models.BPE(
        json.loads(vocab), pairs, unk_token=_CLIP_END, end_of_word_suffix="</w>"
    )
    tokenizer = library.Tokenizer(model)
    tokenizer.add_special_tokens(
        [token for token in _CLIP_SPECIALS if model.token_to_id(token) is not None]
    )
    normalizers, splitters = library.normalizers, library.pre_tokenizers
    spaces = normalizers.Replace(library.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    words = splitters.Split(library.Regex(_CLIP_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = splitters.Sequence(
        [words, splitters.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@functools.lru_cache(maxsize=8)
def _warn_of_cuts(path: str, length: int) -> None:
    """Says it once per tokenizer and process."""
    logging.warning(
        "%s: texts of more than %d tokens are cut; a larger --config.encoders.text_length keeps"
        " them whole",
        path,
        length,
    )


def _refusal(
    kind: type[Exception], path: str, release: str
) -> contextlib.AbstractContextManager[None]:
    fix = f"use the file of the {release} release, or export the bundle again"
    return errors.DataError.instead_of(kind, "tokenizer file is refused", path, fix)


def _import(package: str) -> Any:
    """Imports a library that only pretrained text encoders need."""
    what, fix = "the tokenizer needs a package", f"pip install {package}"
    with errors.UserError.instead_of(ImportError, what, package, fix):
        return importlib.import_module(package)
