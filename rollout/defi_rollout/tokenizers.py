"""Texts to fixed-length token ids: the one rule of training and serving.

Every role first normalises the text: lower case and deleted ASCII punctuation where it asks for
them, then words joined by single spaces. The ids of the text are cut so that start and end ids fit
in, and padded, so that a compiled step sees one shape. `bytes` is UTF-8 byte + 1 and `stand_in`
byte + 2, without a file; `clip` reads a Hugging Face tokenizer.json and `t5` a sentencepiece model.
`clip_openai` is `clip` after the repairs of OpenAI's own tokenizer: ftfy, and HTML entities twice.

Legend: B texts, L tokens.
"""

import dataclasses
import functools
import html
import importlib
import pathlib
import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from defi_rollout import bundle, errors, spec

_BYTE_SHIFTS = {"bytes": 1, "stand_in": 2}  # below are padding and special ids
MISSING = "put the tokenizer's files of the release there"
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """One text role's tokenizer; its file is read on first use.

    Attributes:
        text: the rule; its `file` lies in `directory`.
        directory: where the vocabulary lies, "" where the rule needs none.
    """

    text: spec.TextSpec
    directory: str = ""

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
            real = [*rule.start_ids, *body[: self.room], *rule.end_ids]
            ids[row, : len(real)], counts[row] = real, len(real)
        return ids, np.arange(rule.length) < counts[:, None]

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """All files that the ids depend on."""
        return (self.path,) if self.text.file else ()

    def library(self) -> Any:
        """Returns what the tokenizer's library makes of the file."""
        return load(self.text.name, str(self.path))

    def _normalise(self, text: str) -> str:
        """Before: "Open  the drawer!"; after with both flags: "open the drawer"."""
        if self.text.name == "clip_openai":
            # Lower case here: Python knows the final sigma, the library's normalizer does not.
            text = html.unescape(html.unescape(import_library("ftfy").fix_text(text))).lower()
        if self.text.lower_case:
            text = text.lower()
        if self.text.strip_punctuation:
            text = text.translate(_DELETE_PUNCTUATION)
        return " ".join(text.split())

    def _encode(self, text: str) -> list[int]:
        name = self.text.name
        if name in _BYTE_SHIFTS:
            return [byte + _BYTE_SHIFTS[name] for byte in text.encode(errors="replace")]
        if name == "t5":
            return self.library().encode(text)
        return self.library().encode(text, add_special_tokens=False).ids


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


@functools.lru_cache(maxsize=8)  # not in the tokenizer, which must stay picklable
def load(name: str, path: str) -> Any:
    """Reads the file of the rule `name` with its library; raises as `Tokenizer.__call__`."""
    package, release = ("sentencepiece", "T5") if name == "t5" else ("tokenizers", "CLIP")
    library, content = import_library(package), read(pathlib.Path(path))
    fix = f"use the file of the {release} release, or export the bundle again"
    # tokenizers raises bare Exception
    with errors.DataError.instead_of(Exception, "tokenizer file is refused", path, fix):
        if name == "t5":
            return library.SentencePieceProcessor(model_proto=content)
        tokenizer = library.Tokenizer.from_str(content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def read(path: pathlib.Path) -> bytes:
    """Content of a tokenizer's file; raises UserError."""
    with errors.UserError.instead_of(OSError, f"no {path.name}", path.parent, MISSING):
        return path.read_bytes()


def import_library(package: str) -> Any:
    """Imports a library that only pretrained text encoders need; raises UserError."""
    what, fix = "the tokenizer needs a package", f"pip install {package}"
    with errors.UserError.instead_of(ImportError, what, package, fix):
        return importlib.import_module(package)
