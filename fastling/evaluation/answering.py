"""Asks a model the questions of an evaluation with --model.

They are answered in batches. Finished answers are kept in a file, from which the same command goes on.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastling.command_line import (
    Parser,
    build_from_options,
    check_positive,
    given_options,
    option_of,
    refuse_options,
)
from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.evaluation.kept_answers import Answer, KeptAnswers
from fastling.files import check_can_be_made
from fastling.model.decoding import Decoding
from fastling.terminal import make_progress

if TYPE_CHECKING:  # torch takes seconds to import, and is not needed for given outputs
    from fastling.inference.chat_model import ChatModel

DECODING_OPTIONS = ("max_new_tokens", "beams", "temperature", "top_p", "seed")
MODEL_OPTIONS = (*DECODING_OPTIONS, "template", "keep_answers", "cache_gib", "limit")
DEFAULTS = Decoding()
CACHE_GIB = 2.0


@dataclass(frozen=True)
class Question:
    """User turns that are asked in order; each of the model's answers becomes history for the next turn."""

    turns: tuple[str, ...]
    system: str = ""
    history: tuple[Turn, ...] = ()
    """Turns of user and assistant before them, with given answers."""


def add_model_options(parser: Parser) -> None:
    """Add --model, and the options for its answers, which `check_source` refuses without --model."""
    group = parser.add_argument_group("a model's own outputs, in place of given ones")
    add = group.add_argument
    add("--model", type=Path, metavar="DIR", help="an export, a run that has one, or a Hugging Face folder")
    add("--template", metavar="T", help="name or YAML file (default: the model's own)")
    add(
        "--keep-answers",
        type=Path,
        metavar="F.jsonl",
        help="where answers are kept as they come; the same command goes on from there "
        "(default: beside --out, else KIND-MODEL.answers.jsonl)",
    )
    tokens = DEFAULTS.max_new_tokens
    add("--max-new-tokens", type=int, metavar="N", help=f"longest answer (default: {tokens})")
    add("--beams", type=int, metavar="N", help="width of beam search (default: 1, no search)")
    add(
        "--temperature",
        type=float,
        metavar="X",
        help="sample at this temperature; 0 takes the likeliest token (default: 0)",
    )
    add(
        "--top-p",
        type=float,
        metavar="X",
        help="nucleus sampling: the likeliest tokens that sum to X (default: 1)",
    )
    add("--seed", type=int, metavar="N", help="of sampling (default: 0)")
    add(
        "--cache-gib",
        type=float,
        metavar="X",
        help=f"memory of the KV cache; more lets more answers be made at once (default: {CACHE_GIB:g})",
    )
    add("--limit", type=int, metavar="N", help="the first N rows only (default: all)")


def check_source(options: argparse.Namespace, *given: str) -> None:
    """Raise UserError unless the outputs come from one place: --model, or the options named in `given`.

    The options for a model's answers are checked as well.
    """
    if options.model is not None:
        fix = "Keep one of the two: given outputs, or a model that makes them."
        refuse_options(options, given, "cannot be given with --model", fix)
        check_positive(options, ["limit", "cache_gib"])
        decoding_of(options)
        return
    refuse_options(options, MODEL_OPTIONS, "has no effect without --model")
    missing = [name for name in given if getattr(options, name) is None]
    if missing:
        raise UserError(option_of(missing[0]), "is needed, or --model", "--help shows every option.")


def decoding_of(options: argparse.Namespace) -> Decoding:
    """The settings for a model's answers. Raises UserError, naming the option, for an impossible value."""
    return build_from_options(Decoding, "decoding", given_options(options, DECODING_OPTIONS))


def answer_questions(
    options: argparse.Namespace, questions: Sequence[Question], console: Console
) -> list[list[Answer]]:
    """The answers to each question, one for every turn, in the order of the questions.

    All questions are asked their first turn, then all their second turn, and so on. Within a turn `generate`
    goes from short prompts to long ones, and gives the place of a finished answer to the next prompt. Every
    finished answer is written to the file of kept answers at once, and what this file holds is not asked
    again. Each answer has random numbers of its own, so that a resumed run samples what an uninterrupted one
    would have sampled (up to rounding, which differs a little with the answers that are made together).

    Raises UserError for a model or questions that cannot be used, and for a file with answers to something
    else; RunError if the memory of the device is full.
    """
    from fastling.inference.chat_model import load_chat_model

    path = kept_answers_path(options)
    decoding = decoding_of(options)
    with console.status(f"loading {options.model}"):
        chat = load_chat_model(options.model, template=options.template)
        openings = [_opening_prompt(chat, question, number) for number, question in enumerate(questions, 1)]
        fingerprint = fingerprint_of(chat, questions, openings, decoding)
    turns = [len(question.turns) for question in questions]
    with closing(KeptAnswers(path, fingerprint, turns)) as kept:
        console.print(
            f"{model_name(options.model)}: {sum(turns):,} answers wanted, {len(kept):,} already in {path}",
            soft_wrap=True,
        )
        with make_progress(console) as progress:
            task = progress.add_task("answering", total=sum(turns), completed=len(kept))

            def keep(turn: int, number: int, answer: Answer) -> None:
                kept.add(number, turn, answer)
                progress.advance(task)

            for turn in range(max(turns, default=0)):
                asked = [n for n in range(len(questions)) if turn < turns[n] and not kept.get(n, turn)]
                prompts = _prompts(chat, questions, asked, turn, kept)
                cache_gib = options.cache_gib or CACHE_GIB
                _answer_turn(chat, prompts, turn, decoding, cache_gib, partial(keep, turn))
        return [[kept.get(n, turn) for turn in range(turns[n])] for n in range(len(questions))]


