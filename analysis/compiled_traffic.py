"""The kernels of a program that XLA compiled for a GPU, and the bytes that each one reads and writes.

A compiled program is a list of kernels: convolutions and products of libraries, and fusions that XLA wrote itself.
Every kernel reads its operands from memory and writes its results there, so the traffic follows from the program's
text.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

SMALL = 4e6  # bytes; smaller kernels work on parameters and statistics, and most of their time is the launch

CONVOLUTION = "convolution"
INPUT_GRADIENT, WEIGHT_GRADIENT = "convolution: input gradient", "convolution: weight gradient"
PRODUCT, POOLING = "matrix product", "pooling"
FORWARD_SUMS, BACKWARD_SUMS = "sums over positions, forward", "sums over positions, backward"
FORWARD_MAPS, BACKWARD_MAPS = "element-wise, forward", "element-wise, backward"
PARAMETERS, SMALL_KERNELS = "optimizer, casts, input", "kernels under 4 MB"
ROLES = (
    CONVOLUTION,
    INPUT_GRADIENT,
    WEIGHT_GRADIENT,
    PRODUCT,
    POOLING,
    FORWARD_SUMS,
    BACKWARD_SUMS,
    FORWARD_MAPS,
    BACKWARD_MAPS,
    PARAMETERS,
    SMALL_KERNELS,
)

_COSTS_NOTHING = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "opt-barrier"}
_CUDNN = {
    "__cudnn$convForward": CONVOLUTION,
    "__cudnn$convBiasActivationForward": CONVOLUTION,
    "__cudnn$convBackwardInput": INPUT_GRADIENT,
    "__cudnn$convBackwardFilter": WEIGHT_GRADIENT,
}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c64|c128|f8\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Kernel:
    """A kernel of a compiled program.

    Attributes:
      name: the instruction's, as in loop_convert_fusion.23.
      role: one of ROLES.
      read: bytes of its operands.
      written: bytes of its results.
      flops: floating-point operations of a convolution, two for each multiply-accumulate; 0 for other kernels.
      operations: the kinds of instructions that are fused into it, as in {"multiply", "reduce"}.
      origin: the traced operation that it came from, as in jit(train_step)/jvp(stage1.0)/conv1/conv_general_dilated.
    """

    name: str
    role: str
    read: int
    written: int
    flops: int
    operations: frozenset[str]
    origin: str

    @property
    def moved(self) -> int:
        """Bytes that are read and written."""
        return self.read + self.written


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    text: str

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.text)
        return found[1] if found else ""


def target_mesh(description: pathlib.Path) -> Mesh:
    """Returns a mesh of one GPU that is described and need not be present.

    JAX's CUDA plugin must be installed.

    Args:
      description: a file with XLA's description of a GPU, such as benchmarks/h200.txtpb.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if not description.is_file():
        raise FileNotFoundError(f"--target={description} does not exist; give benchmarks/h200.txtpb")
    topology = topologies.get_topology_desc(
        "1x1x1", platform="cuda", topology="1x1x1", target_config=description.read_text()
    )
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def find_kernels(hlo: str) -> list[Kernel]:
    """Returns the kernels of a program in its order.

    Args:
      hlo: the text of a program that was compiled for a GPU, `compiled.as_text()`. The body of a loop counts once.
    """
    computations, entry = _parse(hlo)
    return list(_kernels(computations, entry))


def bound_seconds(kernels: Iterable[Kernel], bytes_per_second: float, flops_per_second: float) -> float:
    """Returns the least time that the kernels take, one after the other, at a device's rates."""
    return sum(max(kernel.moved / bytes_per_second, kernel.flops / flops_per_second) for kernel in kernels)


def bytes_by_role(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Returns the bytes that the kernels of each of ROLES move."""
    moved = dict.fromkeys(ROLES, 0)
    for kernel in kernels:
        moved[kernel.role] += kernel.moved
    return moved


def _parse(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Returns the instructions of each computation by their names, and the name of the entry computation."""
    computations: dict[str, dict[str, _Instruction]] = {}
    instructions: dict[str, _Instruction] = {}
    entry = ""
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            instructions = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        # The shape of a result may be a tuple, with layouts in braces and comments such as /*index=5*/.
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)", line):
            name, shape, operation, operands = found.groups()
            names = tuple(re.findall(r"%([\w.-]+)", operands))
            instructions[name] = _Instruction(name, shape, operation, names, line)
    return computations, entry


