"""Instruction text to fixed-length token ids, exactly as in training.

Every role first normalises the text: lower case and deleted ASCII punctuation where it asks for
them, then words joined by single spaces. `bytes` needs no file: id = UTF-8 byte + 1, 0 = padding;
the first L bytes count. `clip` reads a Hugging Face tokenizer.json
and `t5` a sentencepiece model, both from the bundle's own files.

Legend: L tokens.
"""

import string
from collections.abc import Callable

import numpy as np

from defi_rollout import bundle, errors, spec

Tokenizer = Callable[[str], tuple[np.ndarray, np.ndarray]]

_BYTES_SHIFT = 1  # ids start at 1: 0 is padding
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_T5_EOS = 1  # end of sentence in every published T5 vocabulary


def make_tokenizer(text: spec.TextSpec, source: bundle.Bundle) -> Tokenizer:
    """Returns `tokenize(text) -> (ids int32[L], mask bool[L])` for one text role.

    Raises:
        BundleError: the tokenizer's file cannot be read by its library.
        UsageError: the library is not installed.
    """
    encode = _ENCODERS[text.name](text, source)

    def tokenize(instruction: str) -> tuple[np.ndarray, np.ndarray]:
        ids = encode(_normalise(instruction, text))
        padded = np.full(text.length, text.pad_id, np.int32)
        padded[: len(ids)] = ids
        return padded, np.arange(text.length) < len(ids)

    return tokenize


def _normalise(instruction: str, text: spec.TextSpec) -> str:
    """Before: "Open  the drawer!"; after with both flags: "open the drawer"."""
    if text.lower_case:
        instruction = instruction.lower()
    if text.strip_punctuation:
        instruction = instruction.translate(_DELETE_PUNCTUATION)
    return " ".join(instruction.split())


def _make_bytes(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    del source

    def encode(instruction: str) -> list[int]:
        data = instruction.encode(errors="replace")[: text.length]
        return [byte + _BYTES_SHIFT for byte in data]

    return encode


def _make_clip(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    try:
        import tokenizers
    except ImportError as error:
        raise _missing("tokenizers") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(source.read(text.file).decode())
    except Exception as error:  # the library raises bare Exception
        raise _unreadable(source, text.file, error) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(text.length)
    return lambda instruction: tokenizer.encode(instruction).ids


def _make_t5(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ImportError as error:
        raise _missing("sentencepiece") from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=source.read(text.file))
    except RuntimeError as error:
        raise _unreadable(source, text.file, error) from error
    return lambda instruction: [*processor.encode(instruction)[: text.length - 1], _T5_EOS]


def _missing(package: str) -> errors.UsageError:
    return errors.UsageError(
        "the bundle's tokenizer needs a package", package, f"pip install {package}"
    )


def _unreadable(source: bundle.Bundle, name: str, error: Exception) -> errors.BundleError:
    return errors.BundleError(
        f"tokenizer file is refused ({error})", source.path(name), "export the bundle again"
    )


_ENCODERS = {"bytes": _make_bytes, "clip": _make_clip, "t5": _make_t5}
