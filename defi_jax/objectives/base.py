"""What the loop knows of a stage: which batch, which parameters, which loss, what to show."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.models.frozen import encoders
from defi_jax.models.frozen import tokenizers as tokenizers_lib


@flax.struct.dataclass
class LossOutput:
    """What a loss returns beside its value.

    Attributes:
        metrics: scalars to log.
        extra: the objective's own arrays after the step (for example codebook usage).
    """

    metrics: dict[str, jax.Array]
    extra: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOutput:
    """Result of an evaluation.

    Attributes:
        scalars: metric name to value.
        images: name to uint8[H, W, 3].
        videos: name to uint8[T, H, W, 3].
    """

    scalars: Mapping[str, float]
    images: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    videos: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Parameters below `ours` start as those below `theirs` of a file; read by training.

    Attributes:
        source: a run's workdir, one checkpoint, or a directory of imported weights.
        theirs: prefix in the source, "" for all of it.
        ours: prefix in this run.
        flag: the config key that named the source, for messages.
        config: numbers of the module that will use the parameters, a dataclass; where the source
            is an import, its own must be the same. None where there is nothing to compare.
    """

    source: str
    theirs: str
    ours: str
    flag: str
    config: Any = None


class Objective(Protocol):
    """One stage of DeFI, run by `training.loop.train`.

    Parameters are nested dicts; `extra` holds arrays that the objective owns and the optimizer
    does not touch. All methods that take arrays are pure and may be traced.
    """

    name: str

    def batch_spec(self, batch_size: int) -> batch_lib.Batch:
        """Abstract batch of `batch_size` examples."""
        ...

    def tokenizers(self) -> Mapping[str, tokenizers_lib.Tokenizer]:
        """Tokenizer of each text role in the batch."""
        ...

    def init_params(self, rng: PRNGKey) -> Params:
        """All parameters, trainable and frozen, from scratch."""
        ...

    def init_extra(self) -> dict[str, jax.Array]:
        """The objective's own arrays at step 0."""
        ...

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter at "a/b/c" is trained."""
        ...

    def loss_fn(
        self, params: Params, extra: dict[str, jax.Array], batch: Any, rng: PRNGKey
    ) -> tuple[jax.Array, LossOutput]:
        """Mean loss of a batch."""
        ...

    def after_step(
        self, params: Params, extra: dict[str, jax.Array], step: jax.Array, rng: PRNGKey
    ) -> tuple[Params, dict[str, jax.Array]]:
        """Changes outside the gradient, such as re-seeding dead codes; called inside the step."""
        ...

    def evaluate(self, params: Params, batches: Iterable[Any], rng: PRNGKey) -> EvalOutput:
        """Metrics and pictures on held-out batches."""
        ...

    def warm_starts(self) -> Sequence[WarmStart]:
        """Which parameters start from files instead of from scratch."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts that travel in checkpoints and bundles."""
        ...


@runtime_checkable
class LatentObjective(Protocol):
    """What an objective has beside, that can train on a latent cache (`launch/data.py encode`).

    Attributes:
        reads_latents: whether `batch_spec` has latents in the place of video.
        latents: frames -> latents; its parameters are below "encoders/latents".
        text: text -> features; its parameters are below "encoders/gfdm_text".
    """

    reads_latents: bool
    latents: encoders.LatentEncoder
    text: encoders.TextEncoder

    def pixel_batch_spec(self, batch_size: int) -> batch_lib.GFDMBatch:
        """Abstract batch with video, as `evaluate` takes it."""
        ...


@runtime_checkable
class FeatureObjective(Protocol):
    """What an objective has beside, whose frozen features training computes once.

    Attributes:
        caches_features: whether `batch_spec` has features in the place of images.
    """

    caches_features: bool

    def image_batch_spec(self, batch_size: int) -> batch_lib.JointBatch:
        """Abstract batch with images, as it is read from episodes."""
        ...

    def feature_params(self, params: Params) -> Params:
        """The frozen parameters that features depend on."""
        ...

    def feature_facts(self) -> dict[str, Any]:
        """What features depend on beside parameters and batch, JSON-able."""
        ...

    def precompute_features(self, params: Params, batch: batch_lib.JointBatch) -> jax.Array:
        """Features of a batch with images, float16[B, ...], a pure function."""
        ...
