"""`fastling evaluate dialogue`: files of any shape, a judge over HTTP, numbers against brute force."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

pytest.importorskip("openai")

from conftest import ROOT
from misbehaving_server import completion, serving

from fastling import evaluate
from fastling.errors import RunError, UserError
from fastling.evaluation.dialogue import Asked, read_answers, read_questions
from fastling.evaluation.judge import Failures, Judgement, Pair
from fastling.evaluation.judge_summary import summarize

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

REAL = Path(os.environ.get("FASTLING_DATA", "/nowhere")) / "bayling-80"


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def parts_of(prompt: str) -> list[list[str]]:
    """The answers in a judge's prompt: those of Assistant 1, those of Assistant 2."""
    parts = re.split(r"\[[0-9a-f]{8} ([^]]*)\]\n", prompt)[1:]
    spoken = list(zip(parts[::2], parts[1::2], strict=True))
    return [[text.strip() for who, text in spoken if who.startswith(f"Assistant {n},")] for n in (1, 2)]


def told(number: int, body: dict) -> tuple[int, str]:
    """A judge that reads the scores out of the answers: "... 7.5/6" is 7.5 where shown first, else 6."""
    first, second = (answers[-1] for answers in parts_of(body["messages"][0]["content"]))
    return 200, completion(f"{first.split()[-1].split('/')[0]} {second.split()[-1].split('/')[1]}")


@pytest.fixture
def judged(tmp_path, capsys):
    """`fastling evaluate dialogue --json` in this process, on rows: its scores."""

    def run(server, questions, answers, baseline, *options, failure: str = "") -> dict:
        files = zip(("questions", "answers", "baseline"), (questions, answers, baseline), strict=True)
        given = [
            item
            for name, rows in files
            for item in (f"--{name}", str(write_rows(tmp_path / f"{name}.jsonl", rows)))
        ]
        arguments = ["dialogue", *given, "--judge-url", server.url, "--json", *map(str, options)]
        if failure:
            with pytest.raises(RunError, match=failure):
                evaluate.main(arguments)
        else:
            evaluate.main(arguments)
        captured = capsys.readouterr()
        run.words = captured.err
        return json.loads(captured.out.splitlines()[-1])

    return run


# Numbers --------------------------------------------------------------------------------------------


def drawn(count: int) -> tuple[list, list, list, dict]:
    """Questions, answers, baseline; and for each id its category and four scores, of halves and tenths."""
    choose = random.Random(count)
    questions, ours, baseline, truth = [], [], [], {}
    for number in range(count):
        category = choose.choice(["写作", "math", "generic"])
        four = [
            f"{choose.choice([choose.randint(10, 100), choose.choice([73, 72, 74, 71])]) / 10:g}"
            for _ in range(4)
        ]
        questions.append({"question_id": number, "text": [f"{number}?", "又怎样？"], "category": category})
        ours.append({"question_id": number, "text": ["一", f"ours {number} {four[0]}/{four[2]}"]})
        baseline.append({"question_id": number, "text": ["two 🙂", f"base {number} {four[3]}/{four[1]}"]})
        truth[str(number)] = (category, *map(Decimal, four))
    return questions, ours, baseline, truth


def counted(truth: list[tuple]) -> dict:
    """By hand: of rows (category, ours first, baseline second, ours second, baseline first)."""
    means = [((a + c) / 2, (b + d) / 2) for _, a, b, c, d in truth]
    sum_ours, sum_baseline = sum(ours for ours, _ in means), sum(baseline for _, baseline in means)
    disagree = sum((a > b, a < b) != (c > d, c < d) for _, a, b, c, d in truth)
    return {
        "questions": len(truth),
        "judged": len(truth),
        "win": sum(ours > baseline for ours, baseline in means),
        "tie": sum(ours == baseline for ours, baseline in means),
        "loss": sum(ours < baseline for ours, baseline in means),
        "score": pytest.approx(float(sum_ours / len(truth)), abs=1e-12),
        "baseline_score": pytest.approx(float(sum_baseline / len(truth)), abs=1e-12),
        "score_ratio": pytest.approx(float(100 * sum_ours / sum_baseline), abs=1e-10),
        "orders_disagree": disagree,
        "position_bias": pytest.approx(100 * disagree / len(truth)),
    }


