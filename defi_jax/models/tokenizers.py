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
import string
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer(Protocol):
    """A callable from texts to fixed-length ids."""

    length: int

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
