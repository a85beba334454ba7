"""The collectives of a compiled step, read from the text of its optimised HLO, and the least time that they take.

An instruction counts as often as its loop runs. XLA knows the length of a scan; the loss's loop over chunks depends on
the data, its greatest length is given by the caller.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.hardware.topologies import Topology

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLS = re.compile(r"\b(?:calls|to_apply|called_computations|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)")
_WHILE = re.compile(r" while\(.*\bcondition=%([\w.-]+), body=%([\w.-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?[:=]\{"?n"?:"?([0-9]+)')


@dataclass(frozen=True)
class Collective:
    """The collectives of a step that are of one kind and run over the same mesh axes, taken together.

    Attributes:
      kind: one of KINDS.
      axes: the mesh axes along which the devices of a group differ, as in ("fsdp",).
      count: operations a step.
      payload: bytes a device of the whole arrays: the gathered array, the sum, the array that is scattered.
      sent: bytes that each device must send at the least.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    payload: float
    sent: float


def sent_bytes(kind: str, payload: float, group: int) -> float:
    """Returns the least bytes that each of `group` devices must send for a collective with a `payload`.

    They are (n - 1) / n of the payload, twice that for an all-reduce (Patarasuk and Yuan 2009), and all of it for a
    permutation.
    """
    if kind == "collective-permute":
        return payload
    share = payload * (group - 1) / group
    return 2 * share if kind == "all-reduce" else share


