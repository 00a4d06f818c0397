"""Asks a judge to score pairs of conversations from 1 to 10, and records what failed and why.

A judge often favours the answer that is shown first. So each pair is shown in both orders, and the means of
each side's two scores are compared. If the judge only said who is better, the verdicts of both orders are
added. A pair that lacks both scores and verdict in one order counts as not judged.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from pathlib import Path
from string import Template

from fastling.errors import RunError, UserError
from fastling.evaluation.judge_scores import HIGHEST, LOWEST, Scores, Told, Unreadable, parse_answer
from fastling.remote import BudgetSpent, NoAnswer, Server, read_prompt

PROMPT = "dialogue.txt"
PLACES = {"conversation_1", "conversation_2", "mark"}
ATTEMPTS = 3
"""Most times that a judge is asked until its answer holds two scores or a verdict."""
TEMPERATURES = (0.0, 0.7, 0.7)  # of each attempt; at 0 a judge would write the same again
MOST_TOKENS = 2048  # of a judge's answer; some think before they score
NOTHING_SAID = "[no answer]"


@dataclass(frozen=True)
class Pair:
    """The turns of a user and two assistants' answers to each; `ours` is judged against `baseline`."""

    question_id: str
    category: str
    turns: tuple[str, ...]
    ours: tuple[str, ...]
    baseline: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a pair, ours before the baseline: with ours shown first, and shown second."""

    ours_first: Told
    ours_second: Told
    asked: bool = True
    """False if one side answered nothing, which needs no judge."""

    @property
    def is_scored(self) -> bool:
        """False if the judge only said who is better, in one order at least."""
        return not isinstance(self.ours_first, int) and not isinstance(self.ours_second, int)

    @property
    def mean(self) -> Scores:
        """(ours, baseline), each the exact mean over both orders. Only of a judgement that is scored."""
        first, second = self.ours_first, self.ours_second
        return (first[0] + second[0]) / 2, (first[1] + second[1]) / 2

    @property
    def signs(self) -> tuple[int, int]:
        """The winner in each order: 1 for ours, -1 for the baseline, 0 for a tie."""
        return _sign(self.ours_first), _sign(self.ours_second)

    @property
    def sign(self) -> int:
        """The winner by the means over both orders, or by both verdicts, likewise."""
        return _sign(self.mean) if self.is_scored else _sign((sum(self.signs), 0))


@dataclass
class Failures:
    """What went wrong in the judging."""

    unreadable: Counter = field(default_factory=Counter)  # answers that could not be read, by reason
    excluded: dict[str, str] = field(default_factory=dict)  # question -> why it has no judgement
    budget_spent: bool = False  # questions that are neither judged nor excluded were left unasked
    stopped: RunError | None = None  # likewise, because the server became unusable


def load_prompt(folder: Path | None) -> Template:
    """The judge's prompt, from `folder` or built in. Raises UserError unless it shows both conversations."""
    if folder and not (folder / PROMPT).is_file():
        raise UserError("--judge-prompts", f"holds no {PROMPT}: {folder}")
    built_in = resources.files("fastling.evaluation") / "prompts" / PROMPT
    prompt = read_prompt(folder / PROMPT if folder else built_in, PLACES, option="--judge-prompts")
    for place in ("conversation_1", "conversation_2"):
        if place not in prompt.get_identifiers():
            raise UserError("--judge-prompts", f"never shows ${place}: {folder / PROMPT}")
    return prompt


