"""`fastling merge`: several fine-tuned models as one, by weighted average or by TIES."""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fastling.command_line import Parser, refuse_options
from fastling.errors import UserError, run_program
from fastling.surgery.folders import add_result_options
from fastling.surgery.merging import merge_models
from fastling.terminal import make_console, print_result

DESCRIPTION = (
    "Merge models that were fine-tuned from one base. The average takes each weight's mean. TIES keeps "
    "only the largest changes of each model in every tensor, elects a sign for each weight, and takes the "
    "mean of the changes that have it. Both compute in float32, tensor by tensor. Config, tokenizer and "
    "dtype are the first model's. Memory: about 1 GiB plus copies of the largest tensor in float32: four for "
    "the average, and four more than there are models for TIES."
)
USAGE = "fastling merge --models M M [M ...] --out OUT [--method ties --base BASE] [options]"


def _parser() -> Parser:
    parser = Parser("fastling merge", DESCRIPTION, USAGE)
    parser.add_argument(
        "--models", type=Path, nargs="+", required=True, metavar="M", help="two or more folders"
    )
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W",
        help="one for each model, 0 or from 1e-6 to 1e6; only their ratios count (default: all equal)",
    )  # fmt: skip
    parser.add_argument("--method", choices=("average", "ties"), default="average", help="(default: average)")
    parser.add_argument("--base", type=Path, help="TIES: the model that all were fine-tuned from")
    parser.add_argument(
        "--density", type=float, help="TIES: share of each tensor's changes that is kept (default: 0.2)"
    )
    parser.add_argument(
        "--scale", type=float, help="TIES: what the merged change is multiplied by (default: 1)"
    )
    add_result_options(parser)
    return parser


def _check(options: Namespace) -> None:
    if len(options.models) < 2:
        raise UserError("--models", f"one model cannot be merged: {options.models[0]}", "Name two or more.")
    options.weights = options.weights or [1.0] * len(options.models)
    if len(options.weights) != len(options.models):
        what = f"there are {len(options.weights)} for {len(options.models)} models"
        raise UserError("--weights", what, "Give one for each model, in their order.")
    # So that no sum of them, nor of changes times them, leaves float32.
    given = options.weights
    if not all(weight == 0 or 1e-6 <= weight <= 1e6 for weight in given) or not any(given):
        shown = " ".join(f"{weight:g}" for weight in given)
        raise UserError("--weights", f"must be 0 or from 1e-6 to 1e6, and not all 0: {shown}")
    if options.method == "average":
        fix = "Remove it, or say --method ties."
        refuse_options(options, ("base", "density", "scale"), "has no effect on an average", fix)
        return
    if options.base is None:
        raise UserError("--base", "is needed by TIES, which merges changes to a base")
    options.density = 0.2 if options.density is None else options.density
    options.scale = 1.0 if options.scale is None else options.scale
    if not 0 < options.density <= 1:
        raise UserError("--density", f"must be above 0 and at most 1: {options.density:g}")
    if not math.isfinite(options.scale):
        raise UserError("--scale", f"must be a number: {options.scale}")


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    console = make_console()
    settings = {"density": options.density, "scale": options.scale} if options.method == "ties" else {}
    done = merge_models(
        options.models,
        options.weights,
        options.out,
        lambda text: console.print(f"warning: {text}"),
        base_folder=options.base,
        **settings,
    )
    console.print(f"written: {options.out}")
    if options.json:
        print_result(done | {"method": options.method} | settings)


if __name__ == "__main__":
    sys.exit(run_program(main))
