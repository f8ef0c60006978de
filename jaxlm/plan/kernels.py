"""Work that a compiler does not cost: kernels, gathers, sorts, copies; and the FLOPs of what is a matrix product."""

import dataclasses
import functools
import math
import re

import numpy as np

from jaxlm.ops.splash import SPLASH_BLOCKS
from jaxlm.plan.hlo import FREE, Instruction, Program, Shape

# Custom calls that only tell the compiler something, or name memory.
HINTS = {
    "AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding",
    "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement",
}  # fmt: skip
# Matrix products over all pairs of a query and a key: one pass forward makes scores and sums values; backward, scores are
# made again; from them and the output's gradient come those of keys and values (three more) and of queries (two more).
ATTENTION_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """An operation, or several that are alike, of which the compiler gives no estimate."""

    name: str
    """The kernel's name; else the opcode, or the custom call's target."""
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    bytes: int
    """What one execution reads and writes at least: operands and results; of a gather what it takes, not what it takes from."""
    flops: float | None
    """Floating-point operations of one execution, where name and shapes tell.

    Attention as causal where queries are all of a row, or halves of stretches of it that mirror one another (ops/splash.py);
    of the last stretch otherwise (a narrower window would need less). Grouped products of all rows.
    """
    times: int
    """Executions in one call of the program."""
    asynchronous: bool
    """Whether it runs beside the schedule, such as a copy between memories."""
    op_name: str
    source: str
    """`file:line`."""


def kernel(each: Instruction, times: int) -> Work | None:
    """Return a call of a kernel written by hand (Pallas, Triton) or from a library (cuDNN, cuBLAS) as work; else None."""
    target = each.attribute("custom_call_target").strip('"')
    if target == "tpu_custom_call":
        # The compiler names the instruction after the kernel, and numbers those that are alike.
        name = re.sub(r"(\.\d+|\.clone|\.remat\d*)+$", "", each.name)
        name = re.sub(r"^((transpose|jvp|vmap|jit)_)+|_+$", "", name)
        if re.fullmatch(r"(custom-call|pallas_call|closed_call)", name):
            parts = [part for part in each.op_name.split("/") if part and part != "pallas_call"]
            name = parts[-1] if parts else target
    elif target.startswith(("__cublas", "__cudnn", "__gpu$", "triton", "mosaic_gpu")):
        name = target
    else:
        return None
    operands, results = each.reads, each.results
    op_name, source = each.origin
    size = sum(shape.bytes for shape in (*operands, *results))
    return Work(
        name=name, operands=operands, results=results, bytes=size, flops=kernel_flops(each, name),
        times=times, asynchronous=False, op_name=op_name, source=source,
    )  # fmt: skip


def kernel_flops(each: Instruction, name: str) -> float | None:
    """Return the FLOPs of one execution of a kernel: stated by it, or by what its name says that its shapes mean."""
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', each.attributes)
    if stated and int(stated[1]):
        return float(stated[1])
    if "cublas" in name:
        return _cublas_flops(each)
    arrays = [shape for shape in each.reads if shape.dtype in ("bf16", "f16", "f32") and len(shape.dims) >= 2]
    product = next((count for part, count in ATTENTION_PRODUCTS.items() if part in name), None)
    if re.search(r"splash|flash", name) and product and len(arrays) >= 2:
        # Without batch dimensions of its own (multi-query), a key array serves several query heads.
        queries, keys = arrays[0].dims, arrays[1].dims
        fused = product == 4 and re.search(r'use_fused_bwd_kernel\\*": true', each.attributes)
        halved = queries[-2] == keys[-2] or queries[-2] % (2 * SPLASH_BLOCKS[-1]) == 0
        pairs = math.prod(queries[:-1]) * keys[-2] / (2 if halved else 1)
        return 2.0 * (5 if fused else product) * pairs * queries[-1]
    if re.search(r"(^|[^a-z])t?gmm", name) and len(arrays) >= 2 and each.results:
        # One side of the product holds all rows; groups only say which of the matrices a row meets.
        left, right, result = arrays[0].dims, arrays[1].dims, each.results[0].dims
        return 2.0 * math.prod(left) * (result[-1] if len(right) > 2 else right[-1])
    return None


def _cublas_flops(each: Instruction) -> float | None:
    config = each.config.get("gemm_backend_config", {})
    numbers = config.get("dot_dimension_numbers", {})
    if not numbers or len(each.reads) < 2:
        return None
    contracted = math.prod(each.reads[0].dims[int(axis)] for axis in numbers.get("lhs_contracting_dimensions", ()))
    return 2.0 * math.prod(each.results[0].dims) * contracted