def kept_answers_path(options: argparse.Namespace) -> Path:
    """The path of the file of kept answers. Raises UserError if no file can be made there."""
    if options.keep_answers:
        path = options.keep_answers
    elif options.out:
        path = options.out.with_suffix(".answers.jsonl")
    else:
        path = Path(f"{options.kind}-{model_name(options.model)}.answers.jsonl")
    check_can_be_made("--keep-answers", path)
    return path


def model_name(folder: Path) -> str:
    """The name of a model's folder; for a run's export, the name of the run's folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def fingerprint_of(
    chat: "ChatModel", questions: Sequence[Question], openings: Sequence[list[int]], decoding: Decoding
) -> dict[str, object]:
    """All that answers depend on: name -> setting or digest. An error lists the names that differ."""
    from fastling.model.digests import digest

    weights = hashlib.sha256()
    for name, tensor in sorted(chat.model.state_dict().items()):
        weights.update(digest(name, tensor.cpu()).encode())
    later = Conversation((Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3")))
    form = (openings, chat.prompt_ids(later), sorted(chat.stop_ids))
    asked = [(question.turns, question.system, question.history) for question in questions]
    return {
        "questions": _sha256(asked),
        "model": weights.hexdigest(),
        "configuration of the model": _sha256(asdict(chat.model.config)),
        "template or tokenizer": _sha256(form),
        **{f"decoding.{name}": value for name, value in asdict(decoding).items()},
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _opening_prompt(chat: "ChatModel", question: Question, number: int) -> list[int]:
    """The prompt for a question's first turn, as ids. Raises UserError, with its number, if it is refused."""
    try:
        turns = (*question.history, Turn("user", question.turns[0]))
        return chat.prompt_ids(Conversation(turns, question.system))
    except UserError as error:
        raise UserError(f"question {number}", f"{error.where} {error.what}", error.fix) from None


def _prompts(
    chat: "ChatModel", questions: Sequence[Question], asked: Sequence[int], turn: int, kept: KeptAnswers
) -> dict[int, list[int] | Answer]:
    """Number of question -> ids of its prompt, or the answer that it gets since it cannot be asked."""
    prompts: dict[int, list[int] | Answer] = {}
    for number in asked:
        question = questions[number]
        turns = list(question.history)
        for earlier in range(turn):
            answer = kept.get(number, earlier).text
            turns += [Turn("user", question.turns[earlier]), Turn("assistant", answer)]
        turns.append(Turn("user", question.turns[turn]))
        try:
            ids = chat.prompt_ids(Conversation(tuple(turns), question.system))
        except UserError:  # an earlier answer cannot be fed back, since the openings were tried before
            prompts[number] = Answer("", "refused")
            continue
        prompts[number] = ids if len(ids) < chat.longest_sequence else Answer("", "too-long")
    return prompts


def _answer_turn(
    chat: "ChatModel",
    prompts: dict[int, list[int] | Answer],
    turn: int,
    decoding: Decoding,
    cache_gib: float,
    keep: Callable[[int, Answer], None],
) -> None:
    """Ask one turn of many questions; call `keep` with number and answer whenever an answer is finished."""
    from fastling.model.full_memory import full_memory_in_words
    from fastling.model.generation import generate

    asked = [number for number, prompt in prompts.items() if isinstance(prompt, list)]
    for number in prompts.keys() - set(asked):
        keep(number, prompts[number])

    def keep_completion(index, completion) -> None:
        keep(asked[index], Answer(chat.text(completion), completion.finish_reason))

    fix = "Lower --cache-gib, --beams or --max-new-tokens; what was answered is kept."
    with full_memory_in_words("--model", fix, "the memory of the device is full"):
        generate(
            chat.model,
            [prompts[number] for number in asked],
            decoding,
            stop_ids=chat.stop_ids,
            on_completion=keep_completion,
            cache_bytes=int(cache_gib * 2**30),
            draws=[f"{number} {turn}" for number in asked],
        )


def failures_of(answers: Sequence[Sequence[Answer]]) -> tuple[dict[str, int], tuple[str, ...]]:
    """(reason -> number of answers that are missing or were cut for it; the same in words, as notes)."""
    reasons = [answer.finish_reason for turns in answers for answer in turns]
    words = {
        "too-long": "longer than the context: no answer, counted as an empty one",
        "refused": "an earlier answer cannot be fed back: no answer, counted as an empty one",
        "length": "cut at --max-new-tokens or at the end of the context, and scored as far as they go",
    }
    counts = {reason: reasons.count(reason) for reason in words}
    notes = tuple(
        f"{counts[reason]:,} of {len(reasons):,} {words[reason]}" for reason in words if counts[reason]
    )
    return {reason.replace("-", "_"): count for reason, count in counts.items()}, notes
