"""What the compiler makes of the kernels, on a machine without a GPU: registers, spills, widths, offsets.

`table` calls each op forward and backward on meta tensors, which have shapes and no values, and has every
kernel that the launchers would launch compiled for a GPU that is not there. What is read:

- from the machine code: registers, local memory (spills), asynchronous copies, and the width of global
  loads and stores. An instruction is counted once, however often a loop runs it.
- from the tensors of Triton's IR (TTIR): whether loads, or stores, have a main stream, which must go by 128-bit
  accesses. They do not where their largest tensor has less than 512 bytes (one such access of a warp), or
  less than an eighth of the values of the kernel's largest: a norm that leaves one number a row, say.
- from the arithmetic of TTIR: whether an address is made with a product in 32 bits that can pass 2^31.
  Each integer gets a bound: constants and tl.arange have their own, a remainder has its divisor's, a loop
  counter its end's, and what is masked by `index < bound` has that bound, since no launch starts programs that
  do nothing. Program ids, arguments, loaded values and what loops carry can be anything. Sums are not judged.
"""

import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import rich.table
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fastling.kernels import runtime
from fastling.kernels.cases import Inputs, Op, Shape


class Gpu(NamedTuple):
    multiprocessors: int
    shared_bytes: int  # that one block may have


GPUS = {80: Gpu(108, 163 * 1024), 90: Gpu(132, 227 * 1024), 100: Gpu(148, 227 * 1024)}  # A100, H100, B200
WIDE_SHARE = 0.8  # of the bytes of a main stream
ACCESS_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}  # else 4


@dataclass(frozen=True)
class Report:
    """One kernel of one op at one case ("llama3-8b bfloat16"), compiled for sm_`arch`.

    `spills` counts instructions that read or write local memory. A share is that of the bytes moved by
    accesses of 128 bits or more, or None where there is nothing to judge: no main stream, or rows that
    are no multiples of 8 values.
    """

    kernel: str
    op: str
    case: str
    arch: int
    num_warps: int
    registers: int
    local_bytes: int
    spills: int
    shared_bytes: int
    load_share_128: float | None
    store_share_128: float | None
    async_copies: int
    narrow_offsets: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """In words; empty when all is well."""
        found = []
        if self.spills or self.local_bytes:
            found.append(f"{self.spills} spill instructions, {self.local_bytes} bytes of local memory")
        limit = GPUS[self.arch].shared_bytes
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, {limit} is the most")
        for what, share in (("loads", self.load_share_128), ("stores", self.store_share_128)):
            if share is not None and share < WIDE_SHARE:
                found.append(f"{share:.0%} of the bytes of {what} in 128-bit accesses")
        return found + [f"32-bit product in an address: {place}" for place in self.narrow_offsets]


def table(
    ops: Iterable[Op],
    shapes: Iterable[Shape],
    dtypes: Iterable[torch.dtype],
    archs: Iterable[int] = tuple(GPUS),
    device: str = "meta",
) -> list[Report]:
    """Compile the kernels of every op at every case; each specialisation is reported once, where it comes first.

    On "meta" no tensor has memory, so that shapes may be the real ones. An op that looks at values needs
    "cpu", and few tokens. Raises RuntimeError where kernels cannot be compiled.
    """
    shapes, dtypes, archs = list(shapes), list(dtypes), list(archs)
    reports, seen = [], set()
    for op, shape, dtype in ((op, shape, dtype) for op in ops for shape in shapes for dtype in dtypes):
        case = f"{shape.name} {str(dtype).removeprefix('torch.')}"
        inputs = op.inputs(shape, dtype, torch.device(device))
        for arch in archs:
            try:
                with compile_only(arch) as kernels:
                    _call(op, inputs)
            except Exception as error:
                error.add_note(f"in {op.name}, {case}, compiled for sm_{arch}")
                raise
            for kernel in kernels:
                if kernel.hash not in seen:
                    seen.add(kernel.hash)
                    reports.append(_report(kernel, op, case, arch, _has_whole_words(shape)))
    return reports


