"""Constraints met: the paper's count against a count by hand, ours by whole words, and rows that are wrong."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.evaluation.constrained import _request, add_options, as_whole_words, evaluate, occurring
from fastling.terminal import make_console

ROWS = [
    {"tgt": "The punishment is fair.", "constraint": ["punish", "fair"], "hypo": "The punishment is unfair."},
    {"tgt": "I won.", "constraint": ["won"], "hypo": "i WON."},
    {"tgt": "You are right.", "constraint": ["are right", "You"], "hypo": "You are right."},
    {"tgt": "No.", "constraint": ["No"], "hypo": ""},
]


@pytest.fixture
def run(tmp_path):
    def evaluate_rows(rows, language, *arguments, option="--predictions"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        parser = Parser("test", "")
        parser.set_defaults(kind="constrained", out=None)
        add_options(parser)
        words = [option, str(path), "--target-lang", language, *arguments]
        return evaluate(parser.parse_args(words), make_console(quiet=True))

    return evaluate_rows


def test_the_papers_shares_are_those_counted_by_hand(run):
    scores = run(ROWS, "en").scores
    assert scores["constraints"] == 6
    assert scores["word_accuracy"] == pytest.approx(100 * 4 / 6)  # punish, fair (in unfair), are right, You
    assert scores["sentence_accuracy"] == 50
    assert scores["empty_hypotheses"] == 1


def test_a_row_that_asks_for_no_words_counts_for_bleu_alone(run):
    free = {"src": "x", "tgt": "The sky is blue today.", "constraint": [], "hypo": "The sky is red today."}
    without, result = run(ROWS, "en").scores, run([*ROWS, free], "en")
    shares = [name for name in without if name.endswith("accuracy") or name.startswith("constrain")]
    assert len(shares) == 7 and all(result.scores[name] == without[name] for name in shares)
    assert result.scores["sentences"] == 5 and result.scores["bleu"] != without["bleu"]
    assert any("1 of 5 rows ask for no words" in note for note in result.notes)
    with pytest.raises(UserError, match=r"rows\.jsonl: holds no constraints"):
        run([free], "en")
    assert _request("x", (), "en", "en") == "Provide the English translation for this sentence: x"


def test_parts_of_words_do_not_count_as_whole_words(run):
    scores = run(ROWS, "en").scores
    assert scores["whole_word_accuracy"] == pytest.approx(100 * 2 / 6)  # are right, You
    assert scores["whole_word_sentence_accuracy"] == 25
    assert scores["reference_whole_word_accuracy"] == pytest.approx(100 * 5 / 6)  # all but punish


@pytest.mark.parametrize(
    ("constraints", "text", "met"),
    [
        (["App 与"], "我们的 App 与您联系", [True]), (["ABC"], "ABC公司", [True]), (["ABC"], "ABCD公司", [False]),
        (["可能会晚", "餐可能"], "您点的餐可能会晚到", [True, False]), (["餐可能", "可能会晚"], "餐可能会晚,餐可能", [True, True]),
        (["a", "a"], "a b", [True, False]), (["a", "a"], "a b a", [True, True]), (["ＡＢＣ"], "abc ABC", [True]),
        (["dog"], "the dog's tail", [True]), (["won"], "won't", [True]), (["Größe"], "Größen", [False]),
        (["서울"], "서울에서", [True]), (["two  words"], "two\nwords", [True]), (["$5"], "is $5.", [True]), (["5"], "15 5", [True]),
        (["new york", "york"], "new york york", [True, True]), (["york", "new york"], "new york", [False, True]),
        (["x"], "", [False]), (["No"], "no", [False]),
    ],
)  # fmt: skip
def test_whole_words_each_in_a_place_of_its_own(constraints, text, met):
    assert as_whole_words(constraints, text) == met


WORDS = st.lists(st.sampled_from(["ab", "a", "b", "ba", "c"]), min_size=1, max_size=5)


@given(WORDS, WORDS)
def test_each_occurrence_of_a_word_meets_one_constraint(constraints, words):
    """Single words cannot overlap, so a count of words is the oracle."""
    text, left, expected = " ".join(words), list(words), []
    for constraint in constraints:
        expected.append(constraint in left)
        if expected[-1]:
            left.remove(constraint)
    assert as_whole_words(constraints, text) == expected
    assert occurring(constraints, text) == [bool(re.search(re.escape(each), text)) for each in constraints]


GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tgt": "a", "hypo": "b"}, "lacks constraint"), (GOOD | {"constraint": "punish"}, "must be a list"),
        (GOOD | {"constraint": {}}, "must be a list of words"), (GOOD | {"constraint": ["a", 3]}, "text and not empty"),
        (GOOD | {"constraint": [" "]}, "text and not empty"), ({"tgt": "a", "constraint": ["a"]}, "lacks hypo"),
        (GOOD | {"hypo": None}, "hypo must be text: null"), ({"constraint": ["a"], "hypo": "a"}, "lacks tgt"),
        ([1], "must be an object"), ("x", "must be an object"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_is_named_by_file_and_line(run, row, words):
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{words}"):
        run([GOOD, row], "en")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"), (b"{\n", ":1: broken JSON"), (b'{"tgt": "\xff"}\n', ":1: is not UTF-8"),
        (b"[" * 9999, "broken JSON"), (b'{"tgt": "a", "tgt": "b"}\n', ":1: broken JSON: a key is twice"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_rows_is_named(run, tmp_path, content, words):
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        run([GOOD], "en", "--predictions", str(path))


@pytest.mark.slow
def test_a_model_is_asked_with_the_words_in_a_second_line(run, tiny_export, monkeypatch):
    asked = []

    def answers(options, questions, console):
        from fastling.evaluation.kept_answers import Answer

        asked.extend(question.turns[0] for question in questions)
        return [[Answer("a punish\nfair", "length")] for _ in questions]

    monkeypatch.setattr("fastling.evaluation.translation.answer_questions", answers)
    rows = [{"src": "罚", **GOOD}, {"src": "赢", **ROWS[1]}]
    for language, expected in (
        (
            "en",
            "Provide the English translation for this sentence: 罚\nMake sure to include these words: punish, fair",
        ),
        ("zh", "提供这句话的英语翻译：罚\n确保包含这些词：punish, fair"),
    ):
        arguments = ["--model", str(tiny_export), "--limit", "1", "--user-lang", language]
        result = run(rows, "en", *arguments, option="--questions")
        assert asked.pop() == expected and not asked
        assert result.scores["word_accuracy"] == 100 and result.scores["length"] == 1
    with pytest.raises(UserError, match=r"rows\.jsonl:1: lacks src"):
        run(ROWS, "en", "--model", str(tiny_export), option="--questions")
    with pytest.raises(UserError, match="--questions: is needed with --model"):
        run(ROWS, "en", option="--model")
    with pytest.raises(UserError, match="--questions: has no effect"):
        run(ROWS, "en", "--predictions", "x", option="--questions")