def test_every_number_equals_brute_force(judged):
    questions, ours, baseline, truth = drawn(60)
    choose = random.Random(1)
    with serving(told) as server:
        scores = judged(server, questions, choose.sample(ours, 60), choose.sample(baseline, 60))
    rows = list(truth.values())
    expected = counted(rows)
    assert {name: scores[name] for name in expected} == expected
    assert list(scores["categories"]) == list(dict.fromkeys(row["category"] for row in questions))
    for name, found in scores["categories"].items():
        assert found == counted([row for row in rows if row[0] == name])
    assert scores["agreed_win"] == sum(a > b and c > d for _, a, b, c, d in rows)
    assert scores["agreed_loss"] == sum(a < b and c < d for _, a, b, c, d in rows)
    advantage = sum((a - b) + (d - c) for _, a, b, c, d in rows) / 120
    assert scores["first_place_advantage"] == pytest.approx(float(advantage))
    assert scores["complete"] and scores["judge"] == "gpt-4" and scores["judge_tokens"] == 12_000
    for row in scores["pairs"]:
        category, a, b, c, d = truth[row["question_id"]]
        assert row["category"] == category
        assert row["scores"] == [float(a), float(c)] and row["baseline_scores"] == [float(b), float(d)]
    assert Counter(row["verdict"] for row in scores["pairs"]) == +Counter(
        {k: scores[k] for k in ("win", "tie", "loss")}
    )


def test_sums_that_differ_only_in_float_rounding_tie(judged):
    """(7.3 + 7.2) / 2 against (7.4 + 7.1) / 2, and (1.1 + 2.2) against (1.3 + 2.0)."""
    questions = [{"question_id": 0, "text": "Hi?"}, {"question_id": 1, "text": "Hi?"}]
    assert 1.1 + 2.2 != 1.3 + 2.0
    ours = [{"question_id": 0, "text": "x 7.3/7.2"}, {"question_id": 1, "text": "x 1.1/2.2"}]
    baseline = [{"question_id": 0, "text": "y 7.1/7.4"}, {"question_id": 1, "text": "y 2.0/1.3"}]
    with serving(told) as server:
        scores = judged(server, questions, ours, baseline)
    assert scores["tie"] == 2 and scores["score_ratio"] == 100 and scores["position_bias"] == 100


def test_the_interval_is_a_reproducible_bootstrap(judged):
    questions, ours, baseline, truth = drawn(40)
    with serving(told) as server:
        scores = judged(server, questions, ours, baseline)
        assert judged(server, questions, ours, baseline) == scores
    means = [(float(a + c) / 2, float(b + d) / 2) for _, a, b, c, d in truth.values()]
    draw, ratios = numpy.random.default_rng(0), []
    for row in draw.integers(40, size=(1000, 40)):
        ratios.append(100 * sum(means[n][0] for n in row) / sum(means[n][1] for n in row))
    ratios.sort()
    low, high = scores["score_ratio_interval"]
    assert ratios[24] <= low <= ratios[25] and ratios[974] <= high <= ratios[975]
    assert low < scores["score_ratio"] < high


def test_one_question_has_no_interval_and_one_turn_is_enough(judged):
    with serving(told) as server:
        scores = judged(server, [{"question_id": "a", "text": "Hi?"}], [{"question_id": "a", "text": "x 9/8"}], [{"question_id": "a", "text": "y 4/4"}])  # fmt: skip
    assert scores["score_ratio_interval"] is None and scores["win"] == 1 and scores["score_ratio"] == 212.5
    assert list(scores["categories"]) == ["none"]


