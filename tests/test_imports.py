"""Imports point one way, in no circle, and nothing that can run code from data is called."""

import ast
import functools
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OURS = ("defi_jax", "data_pipelines", "tools")
FILES = sorted(
    path for top in (*OURS, "configs", "launch", "rollout") for path in (ROOT / top).rglob("*.py")
)
RISKY = re.compile(
    r"\b(pickle\.loads?|torch\.load|allow_pickle=True|yaml\.load\(|eval\(|exec\(|shell=True"
    r"|extractall|cloudpickle|marshal\.)"
)
FOREIGN_TO_ROLLOUT = {*OURS, "configs", "launch", "flax", "optax", "orbax", "tensorflow", "torch"}

# The floors of each package, from the ground up: a room imports those below it. Rooms that share a
# floor do not know each other.
FLOORS = {
    "defi_jax": (
        "errors",
        "peers",
        "array_typing cli embodiment local_processes processes tensor_files",
        "batch config_keys partition diffusion",
        "models",
        "checkpoints objectives",
        "training export weights",
    ),
    "data_pipelines": (
        "episodes files formats",
        "pixels",
        "normalization open_x",
        "sources",
        "tfds_builders",
        "store",
        "collect latents streaming",
        "loading",
    ),
    "tools": ("checkpoint data demo imagine plan watch", "report"),
}

# The same for the files of a room; in rooms that are absent here no file imports another.
FILE_FLOORS = {
    "data_pipelines.formats": (
        "array_records contact_sheet containers csv_files image json_files numpy_pickle tfrecord",
        "video_display",
        "video",
    ),
    "data_pipelines.loading": (
        "meaning named_mixtures splits",
        "config",
        "sample_kinds",
        "mixtures reading",
        "store_batches stream_batches",
        "features",
        "loader",
    ),
    "data_pipelines.open_x": (
        "columns gripper rotation",
        "base",
        "episode exported registry",
        "documentation",
    ),
    "data_pipelines.sources": (
        "synthetic video_folder workers",
        "base",
        "lerobot_tables rlds_directory video_clips",
        "lerobot_checks rlds_record rlds_standard",
        "calvin ego4d epic_kitchens lerobot rlds video_layout",
        "dlimp_dataset human_video",
        "dlimp",
    ),
    "data_pipelines.store": (
        "shards",
        "reader writer",
        "beam convert export",
        "validate",
    ),
    "defi_jax.checkpoints": (
        "library_noise storage train_state",
        "digests",
        "format",
        "copying leftovers",
        "manager",
    ),
    "defi_jax.export": (
        "program",
        "description",
        "writer",
    ),
    "defi_jax.models": (
        "action_denoiser clip_text dinov2 params svd_unet svd_vae t5_encoder vector_quantizer "
        "video_former",
        "gfdm latent_action",
        "gidm",
        "policy",
    ),
    "defi_jax.models.frozen": (
        "bytes_text tokenizers types",
        "scratch",
        "pretrained",
        "encoders",
    ),
    "defi_jax.models.layers": (
        "linear norms stack",
        "attention conv",
        "residual",
        "video_transformer",
    ),
    "defi_jax.objectives": (
        "base host image_metrics probe",
        "setup",
        "gfdm gidm joint",
    ),
    "defi_jax.training": (
        "flops hardware ledger metrics optimizer profiling sharding spikes warm_start "
        "stop_signals workdir_lock",
        "device_batches same_run step stragglers watchdog",
        "progress",
        "periodic start",
        "loop",
    ),
    "defi_jax.weights": (
        "fields layouts",
        "table",
        "sources",
        "importers",
        "run_export",
    ),
    "defi_jax.weights.parity": (
        "golden runner",
        "kinds",
        "check",
    ),
    "defi_jax.weights.tables": (
        "clip_openai clip_text diffusers_names dinov2 gidm t5_encoder",
        "policy",
    ),
    "tools.data": (
        "bench convert_options preview step_batch",
        "commands",
    ),
    "tools.report": (
        "charts files",
        "moving numbers pictures",
        "page",
        "writer",
    ),
}

# Of another package of ours, each may import these rooms; None stands for all.
DOORS = {
    "defi_jax": {},
    "data_pipelines": {"defi_jax": {"batch", "cli", "embodiment", "errors", "weights"}},
    "tools": {"defi_jax": None, "data_pipelines": None},
}


@functools.cache
def _imports(path: pathlib.Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES if path.relative_to(ROOT).parts[0] in OURS}
ROOMS = sorted({".".join(name.split(".")[:2]) for name in MODULES if "." in name})


def _below(names: frozenset[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def _floor(room: str) -> int:
    package, name = room.split(".")
    return next(i for i, floor in enumerate(FLOORS[package]) if name in floor.split())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_foreign_is_imported(path):
    names = _imports(path)
    package = path.relative_to(ROOT).parts[0]
    forbidden = _below(names, "torch") | _below(names, "flax.linen")
    if package == "rollout":
        forbidden |= {name for name in names if name.split(".")[0] in FOREIGN_TO_ROLLOUT}
    if package in OURS:
        forbidden |= _below(names, "configs") | _below(names, "launch")
        others = {top: rooms for top, rooms in DOORS[package].items() if rooms is not None}
        closed = {*OURS} - {package} - DOORS[package].keys()
        forbidden |= {name for top in closed for name in _below(names, top)}
        for top, rooms in others.items():
            open_rooms = {name for room in rooms for name in _below(names, f"{top}.{room}")}
            forbidden |= _below(names, top) - open_rooms - {top}
    assert not forbidden


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_on_lower_floors(room):
    package = room.split(".")[0]
    inside = [name for name in MODULES if name == room or name.startswith(f"{room}.")]
    names = frozenset().union(*(_imports(MODULES[name]) for name in inside))
    used = {other for other in ROOMS if other.startswith(f"{package}.") and _below(names, other)}
    assert {other for other in used - {room} if _floor(other) >= _floor(room)} == set()


@pytest.mark.parametrize("room", FILE_FLOORS)
def test_a_file_imports_only_those_on_lower_floors(room):
    floors = {name: i for i, names in enumerate(FILE_FLOORS[room]) for name in names.split()}
    inside = {name for name in MODULES if name.rpartition(".")[0] == room}
    files = {name.rpartition(".")[2]: MODULES[name] for name in inside}
    files = {name: path for name, path in files.items() if path.name != "__init__.py"}
    assert files.keys() == floors.keys(), f"declare the floor of each file in FILE_FLOORS[{room!r}]"
    for name, path in files.items():
        used = {other for other in files if _below(_imports(path), f"{room}.{other}")} - {name}
        assert {other for other in used if floors[other] >= floors[name]} == set(), name


def test_no_circle():
    graph = {name: set() for name in MODULES}
    for name, path in MODULES.items():
        graph[name] = {other for other in _imports(path) & MODULES.keys() if other != name}
        graph[name] -= {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_code_from_data(path):
    assert not RISKY.findall(path.read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda p: p.name)
def test_launch_scripts_stay_short(path):
    assert len(path.read_text().splitlines()) < 80
