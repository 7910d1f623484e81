"""What chips can do, and how long a compiled step takes on them by calculation.

Figures per JAX device. Sources: Google Cloud's pages of each TPU version (FLOP/s, memory), the
chip tables of "How to Scale Your Model" (links), NVIDIA's data sheets (dense, not sparse).
"""

import dataclasses
import math

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One JAX device.

    Attributes:
        flops: bfloat16 FLOP/s, dense.
        hbm_bytes: memory.
        hbm_bandwidth: bytes/s.
        link_bandwidth: bytes/s that leave the device over all its links to other chips of a slice.
        tile: side of the matrix unit.
        slice_bandwidth: bytes/s that leave the device to other slices, its share of the host's.
    """

    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    tile: int
    slice_bandwidth: float

    def product_seconds(self, rows: float, depth: int, columns: int) -> float:
        """Time of a product [rows, depth] x [depth, columns] in bfloat16 at the peak of its tiles.

        The matrix unit works on whole tiles: `depth` and `columns` count as multiples of its side,
        rows as multiples of the 8 that a register holds.
        """
        sides = (8, self.tile, self.tile)
        padded = (
            math.ceil(n / side) * side
            for n, side in zip((rows, depth, columns), sides, strict=True)
        )
        return 2.0 * math.prod(padded) / self.flops


def step_seconds(*, operations: float, exposed: float) -> float:
    """Predicted time of a step.

    A lower bound: kernels reach neither peak, what no unit of the formula does (softmax, norms) is
    counted by its traffic alone, and the slow network between slices counts as links.

    Args:
        operations: the sum over operations of the longer of computing (`product_seconds`) and
            traffic at the memory's full rate, seconds.
        exposed: the time of exchanges that no operation hides, seconds.
    """
    return operations + exposed


# Sides of the matrix units: 256 from v6e on ("How to Scale Your Model", chapter on TPUs).
CHIPS = {
    "v4": Chip(275e12, 32 * _GIB, 1200e9, 270e9, 128, 6.25e9),
    "v5e": Chip(197e12, 16 * _GIB, 819e9, 180e9, 128, 3.125e9),
    "v5p": Chip(459e12, 95 * _GIB, 2765e9, 540e9, 128, 6.25e9),
    "v6e": Chip(918e12, 32 * _GIB, 1638e9, 360e9, 256, 12.5e9),
    "tpu7x": Chip(1153e12, 96 * _GIB, 3690e9, 300e9, 256, 12.5e9),  # one of a chip's two devices
}

# Peak bfloat16 FLOP/s by `jax.Device.device_kind`.
_PEAK_FLOPS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device that is there, dense; None where the table does not have it."""
    return _PEAK_FLOPS.get(device_kind)
