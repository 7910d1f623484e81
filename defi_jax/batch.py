"""The typed batch of each objective: the contract between data pipelines and training.

Images are uint8 and text is token ids: frozen encoders run inside the jitted step, so that a batch
is small and independent of the encoders' weights. What was computed once by an encoder or a frozen
model (a latent cache, cached features) comes in the place of the images.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from defi_rollout import tokenizers

from defi_jax import tensor_files

Leaf = Any  # jax.Array, np.ndarray or jax.ShapeDtypeStruct


@flax.struct.dataclass
class TextTokens:
    """Token ids of one encoder.

    Attributes:
        ids: int32[B, L], 0 where padded (or the encoder's own padding id).
        mask: bool[B, L], True for real tokens.
    """

    ids: Leaf
    mask: Leaf


@flax.struct.dataclass
class GFDMBatch:
    """Video clips with their instruction.

    Attributes:
        video: uint8[B, T, H, W, C], frame 0 is the condition; None with latents.
        text: tokens for the video model's text encoder.
        latents: float32[B, T, h, w, c] of a latent cache, or None with video.
        text_features: float32[B, L, D] of the same cache, or None with video.
    """

    video: Leaf | None
    text: TextTokens
    latents: Leaf | None = None
    text_features: Leaf | None = None


@flax.struct.dataclass
class GIDMBatch:
    """Frame pairs; the action is only for the probe, the loss never sees it.

    Attributes:
        frames: uint8[B, 2, H, W, C].
        text: tokens for the inverse model's text encoder.
        action: float32[B, A], mean normalised action between the frames, 0 where unknown.
        action_mask: bool[B], False where the episode has no actions.
    """

    frames: Leaf
    text: TextTokens
    action: Leaf
    action_mask: Leaf


@flax.struct.dataclass
class JointBatch:
    """Observations with the actions that follow.

    Attributes:
        images: uint8[B, cams, H, W, C], camera 0 is the static one; None with features.
        text: tokens by role: "gfdm", "gidm" and "goal".
        actions: float32[B, S, A], normalised.
        action_mask: bool[B, S], False past the end of the episode.
        features: float16[B, cams, T, h, w, C] of the forward model, or None with images.
        action_weights: float32[B, S], weights of the actions in a mean over the whole batch's real
            ones; None until training has the whole batch.
    """

    images: Leaf | None
    text: dict[str, TextTokens]
    actions: Leaf
    action_mask: Leaf
    features: Leaf | None = None
    action_weights: Leaf | None = None


Batch = GFDMBatch | GIDMBatch | JointBatch


class HeldOutLoader(Protocol):
    """What evaluation needs of a loader: the first batches of its order, as often as asked for."""

    def first(self, num_batches: int) -> Iterator[Any]:
        """Yields this process's part of each batch, numpy arrays; changes no state."""
        ...


class Loader(HeldOutLoader, Protocol):
    """Endless iterator over this process's part of each batch, numpy arrays.

    Attributes:
        normalizer: normalizer of the actions; `to_json` gives what travels into checkpoints and
            bundles.
        bad_samples: damaged samples that were replaced so far, by data set.
        still_pairs: frame pairs without motion that were replaced so far, by data set.
    """

    normalizer: Any
    bad_samples: dict[str, int]
    still_pairs: dict[str, int]

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the batches."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of the split, each once."""
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def __next__(self) -> Any: ...

    def state(self) -> dict[str, Any]:
        """Position in the data, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was taken; UserError where that was of other data."""
        ...

    def describe(self) -> list[dict[str, Any]]:
        """What each data set contributes, JSON-able."""
        ...

    def check_robot(self, robot: str) -> None:
        """Raises UserError where the actions are not those of a robot."""
        ...

    def check_latents(self, encoder: Mapping[str, Any], rebuild: str) -> None:
        """Raises UserError where other encoders than these made the latents that are read."""
        ...

    def scan(self, spec: JointBatch, first: int = 0) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields every sample once, in batches of a spec, and bool[B]: which of them are good.

        `first` is the number of the batch to begin with.
        """
        ...

    def use_features(self, path: str | os.PathLike) -> None:
        """Takes features from a .npy file with a row a sample, in the order of `scan`."""
        ...

    def close(self) -> None:
        """Stops threads and processes; the next batch starts them again."""
        ...


class MakeLoader(Protocol):
    """Opens a split of the data of a run."""

    def __call__(
        self,
        spec: Batch,
        /,
        *,
        split: str,
        seed: int,
        global_batch: int,
        process_index: int,
        process_count: int,
    ) -> Loader:
        """Returns the loader of a split, "train" or "eval", for batches of a spec."""
        ...


def tokens_spec(batch_size: int, length: int) -> TextTokens:
    """Returns the abstract TextTokens of `batch_size` texts of `length` tokens."""
    return TextTokens(
        ids=jax.ShapeDtypeStruct((batch_size, length), jnp.int32),
        mask=jax.ShapeDtypeStruct((batch_size, length), jnp.bool_),
    )


def tokenizer_facts(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """JSON-able facts on which ids depend; the digest identifies the vocabulary."""
    names = ["name", "length", "lower_case", "strip_punctuation"]
    names += ["pad_id"] if tokenizer.text.name != "bytes" else []
    facts = {name: getattr(tokenizer.text, name) for name in names}
    if tokenizer.files:
        content = b"".join(map(tokenizers.read, tokenizer.files))
        facts["sha256"] = hashlib.sha256(content).hexdigest()
    return facts


def assemble(
    spec: Batch,
    arrays: Mapping[str, np.ndarray],
    text: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Batch:
    """Returns the batch of a spec's type that has these arrays.

    Args:
        spec: abstract batch.
        arrays: by field; a field without one is None.
        text: ids and mask by role; the only one where a batch has a single text.
    """
    tokens = {
        role: TextTokens(ids=np.array(ids), mask=np.array(m)) for role, (ids, m) in text.items()
    }
    fields: dict[str, Any] = dict.fromkeys(field_names(type(spec))) | dict(arrays)
    fields["text"] = tokens if isinstance(spec.text, dict) else next(iter(tokens.values()))
    return type(spec)(**fields)


def check(batch: Batch, spec: Batch) -> None:
    """Raises ValueError naming every leaf of `batch` whose shape or dtype is not the spec's."""
    problems = tensor_files.differences(_described(batch), _described(spec))
    if problems:
        raise ValueError(f"{type(batch).__name__}: {'; '.join(problems)}")


def with_batch_size(spec: Batch, batch_size: int) -> Batch:
    """Returns the spec with another leading dimension."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), spec
    )


def _described(batch: Batch) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{leaf.shape}" for path, leaf in leaves}


def field_names(batch_type: type) -> tuple[str, ...]:
    """Names of a batch's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(batch_type))
