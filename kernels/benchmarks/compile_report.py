"""Compiles every Triton kernel of dla_kernels for GPUs that this machine need not have, and reports its resource needs.

The launchers run as they would on a GPU, at the paper's shapes or others (`--shape`) and with the sizes shipped for
the target, while launches are recorded instead of executed; each recorded kernel is then compiled. Compiling proves
little by itself (a tile of any size compiles), so the report also shows shared memory and registers spilled to the
stack, and `--check` fails if they exceed the limits below. It also fails if machine code for Hopper or Blackwell reads
a uniform register that nothing sets (`uniform_registers.py`). It says nothing else about results or speed.

    python kernels/benchmarks/compile_report.py [--check] [--once] [--target sm_90 ...] [--type bf16 ...] \
        [--shape mamba2 ...] [--kernel ...]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
import uniform_registers
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dla_kernels.assembler import VARIABLE, use_right_assembler

SHARED_LIMIT = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10,
    "sm_120": 99 << 10, "gfx942": 64 << 10,
}  # fmt: skip
"""Bytes of shared memory that one program may use (opt-in maximum)."""
STACK_LIMIT = {"bf16": 512, "fp16": 512, "fp32": 3072}
"""Bytes of stack, where registers spill to, allowed per thread. Not zero, because versions of Triton differ. float32
products run on ordinary units and take all registers; those kernels have to be right, not fast."""
OF_DESCRIPTORS = ("sm_90", "sm_100")
"""Targets whose tensor cores take descriptors from uniform registers; their machine code is searched for unset ones."""
ANY_DRIVER = 99
"""A CUDA version above all others: nothing is run here, so no driver limits the choice of the assembler."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
"""Options of a launch that go to the compiler; they are no parameters of the kernel."""
POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32",
    torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one layer: H, G, K, V, M."""

    heads: int
    groups: int
    key_dim: int
    value_dim: int
    slots: int
    delta: bool


PAPER = {
    "mamba2": Shape(heads=48, groups=1, key_dim=128, value_dim=64, slots=30, delta=False),
    "gdn": Shape(heads=6, groups=6, key_dim=192, value_dim=384, slots=30, delta=True),
}
HIDDEN = 1536
"""Width of the residual stream of the paper's models; it is in float32 or in the type of the products."""
EXTREMES = {
    f"{name}{'-delta' if delta else ''}": Shape(
        heads=2, groups=2, key_dim=key_dim, value_dim=value_dim, slots=slots, delta=delta
    )
    for name, key_dim, value_dim, slots in (
        ("largest", 256, 512, 64), ("smallest", 16, 16, 1), ("tall", 256, 16, 30), ("wide", 16, 512, 64),
        ("square", 128, 128, 30), ("odd", 24, 40, 5),
    )
    for delta in (False, True)
}  # fmt: skip
"""The limits of what the kernels accept: the largest and smallest K, V and M, and sizes that are no powers of two."""
SHAPES = PAPER | EXTREMES


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A kernel and what it was called with; `options` holds those of OPTIONS that were given."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    options: dict[str, int]

    def source(self, *, hip: bool = False) -> ASTSource:
        """The kernel with its argument types and constants, specialized as a real launch does it: an integer 1 is a
        constant, and multiples of 16 (addresses, too) are marked as such."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value, special = self.arguments[parameter.name], not parameter.do_not_specialize
            if hip and value == "tf32x3":
                value = "ieee"  # what `exact_products` returns if torch is built for AMD GPUs
            if parameter.is_constexpr or (special and isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[(index,)] = value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS[value.dtype]
                divisible = value.data_ptr() % 16 == 0
            elif isinstance(value, float):
                signature[parameter.name] = "fp32"
                divisible = False
            else:
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                divisible = value % 16 == 0
            if special and divisible:
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(fn=self.kernel, signature=signature, constexprs=constants, attrs=attributes)

    def key(self) -> str:
        """Two launches with the same key compile to the same thing."""
        source = self.source()
        return f"{self.kernel.__name__} {source.signature} {source.constants} {source.attrs} {self.options}"


def launch_of(kernel: JITFunction[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """The launch that `kernel[grid](*args, **kwargs)` makes."""
    names = [parameter.name for parameter in kernel.params]
    options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
    rest = {name: value for name, value in kwargs.items() if name not in OPTIONS}
    return Launch(kernel=kernel, arguments=dict(zip(names, args, strict=False)) | rest, options=options)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the context, launches are added to the list instead of being executed."""
    launches: list[Launch] = []

    def run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(launch_of(self, args, kwargs))

    original = JITFunction.run
    JITFunction.run = run  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield launches
    finally:
        JITFunction.run = original


