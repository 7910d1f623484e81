"""What the loop knows of a stage: which batch, which parameters, which loss, what to show."""

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import numpy as np

from defi_jax import batch as batch_lib
from defi_jax import partition
from defi_jax.array_typing import Params, PRNGKey
from defi_jax.models import params as params_lib
from defi_jax.models.frozen import encoders as encoders_lib

_TEXT = "_text"


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


class Objective:
    """One stage of DeFI, run by `training.loop.train`; a stage says only where it differs.

    Parameters are nested dicts: those of `modules` by their names, and frozen encoders below
    "encoders/<role>". All methods that take arrays are pure and may be traced.

    Attributes:
        config: the experiment's config.
        modules: what `Objective` builds and trains, by name: `params_lib.Make` each.
        encoders: frozen encoders by role; those of text have roles that end in "_text".
        reads_latents: whether `batch_spec` has latents in the place of video.
        caches_features: whether `batch_spec` has features in the place of images.
        robot: robot whose actions are learnt, with which the data must agree; "" for any.
    """

    name: ClassVar[str]
    config: Any
    modules: Mapping[str, params_lib.Make] = types.MappingProxyType({})
    encoders: Mapping[str, Any] = types.MappingProxyType({})
    reads_latents: bool = False
    caches_features: bool = False
    robot: str = ""

    def batch_spec(self, batch_size: int) -> Any:
        """Abstract batch of `batch_size` examples, as `loss_fn` takes it."""
        raise NotImplementedError

    def pixel_batch_spec(self, batch_size: int) -> Any:
        """The same as it is read from episodes: nothing is encoded yet."""
        return self.batch_spec(batch_size)

    def weigh(self, batch: Any) -> Any:
        """Returns a whole batch with what means over a part of its entries need of all of it.

        A step calls it before the batch is split into microbatches; `loss_fn` may see either.
        """
        return batch

    def loss_fn(
        self, params: Params, extra: dict[str, jax.Array], batch: Any, rng: PRNGKey
    ) -> tuple[jax.Array, LossOutput]:
        """Mean loss of a batch; `extra` holds arrays that the optimizer does not touch."""
        raise NotImplementedError

    def evaluate(self, params: Params, batches: Iterable[Any], rng: PRNGKey) -> EvalOutput:
        """Metrics and pictures of held-out batches, with pixels unless features are cached."""
        raise NotImplementedError

    def tokenizers(self) -> dict[str, encoders_lib.Tokenizer]:
        """Tokenizer of each text role in the batch."""
        return {
            role.removesuffix(_TEXT): encoder.tokenizer
            for role, encoder in self.encoders.items()
            if role.endswith(_TEXT)
        }

    def init_params(self, rng: PRNGKey) -> Params:
        """All parameters, trainable and frozen, from scratch."""
        rngs = jax.random.split(rng, len(self.modules) + 1)
        params = {
            name: params_lib.init_params(make, module_rng)
            for (name, make), module_rng in zip(self.modules.items(), rngs[1:], strict=True)
        }
        return params | self.init_frozen(rngs[0])

    def init_frozen(self, rng: PRNGKey) -> Params:
        """The encoders' parameters below "encoders"; {} where none of them has any."""
        frozen = {role: encoder.init_params(rng) for role, encoder in self.encoders.items()}
        frozen = {role: tree for role, tree in frozen.items() if tree}
        return {"encoders": frozen} if frozen else {}

    def init_extra(self) -> dict[str, jax.Array]:
        """The objective's own arrays at step 0."""
        return {}

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter at "a/b/c" is trained."""
        return path.partition("/")[0] in self.modules

    def after_step(
        self, params: Params, extra: dict[str, jax.Array], step: jax.Array, rng: PRNGKey
    ) -> tuple[Params, dict[str, jax.Array]]:
        """Changes outside the gradient, such as re-seeding dead codes; called inside the step."""
        del step, rng
        return params, extra

    def warm_starts(self) -> Sequence[WarmStart]:
        """Which parameters start from files instead of from scratch: the frozen encoders here."""
        named = {role: self.config.encoders[role] for role in self.encoders}
        return [
            WarmStart(
                source=self.config.weights[name],
                theirs="",
                ours=f"encoders/{role}",
                flag=f"weights.{name}",
                config=self.encoders[role].config,
            )
            for role, name in named.items()
            if self.config.weights.get(name)
        ]

    def describe(self) -> dict[str, Any]:
        """JSON-able facts that travel in checkpoints and bundles."""
        return {"objective": self.name, "encoders": dict(self.config.encoders)}

    # What the stages share.

    def apply(self, params: Params, module: str, method: str, *inputs: Any) -> Any:
        """Calls a module's method, each device on its own examples, kernels in compute_dtype."""
        function = params_lib.method(self.modules[module], method)
        dtype = self.config.compute_dtype
        return partition.over_examples(function, params[module], *inputs, dtype=dtype)

    def encode(self, params: Params, role: str, *inputs: Any) -> Any:
        """Calls a frozen encoder, each device on its own examples."""
        encoder, own = self.encoders[role], params_lib.subtree(params, "encoders", role)
        dtype = getattr(encoder, "dtype", None)  # of those that have kernels
        return partition.over_examples(encoder.encode, own, *inputs, dtype=dtype)

    def encode_text(
        self, params: Params, role: str, text: batch_lib.TextTokens
    ) -> encoders_lib.TextFeatures:
        """Features of instructions by the encoder of a role, "gfdm" for example."""
        return self.encode(params, role + _TEXT, text.ids, text.mask)


class FeatureObjective(Objective):
    """An objective whose frozen features training may compute once (`caches_features`)."""

    def feature_params(self, params: Params) -> Params:
        """The frozen parameters that features depend on."""
        raise NotImplementedError

    def feature_facts(self) -> dict[str, Any]:
        """What features depend on beside parameters and batch, JSON-able."""
        raise NotImplementedError

    def precompute_features(self, params: Params, batch: batch_lib.JointBatch) -> jax.Array:
        """Features of a batch with images, float16[B, ...], a pure function."""
        raise NotImplementedError
