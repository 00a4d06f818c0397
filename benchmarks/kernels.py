"""Benchmark of the kernels: python -m benchmarks.kernels, on a machine with a GPU.

Beside PyTorch, torch.compile and the libraries that are installed (liger-kernel, cut-cross-entropy), each
op at the sizes of real models: first its error against float64, then its time and the floor of that time.
Without a GPU there are --static (what the compiler makes of the kernels), --errors (in Triton's
interpreter) and --rehearse (the benchmark itself, tiny). `python -m benchmarks.report` makes a table and
plots of the lines.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fastling.errors import UserError, run_program

ON_A_GPU = "On a GPU machine `make gpu-test` runs the tests on the real kernels."


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    if options.static:
        return _static(options)
    _interpret_without_gpu(options)
    return _errors(options) if options.errors else _measure(options, list(arguments))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.kernels",
        description=__doc__,
        epilog=ON_A_GPU,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--static", action="store_true", help="compile for GPUs that are not there, and judge")
    modes.add_argument("--errors", action="store_true", help="print errors against float64, time nothing")
    modes.add_argument("--rehearse", action="store_true", help="measure on the CPU at tiny sizes")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append a line for each result")
    parser.add_argument("--only", metavar="OP", help="one op, as kernels/cases.py names it")
    parser.add_argument(
        "--without", metavar="PEER", action="append", default=[], help="leave a peer out (may be repeated)"
    )
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="begin nothing that would end later (default %(default)s)"
    )
    return parser.parse_args(arguments)


def _interpret_without_gpu(options: argparse.Namespace) -> None:
    """Triton decides when kernels are imported whether it compiles or interprets them, so not later."""
    import torch

    if torch.cuda.is_available():
        if options.rehearse:
            raise UserError("--rehearse", "there is a GPU here", "Measure on it: --minutes 1, say.")
    elif options.errors or options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        fix = "Without one there are --static, --errors and --rehearse."
        raise UserError("benchmarks.kernels", "needs a CUDA device", fix)


def _chosen_ops(options: argparse.Namespace) -> list:
    from fastling.kernels.cases import OPS

    if options.only not in (None, *OPS):
        raise UserError("--only", f"no such op: {options.only}", f"The ops are: {', '.join(OPS)}.")
    return [op for op in OPS.values() if options.only in (None, op.name)]


def _static(options: argparse.Namespace) -> int:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UserError("--static", "TRITON_INTERPRET is set: kernels are not compiled", "Unset it.")
    import torch
    from rich.console import Console

    from benchmarks import static, timing
    from fastling.kernels.cases import MODELS

    machine = asdict(timing.describe_machine(torch.device("cpu")))
    reports = static.table(_chosen_ops(options), MODELS.values(), [torch.bfloat16])
    for report in reports:
        row = {"bench": "kernels, static", **machine, "date": timing.now(), **static.row(report)}
        timing.add_rows([row], options.out)
    Console(width=180).print(static.render(reports))
    return 1 if any(report.problems for report in reports) else 0


def _errors(options: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.table import Table

    from benchmarks import timing
    from fastling.kernels import accuracy
    from fastling.kernels.cases import MODELS, Shape

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = replace(MODELS["llama3.2-1b"], tokens=2048)
    if device.type == "cpu":
        shape = Shape("small", 48, 256, 384, heads=4, kv_heads=2, head_dim=32, vocab=1000)
    machine = asdict(timing.describe_machine(device))
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    table = Table("op", "type", "of", "kernel", "plain", "ratio", box=None, pad_edge=False)
    for row in accuracy.table(_chosen_ops(options), shape, dtypes, device):
        more = {"bench": "kernels, errors", "case": f"{shape.name} {shape.tokens} tokens"}
        timing.add_rows([more | row | machine | {"date": timing.now()}], options.out)
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        errors = (f"{row[name]:.2e}" for name in ("kernel_error", "plain_error"))
        table.add_row(row["op"], row["dtype"], row["part"], *errors, ratio)
    Console(width=100).print(table)
    if device.type == "cpu":
        print("Interpreted: bfloat16 is cut off, not rounded, so that errors are up to twice a GPU's.")
    return 0


def _measure(options: argparse.Namespace, arguments: list[str]) -> int:
    from benchmarks import measure, providers

    _chosen_ops(options)
    peers = providers.peers()
    for name in options.without:
        if name not in peers:
            raise UserError("--without", f"no such peer: {name}", f"The peers are: {', '.join(peers)}.")
    settings = measure.REHEARSAL if options.rehearse else measure.EARNEST
    session = measure.Session(settings, options.out, options.minutes, arguments, options.without)
    try:
        return session.run(options.only)
    except measure.GpuFailed as error:
        if error.provider not in peers:
            raise
        measure.say(f"beginning again without {error.provider}: {error}")
        return _begin_again(arguments, error.provider, minutes=(session.ends - time.monotonic()) / 60)


def _begin_again(arguments: list[str], without: str, minutes: float) -> int:
    """In place of this process, which has lost the GPU: a peer's mistake is not to cost us our numbers."""
    more = ["--without", without, "--minutes", f"{minutes:.2f}"]  # of two numbers of minutes the last counts
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.kernels", *arguments, *more])


if __name__ == "__main__":
    sys.exit(run_program(main))
