"""Known accelerators and the topologies made of them, as in `v6e:2x4`. Standard library only.

The table lists what one JAX *device* has: the two cores of a TPU v3 chip are two devices, every other chip is one.
TFLOP/s are dense peaks as the makers state them (no sparsity), with float32 sums. Bandwidths are in bytes a second.

Sources, by maker:
  Google     cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e (peak compute, HBM, interconnect a chip); links of v3
             and v4: Jouppi et al., "TPU v4: An Optically Reconfigurable Supercomputer", arXiv:2304.01433. Memory is
             what libtpu's compiler allows a program ("available HBM"), a little below the page's figure.
  NVIDIA     data sheets "NVIDIA H100", "NVIDIA H200", "NVIDIA A100", "NVIDIA L40S", "NVIDIA L4" and "NVIDIA T4 Tensor
             Core GPU"; whitepapers "NVIDIA Ada GPU Architecture" (GeForce RTX 4090) and "NVIDIA Ampere GA102 GPU
             Architecture" (RTX 3090). A stated GB is read as 10^9 bytes. Host network of the eight-GPU machines: the
             user guides of DGX H100/H200 (8 x 400 Gb/s) and DGX A100 (8 x 200 Gb/s); for the others 100 Gb/s a host.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
T = 10**12
G = 10**9


@dataclass(frozen=True)
class Chip:
    """One kind of device.

    Attributes:
        name: the name in topologies, "v6e".
        kind: a regular expression that matches JAX's `device_kind` from the beginning of a word.
        platform: JAX's name of the platform.
        memory: bytes a program may use (for GPUs: all there are); None where it is the host's.
        bf16_flops, f32_flops: FLOP/s of matrix products in these dtypes; None where the maker states none.
        bandwidth: bytes a second between the device and its memory.
        link: bytes a second that one device sends (and at the same time receives): over one link of a torus for TPUs,
            over all its links to the devices of its own host for GPUs.
        dimensions: of the torus that TPU chips form; 0 for GPUs, where all devices of a host are connected.
        cores: JAX devices a chip, which share its links.
        host_devices: the largest number of GPUs of a host.
        network: bytes a second that one device sends to other hosts when all of its host do; None within a torus.
    """

    name: str
    kind: str
    platform: Literal["tpu", "gpu", "cpu"]
    memory: int | None
    bf16_flops: float | None
    f32_flops: float | None
    bandwidth: float | None
    link: float | None
    dimensions: int = 0
    cores: int = 1
    host_devices: int = 8
    network: float | None = None

    def flops(self, dtype: str) -> float | None:
        """Returns the FLOP/s of matrix products in `dtype`, "bfloat16" or "float32"; None where none is stated."""
        return self.bf16_flops if dtype == "bfloat16" else self.f32_flops


def _tpu(name, kind, memory_gib, bf16, bandwidth, link, dimensions, cores=1) -> Chip:
    # float32 products at JAX's HIGHEST precision are six passes in bfloat16.
    return Chip(name, kind, "tpu", int(memory_gib * GIB), bf16, bf16 / 6, bandwidth, link, dimensions, cores)


def _gpu(name, kind, gb, bf16, f32, bandwidth, link, network=100 * G / 8 / 8) -> Chip:
    return Chip(name, kind, "gpu", gb * G, bf16, f32, bandwidth, link, network=network)


PCIE_3, PCIE_4 = 16 * G, 32 * G  # 16 lanes, each way

CHIPS = (
    # a core of the chip's two, each with half of 123 TFLOP/s, 32 GiB and 900 GB/s
    _tpu("v3", "TPU v3", 15.48, 61.5 * T, 450 * G, 70 * G, 2, cores=2),
    _tpu("v4", "TPU v4", 30.75, 275 * T, 1228 * G, 50 * G, 3),
    _tpu("v5e", "TPU v5 lite|TPU v5e", 15.75, 197 * T, 819 * G, 50 * G, 2),
    _tpu("v5p", "TPU v5p|TPU v5$", 95.73, 459 * T, 2765 * G, 100 * G, 3),
    _tpu("v6e", "TPU v6 lite|TPU v6e", 31.24, 918 * T, 1640 * G, 100 * G, 2),
    _gpu("h100", "H100", 80, 989 * T, 67 * T, 3350 * G, 450 * G, network=50 * G),
    _gpu("h200", "H200", 141, 989 * T, 67 * T, 4800 * G, 450 * G, network=50 * G),
    _gpu("a100", "A100.*80GB", 80, 312 * T, 19.5 * T, 2039 * G, 300 * G, network=25 * G),
    _gpu("a100-40", "A100", 40, 312 * T, 19.5 * T, 1555 * G, 300 * G, network=25 * G),
    _gpu("l40s", "L40S", 48, 362 * T, 91.6 * T, 864 * G, PCIE_4),
    _gpu("l4", "L4", 24, 121 * T, 30.3 * T, 300 * G, PCIE_4),
    # no bfloat16 in hardware: XLA computes in float32
    _gpu("t4", "T4", 16, 8.1 * T, 8.1 * T, 320 * G, PCIE_3),
    _gpu("4090", "RTX 4090", 24, 165.2 * T, 82.6 * T, 1008 * G, PCIE_4),
    _gpu("3090", "RTX 3090", 24, 71 * T, 35.6 * T, 936 * G, PCIE_4),
    Chip("cpu", "cpu", "cpu", None, None, None, None, None),
)

EXAMPLES = "v6e:2x4, v3:2x2, v3:4x4, v6e:16x16, h200:8, cpu:8"


def chip_of(device_kind: str) -> Chip | None:
    """Returns the chip of a `jax.Device.device_kind`, "NVIDIA H200" or "TPU v6 lite"; None for unknown kinds."""
    for chip in CHIPS:
        if re.search(rf"\b(?:{chip.kind})\b", device_kind):
            return chip
    return None


@dataclass(frozen=True)
class Topology:
    """Chips of one kind in a torus or on hosts. Make one with `parse_topology`.

    Attributes:
        text: as it was written, "v6e:2x4".
        chip: the kind.
        shape: the number of chips along each side.
    """

    text: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """The number of devices as JAX counts them."""
        return self.num_chips * self.chip.cores

    @property
    def accelerator_type(self) -> str:
        """Google's name of the slice, "v6e-8", which counts cores for v3, v4 and v5p, and chips for v5e and v6e."""
        cores = {"v3": 2, "v4": 2, "v5p": 2}.get(self.chip.name, 1)
        return f"{'v5litepod' if self.chip.name == 'v5e' else self.chip.name}-{self.num_chips * cores}"

    @property
    def interconnect(self) -> float | None:
        """The bytes a second that a device can send to its neighbours, over all links that the shape gives it.

        Along a side of two chips each has one link, along a longer one two; the cores of a chip share them.
        """
        if self.chip.dimensions == 0:
            return self.chip.link
        links = sum(min(side - 1, 2) for side in self.shape)
        # The cores of a single chip are connected within it; that bandwidth is not published.
        return self.chip.link * max(links, 1) / self.chip.cores

    @property
    def hosts(self) -> int:
        """The number of machines between which the network is slower: 1 within a torus."""
        return 1 if self.chip.dimensions else math.ceil(self.num_devices / self.chip.host_devices)


