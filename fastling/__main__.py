"""`fastling VERB ...`: finds the verb's file and runs its `main`. Imports nothing heavy before that."""

import importlib
import sys

import fastling
from fastling import garbage
from fastling.errors import UserError, run_program

VERBS = {
    "dialogues": "build interactive-translation dialogues from parallel text",
    "prepare": "tokenize, prove and pack the data; print the ledger of what is trained on",
    "preview": "show, token by token, what is trained on and what is not, and why",
    "plan": "estimate what training will take before you rent GPUs: memory, steps, time",
    "verify": "check that packing, gradients and kernels are exact, on this machine with this config",
    "train": "train a model (also under torchrun); resumes by itself",
    "evaluate": "score translations, constraints, exams, dialogues, refinements, instructions",
    "chat": "talk to a model in the terminal, or serve it with a page",
    "export": "write a trained run as a Hugging Face folder, and check that folder",
    "delta": "write a model as differences from its base; apply such differences",
    "extend": "add tokens to a model's vocabulary",
    "merge": "merge models by average or TIES",
}


def usage() -> str:
    lines = [
        f"fastling {fastling.__version__}: instruction-tunes LLaMA models, proving what it trains on",
        "",
        "usage: fastling VERB [options]      (fastling VERB --help shows every option)",
        "",
        *(f"  {verb:<10} {text}" for verb, text in VERBS.items()),
    ]
    return "\n".join(lines)


def dispatch(arguments: list[str]) -> int | None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return None
    if arguments[0] == "--version":
        print(fastling.__version__)
        return None
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError("fastling", f"unknown verb: {verb}", f"The verbs are: {', '.join(VERBS)}.")
    garbage.wait_for_imports()
    module = importlib.import_module(f"fastling.{verb}")
    garbage.pass_over_imports()
    return module.main(rest)


def main() -> int:
    return run_program(dispatch)


if __name__ == "__main__":
    sys.exit(main())
