"""Compiles a train step for devices that are not there: does it fit, and how fast can it be?

    python launch/plan.py --config=configs/gfdm.py --topology=v5p:4x4x4 \
        --config.global_batch=128 --config.data.latents=cached

    python launch/plan.py --config=configs/gfdm.py --topology=v5e:8x8 --search \
        --config.global_batch=256

Topologies: v4, v5e, v5p, v6e, tpu7x with the shape of a slice (needs libtpu, see
requirements-tpu.txt), or cpu:N. --num_slices=N takes N such slices. --json prints one object. Needs
neither TPU nor weights nor data. The full models take 10 minutes and 13 GiB at the compiler's level
O1; training compiles at O2, which takes several times as much. --search ranks meshes, batches,
rematerialisation and cached latents by shapes, compiles the best three and writes the flags of the
best beside its results; typed again after an interruption, it goes on. Exit 1 when nothing fits.
"""

import dataclasses
import json
import os
import re
import sys

# Set before jax is imported: the compiler for TPUs runs beside, never a TPU.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_CPUS = re.search(r"--topology[= ]cpu:([1-9]\d{0,3})\b", " ".join(sys.argv))
if _CPUS:
    _DEVICES = f" --xla_force_host_platform_device_count={_CPUS[1]}"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _DEVICES

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from defi_jax import cli, errors  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, as configs/gfdm.py:tiny.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Devices, as v5p:4x4x4 or cpu:8.")
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of that topology.", lower_bound=1)
_LEVEL = flags.DEFINE_enum("optimization_level", "O1", ["O1", "O2"], "The compiler's effort.")
_JSON = flags.DEFINE_bool("json", False, "Print exactly one JSON object on stdout.")
_POLICY = flags.DEFINE_bool("policy", False, "One call of the policy on one chip, as v5e:1x1.")
_SEARCH = flags.DEFINE_bool("search", False, "Choose the mesh and the rest instead of one plan.")
_EXAMPLES = flags.DEFINE_multi_integer(
    "examples_per_device", [1, 2, 4, 8, 16], "That a search tries; may be repeated.", lower_bound=1
)
_RESULTS = flags.DEFINE_string("results", "plan_search.jsonl", "Of a search: where it stands.")
flags.mark_flags_as_required(["config", "topology"])


def main(argv: list[str]) -> None:
    """Plans and prints."""
    del argv
    import jax

    from data_pipelines.loading import config as data_config
    from tools.plan import planner, search

    jax.config.update("jax_optimization_level", _LEVEL.value)
    config = _CONFIG.value
    config.data.mixture = "synthetic"  # only shapes matter
    data_config.DataConfig.of(config.data)
    topology = _TOPOLOGY.value or ""
    if _SEARCH.value:
        print(search.run(config, topology, _NUM_SLICES.value, _EXAMPLES.value, _RESULTS.value))
        return
    if _POLICY.value:
        plan = planner.make_policy_plan(config, topology)
    else:
        plan = planner.make_plan(config, topology, _NUM_SLICES.value)
    print(json.dumps(dataclasses.asdict(plan)) if _JSON.value else planner.describe(plan))
    if not plan.fits:
        fix = "more devices, a smaller --config.global_batch, or remat=blocks; see --search"
        raise errors.CheckFailed("the step does not fit the memory", topology, fix)


if __name__ == "__main__":
    cli.run(main)