def test_empty_answers_lose_and_are_counted_and_no_bias_is_measured_on_them(judged):
    questions = [{"question_id": n, "text": ["Hi?", "So?"], "category": "generic"} for n in range(4)]
    ours = [{"question_id": n, "text": text} for n, text in enumerate((["", " "], ["a", "b 9/9"], ["", ""], ["", "b 8/8"]))]  # fmt: skip
    baseline = [{"question_id": n, "text": text} for n, text in enumerate((["a", "b"], ["", ""], ["", "\n"], ["", "y 6/6"]))]  # fmt: skip
    with serving(told) as server:
        scores = judged(server, questions, ours, baseline)
    assert len(server.bodies) == 2
    assert (scores["win"], scores["tie"], scores["loss"]) == (2, 1, 1)
    assert scores["score"] == (1 + 10 + 1 + 8) / 4 and scores["baseline_score"] == (10 + 1 + 1 + 6) / 4
    assert scores["empty"] == {"ours": 5, "baseline": 5} and scores["position_bias"] == 0
    assert "Empty answers, by turns: 5, the baseline's 5" in judged.words


# A judge that fails ---------------------------------------------------------------------------------


def test_unjudgeable_pairs_are_left_out_counted_and_reported(judged):
    questions, ours, baseline, truth = drawn(12)

    def behave(number, body):
        text = body["messages"][0]["content"]
        if "ours 3 " in text or "ours 7 " in text:
            return 200, completion("Both are fine.")
        return (400, "{}") if "ours 5 " in text else told(number, body)

    with serving(behave) as server:
        scores = judged(server, questions, ours, baseline)
    rest = counted([row for key, row in truth.items() if key not in "357"])
    assert {name: scores[name] for name in rest} == rest | {"questions": 12}
    assert scores["excluded"] == {"no scores": 2, "status 400": 1} and not scores["complete"]
    assert scores["unasked"] == 0
    assert scores["parse_failures"] == 12 and scores["parse_failure_reasons"] == {"no scores": 12}
    assert [row["reason"] for row in scores["pairs"] if row["verdict"] is None] == [
        "no scores",
        "status 400",
        "no scores",
    ]
    assert "3 questions are in no score" in judged.words and "not judged" in judged.words


def test_a_judge_that_answers_only_nonsense_fails_the_run(judged):
    questions, ours, baseline, _ = drawn(3)
    with serving(lambda number, body: (200, completion("Both are fine."))) as server:
        scores = judged(
            server, questions, ours, baseline, failure=r"no question could be judged: no scores \(3\)"
        )
    assert scores["judged"] == 0 and scores["score_ratio"] is None and scores["position_bias"] is None
    assert scores["parse_failures"] == 18


def test_a_judge_that_gives_verdicts_has_wins_ties_and_losses_but_no_scores(judged):
    told = {"tied": "CC", "split": "AA", "good": "AB", "bad": "BA"}  # with ours shown first, and second
    questions = [{"question_id": key, "text": ["Hi?"]} for key in "12345"]
    ours = [{"question_id": key, "text": [text]} for key, text in zip("12345", ["", *told], strict=True)]
    baseline = [{"question_id": key, "text": ["other"]} for key in "12345"]

    def behave(number: int, body: dict) -> tuple[int, str]:
        first, second = (answers[0] for answers in parts_of(body["messages"][0]["content"]))
        letter = told[second][1] if first == "other" else told[first][0]
        return 200, completion(f"Both are read.\n\n[[{letter}]]")

    with serving(behave) as server:
        scores = judged(server, questions, ours, baseline)
    assert len(server.bodies) == 8 and scores["parse_failures"] == 0 and scores["complete"]
    assert [row["verdict"] for row in scores["pairs"]] == ["loss", "tie", "tie", "win", "loss"]
    assert scores["pairs"][2]["verdicts"] == ["win", "loss"] and "scores" not in scores["pairs"][2]
    assert (scores["agreed_win"], scores["agreed_loss"], scores["orders_disagree"]) == (1, 2, 1)
    assert scores["score"] is scores["score_ratio"] is scores["score_ratio_interval"] is None
    assert scores["first_place_advantage"] is None and scores["verdicts_only"] == 4
    assert "On 4 questions the judge only said who is better" in judged.words


