"""A step compiled for devices that are not there: does it fit, and how fast can it be.

The train step of `training.step`, or the policy's call as it is exported, for the shapes of the
config and a TPU topology (through libtpu) or a number of CPU devices; no weights, data or
accelerator are touched.
"""

import contextlib
import ctypes
import dataclasses
import importlib.util
import math
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from defi_jax import errors, objectives, partition
from defi_jax.export import program as program_lib
from defi_jax.models import params as params_lib
from defi_jax.objectives import joint
from defi_jax.training import flops, hardware, progress, sharding, step
from tools.plan import collectives as collectives_lib
from tools.plan import hlo, program

_UNKNOWN_CYCLES = 2**62
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(kw_only=True)
class Plan:
    """What `launch/plan.py --json` prints; bytes are per device, unknown values None.

    Attributes:
        mesh: size of each axis.
        remat: what the backward pass recomputes, of models that can.
        params_total, params_trainable: scalars of the whole model.
        parameter_bytes, optimizer_bytes: stored between steps; the moving average counts to the
            parameters.
        temporary_bytes: activations and whole weights while a step runs.
        program_bytes: the compiled program itself.
        hbm_bytes_per_device: all four, the peak.
        flops_per_step: FLOPs of the mathematics, all devices together, recomputation left out.
        compiled_flops_per_device: products in the program, recomputation included.
        memory_traffic_bytes: what its operations read from HBM and write to it.
        collectives: number of operations by kind, each pass of a loop.
        collective_bytes: bytes each device receives by kind.
        exposed_collective_bytes: of them, what no computing hides in the compiler's order.
        predicted_step_seconds, predicted_mfu: see `hardware.step_seconds`.
        scheduled_cycles: sum of the cycles that the compiler expects of each operation, each pass
            of a loop; None where it says none.
        peak_compile_gib: memory of this process.
    """

    objective: str
    preset: str
    topology: str
    mesh: dict[str, int]
    global_batch: int
    remat: str | None
    params_total: int
    params_trainable: int
    parameter_bytes: int
    optimizer_bytes: int
    flops_per_step: int
    hbm_bytes_available: int | None
    hbm_bytes_per_device: int | None = None
    temporary_bytes: int | None = None
    program_bytes: int | None = None
    fits: bool | None = None
    compiled_flops_per_device: float | None = None
    memory_traffic_bytes: float | None = None
    collectives: dict[str, int] | None = None
    collective_bytes: dict[str, int] | None = None
    exposed_collective_bytes: float | None = None
    predicted_step_seconds: float | None = None
    predicted_mfu: float | None = None
    scheduled_cycles: int | None = None
    compile_seconds: float | None = None
    peak_compile_gib: float | None = None


def make_plan(config: Any, topology: str, num_slices: int = 1) -> Plan:
    """Compiles the config's train step for a topology, such as "v5p:4x4x4" or "cpu:8".

    The compiler works at the level that jax is configured with (`jax_optimization_level`).

    Raises:
        UserError: an unknown topology, libtpu missing, or a config that does not fit the devices.
    """
    objective = objectives.make(config)
    chip, devices = find_devices(topology, num_slices)
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch(config.global_batch, config.optimizer.accumulation_steps, mesh)
    mathematics = progress.model_flops(config).total
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        abstract, _ = step.abstract_state(config, objective, mesh)
        plan = _before_compiling(config, topology, mesh, chip, abstract, mathematics)
        return _finish(plan, chip, lambda: step.compile_step(config, objective, mesh, abstract))


def make_policy_plan(config: Any, topology: str) -> Plan:
    """Compiles one call of a joint config's policy, with weights as they are stored, for one chip.

    Raises:
        UserError: another objective, or a topology of several devices.
    """
    objective = objectives.make(config)
    chip, devices = find_devices(topology)
    if not isinstance(objective, joint.JointObjective):
        raise errors.UserError(
            f"objective {config.objective!r} has no policy", "--policy", "give configs/joint.py"
        )
    if len(devices) != 1:
        raise errors.UserError(
            f"{topology} is {len(devices)} devices", "--policy", "give one, as v5e:1x1 or cpu:1"
        )
    where = jax.sharding.SingleDeviceSharding(devices[0])

    def on_device(leaf: Any, *batch: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*batch, *leaf.shape), leaf.dtype, sharding=where)

    params = jax.tree.map(on_device, jax.eval_shape(objective.init_params, jax.random.key(0)))
    inputs = {k: on_device(v, 1) for k, v in program_lib.input_spec(objective).items()}
    call = program_lib.policy_program(objective)
    plan = Plan(
        objective="policy",
        preset=config.preset,
        topology=topology,
        mesh=dict.fromkeys(partition.AXES, 1),
        global_batch=1,
        remat=None,
        params_total=params_lib.count(params),
        params_trainable=0,
        parameter_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)),
        optimizer_bytes=0,
        flops_per_step=flops.count(call, params, inputs).total,
        hbm_bytes_available=chip.hbm_bytes if chip else None,
    )
    return _finish(plan, chip, lambda: jax.jit(call).lower(params, inputs).compile())


