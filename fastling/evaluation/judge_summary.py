"""Sums up judgements of pairs: wins, ties, losses, the ratio of scores, and how reliable the judge is."""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from fastling.errors import RunError
from fastling.evaluation.bootstrap import RESAMPLES, SEED, interval_of_ratio
from fastling.evaluation.judge import ATTEMPTS, HIGHEST, LOWEST, Failures, Judgement, Pair
from fastling.evaluation.result import Result, TableData, cell, percent
from fastling.remote import UNREACHABLE

ASKED_AGAIN = re.compile(f"{UNREACHABLE.pattern}|broken")
"""Reasons for a missing answer that may not recur when the same command asks again."""
VERDICTS = {1: "win", 0: "tie", -1: "loss"}
COLUMNS = ("questions", "judged", "win", "tie", "loss", "score", "baseline", "ratio, %", "orders disagree, %")


def summarize(
    pairs: Sequence[Pair], judgements: dict[str, Judgement], failures: Failures, *, judge: str, tokens: int
) -> Result:
    """The result for all pairs and by category. Means and verdicts leave out pairs that were not judged."""
    categories: dict[str, list[Pair]] = {}
    for pair in pairs:
        categories.setdefault(pair.category, []).append(pair)
    by_category = {name: _counts(members, judgements) for name, members in categories.items()}
    overall = _counts(pairs, judgements)
    found = list(judgements.values())
    unasked = len(pairs) - len(found) - len(failures.excluded)
    scores = {
        **overall,
        "score_ratio_interval": ratio_interval(_scored(found)),
        "verdicts_only": sum(not each.is_scored for each in found),
        "agreed_win": sum(each.signs == (1, 1) for each in found),
        "agreed_loss": sum(each.signs == (-1, -1) for each in found),
        "first_place_advantage": _first_place_advantage(found),
        "complete": len(found) == len(pairs),
        "excluded": _sorted(Counter(failures.excluded.values())),
        "unasked": unasked,
        "parse_failures": failures.unreadable.total(),
        "parse_failure_reasons": _sorted(failures.unreadable),
        "empty": {
            "ours": sum(_empty(pair.ours) for pair in pairs),
            "baseline": sum(_empty(pair.baseline) for pair in pairs),
        },
        "judge": judge,
        "judge_tokens": tokens,
        "categories": by_category,
        "pairs": [_record(pair, judgements.get(pair.question_id), failures) for pair in pairs],
    }
    rows = [(name, *_cells(counts)) for name, counts in by_category.items()]
    tables = [TableData(f"judged by {judge}", ("category", *COLUMNS), (*rows, ("all", *_cells(overall))))]
    failed = Counter(failures.excluded.values()) + Counter({"not asked": unasked})
    if failed.total():
        reasons = tuple((reason, str(count)) for reason, count in _sorted(+failed).items())
        tables.append(TableData("not judged", ("reason", "questions"), reasons))
    failure = _failure(scores, failures)
    return Result("dialogue", scores, tuple(tables), tuple(_notes(scores)), failure)


def _failure(scores: dict, failures: Failures) -> RunError | None:
    """The error to report if the user can still complete the result; what was judged is scored anyway."""
    if failures.stopped:
        return failures.stopped
    if failures.budget_spent:
        what = f"is spent: {scores['unasked']} of {scores['questions']} questions are not judged"
        return RunError(
            "--judge-budget-tokens",
            what,
            "Finished judgements are kept; the same command with a larger budget continues.",
        )
    silent = {reason: count for reason, count in scores["excluded"].items() if ASKED_AGAIN.match(reason)}
    if not scores["judged"] and silent != scores["excluded"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in scores["excluded"].items())
        return RunError(
            "--judge-url", f"no question could be judged: {reasons}", "Try another judge or prompt."
        )
    if silent:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in silent.items())
        what = f"{sum(silent.values())} of {scores['questions']} questions had no answer: {reasons}"
        return RunError(
            "--judge-url", what, "Finished judgements are kept; the same command asks these again."
        )
    return None


def _sorted(counter: Counter) -> dict[str, int]:
    """The most frequent first, so that the order does not depend on when answers came."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _counts(pairs: Sequence[Pair], judgements: dict[str, Judgement]) -> dict:
    """Counts, verdicts, mean scores and their ratio in percent; None for what cannot be computed."""
    found = [judgements[pair.question_id] for pair in pairs if pair.question_id in judgements]
    verdicts = Counter(each.sign for each in found)
    scored = _scored(found)
    ours, baseline = (sum((each.mean[side] for each in scored), Fraction()) for side in (0, 1))
    asked = [each for each in found if each.asked]
    disagree = sum(each.signs[0] != each.signs[1] for each in asked)
    return {
        "questions": len(pairs),
        "judged": len(found),
        **{name: verdicts[sign] for sign, name in VERDICTS.items()},
        "score": float(ours / len(scored)) if scored else None,
        "baseline_score": float(baseline / len(scored)) if scored else None,
        "score_ratio": float(100 * ours / baseline) if scored else None,
        "orders_disagree": disagree,
        "position_bias": percent(disagree, len(asked)),
    }


def _scored(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Those with scores; none if only empty answers have them, because the judge gave none."""
    scored = [each for each in judgements if each.is_scored]
    return scored if len(scored) == len(judgements) or any(each.asked for each in scored) else []