def test_a_verdict_in_one_order_leaves_the_pair_out_of_the_means():
    pairs = [Pair(key, "none", ("Hi?",), ("x",), ("y",)) for key in "12"]
    told = {
        "1": Judgement(1, (Fraction(5), Fraction(5))),
        "2": Judgement((Fraction(9), Fraction(5)), (Fraction(7), Fraction(5))),
    }
    scores = summarize(pairs, told, Failures(), judge="m", tokens=9).scores
    assert (scores["win"], scores["score"], scores["score_ratio"], scores["verdicts_only"]) == (2, 8, 160, 1)


def test_a_spent_budget_scores_what_was_judged_and_a_larger_one_continues(judged):
    questions, ours, baseline, truth = drawn(10)
    with serving(told) as server:
        options = ("--judge-requests", 1, "--judge-budget-tokens")
        scores = judged(
            server, questions, ours, baseline, *options, 700, failure="is spent: 7 of 10 questions"
        )
        part = counted(list(truth.values())[:3])
        assert {name: scores[name] for name in part} == part | {"questions": 10}
        assert scores["unasked"] == 7 and scores["judge_tokens"] == 700 and not scores["complete"]
        scores = judged(server, questions, ours, baseline, *options, 5000)
    assert scores["complete"] and scores["judged"] == 10 and len(server.bodies) == 20


def test_a_server_that_dies_midway_leaves_what_was_judged(judged):
    questions, ours, baseline, _ = drawn(10)
    with serving(lambda number, body: told(number, body) if number < 6 else (403, "{}")) as server:
        scores = judged(
            server, questions, ours, baseline, "--judge-requests", 1, failure="refuses gpt-4: 403"
        )
        assert scores["judged"] == 3 and scores["unasked"] == 7
        server.behave = told
        assert judged(server, questions, ours, baseline)["complete"]


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        ("status 503", r"1 of 2 questions had no answer: status 503 \(1\)"),
        ("too slow", "1 of 2"),
        ("broken answer", "1 of 2"),
        ("broken off: error", "1 of 2"),
        ("status 400", None),
    ],
)
def test_a_run_with_unanswered_pairs_is_not_complete(reason, failure):
    pairs = [Pair(key, "none", ("Hi?",), ("x",), ("y",)) for key in "12"]
    judged_one = {"1": Judgement((Fraction(9), Fraction(5)), (Fraction(9), Fraction(5)))}
    found = summarize(pairs, judged_one, Failures(excluded={"2": reason}), judge="m", tokens=9)
    assert found.scores["win"] == 1 and not found.scores["complete"]
    assert re.search(failure, str(found.failure)) if failure else found.failure is None


@pytest.mark.parametrize(
    ("reasons", "failure"),
    [
        (("no connection",) * 2, "2 of 2 questions had no answer: no connection"),
        (("no connection", "no scores"), "no question could be judged"),
    ],
)
def test_another_judge_is_advised_only_where_one_answered(reasons, failure):
    pairs = [Pair(key, "none", ("Hi?",), ("x",), ("y",)) for key in "12"]
    excluded = dict(zip("12", reasons, strict=True))
    found = summarize(pairs, {}, Failures(excluded=excluded), judge="m", tokens=0).failure
    assert failure in str(found) and ("another judge" in str(found)) == ("no scores" in reasons)


def test_a_server_that_refuses_from_the_start_is_an_error_without_a_result(tmp_path, capsys):
    questions, ours, baseline, _ = drawn(2)
    files = [
        str(write_rows(tmp_path / f"{n}.jsonl", rows)) for n, rows in enumerate((questions, ours, baseline))
    ]
    with serving(lambda number, body: (404, "{}")) as server, pytest.raises(RunError, match="refuses m: 404"):
        evaluate.main(["dialogue", "--questions", files[0], "--answers", files[1], "--baseline", files[2], "--judge-url", server.url, "--judge-model", "m", "--json"])  # fmt: skip
    assert capsys.readouterr().out == ""