def _call(op: Op, inputs: Inputs) -> None:
    """Forward and, where something is differentiable, backward."""
    outputs = op.kernel(**inputs)
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    outputs = [output for output in outputs if isinstance(output, torch.Tensor) and output.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _has_whole_words(shape: Shape) -> bool:
    """Whether rows start at multiples of 16 bytes in every dtype; no wide access is possible elsewhere."""
    return all(width % 8 == 0 for width in (shape.hidden, shape.ffn, shape.head_dim, shape.vocab))


def _report(kernel: CompiledKernel, op: Op, case: str, arch: int, has_whole_words: bool) -> Report:
    code, ttir = _machine_code(kernel.asm["cubin"]), kernel.asm["ttir"]
    judged = _main_streams(ttir) if has_whole_words else ()
    return Report(
        kernel=kernel.metadata.name,
        op=op.name,
        case=case,
        arch=arch,
        num_warps=kernel.metadata.num_warps,
        registers=int(re.search(r"REG:(\d+)", code)[1]),
        local_bytes=sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", code))),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared_bytes=kernel.metadata.shared,
        load_share_128=_wide_share(code, r"LDG|LDGSTS") if "load" in judged else None,
        store_share_128=_wide_share(code, "STG") if "store" in judged else None,
        async_copies=len(re.findall(r"\b(?:LDGSTS|UBLKCP|UTMALDG)\b", code)),
        narrow_offsets=narrow_offsets(ttir),
    )


# Compiling ------------------------------------------------------------------------------------------


class _AbsentGpu:
    """As much of a Triton driver as compiling needs."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, warp_size=32)

    def get_current_device(self) -> int:
        return self.arch  # a number of its own: Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compile_only(arch: int) -> Iterator[list[CompiledKernel]]:
    """Within, a launch compiles for sm_`arch`, runs nothing, and appends the kernel to the list given."""
    if runtime.INTERPRETED:
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    compiled, run = [], JITFunction.run

    def compile_and_record(self, *arguments, grid, warmup, **options):
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))
        return compiled[-1]

    with ExitStack() as patches:
        for owner, name, value in (
            (type(driver), "active", _AbsentGpu(arch)),
            (JITFunction, "run", compile_and_record),
            (runtime, "INTERPRETED", True),  # so that the ops hand tensors off the GPU to their kernels
            (runtime, "num_multiprocessors", lambda device: GPUS[arch].multiprocessors),
        ):
            patches.enter_context(patch.object(owner, name, value))
        yield compiled


# Widths ---------------------------------------------------------------------------------------------


def _machine_code(cubin: bytes) -> str:
    """Resource usage, and the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _wide_share(code: str, instructions: str) -> float | None:
    """The share of bytes that move by accesses of 128 bits or more; None where nothing moves."""
    num_bytes = Counter()
    for modifiers in re.findall(rf"\b(?:{instructions})\b([.\w]*)", code):
        width = next((ACCESS_BYTES[each] for each in modifiers.split(".") if each in ACCESS_BYTES), 4)
        num_bytes[width >= 16] += width
    return num_bytes[True] / num_bytes.total() if num_bytes else None


def _main_streams(ttir: str) -> list[str]:
    """Those of "load" and "store" which move much of what the kernel moves."""
    largest = {"load": (0, 0), "store": (0, 0)}  # (values, bytes)
    for direction, shape, dtype in re.findall(
        r"tt\.(load|store) .*: (?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)", ttir
    ):
        values = 1
        for length in shape.split("x") if shape else ():
            values *= int(length)
        num_bytes = values * int(re.search(r"\d+", dtype)[0]) // 8
        largest[direction] = max(largest[direction], (values, num_bytes))
    most_values = max(values for values, _ in largest.values())
    return [
        direction
        for direction, (values, num_bytes) in largest.items()
        if num_bytes >= 512 and 8 * values >= most_values
    ]


# Offsets --------------------------------------------------------------------------------------------

ANY = 2**31 - 1
NAME = r"%[\w.$-]+(?:#\d+)?"
STATEMENT = re.compile(rf'\s*(?:({NAME})(?::(\d+))? = )?"?([\w.]+)"?(.*)')
# What they return is no larger than their first operand.
KEPT = {
    *(
        "arith.extsi",
        "arith.extui",
        "arith.trunci",
        "arith.divsi",
        "arith.divui",
        "arith.shrsi",
        "arith.shrui",
    ),
    *("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans"),
}


class Value(NamedTuple):
    """What is known of an integer: it is at most `bound`; the places of narrow products it is made of."""

    bound: int = ANY
    narrow: frozenset[str] = frozenset()


def narrow_offsets(ttir: str) -> tuple[str, ...]:
    """The places (file:line) of products in 32 bits that reach an address and can pass 2^31."""
    guards, carried = {}, {}
    # What stands further down, a mask or the end of a loop, is known from the second reading on; what one
    # loop hands to another around it, from the third.
    for _ in range(4):
        reading = _Reading(ttir, guards, carried)
        guards, carried = reading.guards, reading.carried_next
    return tuple(sorted(reading.found))


class _Reading:
    """TTIR read from top to bottom, where a name means what it was last given to."""

    def __init__(self, ttir: str, guards: dict[int, int], carried: dict[tuple[int, int], frozenset[str]]):
        self.found: set[str] = set()
        self.guards = guards  # line that makes a value -> what masks compare it with
        self.carried, self.carried_next = carried, defaultdict(frozenset)  # (line of a loop, position)
        self.values: dict[str, Value] = {}
        self.lines: dict[str, int] = {}
        self.locations = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE))
        regions = []  # the lines of the loops and branches around
        for line, text in enumerate(ttir.splitlines()):
            code, _, location = (text, "", "") if text.endswith("{") else text.partition(" loc(")
            opener = regions.pop() if code.lstrip().startswith("}") else line
            if code.endswith("{"):
                regions.append(opener)
            if match := STATEMENT.match(code):
                self._read(line, *match.groups(), location, regions[-1] if regions else line)

    def _read(self, line, name, num_results, operation, rest, location, region) -> None:
        names = re.findall(NAME, rest)
        operands = [self.values.get(each, Value()) for each in names]
        if operation in ("scf.yield", "scf.condition"):
            for position, operand in enumerate(operands[operation == "scf.condition" :]):
                self.carried_next[region, position] |= operand.narrow
        elif operation in ("scf.for", "scf.while", "scf.if"):
            self._enter(line, operation, rest)
            for position in range(int(num_results or 1) if name else 0):
                result = f"{name}#{position}" if num_results else name
                self._give(result, line, Value(narrow=self.carried.get((line, position), frozenset())))
        elif operation == "tt.addptr":
            self.found |= operands[1].narrow
            self._give(name, line, Value())
        elif operation == "arith.cmpi":
            if re.match(r" [su]l[te],", rest) and operands[1].bound < ANY and names[0] in self.lines:
                self.guards[self.lines[names[0]]] = operands[1].bound
            self._give(name, line, Value())
        elif name:
            self._give(name, line, self._value(operation, operands, rest, location))

    def _enter(self, line: int, operation: str, rest: str) -> None:
        """Give a loop's counter and what it carries their values."""
        given = [
            (name, self.values.get(first, Value()))
            for name, first in re.findall(rf"({NAME}) = ({NAME})", rest)
        ]
        if operation == "scf.for":
            (counter, first), *given = given
            end = self.values.get(re.search(rf" to ({NAME})", rest)[1], Value())
            self._give(counter, line, Value(max(first.bound, end.bound), first.narrow))
        for position, (name, first) in enumerate(given):
            narrow = first.narrow | self.carried.get((line, position), frozenset())
            self._give(name, line, Value(narrow=narrow))

    def _give(self, name: str, line: int, value: Value) -> None:
        self.values[name] = Value(self.guards[line]) if line in self.guards else value
        self.lines[name] = line

    def _value(self, operation: str, operands: list[Value], rest: str, location: str) -> Value:
        bound = _bound(operation, [operand.bound for operand in operands], rest)
        if operation == "tt.load":
            return Value()
        narrow = frozenset().union(*(operand.narrow for operand in operands))
        width = re.search(r"i(\d+)>?$", rest)
        if operation in ("arith.muli", "arith.shli") and bound >= 2 ** (int(width[1]) - 1):
            narrow |= {self._place(location)} if int(width[1]) < 64 else set()
        return Value(bound, narrow)

    def _place(self, location: str) -> str:
        """file:line of the innermost function that a location names, by way of its name and callers."""
        while not (place := re.search(r'"([^"]+)":(\d+):', location)):
            reference = re.search(r"#loc\d*", location)
            if not reference:
                return "unknown"
            location = self.locations[reference[0]]
        return f"{Path(place[1]).name}:{place[2]}"


