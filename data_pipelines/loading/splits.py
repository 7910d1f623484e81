"""The splits of a data set, and what a run asks of one: seed, and its share of each batch."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

from defi_rollout import tokenizers

from defi_jax import batch, errors

SPLITS = ("train", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a run asks of its loader.

    Attributes:
        tokenizers: by text role; "gfdm", "gidm" or for joint "gfdm", "gidm" and "goal".
        split: "train", or "eval" for the held-out episodes without any augmentation.
        seed: seed of order and draws.
        global_batch: samples of a batch over all processes.
        process_index: this process.
        process_count: number of processes, divides `global_batch`.
    """

    tokenizers: Mapping[str, tokenizers.Tokenizer]
    split: str
    seed: int
    global_batch: int
    process_index: int
    process_count: int

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r}")
        if self.global_batch % self.process_count:
            count = self.process_count
            what = f"global_batch {self.global_batch} is not a multiple of {count} processes"
            raise errors.UserError(what, "global_batch", f"give a multiple of {count}")

    @property
    def train(self) -> bool:
        """Whether it is the training split."""
        return self.split == "train"

    @property
    def local_batch(self) -> int:
        """Samples of this process."""
        return self.global_batch // self.process_count

    def takes(self, episode_id: str, holdout_percent: float) -> bool:
        """Whether an episode belongs to the split."""
        return is_held_out(episode_id, holdout_percent) != self.train

    def fingerprint(self) -> dict[str, Any]:
        """Returns what decides the batches, JSON-able; not who reads which share of them."""
        return {
            "split": self.split,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "tokenizers": {
                role: batch.tokenizer_facts(own) for role, own in self.tokenizers.items()
            },
        }


def is_held_out(episode_id: str, percent: float) -> bool:
    """Whether the episode belongs to the held-out split, by a hash of its id alone."""
    fine, coarse = divmod(zlib.crc32(episode_id.encode()) % 10_000, 100)
    return coarse + fine / 100 < percent  # whole percents by the last two digits alone