def _finish(
    plan: Plan, chip: hardware.Chip | None, compile_it: Callable[[], jax.stages.Compiled]
) -> Plan:
    """Compiles, and fills in what the program says of itself."""
    start = time.monotonic()
    try:
        with returned_memory():
            compiled = compile_it()
    except jax.errors.JaxRuntimeError as error:
        return _out_of_memory(plan, error)
    finally:
        plan.compile_seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        plan.peak_compile_gib = peak / 2**20
    _read_program(plan, compiled, chip)
    return plan


@contextlib.contextmanager
def returned_memory(seconds: float = 10) -> Iterator[None]:
    """Gives freed memory back to the system every few seconds.

    The compiler's threads free much of what they allocate, but glibc keeps the pages: a fifth of
    the peak. Where there is no glibc, nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is None:
        yield
        return
    done = threading.Event()

    def repeat() -> None:
        while not done.wait(seconds):
            trim(0)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def find_devices(topology: str, num_slices: int = 1) -> tuple[hardware.Chip | None, Sequence[Any]]:
    """Returns the kind of chip (None for CPUs) and the devices of a topology.

    Raises:
        UserError: unknown or impossible topology, or no libtpu.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        return None, _cpu_devices(topology, shape, num_slices)
    if kind not in hardware.CHIPS or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise errors.UserError(
            f"unknown topology '{topology}'",
            "--topology",
            f"give {', '.join(sorted(hardware.CHIPS))} and a shape, such as v5p:4x4x4, or cpu:8",
        )
    if importlib.util.find_spec("libtpu") is None:
        raise errors.UserError(
            "no TPU compiler on this machine",
            "libtpu",
            "install it: pip install -r requirements-tpu.txt",
        )
    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)  # hosts have four chips otherwise
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (RuntimeError, ValueError, jax.errors.JaxRuntimeError) as error:
        raise errors.UserError(
            f"the TPU compiler refuses the topology ({str(error).splitlines()[0]})",
            f"--topology={topology}",
            "give a slice shape that exists, such as v5e:8x8, v5p:4x4x4 or v6e:8x8",
        ) from error
    return hardware.CHIPS[kind], found.devices


def _cpu_devices(topology: str, count: str, num_slices: int) -> Sequence[Any]:
    available = jax.devices()
    if num_slices > 1:
        raise errors.UserError(
            "CPU devices have no slices", "--num_slices", "leave it out, or give a TPU topology"
        )
    if not count.isdecimal() or not 0 < int(count) <= len(available):
        raise errors.UserError(
            f"{topology} on {len(available)} CPU devices",
            "--topology",
            "give cpu:N with XLA_FLAGS=--xla_force_host_platform_device_count=N",
        )
    return available[: int(count)]


def _before_compiling(
    config: Any, topology: str, mesh: Any, chip: Any, abstract: Any, mathematics: int
) -> Plan:
    """The plan as far as shapes tell."""
    stored = {
        name: sharding.place({name: getattr(abstract, name)}, mesh).bytes_per_device
        for name in ("params", "frozen", "ema_params", "opt_state", "extra")
    }
    trained = params_lib.count(abstract.params)
    forward = config.model.get("gfdm") if config.objective == "joint" else config.model
    return Plan(
        objective=config.objective,
        preset=config.preset,
        topology=topology,
        mesh={axis: int(size) for axis, size in mesh.shape.items()},
        global_batch=config.global_batch,
        remat=forward.unet.remat if "unet" in forward else forward.get("remat"),
        params_total=trained + params_lib.count(abstract.frozen),
        params_trainable=trained,
        parameter_bytes=sum(stored.values()) - stored["opt_state"],
        optimizer_bytes=stored["opt_state"],
        flops_per_step=mathematics,
        hbm_bytes_available=chip.hbm_bytes if chip else None,
    )