def test_an_answer_that_takes_too_long_is_asked_for_again(judged):
    over = threading.Event()

    def at_first_late(number, body):
        if not number:
            over.wait(60)
        return told(number, body)

    questions, ours, baseline, _ = drawn(1)
    with serving(at_first_late) as server:
        scores = judged(server, questions, ours, baseline, "--judge-timeout", 3, "--judge-requests", 1)
        over.set()
    assert scores["complete"] and len(server.bodies) == 3


def test_a_killed_run_continues_and_pays_nothing_twice(tmp_path, capsys):
    questions, ours, baseline, truth = drawn(20)
    files = [
        str(write_rows(tmp_path / f"{n}.jsonl", rows)) for n, rows in enumerate((questions, ours, baseline))
    ]
    cache, killed = tmp_path / "kept" / "judge.sqlite", threading.Event()

    def told_until_killed(number, body):
        if number >= 15:
            killed.wait(300)
        return told(number, body)

    with serving(told_until_killed) as server:
        command = (
            "dialogue", "--questions", files[0], "--answers", files[1], "--baseline", files[2],
            "--judge-url", server.url, "--judge-cache", str(cache), "--judge-requests", "2", "--json",
        )  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "fastling.evaluate", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        while len(server.bodies) < 17:  # two of them in flight
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()
        process.kill()
        out, _ = process.communicate()
        killed.set()
        assert out == b""
        before = [body["messages"][0]["content"] for body in server.bodies]
        assert len(before) == 17
        evaluate.main(command)
        after = [body["messages"][0]["content"] for body in server.bodies[len(before) :]]
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = counted(list(truth.values()))
    assert {name: scores[name] for name in expected} == expected and scores["judge_tokens"] == 4000
    # Only what was in flight when it was killed is asked twice.
    assert len(set(before) & set(after)) <= 2 and len(set(before + after)) == 40 == len(set(after)) + len(
        before
    ) - len(set(before) & set(after))


# Files ----------------------------------------------------------------------------------------------

TWO = {"1": Asked("generic", ("Hi?", "So?")), "b": Asked("math", ("1 + 1?",))}