def judge_pairs(
    pairs: Sequence[Pair],
    open_server: Callable[[], Server],
    prompt: Template,
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[dict[str, Judgement], Failures, int]:
    """(question_id -> judgement, in the order of the pairs; failures; tokens of all answers kept).

    `progress` is called with these tokens after each pair. If the server becomes unusable or the
    budget is spent, nothing more is asked, and the judgements made so far are returned.
    """
    failures = Failures()

    async def judge_all() -> tuple[list[Judgement | None], int]:
        server = open_server()  # inside the event loop, to which its client belongs

        async def judge_one(pair: Pair) -> Judgement | None:
            judgement = await _judge(pair, server, prompt, failures)
            progress(server.tokens)
            return judgement

        try:
            tasks = [asyncio.ensure_future(judge_one(pair)) for pair in pairs]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            return await _end(tasks, failures), server.tokens
        finally:
            await server.close()

    judgements, tokens = asyncio.run(judge_all())
    found = {
        pair.question_id: judgement
        for pair, judgement in zip(pairs, judgements, strict=True)
        if judgement is not None
    }
    return found, failures, tokens


async def _end(tasks: list[asyncio.Task], failures: Failures) -> list[Judgement | None]:
    """Cancel unfinished tasks. Return each task's judgement, or None without one."""
    for task in tasks:
        task.cancel()  # does nothing to one that is done
    found = []
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, RunError):
            failures.stopped = failures.stopped or outcome
        elif isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
        found.append(outcome if isinstance(outcome, Judgement) else None)
    return found


async def _judge(pair: Pair, server: Server, prompt: Template, failures: Failures) -> Judgement | None:
    """The judgement of a pair, or None. Raises RunError if no pair could be judged any more."""
    if decided := _without_asking(pair):
        return decided
    shown = [
        fill(prompt, pair.turns, pair.ours, pair.baseline),
        fill(prompt, pair.turns, pair.baseline, pair.ours),
    ]
    if shown[0] == shown[1]:
        shown.pop()  # equal answers: the judge is asked once, and both have the same mean
    answers = await asyncio.gather(*(_ask(server, text, failures) for text in shown))
    reasons = [answer for answer in answers if isinstance(answer, str)]
    if reasons:
        failures.excluded[pair.question_id] = reasons[0]
        return None
    if None in answers:
        failures.budget_spent = True
        return None
    first, second = answers[0], answers[-1]
    return Judgement(first, -second if isinstance(second, int) else (second[1], second[0]))


async def _ask(server: Server, text: str, failures: Failures) -> Told | str | None:
    """What the judge said of (first shown, second shown); the reason if nothing; None without budget."""
    reason = ""
    for attempt in range(ATTEMPTS):
        try:
            answer = await server.ask(
                [{"role": "user", "content": text}],
                temperature=TEMPERATURES[attempt],
                seed=attempt,
                most_tokens=MOST_TOKENS,
            )
            return parse_answer(answer)
        except Unreadable as error:
            reason = str(error)
            failures.unreadable[reason] += 1
        except NoAnswer as error:
            return str(error)
        except BudgetSpent:
            return None
    return reason


def _without_asking(pair: Pair) -> Judgement | None:
    """The judgement if a side answered nothing: it gets the lowest score, a side with text the highest."""
    ours, baseline = ("".join(answers).strip() for answers in (pair.ours, pair.baseline))
    if ours and baseline:
        return None
    low, high = Fraction(LOWEST), Fraction(HIGHEST)
    scores = (high if ours else low, high if baseline else low)
    return Judgement(scores, scores, asked=False)


def fill(prompt: Template, turns: Sequence[str], first: Sequence[str], second: Sequence[str]) -> str:
    """The prompt with two conversations in it. Each part begins with a mark that no answer can forge."""
    mark = hashlib.sha256("\x00".join((*turns, *first, *second)).encode()).hexdigest()[:8]
    conversations = {
        f"conversation_{number}": _render(mark, number, turns, answers)
        for number, answers in ((1, first), (2, second))
    }
    return prompt.substitute(conversations, mark=mark)


def _render(mark: str, number: int, turns: Sequence[str], answers: Sequence[str]) -> str:
    parts = []
    for turn, (question, answer) in enumerate(zip(turns, answers, strict=True), start=1):
        parts.append(f"[{mark} user to Assistant {number}, turn {turn}]\n{question}")
        parts.append(f"[{mark} Assistant {number}, turn {turn}]\n{answer.strip() or NOTHING_SAID}")
    return "\n\n".join(parts)


def _sign(told: Told) -> int:
    return told if isinstance(told, int) else (told[0] > told[1]) - (told[0] < told[1])
