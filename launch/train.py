"""Trains one stage: GFDM, GIDM or joint.

    python launch/train.py --config=configs/gfdm.py:tiny --workdir=runs/gfdm \
        --config.data.mixture=synthetic

Resumes what the workdir holds; `--overwrite` starts it anew. Presets: tiny, small, full (default).

Many hosts run the same command. Where jax does not know the cluster, each also gets the environment
variables JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and its own JAX_PROCESS_ID from 0.
`--num_processes=2` does so on this machine's CPUs. See docs/tpu.md, launch/tpu/ and launch/gpu/.
"""

import functools
import sys

from absl import flags
from ml_collections import config_flags

from defi_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, as configs/gfdm.py:tiny.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run keeps its files; local or gs://.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what the workdir holds and start anew.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "So many processes, on CPUs, here.")
flags.mark_flags_as_required(["config"])


def main(argv: list[str]) -> int | None:
    """Checks the config, then hands it to the loop."""
    del argv
    if _NUM_PROCESSES.value != 1:
        from defi_jax import local_processes

        command = [sys.executable, *sys.argv, "--num_processes=1"]
        return local_processes.run(command, _NUM_PROCESSES.value)
    from data_pipelines.loading import config as data_config
    from data_pipelines.loading import loader
    from defi_jax import objectives, processes
    from defi_jax.training import loop, start

    with processes.joined():
        config = _CONFIG.value
        data_config.DataConfig.of(config.data)
        objective = objectives.make(config)
        start.check(config)  # and only then delete what the workdir holds
        workdir = start.claim_workdir(_WORKDIR.value, overwrite=_OVERWRITE.value)
        make_loader = functools.partial(
            loader.make_loader,
            config.data,
            tokenizers=objective.tokenizers(),
        )
        loop.train(config, objective, make_loader, workdir)
    return None


if __name__ == "__main__":
    cli.run(main)
