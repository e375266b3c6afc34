"""The collectives of a step, read from the compiled program, and how long the links between devices take for them."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# How often the data of a device cross its link.
PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}


@dataclass(frozen=True)
class Collective:
    """An instruction that communicates.

    Attributes:
      kind: one of KINDS.
      name: the traced operation that it is for, as in jit(train_step)/jvp(conv2)/conv_general_dilated; "" if unknown.
        Of several operations that the compiler combined it is one.
      bytes: the size of its whole arrays.
      repeats: how often it runs in a step; more than once in a loop.
    """

    kind: str
    name: str
    bytes: int
    repeats: int


@dataclass(frozen=True)
class Link:
    """The connection between a group of devices, or between such groups.

    Attributes:
      devices: how many it connects; math.inf for all.
      bytes_per_second: that a device sends while it receives as many.
      latency: seconds that a message takes in addition.
    """

    devices: float
    bytes_per_second: float
    latency: float


# The innermost link first. The first two latencies are from NCCL's model (src/graph/tuning.cc: ring, simple protocol),
# the others are assumptions.
FABRICS = {
    # NVIDIA's data sheets: 900 GB/s in both directions together within a machine, a 400 Gb/s adapter for each GPU.
    "8 GPUs on NVLink 4, 400 Gb/s InfiniBand each": (Link(8, 450e9, 3.4e-6), Link(math.inf, 50e9, 9.6e-6)),
    # Google Cloud's page on v5p: 1,200 GB/s a chip, in both directions together.
    "TPU v5p": (Link(math.inf, 600e9, 1e-6),),
    "100 GbE": (Link(math.inf, 100e9 / 8, 20e-6),),
    "25 GbE": (Link(math.inf, 25e9 / 8, 20e-6),),
    "10 GbE": (Link(math.inf, 10e9 / 8, 20e-6),),
}


def find_collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a program in order; those that the compiler combined are one.

    Args:
      hlo: the text of a compiled program, `compiled.as_text()`. A loop of unknown length counts as one iteration.
    """
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    callers, found, computation = {}, [], ""
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            computation = header[1]
        rounds = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        for inner in re.findall(r"(?:body|calls)=%?([\w.-]+)", line):
            callers[inner] = computation, int(rounds[1]) if rounds else 1
        # An asynchronous collective is read at its end, because the line of its start also lists its operands.
        if instruction := re.search(rf" = (.*?) ({'|'.join(KINDS)})(?:-done)?\(", line):
            name = re.search(r'op_name="([^"]*)"', line)
            found.append((computation, instruction[2], instruction[1], name[1] if name else ""))

    def repeats(computation: str) -> int:
        caller, rounds = callers.get(computation, ("", 1))
        return rounds * repeats(caller) if caller else 1

    pieces = {"reduce-scatter": int(partitions[1]) if partitions else 1}  # its result is the share of one device
    return [
        Collective(kind, name, pieces.get(kind, 1) * _bytes(shapes), repeats(computation))
        for computation, kind, shapes, name in found
    ]


def communication_seconds(collectives: Iterable[Collective], devices: int, fabric: tuple[Link, ...]) -> float:
    """Returns how long the collectives of a step take, one after the other.

    On each link of n participants an all-reduce is a reduce-scatter and an all-gather. In each of the two a device
    sends (n - 1) / n of its data, in ceil(log2 n) consecutive messages (Thakur, Rabenseifner, Gropp 2005, section 4.5:
    the bytes of a ring, the latency of a tree). An outer link carries 1 / n of the data of the inner one.

    Args:
      collectives: of a step.
      devices: the number of devices.
      fabric: the links, the innermost first, as in FABRICS.

    Raises:
      ValueError: for all-to-all and collective-permute, whose traffic depends on the pairs of devices.
    """
    total = 0.0
    for collective in collectives:
        if collective.kind not in PASSES:
            raise ValueError(f"the time of {collective.kind} ({collective.name}) is not modelled; leave it out")
        share, left = float(collective.bytes), devices
        for link in fabric:
            joined = min(left, link.devices)
            once = share * (joined - 1) / joined / link.bytes_per_second + math.ceil(math.log2(joined)) * link.latency
            total += collective.repeats * PASSES[collective.kind] * once
            share, left = share / joined, math.ceil(left / joined)
    return total


def efficiency(compute_seconds: float, communication_seconds: float) -> tuple[float, float]:
    """Returns a device's speed relative to its speed alone: without overlap of communication, and with full overlap."""
    after = compute_seconds / (compute_seconds + communication_seconds)
    behind = compute_seconds / max(compute_seconds, communication_seconds)
    return after, behind


def _bytes(shapes: str) -> int:
    """The bytes of shapes in HLO's notation: (f32[3,3,64]{2,1,0}, bf16[])."""
    arrays = re.findall(r"[a-z]+(\d*)\w*\[([\d,]*)\]", shapes)
    return sum(math.prod(map(int, filter(None, sides.split(",")))) * int(bits or 8) // 8 for bits, sides in arrays)
