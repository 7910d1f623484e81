"""Instruction text to fixed-length token ids, exactly as in training.

Every role first normalises the text: lower case and deleted ASCII punctuation where it asks for
them, then words joined by single spaces. The ids of the text are cut so that start and end ids
fit in, and padded. `bytes` is UTF-8 byte + 1 and `stand_in` byte + 2, without a file; `clip` reads
a Hugging Face tokenizer.json and `t5` a sentencepiece model, from the bundle's own files.
`clip_openai` is `clip` after the repairs of OpenAI's own tokenizer: ftfy, and HTML entities twice.

Legend: L tokens.
"""

import html
import string
from collections.abc import Callable

import numpy as np

from defi_rollout import bundle, errors, spec

Tokenizer = Callable[[str], tuple[np.ndarray, np.ndarray]]

_BYTE_SHIFTS = {"bytes": 1, "stand_in": 2}  # below are padding and special ids
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def make_tokenizer(text: spec.TextSpec, source: bundle.Bundle) -> Tokenizer:
    """Returns `tokenize(text) -> (ids int32[L], mask bool[L])` for one text role.

    Raises:
        BundleError: the tokenizer's file cannot be read by its library.
        UsageError: the library is not installed.
    """
    encode = _ENCODERS[text.name](text, source)
    room = text.length - len(text.start_ids) - len(text.end_ids)

    def tokenize(instruction: str) -> tuple[np.ndarray, np.ndarray]:
        body = encode(_normalise(instruction, text))[:room]
        ids = [*text.start_ids, *body, *text.end_ids]
        padded = np.full(text.length, text.pad_id, np.int32)
        padded[: len(ids)] = ids
        return padded, np.arange(text.length) < len(ids)

    return tokenize


def _normalise(instruction: str, text: spec.TextSpec) -> str:
    """Before: "Open  the drawer!"; after with both flags: "open the drawer"."""
    if text.name == "clip_openai":
        instruction = _repair(instruction)
    if text.lower_case:
        instruction = instruction.lower()
    if text.strip_punctuation:
        instruction = instruction.translate(_DELETE_PUNCTUATION)
    return " ".join(instruction.split())


def _make_bytes(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    del source
    shift = _BYTE_SHIFTS[text.name]
    return lambda instruction: [byte + shift for byte in instruction.encode(errors="replace")]


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
    tokenizer.no_truncation()
    return lambda instruction: tokenizer.encode(instruction, add_special_tokens=False).ids


def _make_clip_openai(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    _repair("")  # a missing package shows now, not at the first instruction
    return _make_clip(text, source)


def _repair(instruction: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise _missing("ftfy") from error
    return html.unescape(html.unescape(ftfy.fix_text(instruction))).lower()


def _make_t5(text: spec.TextSpec, source: bundle.Bundle) -> Callable[[str], list[int]]:
    try:
        import sentencepiece
    except ImportError as error:
        raise _missing("sentencepiece") from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=source.read(text.file))
    except RuntimeError as error:
        raise _unreadable(source, text.file, error) from error
    return processor.encode


def _missing(package: str) -> errors.UsageError:
    return errors.UsageError(
        "the bundle's tokenizer needs a package", package, f"pip install {package}"
    )


def _unreadable(source: bundle.Bundle, name: str, error: Exception) -> errors.BundleError:
    return errors.BundleError(
        f"tokenizer file is refused ({error})", source.path(name), "export the bundle again"
    )


_ENCODERS = {
    "bytes": _make_bytes,
    "stand_in": _make_bytes,
    "clip": _make_clip,
    "clip_openai": _make_clip_openai,
    "t5": _make_t5,
}
