"""The tokenizers of the text encoders; the rules are those of `defi_rollout.tokenizers`.

What only training needs of them is here: the files of releases, of which CLIP's may be a pair of
vocab.json and merges.txt, and the check that they belong to the weights.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from defi_rollout import spec, tokenizers

from defi_jax import errors

_PAIR, _MERGES = "vocab.json", "merges.txt"
_CLIP_END = "<|endoftext|>"
_CLIP_SPECIALS = ("<|startoftext|>", _CLIP_END)
# How CLIP splits text before byte pairs: contractions, words, single digits, runs of symbols.
_CLIP_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def utf8(length: int, *, lower_case: bool, strip_punctuation: bool) -> tokenizers.Tokenizer:
    """Returns the `bytes` tokenizer: no file, no special ids, padding 0."""
    return tokenizers.Tokenizer(
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseTokenizer(tokenizers.Tokenizer):
    """A tokenizer beside the weights whose embedding its ids index.

    Attributes:
        vocab_size: rows of that embedding, to refuse the vocabulary of other weights.
    """

    vocab_size: int

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """See `Tokenizer`."""
        paths = super().files
        is_pair = self.text.file == _PAIR
        return (*paths, self.path.with_name(_MERGES)) if is_pair else paths

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`; of T5, whose length is the config's, it says once that texts are cut."""
        if self.text.name == "t5" and any(map(self.cuts, texts)):
            _warn_of_cuts(str(self.path), self.text.length)
        return super().__call__(texts)

    def library(self) -> Any:
        """See `Tokenizer`; raises UserError for a file of another vocabulary than the weights'."""
        return _load(self.text.name, str(self.path), self.vocab_size, self.text.end_ids[-1:])


def find_file(directory: str, names: Sequence[str]) -> str:
    """Returns the first of the names that `directory` holds.

    Raises:
        UserError: none of them.
    """
    for name in names:
        if (pathlib.Path(directory) / name).is_file():
            return name
    raise errors.UserError(f"no {' or '.join(names)}", directory, tokenizers.MISSING)


@functools.lru_cache(maxsize=8)
def _load(name: str, path: str, rows: int, end_ids: tuple[int, ...]) -> Any:
    is_pair = pathlib.Path(path).name == _PAIR
    library = _load_pair(path) if is_pair else tokenizers.load(name, path)
    if name == "t5":
        size, file_end = library.get_piece_size(), library.eos_id()
    else:
        size, file_end = library.get_vocab_size(), library.token_to_id(_CLIP_END)
    what = ""
    if size > rows:
        what = f"tokenizer with {size} ids for an embedding of {rows}"
    elif file_end is not None and (file_end,) != end_ids:
        what = f"tokenizer ends texts with id {file_end}, the weights with {end_ids[0]}"
    if what:
        raise errors.UserError(what, path, "use the tokenizer of the weights' own release")
    return library


def _load_pair(path: str) -> Any:
    """Builds the tokenizer that the slow reference describes, from its two files."""
    library = tokenizers.import_library("tokenizers")
    vocab, merges = (tokenizers.read(pathlib.Path(path).with_name(n)) for n in (_PAIR, _MERGES))
    # tokenizers raises bare Exception
    with errors.DataError.instead_of(
        Exception, "tokenizer file is refused", path, "use the files of the CLIP release"
    ):
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