def _kernels(computations: dict[str, dict[str, _Instruction]], computation: str) -> Iterator[Kernel]:
    instructions = computations[computation]
    for each in instructions.values():
        if each.operation in ("call", "while", "conditional", "async-start"):  # a call is a command buffer
            for inner in re.findall(r"(?:to_apply|body|calls|branch_computations=\{)=?%?([\w.-]+)", each.text):
                yield from _kernels(computations, inner)
        elif each.operation not in _COSTS_NOTHING:
            fused = computations.get(each.attribute(r"calls=%?([\w.-]+)"), {})
            yield _kernel(each, instructions, fused)


def _kernel(each: _Instruction, known: dict[str, _Instruction], fused: dict[str, _Instruction]) -> Kernel:
    target = each.attribute(r'custom_call_target="([^"]*)"')
    results = [_bytes(*array) for array in _ARRAY.findall(each.shape)]
    written = results[0] if target in _CUDNN else sum(results)  # cuDNN's second result is scratch memory
    read = sum(_bytes_read(name, known, fused, number) for number, name in enumerate(dict.fromkeys(each.operands)))
    operations = frozenset(instruction.operation for instruction in fused.values()) | {each.operation}
    origin = each.attribute(r'op_name="([^"]*)"')
    role = _role(target, read + written, operations, origin)
    flops = _convolution_flops(each, known, _CUDNN[target]) if target in _CUDNN else 0
    return Kernel(each.name, role, read, written, flops, operations, origin)


def _bytes_read(operand: str, known: dict[str, _Instruction], fused: dict[str, _Instruction], number: int) -> int:
    """The bytes of an operand; of one that a fusion only takes slices from, the bytes of the slices."""
    whole = sum(_bytes(*array) for array in _ARRAY.findall(known[operand].shape)) if operand in known else 0
    parameter = next((name for name, inner in fused.items() if f" parameter({number})" in inner.text), None)
    users = [inner for inner in fused.values() if parameter in inner.operands]
    if users and all(inner.operation in ("slice", "dynamic-slice", "gather") for inner in users):
        return min(whole, sum(_bytes(*array) for inner in users for array in _ARRAY.findall(inner.shape)))
    return whole


def _role(target: str, moved: int, operations: frozenset[str], origin: str) -> str:
    backward = "transpose(" in origin
    if target in _CUDNN:
        # XLA turns the input gradient of a convolution without stride into another forward convolution.
        return INPUT_GRADIENT if backward and _CUDNN[target] == CONVOLUTION else _CUDNN[target]
    if "dot" in operations or re.search("cublas|triton_gemm", target):
        return PRODUCT
    if moved < SMALL:
        return SMALL_KERNELS
    if operations & {"reduce-window", "select-and-scatter"} or re.search("reduce_window|max_pool", origin):
        return POOLING
    if "reduce" in operations:
        return BACKWARD_SUMS if backward else FORWARD_SUMS
    if "jvp(" in origin:
        return BACKWARD_MAPS if backward else FORWARD_MAPS
    return PARAMETERS


def _convolution_flops(each: _Instruction, known: dict[str, _Instruction], role: str) -> int:
    """Two operations for each element of the map behind the convolution and each weight that leads to it."""
    arrays = [each.shape, *(known[name].shape for name in each.operands[:2])]
    sides = [_sides(_ARRAY.findall(shape)[0][1]) for shape in arrays]
    result, first, second = sides
    cases = {CONVOLUTION: (result, second), INPUT_GRADIENT: (first, second), WEIGHT_GRADIENT: (second, result)}
    maps, kernel = cases[role]
    labels = each.attribute(r"dim_labels=\w+_(\w+)->")
    return 2 * math.prod(maps) * math.prod(kernel) // kernel[labels.index("o")]


def _sides(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side)


def _bytes(kind: str, sides: str) -> int:
    bits = re.search(r"\d+", kind)
    return math.prod(_sides(sides)) * (int(bits[0]) if bits else 8) // 8