def _read_program(plan: Plan, compiled: jax.stages.Compiled, chip: hardware.Chip | None) -> None:
    """Fills in what the compiled program says of itself."""
    memory = compiled.memory_analysis()
    plan.temporary_bytes = memory.temp_size_in_bytes
    plan.program_bytes = memory.generated_code_size_in_bytes
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes
    stored = arguments - memory.alias_size_in_bytes
    used = stored + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    plan.hbm_bytes_per_device, plan.fits = used, chip is None or used <= chip.hbm_bytes
    text = compiled.as_text()
    assert text is not None
    found, devices = hlo.Program(text), math.prod(plan.mesh.values())
    plan.collectives, plan.collective_bytes = collectives_lib.count(found, devices)
    if chip is None:
        return
    cycles = [
        passes * int(number)
        for name, passes in found.passes.items()
        for number in re.findall(r'"estimated_cycles":"(\d+)"', found.computations[name].text)
        if int(number) < _UNKNOWN_CYCLES
    ]
    plan.scheduled_cycles = sum(cycles) or None
    costs = program.costs(found, chip, devices)
    plan.compiled_flops_per_device = costs.flops
    plan.memory_traffic_bytes = costs.traffic_bytes
    plan.exposed_collective_bytes = costs.exposed_bytes
    seconds = hardware.step_seconds(
        operations=costs.operation_seconds, exposed=costs.exposed_seconds
    )
    plan.predicted_step_seconds = seconds
    plan.predicted_mfu = plan.flops_per_step / (seconds * devices * chip.flops)


def _out_of_memory(plan: Plan, error: Exception) -> Plan:
    """The plan of a program that the compiler could not fit; other errors go on.

    Raises:
        JaxRuntimeError: `error`, when it is of another kind.
    """
    found = re.search(r"Used ([\d.]+)([BKMGT])\S* of ([\d.]+)([BKMGT])\S* hbm", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) and not found:
        raise error
    plan.fits = False
    if found:
        plan.hbm_bytes_per_device = int(float(found[1]) * _UNITS[found[2]])
        plan.hbm_bytes_available = int(float(found[3]) * _UNITS[found[4]])
    return plan


def describe(plan: Plan) -> str:
    """The plan for people."""
    rows = [
        ("step", f"{plan.objective} {plan.preset}, global batch {plan.global_batch}"),
        ("devices", f"{plan.topology}, mesh {plan.mesh}"),
        (
            "parameters",
            f"{plan.params_trainable / 1e6:.1f} M trained of {plan.params_total / 1e6:.1f} M",
        ),
        ("remat", plan.remat or "-"),
        ("per device: parameters", _gib(plan.parameter_bytes)),
        ("  optimizer", _gib(plan.optimizer_bytes)),
        ("  activations", _gib(plan.temporary_bytes)),
        ("  program", _gib(plan.program_bytes)),
        ("  used", _gib(plan.hbm_bytes_per_device)),
        ("  available", _gib(plan.hbm_bytes_available)),
        ("fits", {True: "yes", False: "no", None: "unknown"}[plan.fits]),
        ("FLOPs per step", f"{plan.flops_per_step / 1e12:.2f} TF"),
        ("memory traffic", _gib(plan.memory_traffic_bytes)),
    ]
    for kind, size in (plan.collective_bytes or {}).items():
        rows.append((f"{kind} x {(plan.collectives or {})[kind]}", _gib(size)))
    if plan.exposed_collective_bytes is not None:
        rows.append(("exchanges not hidden", _gib(plan.exposed_collective_bytes)))
    if plan.predicted_step_seconds is not None:
        rows.append(("predicted step, at best", f"{plan.predicted_step_seconds:.4f} s"))
        rows.append(("predicted MFU, at best", f"{plan.predicted_mfu:.1%}"))
    rows.append(("compilation", f"{plan.compile_seconds:.0f} s, {plan.peak_compile_gib:.1f} GiB"))
    return "\n".join(f"{name:26}{value}" for name, value in rows)


def _gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f} GiB"