@pytest.mark.parametrize(
    "rows",
    [
        [{"question_id": 1, "text": ["A", "B"]}, {"question_id": "b", "text": "2"}],
        [{"question_id": "b", "text": ["2"]}, {"question_id": "1", "answers": ["A", "B"], "text": ["Hi?", "So?"]}],
        [{"question_id": 1, "answer_id": "x", "model_id": "m", "choices": [{"index": 0, "turns": ["A", "B"]}], "tstamp": 1.5}, {"question_id": "b", "choices": [{"index": 0, "turns": ["2"]}]}],
        [{"question_id": 1, "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "B"}]}, {"question_id": "b", "text": "2"}],
    ],
)  # fmt: skip
def test_answers_are_read_in_each_form(tmp_path, rows):
    answers, notes = read_answers(write_rows(tmp_path / "a.jsonl", rows), TWO)
    assert answers == {"1": ("A", "B"), "b": ("2",)} and not notes


def test_answers_to_unknown_questions_are_skipped_with_a_note(tmp_path):
    rows = [{"question_id": "b", "text": "2"}, {"question_id": 7}, {"question_id": 1, "text": ["A", "B"]}]
    answers, notes = read_answers(write_rows(tmp_path / "a.jsonl", rows), TWO)
    assert answers.keys() == {"1", "b"}
    assert notes == ("answers in a.jsonl that no question asks for: 1",)


def test_questions_are_read_in_each_form(tmp_path):
    rows = [
        {"question_id": 1, "text": ["Hi?", "So?"], "category": "generic"},
        {"question_id": "b", "turns": ["1 + 1?"], "category": "math", "reference": ["2"]},
        {"question_id": -3, "text": "Wie?"},
    ]
    path = tmp_path / "q.json"
    path.write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    assert read_questions(path) == TWO | {"-3": Asked("none", ("Wie?",))}


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": ["A", "B"]}', "has no question_id"),
        (b'{"question_id": null, "text": ["A", "B"]}', "has no question_id"),
        (b'{"question_id": true, "text": ["A", "B"]}', "has no question_id"),
        (b'{"question_id": 1.0, "text": ["A", "B"]}', "has no question_id"),
        (b'{"question_id": "\\n", "text": ["A", "B"]}', "has no question_id"),
        (b'{"question_id": "b", "text": "2"}', "question_id b is given twice"),
        (b'{"question_id": 1, "text": ["A"]}', "holds 1 answers; the turns are 2"),
        (b'{"question_id": 1, "text": "A"}', "holds 1 answers; the turns are 2"),
        (b'{"question_id": 1, "text": ["A", "B", "C"]}', "holds 3 answers; the turns are 2"),
        (b'{"question_id": 1, "text": []}', "holds 0 answers; the turns are 2"),
        (b'{"question_id": 1, "text": ["A", null]}', "holds no answers"),
        (b'{"question_id": 1, "text": {"1": "A"}}', "holds no answers"),
        (b'{"question_id": 1, "turns": ["A", "B"]}', "holds no answers"),
        (b'{"question_id": 1, "text": ["A", "\\ud800"]}', "holds no answers"),
        (b'{"question_id": 1, "choices": []}', "holds no answers"),
        (b'{"question_id": 1, "choices": ["A", "B"]}', "holds 2 choices"),
        (b'{"question_id": 1, "choices": [{"turns": ["A", "B"]}, {"turns": ["C", "D"]}]}', "holds 2 choices"),
        (b'{"question_id": 1, "choices": [["A", "B"]]}', "holds no answers"),
        (b'{"question_id": 1, "messages": "A"}', "holds 0 answers"),
        (b'{"question_id": 1, "messages": [{"role": "assistant"}]}', "holds no answers"),
        (b"[1]", "a row must be an object: a list"),
        (b"{", "broken JSON"),
        (b'{"question_id": "a", "text": "1", "text": "2"}', "broken JSON: a key is twice: 'text'"),
        (b'{"question_id": 1, "text": ["\xff"]}', "is not UTF-8"),
        (b"[" * 100_000, "broken JSON"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_a_row_that_cannot_be_right_is_named_with_its_line(tmp_path, line, what):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"question_id": "b", "text": "2"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:3: ({what})"):
        read_answers(path, TWO)


def test_a_file_that_ends_early_is_named_with_what_it_lacks(tmp_path):
    questions = {str(number): Asked("generic", ("Hi?",)) for number in range(80)}
    path = write_rows(tmp_path / "a.jsonl", [{"question_id": n, "text": "A"} for n in range(73)])
    with pytest.raises(
        UserError, match=r"a\.jsonl: 7 of 80 questions have no answer: 73, 74, 75, 76, 77, \.\.\."
    ):
        read_answers(path, questions)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question_id": 1}, "asks nothing"), ({"question_id": 1, "text": []}, "asks nothing"), ({"question_id": 1, "text": ["Hi?", " "]}, "asks nothing"),
        ({"question_id": 1, "text": 5}, "asks nothing"), ({"question_id": 1, "text": "Hi?", "category": ["math"]}, "category must be text"), ({"text": "Hi?"}, "has no question_id"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_right_is_named_with_its_line(tmp_path, row, what):
    with pytest.raises(UserError, match=rf"q\.jsonl:1: {what}"):
        read_questions(write_rows(tmp_path / "q.jsonl", [row]))


def test_no_question_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_questions(write_rows(tmp_path / "q.jsonl", []))


# The command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "--answers: is needed, or --model"),
        (["--answers", "{a}", "--model", "x"], "--answers: cannot be given with --model"),
        (["--answers", "{a}", "--beams", "4"], "--beams: has no effect without --model"),
        (["--answers", "{a}", "--judge-budget-tokens", "0"], "--judge-budget-tokens: must be > 0: 0"),
        (["--answers", "{a}", "--judge-requests", "-1"], "--judge-requests: must be > 0: -1"),
        (["--answers", "{a}", "--judge-timeout", "nan"], "--judge-timeout: must be > 0: nan"),
        (["--answers", "{a}", "--judge-prompts", "{folder}"], "--judge-prompts: holds no dialogue.txt"),
        (["--answers", "{folder}/none.jsonl"], "none.jsonl: no such file"),
        (["--answers", "{a}", "--judge-url", "127.0.0.1:8000"], "--judge-url: is not an address: 127.0.0.1:8000"),
        (["--model", "{folder}/none", "--judge-url", "http://x:65536"], "--judge-url: is not an address"),
        (["--answers", "{a}", "--judge-cache", "{a}"], "--judge-cache: cannot be used"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_options_that_cannot_be_right_are_refused(tmp_path, options, what):
    a = write_rows(
        tmp_path / "a.jsonl",
        [{"question_id": 1, "text": "A, which is long enough to be no header of a database"}],
    )
    q = write_rows(tmp_path / "q.jsonl", [{"question_id": 1, "text": "Hi?"}])
    given = [option.format(a=a, folder=tmp_path) for option in options]
    url = [] if "--judge-url" in given else ["--judge-url", "http://127.0.0.1:1/v1"]
    with pytest.raises(UserError, match=re.escape(what)):
        evaluate.main(["dialogue", "--questions", str(q), "--baseline", str(a), *url, *given])


def test_without_openai_the_command_says_what_to_install(tmp_path, monkeypatch):
    for name in ("fastling.remote", "fastling.evaluation.judge", "fastling.evaluation.judge_summary"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    a = str(write_rows(tmp_path / "a.jsonl", [{"question_id": 1, "text": "A"}]))
    with pytest.raises(UserError, match="--judge-url: needs the package openai"):
        evaluate.main(
            ["dialogue", "--questions", a, "--answers", a, "--baseline", a, "--judge-url", "http://x/v1"]
        )


def test_the_cache_lies_beside_the_result_or_the_answers(judged, tmp_path):
    questions, ours, baseline, _ = drawn(2)
    with serving(told) as server:
        judged(server, questions, ours, baseline)
        assert (tmp_path / "answers.jsonl.judge.sqlite").is_file()
        judged(server, questions, ours, baseline, "--out", tmp_path / "result.json")
        assert (tmp_path / "result.json.judge.sqlite").is_file()
        kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["judged"] == 2 and kept["tables"][0]["rows"][-1][0] == "all"


def test_a_model_answers_first_and_its_own_answers_are_judged(tmp_path, capsys, tiny_export):
    questions, _, _, _ = drawn(3)
    baseline = [{"question_id": number, "text": ["one", "two"]} for number in range(3)]
    q, b = write_rows(tmp_path / "q.jsonl", questions), write_rows(tmp_path / "b.jsonl", baseline)

    def harsh(number, body):
        first, second = parts_of(body["messages"][0]["content"])
        assert len(first) == len(second) == 2 and all(first + second)
        return 200, completion("9 2" if first == ["one", "two"] else "2 9")

    with serving(harsh) as server:
        evaluate.main(["dialogue", "--questions", str(q), "--baseline", str(b), "--judge-url", server.url, "--model", str(tiny_export), "--limit", "2", "--max-new-tokens", "8", "--out", str(tmp_path / "o.json"), "--json"])  # fmt: skip
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (scores["questions"], scores["loss"], scores["score"], scores["baseline_score"]) == (2, 2, 2, 9)
    assert scores["answers"]["length"] == 4 and len(server.bodies) == 4


@pytest.mark.skipif(not REAL.is_dir(), reason="FASTLING_DATA names no folder with bayling-80/")
@pytest.mark.parametrize("name", ["multiturn.en", "multiturn.zh", "singleturn.en", "singleturn.zh"])
def test_bayling_80_is_judged_whole(judged, name):
    questions = [
        json.loads(line) for line in (REAL / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    turns = 2 if name.startswith("multi") else 1
    ours = [{"question_id": row["question_id"], "text": ["x 6/6"] * turns} for row in questions]
    baseline = [{"question_id": row["question_id"], "text": ["y 8/8"] * turns} for row in questions]
    with serving(told) as server:
        scores = judged(server, questions, ours, baseline)
    assert (scores["loss"], scores["score_ratio"], len(scores["categories"])) == (80, 75, 9)
    assert len(server.bodies) == 160