def uncosted(program: Program, each: Instruction, times: int) -> Work | None:
    """Return an instruction of a schedule as work where the compiler gives no estimate; None for what costs next to nothing."""
    target = each.attribute("custom_call_target").strip('"') if each.opcode == "custom-call" else ""
    if each.cycles or each.opcode in FREE or each.opcode.endswith("-done") or target in HINTS:
        return None
    if not any(shape.dims for shape in each.results):
        return None  # bookkeeping of loops
    name, results = target or each.opcode, each.results
    inside = [each]
    if each.opcode == "fusion":
        inside = list(_inside(program, each))
        name = next(
            (f"{op} fusion" for op in ("scatter", "gather", "sort") if any(one.opcode == op for one in inside)), "fusion"
        )
        if any(one.opcode == "custom-call" and "AsyncCollective" in one.attributes for one in inside):
            return None
    if each.opcode.endswith("-start"):
        # The result holds what is being moved, where it goes to, and handles.
        results = results[:1] if each.opcode == "copy-start" else results[len(each.reads) :][:1]
    flops = sum(product_flops(one) for one in inside)
    op_name, source = each.origin
    return Work(
        name=name, operands=each.reads, results=results, bytes=_touched(each, inside, results), flops=flops or None,
        times=times, asynchronous=each.opcode.endswith("-start"), op_name=op_name, source=source,
    )  # fmt: skip


def _inside(program: Program, fusion: Instruction) -> list[Instruction]:
    found = []
    for names in fusion.called.values():
        for name in names:
            for each in program.computations.get(name, ()):
                found.append(each)
                found += _inside(program, each) if each.opcode == "fusion" else ()
    return found


def _touched(each: Instruction, inside: list[Instruction], results: tuple[Shape, ...]) -> int:
    """Return the bytes that an instruction reads and writes at least: memory that stays as it is does not count."""
    written = sum(shape.bytes for shape in results)
    scatter = next((one for one in inside if one.opcode in ("scatter", "dynamic-update-slice")), None)
    if scatter is not None:
        # In place: updates are read, and what they change is read and written.
        changed = scatter.reads[2 if scatter.opcode == "scatter" else 1].bytes
        indices = scatter.reads[1].bytes if scatter.opcode == "scatter" else 0
        return 3 * changed + indices
    read = sum(min(shape.bytes, written) for shape in each.reads)
    if each.opcode.endswith("-start"):
        return 2 * written
    taken = any(one.opcode in ("gather", "dynamic-slice", "slice") for one in inside)
    return written + (read if taken else sum(shape.bytes for shape in each.reads))


def product_flops(each: Instruction) -> float:
    """Return the FLOPs of a `dot` or a `convolution` (on a TPU every matrix product is one), 0 of all else.

    Two for each multiplication that meets an element: not those with padding, nor with the holes of a dilated operand.
    """
    if each.opcode == "dot":
        axes = [int(axis) for axis in re.findall(r"\d+", each.attribute("lhs_contracting_dims"))]
        return 2.0 * math.prod(each.results[0].dims) * math.prod(each.reads[0].dims[axis] for axis in axes)
    labels = re.match(r"(\w+)_(\w+)->(\w+)", each.attribute("dim_labels")) if each.opcode == "convolution" else None
    if not labels or len(each.reads) < 2:
        return 0.0
    sizes = [
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels.groups(), (*each.reads[:2], each.results[0]), strict=True)
    ]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", each.attribute("window")))
    pairs = 1
    for place, label in enumerate(sorted(label for label in labels[3] if label.isdecimal())):
        each_way = {name: value.split("x")[place] for name, value in window.items()}
        lengths = (sizes[0][label], sizes[1][label], sizes[2][label])
        low = int(each_way.get("pad", "0_0").split("_")[0])
        stride, dilation, spread = (int(each_way.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate"))
        pairs *= _meetings(lengths, stride, low, dilation, spread)
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs


@functools.lru_cache(maxsize=1024)
def _meetings(lengths: tuple[int, int, int], stride: int, low: int, dilation: int, spread: int) -> int:
    """Return how many pairs of an output's place and a window's place meet an element of the input."""
    length, window, out = lengths
    places = np.arange(out)[:, None] * stride + np.arange(window)[None] * spread - low
    return int(((places >= 0) & (places <= (length - 1) * dilation) & (places % dilation == 0)).sum())