def ratio_interval(judgements: Sequence[Judgement]) -> list[float] | None:
    """95 % bootstrap interval of the ratio in percent, over the questions; None for less than two."""
    if len(judgements) < 2:
        return None
    ours, baseline = zip(*(map(float, each.mean) for each in judgements), strict=True)
    return [100 * edge for edge in interval_of_ratio(ours, baseline)]


def _first_place_advantage(judgements: Sequence[Judgement]) -> float | None:
    """By how many points the answer shown first is scored higher on average; None if no judge gave scores."""
    gains = [
        (each.ours_first[0] - each.ours_first[1] + each.ours_second[1] - each.ours_second[0]) / 2
        for each in judgements
        if each.asked and each.is_scored
    ]
    return float(sum(gains) / len(gains)) if gains else None


def _empty(answers: Sequence[str]) -> int:
    """The number of empty answers."""
    return sum(not answer.strip() for answer in answers)


def _record(pair: Pair, judgement: Judgement | None, failures: Failures) -> dict:
    record = {"question_id": pair.question_id, "category": pair.category}
    if judgement is None:
        return record | {"verdict": None, "reason": failures.excluded.get(pair.question_id, "not asked")}
    record["verdict"] = VERDICTS[judgement.sign]
    if not judgement.is_scored:
        return record | {"verdicts": [VERDICTS[sign] for sign in judgement.signs]}  # in the order below
    first, second = judgement.ours_first, judgement.ours_second
    return record | {
        "scores": [float(first[0]), float(second[0])],  # with ours shown first, with ours shown second
        "baseline_scores": [float(first[1]), float(second[1])],
    }


def _cells(counts: dict) -> tuple[str, ...]:
    numbers = (str(counts[name]) for name in ("questions", "judged", "win", "tie", "loss"))
    scores = (cell(counts[name], digits=2) for name in ("score", "baseline_score"))
    return (*numbers, *scores, *(cell(counts[name]) for name in ("score_ratio", "position_bias")))


def _notes(scores: dict) -> list[str]:
    notes = [
        "Every pair is shown in both orders; a win is a higher mean of the two scores, the ratio is of the "
        "sums of these means. Scores of another judge, prompt or baseline cannot be compared with them."
    ]
    if scores["score_ratio_interval"]:
        low, high = scores["score_ratio_interval"]
        notes.append(
            f"The ratio is {scores['score_ratio']:.1f} %, 95 % interval {low:.1f} to {high:.1f} "
            f"({RESAMPLES} bootstrap resamples of the questions, seed {SEED})."
        )
    if scores["position_bias"] is not None:
        split = scores["judged"] - scores["agreed_win"] - scores["agreed_loss"]
        advantage = scores["first_place_advantage"]
        points = "" if advantage is None else f"; the answer shown first gets {advantage:+.2f} points"
        notes.append(
            f"The verdicts of the two orders differ on {scores['orders_disagree']} questions{points}. If a "
            f"win must be one in both orders: {scores['agreed_win']} wins, {split} ties, "
            f"{scores['agreed_loss']} losses."
        )
    if scores["verdicts_only"]:
        notes.append(
            f"On {scores['verdicts_only']} questions the judge only said who is better: they are in no mean "
            "and no ratio. A win is then one in both orders, or in one beside a tie."
        )
    if scores["parse_failures"]:
        notes.append(
            f"{scores['parse_failures']} answers of the judge held neither two scores from {LOWEST} to "
            f"{HIGHEST} nor a verdict; each was asked for again, up to {ATTEMPTS} times in all, with another "
            "seed and temperature."
        )
    if scores["excluded"]:
        excluded = sum(scores["excluded"].values())
        notes.append(
            f"{excluded} questions are in no score, for want of one, or of a verdict, in either order; "
            "the same command asks again where the judge did not answer."
        )
    if scores["unasked"]:
        notes.append(f"Not whole: {scores['unasked']} of {scores['questions']} questions were not asked.")
    if any(scores["empty"].values()):
        notes.append(
            f"Empty answers, by turns: {scores['empty']['ours']}, the baseline's "
            f"{scores['empty']['baseline']}. Who answers no turn of a question has the score {LOWEST}, who "
            f"answers one then {HIGHEST}; the judge is not asked."
        )
    notes.append(
        "An answer may hold words to the judge; it is marked as material, which not every judge heeds."
    )
    return notes
