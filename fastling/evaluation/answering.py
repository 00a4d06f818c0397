"""Questions to a model, for every evaluation that takes --model: batched, kept as they come, resumable."""

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

from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.evaluation.kept_answers import Answer, KeptAnswers
from fastling.files import check_can_be_made
from fastling.model.decoding import Decoding
from fastling.settings import (
    Parser,
    build_from_options,
    check_positive,
    given_options,
    option_of,
    refuse_options,
)
from fastling.terminal import make_progress

if TYPE_CHECKING:  # torch takes seconds to import, and given outputs need none of it
    from fastling.inference.chat_model import ChatModel

DECODING_OPTIONS = ("max_new_tokens", "beams", "temperature", "top_p", "seed")
MODEL_OPTIONS = (*DECODING_OPTIONS, "template", "keep_answers", "cache_gib", "limit")
DEFAULTS = Decoding()
CACHE_GIB = 2.0


@dataclass(frozen=True)
class Question:
    """User turns that are answered in order, the model's own answers being the history of the next."""

    turns: tuple[str, ...]
    system: str = ""
    history: tuple[Turn, ...] = ()
    """Turns given before, answers included."""


def add_model_options(parser: Parser) -> None:
    """--model and how it answers; without --model each of the others is an error (`check_source`)."""
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
    """Raises UserError unless the outputs come from one place: the options named `given`, or --model."""
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
    """How the model answers. Raises UserError, by the option's name, for what makes no sense."""
    return build_from_options(Decoding, "decoding", given_options(options, DECODING_OPTIONS))


def answer_questions(
    options: argparse.Namespace, questions: Sequence[Question], console: Console
) -> list[list[Answer]]:
    """An answer for every turn of every question, in their order.

    Turn by turn over all questions. Within a turn `generate` goes from short prompts to long ones and
    fills the place of an answer that is finished with the next prompt. Every finished answer is written
    to the file of kept answers at once; what that file holds is not asked again. Where tokens are drawn,
    a run that was stopped draws the rest anew: its answers differ from those of a run in one go.

    Raises UserError for a model or questions that cannot be used, and for a file of other answers.
    """
    from fastling.inference.chat_model import load_chat_model

    path = kept_answers_path(options)
    decoding = decoding_of(options)
    with console.status(f"loading {options.model}"):
        chat = load_chat_model(options.model, template=options.template)
        openings = [_opening_prompt(chat, questions, number) for number in range(len(questions))]
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
                _answer_turn(chat, prompts, decoding, options.cache_gib or CACHE_GIB, partial(keep, turn))
        return [[kept.get(n, turn) for turn in range(turns[n])] for n in range(len(questions))]


def kept_answers_path(options: argparse.Namespace) -> Path:
    """Where the answers are kept. Raises UserError where no file can be."""
    if options.keep_answers:
        path = options.keep_answers
    elif options.out:
        path = options.out.with_suffix(".answers.jsonl")
    else:
        path = Path(f"{options.kind}-{model_name(options.model)}.answers.jsonl")
    check_can_be_made("--keep-answers", path)
    return path


def model_name(folder: Path) -> str:
    """What a model's folder is called; of a run's export, the run."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def fingerprint_of(
    chat: "ChatModel", questions: Sequence[Question], openings: Sequence[list[int]], decoding: Decoding
) -> dict[str, object]:
    """What answers depend on, each part by a name that an error can say."""
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


def _opening_prompt(chat: "ChatModel", questions: Sequence[Question], number: int) -> list[int]:
    """(prompt,) ids of a question's first turn. Raises UserError, with its number, if it cannot be asked."""
    question = questions[number]
    try:
        turns = (*question.history, Turn("user", question.turns[0]))
        return chat.prompt_ids(Conversation(turns, question.system))
    except UserError as error:
        raise UserError(f"question {number + 1}", f"{error.where} {error.what}", error.fix) from None


def _prompts(
    chat: "ChatModel", questions: Sequence[Question], asked: Sequence[int], turn: int, kept: KeptAnswers
) -> dict[int, list[int] | Answer]:
    """By number of question: the ids to ask with, or the failure that stands for the answer."""
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
        except UserError:  # the openings were tried before: it is an answer that cannot be fed back
            prompts[number] = Answer("", "refused")
            continue
        prompts[number] = ids if len(ids) < chat.longest_sequence else Answer("", "too-long")
    return prompts


def _answer_turn(
    chat: "ChatModel",
    prompts: dict[int, list[int] | Answer],
    decoding: Decoding,
    cache_gib: float,
    keep: Callable[[int, Answer], None],
) -> None:
    """Ask one turn of many questions; every answer is handed on by its number as soon as it is finished."""
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
        )


def failures_of(answers: Sequence[Sequence[Answer]]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Answers that are none or were cut: counts by name, and the notes that say so."""
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