@contextmanager
def on(target: str) -> Iterator[None]:
    """Within the context, the launchers choose sizes as on a GPU of this kind."""
    from dla_kernels.reader.fused import configs

    original = configs.architecture_of
    configs.architecture_of = lambda device: target
    try:
        yield
    finally:
        configs.architecture_of = original


def launches_of(shape: Shape, dtype: torch.dtype, target: str) -> list[Launch]:
    """All distinct launches of forward and backward (with and without gate, cache and final state) and of decode."""
    from dla_kernels.decode.dynamic import decode_in_place, decode_operator
    from dla_kernels.decode.planned import decode_planned, decode_planned_in_place
    from dla_kernels.decode.positions import plan_token
    from dla_kernels.reader.fused.delta import read_delta, read_delta_backward
    from dla_kernels.reader.fused.plain import read_plain, read_plain_backward
    from dla_kernels.segmentation.fused.gated import score_gradient, segment_operator

    time, h, g, key, value, m = 1024, shape.heads, shape.groups, shape.key_dim, shape.value_dim, shape.slots
    k = torch.zeros(1, time, g, key, dtype=dtype)
    v = torch.zeros(1, time, h, value, dtype=dtype)
    weight = torch.zeros(1, time, h, m, dtype=dtype)
    shift = torch.zeros(1, time, h, dtype=torch.int32)
    scalar = torch.zeros(1, time, h)
    state = torch.zeros(1, h, m, key, value)
    tau, count = torch.zeros(h), torch.zeros(1, h, m, dtype=torch.int32)
    with on(target), recording() as launches:
        segment_operator(k, v, tau, state[:, :, 0], torch.zeros(1, h, m), count, None)
        score_gradient(k, v, shift, scalar, scalar, scalar, state[:, :, 0], None)
        token = k[:, 0], k[:, 0], v[:, 0], weight[:, 0], scalar[:, 0], scalar[:, 0] if shape.delta else None
        past = tau, state, count, state[:, :, 0], torch.zeros(1, h, m), count
        decode_operator(*token, *past, 1.0)
        lag = None if shape.delta else torch.zeros(1, h, m, 2)
        decode_in_place(*token, *past, lag, 1.0)
        planned = *token[:4], shift[:, 0], *token[4:], state, count
        for collapse in (False, True):
            decode_planned(*planned, collapse, 1.0)
            decode_planned_in_place(*planned, lag, collapse, 1.0)
            plan_token(torch.zeros(1, dtype=torch.int64), h, m, 0 if collapse else 512)
        for past in (None, state):
            keep = past is not None
            if shape.delta:
                read_delta(k, k, v, weight, shift, scalar, scalar, None, past, None, 1.0, False, keep)
                read_delta_backward(v, past, k, k, v, weight, shift, scalar, scalar, past, None, 1.0, False, True)
            else:
                read_plain(k, k, v, weight, shift, scalar, None, past, None, 1.0, False, keep)
                read_plain_backward(v, past, k, k, v, weight, shift, scalar, past, None, 1.0, False, True)
        _around_the_op(shape, dtype)
    unique = {launch.key(): launch for launch in launches}
    return list(unique.values())


