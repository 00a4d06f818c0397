"""`fastling extend`: adds tokens to a model's vocabulary; text without them is read as before."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fastling.command_line import Parser
from fastling.errors import UserError, run_program
from fastling.surgery.folders import add_result_options
from fastling.surgery.tokens import add_pieces, add_tokens, read_token_file
from fastling.surgery.vocabulary import INITS, extend_model
from fastling.terminal import make_console, print_result

DESCRIPTION = (
    "Add tokens to a model's vocabulary. Old ids and old rows stay as they are, so text without a new token "
    "gets the same ids, and old tokens the same logits. With a SentencePiece BPE tokenizer.model the tokens "
    "become pieces of it, and tokenizer.json is proved equal to it; with a byte-level tokenizer.json they "
    "become added tokens, matched as plain content. The new rows are useful only after training."
)
USAGE = "fastling extend --model MODEL --out OUT (--tokens FILE | --pieces FILE) [options]"
TOKENS_HELP = (
    "text file, one token per line; those already in the vocabulary are skipped. A leading space counts: "
    "'zebra' is never the word after a space, ' zebra' is. A SentencePiece model merges two pieces at a "
    "time, so the letters that it lacks and the intermediate pieces that lead to a token, zeb for "
    "ze + b + ra, are added after the tokens, and reported"
)
INIT_HELP = (
    "how new rows start, in both embedding and head: mean-of-pieces, the mean of the old tokens that made "
    "up the token's text (the default); mean, that of all tokens; copy:TOKEN, the row of another token; "
    "zip-tie-approximation, the mean of the tokens of its UTF-8 bytes, after a description of Bailong's "
    "zip-tie, whose own formula was not available"
)


def _parser() -> Parser:
    parser = Parser("fastling extend", DESCRIPTION, USAGE)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--tokens", type=Path, help=TOKENS_HELP)
    parser.add_argument(
        "--pieces", type=Path, help="a SentencePiece BPE .model; its pieces that the model lacks are added"
    )
    parser.add_argument("--init", default="mean-of-pieces", metavar="|".join(INITS), help=INIT_HELP)
    parser.add_argument(
        "--pad-to-multiple",
        type=int,
        default=1,
        metavar="N",
        help="round rows up to a multiple of N (default: 1)",
    )
    add_result_options(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if (options.tokens is None) == (options.pieces is None):
        raise UserError("fastling extend", "takes one of --tokens and --pieces", "--help explains both.")
    if not 1 <= options.pad_to_multiple <= 65536:
        raise UserError("--pad-to-multiple", f"must be from 1 to 65536: {options.pad_to_multiple}")
    if options.tokens is not None:
        added = add_tokens(options.model, read_token_file(options.tokens))
    else:
        added = add_pieces(options.model, options.pieces)
    done = extend_model(options.model, options.out, added, options.init, options.pad_to_multiple)
    console = make_console()
    if options.init == "zip-tie-approximation":
        console.print("note: an approximation of Bailong's zip-tie, after a description of it")
    for texts, words in (
        (added.known, "skipped, as the vocabulary has them"),
        (added.helpers, "also added, letters and intermediate pieces that the others are merged from"),
        (added.unreached, "pieces that do not come out of their own text"),
    ):
        if texts:
            shown = ", ".join(map(repr, texts[:5])) + (", ..." if len(texts) > 5 else "")
            console.print(f"note: {words} ({len(texts):,}): {shown}", soft_wrap=True)
    console.print(
        f"written: {options.out}: {done['tokens']} tokens from id {done['first_id']} on, each "
        f"{done['pieces_per_token_before']:.1f} tokens until now; "
        f"{done['rows_before']} -> {done['rows']} rows"
    )
    if options.json:
        print_result(done)


if __name__ == "__main__":
    sys.exit(run_program(main))
