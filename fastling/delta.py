"""`fastling delta`: a model as differences from its base, and back.

BayLing and Vicuna were published this way, because LLaMA's own weights may not be redistributed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastling.command_line import Parser
from fastling.errors import UserError, run_program
from fastling.surgery.delta_weights import Record, apply_delta, make_delta
from fastling.surgery.folders import HALF_DTYPES, add_result_options
from fastling.terminal import make_console, print_result

HELP = """usage: fastling delta make|apply [options]

Write a model as its differences from a base, or add such differences to the base.

  fastling delta make --base B --target T --out D [--dtype fp16|bf16] [--json]
      writes the differences T - B to D, with T's config and tokenizer
  fastling delta apply --base B --delta D --out T [--json]
      restores the model in T; a base other than B, or a damaged D, is refused

`fastling delta make --help` and `fastling delta apply --help` explain every option."""


def _parser(action: str, usage: str, description: str) -> Parser:
    usage = f"fastling delta {action} --base BASE {usage} [options]"
    parser = Parser(f"fastling delta {action}", description, usage)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face or Meta folder of the base")
    add_result_options(parser)
    return parser


def make(arguments: Sequence[str]) -> None:
    parser = _parser(
        "make",
        "--target TARGET --out OUT",
        "Write a model as its differences from a base, computed in float32. Rows for added tokens, which "
        "the base lacks, are stored as they are. delta.json records which base fits (digests of its tensors) "
        "and how far the applied model is from the target at most. If base and target have the same half "
        "precision, the applied model nearly always equals the target bit for bit; the differences of a "
        "float32 target are rounded, so export it in the base's dtype first (fastling export --dtype). "
        "Memory: about 1 GiB plus five times the largest tensor in float32.",
    )
    parser.add_argument("--target", type=Path, required=True, help="Hugging Face folder to be published")
    parser.add_argument(
        "--dtype",
        choices=HALF_DTYPES,
        help="dtype of the differences (default: the target's if it is half precision, else fp16)",
    )
    options = parser.parse_args(arguments)
    record = make_delta(options.base, options.target, options.out, HALF_DTYPES.get(options.dtype))
    _report(options.out, record, options.json)


def apply(arguments: Sequence[str]) -> None:
    parser = _parser(
        "apply",
        "--delta DELTA --out OUT",
        "Add differences to their base. A wrong base, and a damaged or incomplete delta, are refused. "
        "Deltas of other software (FastChat's, with no delta.json) are applied with a warning that the "
        "base cannot be checked.",
    )
    differences = parser.add_mutually_exclusive_group(required=True)
    differences.add_argument("--delta", type=Path, help="folder with the differences")
    differences.add_argument("--target", type=Path, dest="delta", help="the same, under make's name")
    options = parser.parse_args(arguments)
    console = make_console()
    record = apply_delta(
        options.base, options.delta, options.out, lambda text: console.print(f"warning: {text}")
    )
    _report(options.out, record, options.json)


def _report(out: Path, record: Record | None, as_json: bool) -> None:
    console = make_console()
    console.print(f"written: {out}")
    if record is not None:
        for name, count in record.rows_beyond_base.items():
            console.print(f"{name}: {count} rows beyond the base's are stored as they are")
        if record.exact:
            console.print(f"applied to its base, it is the target bit for bit ({record.weights:,} weights)")
        else:
            console.print(
                f"applied to its base, {record.weights_not_exact:,} of {record.weights:,} weights differ "
                f"from the target's, by at most {record.largest_difference:.3g}"
                + (f" (in {record.largest_difference_in})" if record.largest_difference_in else "")
            )
    if as_json:
        facts = record.facts() if record else {}
        print_result({"out": str(out), "base_checked": record is not None} | facts)


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    actions = {"make": make, "apply": apply}
    if arguments[0] not in actions:
        raise UserError(
            "fastling delta", f"is neither make nor apply: {arguments[0]}", "--help explains both."
        )
    actions[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(run_program(main))
