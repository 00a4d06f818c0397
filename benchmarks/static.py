"""What the compiler makes of the kernels, on a machine without a GPU: registers, spills, widths, offsets.

`table` calls each op forward and backward, mostly on meta tensors, which have shapes and no values, and has
every kernel that would be launched compiled for a GPU that is not there. Three things are judged.

- Registers must not spill to local memory, and a block's shared memory must fit.
- At least 80 % of the bytes of the main streams, loads and stores apart, must move by accesses of 128 bits.
  Main streams are the loads and stores in Triton's IR (TTIR) of 512 bytes or more, one such access of a
  warp, and of an eighth or more of the values of the kernel's largest: the tiles, and not the one number
  that a norm leaves a row. Their accesses are those in PTX that name the same line, counted once each.
- No address may be made with a product in 32 bits that can pass 2^31. Each integer of TTIR gets a bound: a
  constant and tl.arange have their own, a remainder its divisor's, a loop counter its end's. What a mask
  compares with a bounded number has that bound, since no launch has programs with nothing to do. Program
  ids, arguments, loaded values and what loops carry can be anything. Sums are not judged.
"""

import math
import operator
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
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

MULTIPROCESSORS = {80: 108, 89: 128, 90: 132, 100: 148}  # A100, RTX 4090, H100, B200
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # that one block may have
WIDE_SHARE = 0.8


@dataclass(frozen=True)
class Report:
    """One kernel of one op at one case ("llama3-8b bfloat16"), compiled for sm_`arch`.

    `spills` counts instructions that reach local memory. A share is that of the bytes moved by accesses of
    128 bits or more; None without a main stream, and where rows are no multiples of 8 values.
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
        """What is wrong, in words; empty if nothing is."""
        found = []
        if self.spills or self.local_bytes:
            found.append(f"{self.spills} spill instructions, {self.local_bytes} bytes of local memory")
        if self.shared_bytes > (most := SHARED_BYTES[self.arch]):
            found.append(f"{self.shared_bytes} bytes of shared memory, of at most {most}")
        for what, share in (("loads", self.load_share_128), ("stores", self.store_share_128)):
            if share is not None and share < WIDE_SHARE:
                found.append(f"{share:.0%} of the bytes of {what} in 128-bit accesses")
        return found + [f"32-bit product in an address: {place}" for place in self.narrow_offsets]


def table(
    ops: Iterable[Op],
    shapes: Iterable[Shape],
    dtypes: Iterable[torch.dtype],
    archs: Sequence[int] = (80, 90, 100),
    device: str = "meta",
) -> list[Report]:
    """Compile the kernels of every op at every case; what several cases share is reported with the first.

    On "meta" no tensor has memory, so shapes may be the real ones. An op that looks at values needs "cpu",
    and few tokens. Raises RuntimeError if kernels are interpreted; errors of the compiler name op and case.
    """
    reports: dict[str, Report] = {}  # by the hash of a specialisation
    for op, shape, dtype in product(ops, shapes, dtypes):
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
                reports[kernel.hash] = reports.get(kernel.hash) or _report(kernel, op, shape, case, arch)
    return list(reports.values())


def _call(op: Op, inputs: Inputs) -> None:
    """Call an op and, if an output is differentiable, its backward."""
    result = op.kernel(**inputs)
    outputs = result if isinstance(result, tuple) else (result,)
    outputs = [output for output in outputs if output is not None and output.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _report(kernel: CompiledKernel, op: Op, shape: Shape, case: str, arch: int) -> Report:
    code, ttir = _machine_code(kernel.asm["cubin"]), kernel.asm["ttir"]
    # Elsewhere rows start at any address, and no compiler could make wide accesses of them.
    is_aligned = all(width % 8 == 0 for width in (shape.hidden, shape.ffn, shape.head_dim, shape.vocab))
    streams = {way: _main_streams(ttir, way) if is_aligned else set() for way in ("load", "store")}
    shares = {way: _wide_share(kernel.asm["ptx"], way, places) for way, places in streams.items()}
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
        load_share_128=shares["load"],
        store_share_128=shares["store"],
        async_copies=len(re.findall(r"\b(?:LDGSTS|UBLKCP|UTMALDG)\b", code)),
        narrow_offsets=narrow_offsets(ttir),
    )


# Compiling ------------------------------------------------------------------------------------------


@contextmanager
def compile_only(arch: int) -> Iterator[list[CompiledKernel]]:
    """In the block a launch compiles for sm_`arch`, runs nothing, and appends the kernel to the yielded list.

    Raises RuntimeError if kernels are interpreted in this process.
    """
    if runtime.INTERPRETED:
        raise RuntimeError("kernels are interpreted in this process: unset TRITON_INTERPRET to compile them")
    compiled, run = [], JITFunction.run

    def compile_and_record(self, *arguments, grid, warmup, **options):
        compiled.append(run(self, *arguments, grid=grid, warmup=True, **options))

    absent_gpu = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, warp_size=32),
        get_current_device=lambda: arch,  # a number for each: Triton keeps what it has compiled by device
        get_current_stream=lambda device: 0,
    )
    with (
        patch.object(type(driver), "active", absent_gpu),
        patch.object(JITFunction, "run", compile_and_record),
        patch.object(runtime, "INTERPRETED", True),  # so that the ops hand tensors off the GPU to kernels
        patch.object(runtime, "num_multiprocessors", lambda device: MULTIPROCESSORS[arch]),
        patch.object(runtime, "shared_bytes", lambda device: SHARED_BYTES[arch]),
    ):
        yield compiled


# Widths ---------------------------------------------------------------------------------------------

ACCESS = re.compile(
    r"\b(?:(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[a-z]+(\d+)\s|cp\.async\.c[ag]\..*\], (0x\w+|\d+)[,;])"
)


def _machine_code(cubin: bytes) -> str:
    """The text of a kernel's machine code, and of the resources that it uses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def _wide_share(ptx: str, direction: str, places: set[str]) -> float | None:
    """Of the bytes moved at some places, the share that wide accesses move; 0 if there are no accesses, None
    if there are no places."""
    num_bytes, here, is_inline = Counter(), "", False
    for line in ptx.splitlines():
        if "inline asm" in line:
            is_inline = "begin" in line
        elif place := re.search(r"\.loc\s.*// ([^:]+:\d+):", line):
            here = here if is_inline else place[1]  # Triton 3.9 counts on through the lines of inline code
        elif here in places and (access := ACCESS.search(line)) and (access[1] or "ld")[0] == direction[0]:
            _, values, bits, async_bytes = access.groups()
            width = int(async_bytes, 0) if async_bytes else int(values or 1) * int(bits) // 8
            num_bytes[width >= 16] += width
    return num_bytes[True] / max(1, num_bytes.total()) if places else None