def _around_the_op(shape: Shape, dtype: torch.dtype) -> None:
    """Launches what a layer of this shape computes around the op; the last launch of each kernel does most."""
    from dla_kernels.layers.fused.convolution import convolution, convolution_backward
    from dla_kernels.layers.fused.gated_activation import gated_halves, gated_halves_backward
    from dla_kernels.layers.fused.gated_norm import gated_norm, gated_norm_backward
    from dla_kernels.layers.fused.l2_norm import unit_rows, unit_rows_backward
    from dla_kernels.layers.fused.rms_norm import normed_rows, normed_rows_backward
    from dla_kernels.layers.fused.scaled_heads import scaled_heads, scaled_heads_backward, skip, skip_backward
    from dla_kernels.layers.fused.softplus import softplus, softplus_backward

    values, keys = shape.heads * shape.value_dim, shape.groups * shape.key_dim
    x = torch.zeros(1, 64, values + 2 * keys, dtype=dtype)
    weight, bias, positions = torch.zeros(x.shape[2], 4), torch.zeros(x.shape[2]), torch.zeros(64, dtype=torch.int64)
    for history in (x[:, :3], None):
        convolution(x, weight, bias, positions if history is None else None, history, True)
    for given in (None, positions):
        convolution_backward(x, x, weight, bias, given, True)
    v = torch.zeros(1, 64, shape.heads, shape.value_dim, dtype=dtype)
    if not shape.delta:
        dt, skipped = torch.zeros(v.shape[:3]), torch.zeros(shape.heads)
        scaled_heads(v, dt)
        scaled_heads_backward(v, v, dt)
        skip(v, v, skipped)
        skip_backward(v, v, skipped)
        v = v.flatten(2)
    width = v.shape[-1]
    groups = -(-width // 4096)
    if width % groups == 0:
        gated_norm(v, v, torch.zeros(width), 1e-5, not shape.delta, groups)
        gated_norm_backward(v, v, v, torch.zeros(width), 1e-5, not shape.delta, groups)
    k = torch.zeros(1, 64, shape.groups, shape.key_dim, dtype=dtype)
    unit_rows(k, 1e-6)
    unit_rows_backward(k, k, 1e-6)
    for width, stream in (HIDDEN, dtype), (HIDDEN, torch.float32), (4096, torch.float32):
        rows, scale = torch.zeros(1, 64, width, dtype=stream), torch.zeros(width)
        normed_rows(rows, scale, 1e-5, dtype)
        normed_rows_backward(rows.to(dtype), rows, scale, 1e-5)
    weights = torch.zeros(64, shape.heads * shape.slots, dtype=dtype)
    softplus(weights, 0.5)
    softplus_backward(weights.float(), weights.float(), weights)
    gated_halves(x[..., : x.shape[2] // 2 * 2])
    gated_halves_backward(x[..., : x.shape[2] // 2], x[..., : x.shape[2] // 2 * 2])


def target_of(name: str) -> GPUTarget:
    """Triton's target for a name such as `sm_90` or `gfx942`."""
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


@contextmanager
def assembler_of(target: str) -> Iterator[None]:
    """Within the context, the assembler is the one that `dla_kernels` uses on a GPU of this kind."""
    given = os.environ.get(VARIABLE)
    if target == "sm_90":
        use_right_assembler(ANY_DRIVER)
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = given


def compiled(launch: Launch, target: str) -> Any:
    """Triton's compiled kernel: the code at every stage down to machine code (`asm`), and `metadata`."""
    source = launch.source(hip=not target.startswith("sm_"))
    with assembler_of(target):
        return triton.compile(source, target=target_of(target), options=launch.options)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one compiled kernel needs, and what is wrong with its code.

    registers, stack (bytes): per thread; shared: bytes per program; unset: what `unset_uniform_registers` found.
    """

    registers: int
    stack: int
    shared: int
    products: str
    unset: tuple[str, ...]


def compile_launch(launch: Launch, target: str) -> Reading:
    """Compiles the launch and reads what the assembler reports."""
    kernel = compiled(launch, target)
    unset: list[str] = []
    if target.startswith("sm_"):
        usage = uniform_registers.cuobjdump(kernel.asm["cubin"], "--dump-resource-usage")
        found = dict(re.findall(r"(REG|STACK):(\d+)", usage))
        kinds = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
        registers, stack, text = int(found["REG"]), int(found["STACK"]), kernel.asm["ptx"]
        if target in OF_DESCRIPTORS:
            sass = uniform_registers.cuobjdump(kernel.asm["cubin"], "--dump-sass")
            unset = uniform_registers.unset_uniform_registers(sass)
    else:
        text = kernel.asm["amdgcn"]
        kinds = ("v_mfma",)
        registers = _number(r"\.vgpr_count:\s*(\d+)", text)
        stack = _number(r"\.private_segment_fixed_size:\s*(\d+)", text)
    products = ", ".join(kind for kind in kinds if kind in text) or "-"
    return Reading(
        registers=registers, stack=stack, shared=kernel.metadata.shared, products=products, unset=tuple(unset)
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def violations(reading: Reading, target: str, dtype: str) -> list[str]:
    """How this kernel exceeds the limits, and what is wrong in its machine code."""
    allowed = STACK_LIMIT[dtype]
    found = []
    if reading.shared > SHARED_LIMIT[target]:
        found.append(f"shared memory {reading.shared} B, of {SHARED_LIMIT[target]} B")
    if reading.stack > allowed:
        found.append(f"stack {reading.stack} B, allowed are {allowed} B")
    if reading.unset:
        found.append(f"wrong machine code ({len(reading.unset)} instructions): {reading.unset[0]}")
    return found


def row_of(launch: Launch, target: str, dtype: str) -> tuple[str, bool]:
    """The table's columns from registers on, and whether the kernel fails to compile, does not fit or is wrong."""
    try:
        reading = compile_launch(launch, target)
    except Exception as error:
        return f" | | | | does not compile: {type(error).__name__}: {str(error)[-300:]!r}", True
    found = violations(reading, target, dtype)
    numbers = f"{reading.registers} | {reading.stack} | {reading.shared} | {reading.products}"
    return f"{numbers} | {'; '.join(found) or 'fits'}", bool(found)


def main() -> int:
    """Prints the table; with `--check`, returns 1 if a kernel fails to compile, does not fit or is wrong."""
    parser = argparse.ArgumentParser(description="Compile the kernels for GPUs that are not here.")
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 on a compile error, too much memory, spills or wrong code"
    )
    parser.add_argument("--target", nargs="*", default=list(SHARED_LIMIT), choices=list(SHARED_LIMIT))
    parser.add_argument("--type", nargs="*", default=["bf16", "fp32"], choices=list(TYPES))
    parser.add_argument("--shape", nargs="*", default=list(PAPER), choices=list(SHAPES))
    parser.add_argument("--kernel", nargs="*", help="only kernels whose name contains one of these")
    parser.add_argument("--once", action="store_true", help="of each kernel only the variant that does most")
    arguments = parser.parse_args()
    bad = 0
    print("| kernel | shape | target | type | registers | stack | shared | products | verdict |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | --- | --- |")
    for shape in arguments.shape:
        for dtype in arguments.type:
            for target in arguments.target:
                launches = launches_of(SHAPES[shape], TYPES[dtype], target)
                if arguments.once:  # the last launch of each kernel, the one with a cache and a final state
                    launches = list({launch.kernel.__name__: launch for launch in launches}.values())
                for launch in launches:
                    name = launch.kernel.__name__
                    if arguments.kernel and not any(part in name for part in arguments.kernel):
                        continue
                    verdict, failed = row_of(launch, target, dtype)
                    bad += failed
                    print(f"| {name} | {shape} | {target} | {dtype} | {verdict} |", flush=True)
    print(f"\n{bad} kernels that do not compile, do not fit or are wrong; triton {triton.__version__}")
    return 1 if arguments.check and bad else 0


if __name__ == "__main__":
    sys.exit(main())