def totals(collectives: Iterable[tuple[str, tuple[str, ...], float, float, int]]) -> list[Collective]:
    """Adds up (kind, axes, count, payload, devices in a group) by kind and axes; what sends most comes first."""
    sums: dict[tuple, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for kind, axes, count, payload, group in collectives:
        if group > 1 and payload:
            entry = sums[kind, axes]
            entry[0] += count
            entry[1] += count * payload
            entry[2] += count * sent_bytes(kind, payload, group)
    summed = [Collective(kind, axes, round(n), payload, sent) for (kind, axes), (n, payload, sent) in sums.items()]
    return sorted(summed, key=lambda one: -one.sent)


def in_hlo(text: str, mesh_shape: dict[str, int], open_loop: int = 1) -> list[Collective]:
    """Returns the collectives of a compiled step.

    Args:
      text: `compiled.as_text()`.
      mesh_shape: name and size of the mesh's axes, in order; device i of the HLO is the i-th of the flat mesh.
      open_loop: how often loops run whose length XLA does not know.
    """
    computations, entry = _computations(re.sub(r"/\*.*?\*/", "", text))
    times = _times(computations, entry, open_loop)
    collectives, seen = [], set()
    for name, lines in computations.items():
        if not times.get(name):
            continue
        for line in lines:
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            channel = re.search(r"\bchannel_id=([0-9]+)", line)
            if channel is not None:  # an asynchronous one may stand in the computations of its start and its end
                if channel[1] in seen:
                    continue
                seen.add(channel[1])
            shape, kind, start = match.groups()
            groups = _groups(line, mesh_shape)
            size = groups.shape[1]
            payload = _payload(kind, _bytes(shape), size, start is not None)
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # how the TPU compiler writes it: a sum of which a part is kept
            collectives.append((kind, _axes(groups, mesh_shape), times[name], payload, size))
    return totals(collectives)


def seconds(collectives: Sequence[Collective], mesh_shape: dict[str, int], topology: Topology) -> float | None:
    """Returns the least seconds in which the devices can send these, every link busy both ways.

    None where the topology's links are not known. Between hosts, what a group sends is first brought together on each,
    so that it crosses the network once a host.
    """
    if topology.interconnect is None:
        return None
    inside = outside = 0.0
    sizes = list(mesh_shape.values())
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    for one in collectives:
        inside += one.sent
        if topology.hosts == 1:
            continue
        moved = [list(mesh_shape).index(axis) for axis in one.axes]
        group = np.moveaxis(ids, moved, range(len(moved))).reshape(-1, ids.size // _size(one.axes, mesh_shape))[:, 0]
        hosts = len(np.unique(group // topology.chip.host_devices))
        whole = one.sent * len(group) / (len(group) - 1)
        outside += whole * (hosts - 1) / hosts / (len(group) / hosts)
    slow = outside / topology.chip.network if topology.hosts > 1 and topology.chip.network else 0.0
    return max(inside / topology.interconnect, slow)


def _size(axes: Iterable[str], mesh_shape: dict[str, int]) -> int:
    return math.prod(mesh_shape[axis] for axis in axes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        elif line.startswith("}"):
            lines = []
        else:
            lines.append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str, open_loop: int) -> dict[str, float]:
    """How often each computation runs in a step, by name."""
    times: dict[str, float] = defaultdict(float)

    def visit(name: str, factor: float) -> None:
        times[name] += factor
        for line in computations.get(name, ()):
            loop = _WHILE.search(line)
            if loop:
                trips = _TRIPS.search(line)
                visit(loop[2], factor * (int(trips[1]) if trips else open_loop))
            for names in _CALLS.findall(line):
                for called in re.findall(r"%([\w.-]+)", names):
                    visit(called, factor)

    visit(entry, 1)
    return times


def _bytes(shape: str) -> float:
    """The bytes of an HLO type; of a tuple, those of all its parts."""
    return sum(
        _BYTES[kind] * math.prod(int(side) for side in sides.split(",") if side)
        for kind, sides in _SHAPE.findall(shape)
        if kind in _BYTES
    )


def _payload(kind: str, size: float, group: int, start: bool) -> float:
    """The payload, from the bytes of an instruction's result; the result of a -start also carries its operands."""
    if kind == "all-gather" and start:
        return size * group / (group + 1)
    if kind == "collective-permute" and start:
        return size / 2
    return size * group if kind == "reduce-scatter" else size


def _groups(line: str, mesh_shape: dict[str, int]) -> np.ndarray:
    """The device numbers of an instruction's groups, [groups, devices in a group]."""
    everyone = np.arange(math.prod(mesh_shape.values()))
    listed = re.search(r"replica_groups=\{((?:\{[0-9,]*\},?)+)\}", line)
    if listed:
        return np.array([[int(i) for i in group.split(",")] for group in re.findall(r"\{([0-9,]+)\}", listed[1])])
    iota = re.search(r"replica_groups=\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?", line)
    if iota:
        shape, dims, order = ([int(i) for i in part.split(",")] if part else None for part in iota.groups())
        ids = everyone.reshape(dims)
        return (ids if order is None else ids.transpose(order)).reshape(shape)
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if named:
        return _named_groups(everyone, named[1], named[2])
    pairs = re.search(r"source_target_pairs=\{((?:\{[0-9]+,[0-9]+\},?)+)\}", line)
    if pairs:
        moves = np.array([[int(i) for i in pair] for pair in re.findall(r"\{([0-9]+),([0-9]+)\}", pairs[1])])
        return moves[moves[:, 0] != moves[:, 1]] if (moves[:, 0] != moves[:, 1]).any() else moves[:, :1]
    return everyone[None]


def _named_groups(everyone: np.ndarray, mesh: str, axes: str) -> np.ndarray:
    """The groups along some axes of a mesh, "'a'=2,'b'=4" and "'b'"; "'b':(2)2" is b's factor 2 after a factor 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=([0-9]+)", mesh)}
    chosen = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\(([0-9]+)\)([0-9]+))?", axes)}
    dims, grouped = [], []
    for name, size in sizes.items():
        before, part = chosen.get(name, ("", ""))
        if name in chosen:
            grouped.append(len(dims) + bool(part))
        dims += [int(before), int(part), size // int(before) // int(part)] if part else [size]
    rest = [axis for axis in range(len(dims)) if axis not in grouped]
    ids = everyone.reshape(dims).transpose([*rest, *grouped])
    return ids.reshape(-1, math.prod(dims[axis] for axis in grouped))


def _axes(groups: np.ndarray, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of some group differ."""
    places = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
    differs = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(name for name, yes in zip(mesh_shape, differs, strict=True) if yes)