def _main_streams(ttir: str, direction: str) -> set[str]:
    """The places (file:line) of the "load"s or "store"s of a kernel's main streams, as defined above."""
    pattern = r"tt\.(load|store) .*: (?:tensor<([\dx]+)x)?!tt\.ptr<[a-z]+(\d+)\w*>+ loc\((.*)\)$"
    moves = [
        (way, math.prod(map(int, re.findall(r"\d+", shape))), int(bits) // 8, location)
        for way, shape, bits, location in re.findall(pattern, ttir, re.MULTILINE)
    ]
    most = max((values for _, values, *_ in moves), default=0)
    return {
        _place(location, ttir)
        for way, values, value_bytes, location in moves
        if way == direction and values * value_bytes >= 512 and values * 8 >= most
    }


def _place(location: str, ttir: str) -> str:
    """file:line in the innermost function of a location in TTIR, which may refer to other locations."""
    while named := re.search(r"#loc\d*", location):
        location = re.search(rf"^{named[0]} = loc\((.*)\)$", ttir, re.MULTILINE)[1]
    line = re.match(r'"([^"]+)":(\d+):', location)
    return f"{Path(line[1]).name}:{line[2]}" if line else location


# Offsets --------------------------------------------------------------------------------------------


class Value(NamedTuple):
    """What is known of an integer: its bound, and the places of 32-bit products that went into it."""

    bound: int = 2**31
    narrow: frozenset[str] = frozenset()


def narrow_offsets(ttir: str) -> tuple[str, ...]:
    """The places of products in 32 bits that reach an address and can pass 2^31."""
    guards, carried = {}, frozenset()
    for _ in range(3):  # first to find the masks, then what loops carry because of them, then with both
        found, guards, carried = _read(ttir, guards, carried)
    return tuple(sorted(found))


NAME = r"%[\w.$-]+"
STATEMENT = re.compile(rf'\s*(?:({NAME})(?::\d+)? = )?"?([\w.^]+)"?(.*?)(?: loc\((.*)\))?$')
ANYTHING = Value()
BOUNDS = {  # of the results of operations, given those of the operands; indices are never negative
    "muli": operator.mul,
    "shli": lambda left, right: left << min(right, 64),
    "select": lambda condition, left, right: max(left, right),
    **dict.fromkeys(("addi", "subi"), operator.add),
    **dict.fromkeys(("remsi", "remui", "minsi", "minui"), min),
    **dict.fromkeys(("maxsi", "maxui"), max),
    **dict.fromkeys(("divsi", "divui", "shrsi", "shrui"), lambda left, right: left),
    **dict.fromkeys(("extsi", "extui", "trunci"), lambda value: value),
    **dict.fromkeys(("splat", "broadcast", "expand_dims", "reshape", "trans"), lambda value: value),
}


def _read(ttir: str, guards: dict[int, int], carried: frozenset[str]):
    """Read TTIR once from top to bottom; a name has the value that it was last given.

    `guards` are the bounds that masks give to the results of lines; `carried` are the narrow products in the
    values that loops and branches pass on. Returns the narrow products in addresses, and both as they are
    known now.
    """
    values, makers, found, handed_on = {}, {}, set(), set()  # makers: the lines that made them
    for line, text in enumerate(ttir.splitlines()):
        if not (match := STATEMENT.match(text)):
            continue
        name, operation, rest, location = match.groups()
        names = re.findall(NAME, rest)
        operands = [values.get(each, ANYTHING) for each in names]
        narrow = frozenset().union(*(operand.narrow for operand in operands))
        made = {name: ANYTHING} if name else {}
        if operation in ("scf.yield", "scf.condition", "cf.br", "cf.cond_br"):
            handed_on |= narrow
        elif operation.startswith(("scf.", "^")):
            made = _carry(operation, name, rest, values, carried)
        elif operation == "tt.addptr":
            found |= operands[1].narrow
        elif operation == "arith.cmpi":
            if re.match(r" [su]l[te],", rest) and operands[1].bound < ANYTHING.bound:
                guards = guards | {makers.get(names[0]): operands[1].bound}
        elif number := re.match(r" (?:dense<)?-?(\d+)>? :| \{end = (\d+)", rest):  # a constant, tl.arange
            made = {name: Value(int(number[1] or number[2]))}
        elif name and operation != "tt.load":
            kind = operation.rpartition(".")[2]
            bound = BOUNDS.get(kind, lambda *_: ANYTHING.bound)(*(operand.bound for operand in operands))
            if bound >= 2**31 and kind in ("muli", "shli") and not rest.endswith(("i64", "i64>")):
                narrow |= {_place(location, ttir)}
            made = {name: Value(bound, narrow)}
        for each, value in made.items():
            values[each] = Value(guards[line]) if line in guards else value
            makers[each] = line
    return found, guards, frozenset(handed_on)


def _carry(operation, name, rest, values, carried) -> dict[str, Value]:
    """The values of the names of a loop, branch or block, which are written `%name = %start` or `%name:`."""
    made = {}
    for given, start in re.findall(rf"({NAME})(?: = ({NAME})|:)", f"{name}: {rest}"):
        made[given] = Value(narrow=carried | values.get(start, ANYTHING).narrow)
    if operation == "scf.for":
        counter, start, end = re.match(rf" ({NAME}) = ({NAME}) to ({NAME})", rest).groups()
        first, last = values.get(start, ANYTHING), values.get(end, ANYTHING)
        made[counter] = Value(max(first.bound, last.bound), first.narrow)
    return made


# Printing -------------------------------------------------------------------------------------------


def row(report: Report) -> dict:
    """A report as an object for a line of JSON."""
    return asdict(report) | {"problems": report.problems}


def render(reports: Iterable[Report]) -> rich.table.Table:
    """A table with a line for each report, in which problems come last."""
    lines = rich.table.Table(box=None, pad_edge=False)
    for name in "op kernel case sm warps regs spills shared loads stores async verdict".split():
        lines.add_column(name, no_wrap=name != "verdict")
    for report in reports:
        shares = (report.load_share_128, report.store_share_128)
        lines.add_row(
            *(report.op, report.kernel.strip("_").removesuffix("_kernel"), report.case, str(report.arch)),
            *map("{:>6}".format, (report.num_warps, report.registers, report.spills, report.shared_bytes)),
            *("     -" if share is None else f"{share:6.0%}" for share in shares),
            f"{report.async_copies:6}",
            "; ".join(report.problems) or "ok",
        )
    return lines