def _bound(operation: str, bounds: list[int], rest: str) -> int:
    """How large the result of an operation on indices, which are not negative, can be."""
    match operation, bounds:
        case "arith.constant", _:
            number = re.match(r" (?:dense<)?-?(\d+)>? :", rest)
            return int(number[1]) if number else ANY
        case "tt.make_range", _:
            return int(re.search(r"end = (\d+)", rest)[1]) - 1
        case "arith.muli", [left, right]:
            return left * right
        case "arith.shli", [left, right]:
            return left << min(right, 64)
        case "arith.addi" | "arith.subi", [left, right]:
            return left + right
        case "arith.remsi" | "arith.remui" | "arith.minsi" | "arith.minui", [left, right]:
            return min(left, right)
        case ("arith.maxsi" | "arith.maxui", [left, right]) | ("arith.select", [_, left, right]):
            return max(left, right)
        case _, [first, *_] if operation in KEPT:
            return first
    return ANY


# Printing -------------------------------------------------------------------------------------------


def row(report: Report) -> dict:
    """For a line of JSON."""
    return asdict(report) | {"problems": report.problems}


def render(reports: Iterable[Report]) -> rich.table.Table:
    """A line for each report, its problems last."""
    lines = rich.table.Table(box=None, header_style="bold", pad_edge=False)
    for name in ("op", "kernel", "case", "sm"):
        lines.add_column(name, no_wrap=True)
    for name in ("warps", "regs", "spills", "shared", "loads", "stores", "async"):
        lines.add_column(name, justify="right", no_wrap=True)
    lines.add_column("verdict")
    for report in reports:
        shares = (report.load_share_128, report.store_share_128)
        lines.add_row(
            *(report.op, report.kernel.strip("_").removesuffix("_kernel"), report.case, str(report.arch)),
            *map(str, (report.num_warps, report.registers, report.spills, report.shared_bytes)),
            *("-" if share is None else f"{share:.0%}" for share in shares),
            str(report.async_copies),
            "; ".join(report.problems) or "ok",
        )
    return lines
