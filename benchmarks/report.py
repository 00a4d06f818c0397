"""What was measured, as one page of tables and plots: python -m benchmarks.report [FILE.jsonl ...] --out DIR

Reads lines of JSON that the benchmarks have written. Kernels' tables are printed. With --out there are
report.html, which holds everything; a plot of each kernel; and training.svg, the broadest comparison of
trainers on a CPU, if there was one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import kernel_report, page
from benchmarks.commands import KERNELS
from benchmarks.rows import is_of_kernels, read
from benchmarks.timing import make_table_console
from benchmarks.training_page import picture_of_training
from fastling.errors import UserError, run_program
from fastling.files import write_text

RESULTS = Path(__file__).parent / "results"
WIDTH_OF_A_FILE = 260


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__.splitlines()[0])
    files = "what benchmarks have written (default: all of benchmarks/results)"
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE.jsonl", help=files)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the page and the plots here")
    options = parser.parse_args(arguments)
    paths = options.files or sorted(RESULTS.glob("*.jsonl"))
    if not paths:
        raise UserError(str(RESULTS), "holds no results", "Measure something first, or name files.")
    rows = [row for path in paths for row in read(path)]
    kernels = [row for row in rows if is_of_kernels(row)]
    console = make_table_console(WIDTH_OF_A_FILE)
    if kernels:
        console.print(kernel_report.render(kernels))
    else:
        console.print(f"kernels: unmeasured; {KERNELS} measures them, on a machine with a GPU")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for path in write(rows, kernels, options.out):
            console.print(f"wrote {path}")
    return 0


def write(rows: Sequence[dict], kernels: Sequence[dict], out: Path) -> list[Path]:
    """Plots of kernels, page and picture; -> the files."""
    written = []
    for number, found in enumerate(kernel_report.by_device(kernels).values()):
        folder = out if number == 0 else out / str(number)
        folder.mkdir(exist_ok=True)
        written += kernel_report.plot(found, folder)
    texts = {"report.html": page.page_of(rows), "training.svg": picture_of_training(rows)}
    for name, text in texts.items():
        if text is not None:
            write_text(out / name, text)
            written.append(out / name)
    return written


if __name__ == "__main__":
    sys.exit(run_program(main))
