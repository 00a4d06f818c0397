"""The judgement of compiled kernels, on small kernels that are good or bad in one way each.

The tests ask another process, in which kernels are compiled and not interpreted: this file, run as a program.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import static
from fastling.kernels import runtime
from fastling.kernels.cases import MODELS, OPS, Op
from fastling.kernels.runtime import tl, triton

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

SHAPE = replace(MODELS["llama3-8b"], name="row")  # x is (8192, 4096)
RAGGED = replace(SHAPE, name="ragged", hidden=4095)

# Good kernels ---------------------------------------------------------------------------------------


@triton.jit
def copies(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, N, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride + columns, mask=columns < N)
        tl.store(y_ptr + row * stride + columns, x, mask=columns < N)


@triton.jit
def sums_rows(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, N, BLOCK, num_stages=3):
        total += tl.load(x_ptr + row * stride + start + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(y_ptr + row, tl.sum(total))


@triton.jit
def multiplies_what_is_bounded(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    """A remainder, a counter, and the columns of a mask."""
    program = tl.program_id(0)
    tiles_per_row: tl.constexpr = (N + BLOCK - 1) // BLOCK
    tile = program % tiles_per_row * BLOCK + tl.arange(0, BLOCK)
    columns = program * BLOCK + tl.arange(0, BLOCK)
    for step in range(N // BLOCK):
        x = tl.load(x_ptr + step * BLOCK + tile)
        tl.store(y_ptr + columns, x, mask=columns < N)


# Bad kernels: what is wrong is marked ---------------------------------------------------------------


@triton.jit
def spills(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    """Launched with one warp: 512 values for each thread, which has at most 255 registers."""
    columns = tl.arange(0, 4 * BLOCK)
    x = tl.load(x_ptr + columns).to(tl.float32)
    y = tl.load(y_ptr + columns).to(tl.float32)
    scale = tl.sum(x * y)
    tl.store(y_ptr + columns, x * scale + y)
    tl.store(x_ptr + columns, y * scale + x)


@triton.jit
def fills_shared_memory(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((8 * BLOCK,), tl.float32)
    for start in tl.range(0, stride, 8 * BLOCK, num_stages=7):  # six tiles of 32 KiB in flight
        total += tl.load(x_ptr + start + tl.arange(0, 8 * BLOCK)).to(tl.float32)
    tl.store(y_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def loads_every_other(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(y_ptr + columns, tl.load(x_ptr + 2 * columns))  # narrow


@triton.jit
def stores_every_other(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(y_ptr + 2 * columns, tl.load(x_ptr + columns))  # narrow


@triton.jit
def copies_row_in_32_bits(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + columns)  # wraps
    tl.store(y_ptr + row.to(tl.int64) * stride + columns, x)


@triton.jit
def widens_too_late(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    offset = (tl.program_id(0) * N).to(tl.int64)  # wraps
    tl.store(y_ptr + offset + columns, tl.load(x_ptr + offset + columns))


@triton.jit
def shifts_in_32_bits(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(y_ptr + columns, tl.load(x_ptr + (tl.program_id(0) << 12) + columns))  # wraps


@triton.jit
def carries_a_product_round_a_loop(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    for _ in range(N // BLOCK):
        tl.store(y_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + offset))
        offset += tl.program_id(0) * stride  # wraps


@triton.jit
def multiplies_in_a_branch(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    offset = 0
    if tl.program_id(1) > 0:
        offset = tl.program_id(0) * stride  # wraps
    columns = tl.arange(0, BLOCK)
    tl.store(y_ptr + columns, tl.load(x_ptr + offset + columns))


@triton.jit
def multiplies_what_it_loaded(y_ptr, x_ptr, stride, N: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    row = tl.load(y_ptr + tl.program_id(0)).to(tl.int32)
    tl.store(y_ptr + columns, tl.load(x_ptr + row * N + columns))  # wraps


def op_of(kernel, num_warps: int = 4) -> Op:
    """One program for each row of x, which is (tokens, hidden)."""

    def launch(x):
        y = torch.empty_like(x)
        kernel[(len(x),)](y, x, x.stride(0), N=x.shape[1], BLOCK=2048, num_warps=num_warps)

    def inputs(shape, dtype, device):
        return {"x": torch.empty(shape.tokens, shape.hidden, dtype=dtype, device=device)}

    return replace(OPS["swiglu"], name=kernel.__name__, kernel=launch, inputs=inputs)


def judge() -> dict[str, list[dict]]:
    """The program: rows of what the tests ask about, by name."""
    kernels = [each for each in globals().values() if isinstance(each, triton.JITFunction)]
    ops = [op_of(kernel, num_warps=1 if kernel is spills else 4) for kernel in kernels]
    before = (runtime.INTERPRETED, runtime.num_multiprocessors, triton.JITFunction.run)
    bf16 = [torch.bfloat16]
    judged = {
        "small": static.table(ops, [SHAPE], bf16, (90,)),
        "shared": static.table([op_of(fills_shared_memory)], [SHAPE], bf16, (80, 90)),
        "ragged": static.table([op_of(copies)], [RAGGED], bf16, (90,)),
        "on a CPU": static.table([op_of(copies)], [replace(SHAPE, tokens=2)], bf16, (80, 90, 100), "cpu"),
        "twice": static.table([op_of(copies), op_of(copies)], [SHAPE, replace(SHAPE, tokens=2)], bf16, (90,)),
        "ours": static.table([OPS["rms_norm"], OPS["swiglu"]], [MODELS["llama3-8b"]], bf16, (90,)),
        "99 KiB": static.table(
            [OPS["rms_norm"], OPS["cross_entropy"]], [replace(MODELS["llama3-8b"], hidden=16384)], bf16, (89,)
        ),
        "losses": static.table(
            [OPS["cross_entropy"], OPS["linear_cross_entropy"]], [MODELS["llama3-8b"]], bf16, (90,)
        ),
    }
    assert before == (runtime.INTERPRETED, runtime.num_multiprocessors, triton.JITFunction.run)
    return {name: [static.row(report) for report in reports] for name, reports in judged.items()}


@pytest.fixture(scope="module")
def judged():
    from conftest import run_python  # which makes kernels interpreted, so not in the other process

    done = run_python(Path(__file__).stem, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def problems(judged):
    return {row["kernel"]: row["problems"] for row in judged["small"]}


def line_marked(mark: str, kernel: str) -> int:
    """The number of the line of a kernel that ends with a mark."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith(f"def {kernel}("))
    return next(number for number in range(first, len(lines)) if lines[number - 1].endswith(f"# {mark}"))


# Verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["copies", "sums_rows", "multiplies_what_is_bounded"])
def test_a_good_kernel_has_no_problems(problems, kernel):
    assert problems[kernel] == []


def test_a_tile_that_no_thread_can_hold_spills(judged, problems):
    (row,) = [row for row in judged["small"] if row["kernel"] == "spills"]
    assert row["num_warps"] == 1 and row["spills"] > 0
    counted = f"{row['spills']} spill instructions, {row['local_bytes']} bytes of local memory"
    assert problems["spills"] == [counted]


def test_shared_memory_must_fit_the_gpu(judged):
    on_a100, on_h100 = judged["shared"]
    assert 163 * 1024 < on_a100["shared_bytes"] < 227 * 1024
    assert [problem for problem in on_a100["problems"] if "of shared memory, of at most 166912" in problem]
    assert on_h100["problems"] == []


def test_two_streams_are_judged_apart(judged, problems):
    """Every other value: half of each 16 bytes is not wanted, so each thread loads 2 bytes at a time."""
    rows = {row["kernel"]: row for row in judged["small"]}
    assert rows["loads_every_other"]["load_share_128"] < 0.8 <= rows["loads_every_other"]["store_share_128"]
    assert rows["stores_every_other"]["store_share_128"] < 0.8 <= rows["stores_every_other"]["load_share_128"]
    assert problems["loads_every_other"] == ["0% of the bytes of loads in 128-bit accesses"]
    assert problems["stores_every_other"] == ["0% of the bytes of stores in 128-bit accesses"]


def test_one_number_a_row_is_no_stream(judged):
    (row,) = [row for row in judged["small"] if row["kernel"] == "sums_rows"]
    assert row["load_share_128"] == 1 and row["store_share_128"] is None
    assert row["async_copies"] > 0  # its loop prefetches


def test_rows_that_start_anywhere_are_not_judged_by_width(judged):
    (row,) = judged["ragged"]
    assert row["load_share_128"] is None and row["problems"] == []


@pytest.mark.parametrize(
    "kernel",
    [
        "copies_row_in_32_bits",
        "widens_too_late",
        "shifts_in_32_bits",
        "carries_a_product_round_a_loop",
        "multiplies_in_a_branch",
        "multiplies_what_it_loaded",
    ],
)
def test_a_product_in_32_bits_in_an_address_is_found_where_it_stands(problems, kernel):
    place = f"test_static.py:{line_marked('wraps', kernel)}"
    assert problems[kernel] == [f"32-bit product in an address: {place}"]


# The table ------------------------------------------------------------------------------------------


def test_every_arch_has_a_report_and_values_are_not_needed(judged):
    assert [(row["arch"], row["case"]) for row in judged["on a CPU"]] == [
        (80, "row bfloat16"),
        (90, "row bfloat16"),
        (100, "row bfloat16"),
    ]


def test_each_compiled_kernel_is_reported_once(judged):
    assert len(judged["twice"]) == 1


def test_our_kernels_forward_and_backward(judged):
    """Full widths and all 8192 tokens, on no memory."""
    names = [(row["op"], row["kernel"]) for row in judged["ours"]]
    assert names == [
        ("rms_norm", "_forward_kernel"),
        ("rms_norm", "_backward_kernel"),
        ("rms_norm", "_sum_partials_kernel"),
        ("swiglu", "_forward_kernel"),
        ("swiglu", "_backward_kernel"),
    ]
    assert [row["problems"] for row in judged["ours"]] == [[]] * 5


def test_a_multiprocessor_has_one_long_row_of_logits_at_a_time_and_prefetches_it(judged):
    """Of the logits and their gradient in bf16, and of float32 ones beside a gradient in bf16."""
    rows = [row for row in judged["losses"] if row["kernel"] == "_kernel"]
    assert {row["op"] for row in rows} == {"cross_entropy", "linear_cross_entropy"}
    for row in rows:
        assert row["problems"] == [] and row["shared_bytes"] > static.SHARED_BYTES[90] // 2
        assert (
            row["async_copies"] >= 2 * 5 * 4
        )  # 64 bytes a thread: in both passes four ahead, and then in turn


def test_on_gpus_with_less_shared_memory_less_is_prefetched(judged):
    """Triton refuses a program that wants more than the 99 KiB of an RTX 4090, an L40S or an A10."""
    prefetching = [row for row in judged["99 KiB"] if row["async_copies"]]
    assert {row["kernel"] for row in prefetching} == {"_backward_kernel", "_kernel", "_scale_kernel"}
    assert max(row["shared_bytes"] for row in judged["99 KiB"]) <= 99 * 1024


def test_a_report_is_a_line_with_its_problems_last():
    report = static.Report("_kernel", "op", "case", 90, 4, 255, 8, 2, 0, 1.0, None, 0, ("a.py:7",))
    assert [list(column.cells)[0].strip() for column in static.render([report]).columns] == [
        *("op", "kernel", "case", "90", "4", "255", "2", "0", "100%", "-", "0"),
        "2 spill instructions, 8 bytes of local memory; 32-bit product in an address: a.py:7",
    ]


def test_interpreted_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET") as caught:
        static.table([OPS["swiglu"]], [SHAPE], [torch.bfloat16], (90,))
    assert caught.value.__notes__ == ["in swiglu, row bfloat16, compiled for sm_90"]


if __name__ == "__main__":
    json.dump(judge(), sys.stdout)