def parse_topology(text: str) -> Topology:
    """Returns the topology of a text CHIP:SHAPE: v6e:2x4 (chips along each side of the torus), h200:8, cpu:8 (devices).

    Raises:
        ValueError: the chip is not known, or cannot have this shape; the message is one line.
    """
    name, colon, sides = text.strip().lower().partition(":")
    chip = next((chip for chip in CHIPS if chip.name == name), None)
    if chip is None or not colon:
        known = ", ".join(chip.name for chip in CHIPS)
        raise ValueError(f"topology {text!r} is not CHIP:SHAPE with a chip of {known}; for example {EXAMPLES}")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sides):
        raise ValueError(f"topology {text!r}: {sides!r} is no shape; write it as in {EXAMPLES}")
    shape = tuple(int(side) for side in sides.split("x"))
    dimensions = chip.dimensions or 1
    if len(shape) > dimensions or (chip.dimensions and len(shape) < 2):
        what = f"chips along {dimensions} sides, as in {name}:{'x'.join('2' * dimensions)}"
        raise ValueError(f"topology {text!r}: {name} wants {what if chip.dimensions else f'a number, as in {name}:8'}")
    shape += (1,) * (dimensions - len(shape))
    if chip.platform == "gpu" and shape[0] > chip.host_devices and shape[0] % chip.host_devices:
        raise ValueError(
            f"topology {text!r}: more than {chip.host_devices} {name} are several hosts of {chip.host_devices}; "
            f"take a multiple of {chip.host_devices}"
        )
    return Topology(f"{name}:{sides}", chip, shape)
