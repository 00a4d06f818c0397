"""Exams: what is counted as right, as wrong and as no answer; and rows that are no questions."""

import json
import time

import pytest

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.evaluation.cloze import is_right
from fastling.evaluation.exam import add_options, evaluate, prompt_of, read_item
from fastling.evaluation.records import Record
from fastling.terminal import make_console

CHOICE = {
    "passage": None, "question": "Where is the Louvre?", "label": "A", "answer": None,
    "options": ["(A)Paris", "(B)London", "(C)Berlin", "(D)Rome"],
}  # fmt: skip
SEVERAL = CHOICE | {"question": "下列正确的是", "label": "A C"}
CLOZE = {"passage": "", "question": "$1+1=$", "options": None, "label": None, "answer": "$2$"}


@pytest.fixture
def run(tmp_path):
    """Evaluate pairs of questions and texts, a pair of files for each."""

    def evaluate_files(*exams, arguments=()):
        words = {"--questions": [], "--predictions": []}
        for number, (questions, texts) in enumerate(exams):
            for option, rows in (("--questions", questions), ("--predictions", texts)):
                if rows is not None:
                    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
                    path = tmp_path / f"{option[2:]}{number}.jsonl"
                    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                    words[option].append(str(path))
        parser = Parser("test", "")
        parser.set_defaults(kind="exam", out=None)
        add_options(parser)
        given = [word for option, paths in words.items() if paths for word in (option, *paths)]
        return evaluate(parser.parse_args([*given, *arguments]), make_console(quiet=True))

    return evaluate_files


def test_accuracy_is_of_all_questions_and_what_is_unclear_is_counted_apart(run):
    texts = ["The answer is (A).", "(B)", "A or B", "", "答案是选项(A)。"]
    scores = run(([CHOICE] * 5, texts)).scores
    assert (scores["accuracy"], scores["answered"], scores["unanswered"]) == (40, 60, 2)
    assert scores["accuracy_of_answered"] == pytest.approx(100 * 2 / 3)
    assert scores["random_guess"] == 25


def test_nothing_answered_is_no_division_by_zero(run):
    result = run(([CHOICE], [""]))
    assert result.scores["accuracy"] == 0 and result.scores["accuracy_of_answered"] is None
    assert "1 of 1 without a clear answer" in result.notes[0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>The answer is B. No.</think>A", True),
        ("The answer is B?\n</think>\n\n**A**", True),  # a prompt that ends in <think>
        ("<think>The answer is A</think>\n\nI do not know.", None),
        ("<think>It is A", None),  # cut off
        ("A</s>", True),
        ("<|assistant|>\nA<|eot_id|>", True),
        ("A\n\nQuestion: Where is the Tower?\nAnswer: B", True),
        ("答案是A。\n\n问题：伦敦塔在哪里？\n答案：B", True),
        ("A\n### Instruction:\nAnd now?\n### Response:\nB", True),
        ("Once more.\nQuestion: where is it?\nThe answer is A.", True),
    ],
)
def test_the_answer_stands_behind_the_reasoning_and_before_what_is_made_up(run, text, right):
    scores = run(([CHOICE], [text])).scores
    assert (scores["right"], scores["unanswered"]) == (right is True, right is None)


def test_a_cloze_is_read_behind_the_reasoning_too(run):
    texts = ["<think>The answer is 3</think>2", "2\n\nQuestion: $2+2=$\nAnswer: 4", "2</s>", "<think>2"]
    scores = run(([CLOZE] * 4, texts)).scores
    assert (scores["right"], scores["unanswered"]) == (3, 1)


@pytest.mark.parametrize("text", ["说法错误的是A", "不正确的一项是（A）。", "B正确。故错误的选项是：Ａ"])
def test_a_question_for_the_wrong_statement_is_answered_by_it(run, text):
    asked = CHOICE | {"question": "下列说法不正确的是"}
    assert run(([asked], [text])).scores["right"] == 1
    assert run(([CHOICE | {"question": "下列说法正确的是"}], [text])).scores["right"] == 0


@pytest.mark.parametrize("label", ["A C", "AC", "A,C", ["A", "C"], ["(A)", "(C)"], "a c"])
def test_several_right_letters_must_all_be_given_and_no_other(run, label):
    texts = ["AC", "A", "A, B and C", "C、A", "C and A"]
    assert run(([SEVERAL | {"label": label}] * 5, texts)).scores["right"] == 3


def test_guessing_counts_single_choices_only(run):
    two = CHOICE | {"options": ["yes", "no"]}
    assert run(([CHOICE, two, SEVERAL, CLOZE], ["A"] * 4)).scores["random_guess"] == pytest.approx(75 / 4)


def test_files_are_scored_each_and_together(run):
    result = run(([CHOICE] * 3, ["A"] * 3), ([CHOICE], ["B"]))
    assert [each["accuracy"] for each in result.scores["by_file"]] == [100, 0]
    assert result.scores["accuracy"] == 75
    assert [row[0] for row in result.tables[0].rows] == ["questions0.jsonl", "questions1.jsonl", "all"]


def test_an_option_is_known_by_its_place_whatever_mark_it_bears():
    item = read_item(Record("f:1", CHOICE | {"options": ["(A)x", "(C) y", " z ", "D. w"]}))
    assert item.options == ("x", "y", "z", "w")
    assert read_item(Record("f:1", CHOICE | {"options": ["A.M.", "A cat"]})).options == ("A.M.", "A cat")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (CLOZE | {"answer": None}, "neither options nor an answer"), (CHOICE | {"label": None}, "lacks label"),
        ({"question": "x"}, "neither options nor an answer"), (CHOICE | {"label": "E"}, "A to D"), (CHOICE | {"label": "A-C"}, "A to D"), (CHOICE | {"label": ""}, "A to D"),
        (CHOICE | {"label": 1}, "A to D"), (CHOICE | {"label": "None"}, "A to D"), (CHOICE | {"label": ["A", 2]}, "A to D"),
        (CHOICE | {"options": ["one"]}, "1 options"), (CHOICE | {"options": "ABCD"}, "list of texts"), (CLOZE | {"answer": " "}, "is empty"),
        (CHOICE | {"options": [1, 2]}, "list of texts"), ({"options": ["a", "b"], "label": "A"}, "lacks question"), ([], "object"),
        (CHOICE | {"question": None}, "question must be text"), (CHOICE | {"passage": 3}, "passage must be text"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_question_is_named_by_file_and_line(run, row, words):
    with pytest.raises(UserError, match=rf"questions0\.jsonl:2: .*{words}"):
        run(([CHOICE, row], ["A", "A"]))


@pytest.mark.parametrize("texts", [["A"], ["A"] * 3])
def test_another_number_of_predictions_is_an_error_with_both_numbers(run, texts):
    with pytest.raises(UserError, match=rf"{len(texts)} predictions, and .*questions0\.jsonl has 2"):
        run(([CHOICE] * 2, texts))


def test_predictions_without_text_and_files_without_partners_are_errors(run):
    with pytest.raises(UserError, match=r"predictions0\.jsonl:1: lacks text"):
        run(([CHOICE], [{"answer": "A"}]))
    with pytest.raises(UserError, match="1 files for 2 of --questions"):
        run(([CHOICE], ["A"]), ([CHOICE], None))


def test_the_prompt_is_in_the_language_of_the_question():
    english = prompt_of(read_item(Record("f:1", CHOICE | {"passage": "\nLong ago ...\n"})))
    assert (
        english.splitlines()[:3] == ["Long ago ...", "Where is the Louvre?", "(A) Paris"]
        and "The answer is" in english
    )
    chinese = prompt_of(read_item(Record("f:1", SEVERAL)))  # without a passage there is no line for it
    assert chinese.startswith("下列正确的是\n") and "答案是" in chinese
    assert "semicolons" in prompt_of(read_item(Record("f:1", CLOZE)))


def test_a_model_is_asked_every_question_in_order(run, tiny_export, tmp_path):
    arguments = [
        "--model",
        str(tiny_export),
        "--max-new-tokens",
        "5",
        "--keep-answers",
        str(tmp_path / "kept.jsonl"),
    ]
    long = CHOICE | {"passage": "word " * 500}
    result = run(([CHOICE, long], None), ([CLOZE], None), arguments=arguments)
    assert result.scores["questions"] == 3 and result.scores["too_long"] == 1
    assert (tmp_path / "kept.jsonl").read_text().count("\n") == 4


CLOZES = [
    # (answer, text, right); None: no answer in it
    ("2", "2", True), ("2", "答案是2。", True), ("2", "The answer is $2$.", True), ("2", "a=2", True), ("2", "\\boxed{2}", True),
    ("2", "2.0", True), ("2", "3", False), ("2", "", None), ("2", "x\ny", None), ("2", "We compute 1+1.\nAnswer: 2", True),
    ("2", "22", False), ("2", "答案：２", True), ("2", "解：x=2\n答：$2$。", True), ("2", "The answer is 2 or 3", False), ("90^{\\circ}", "90°", True), ("$90^{\\circ}$", "90", True),
    ("$\\frac{1}{2}$", "1/2", True), ("$\\frac{1}{2}$", "0.5", True), ("$\\frac{1}{2}$", "\\dfrac{1}{2}", True), ("0.14", "14%", True),
    ("$\\frac{1}{2}$", "\\frac12", True), ("$\\frac{1}{2}$", "-0.5", False), ("-63", "−63", True), ("$-\\frac{1}{2}$", "-\\frac{1}{2}", True),
    ("$2\\sqrt{3}$", "2√3", True), ("$2\\sqrt{3}$", "$2 \\sqrt 3$", True), ("$2\\sqrt{3}$", "3\\sqrt{2}", False), ("1000", "1,000", True),
    ("$\\frac{\\sqrt{3}}{2}$", "\\sqrt{3}/2", True), ("$\\frac{2\\pi}{3}$", "2π/3", True), ("$\\frac{1}{2}$", "2/4", True),
    ("$5$;$10$", "5;10", True), ("$5$;$10$", "5；10", True), ("$5$;$10$", "10;5", False), ("$5$;$10$", "5, 10", True), ("$5$;$10$", "5", False),
    ("$5$;$10$", "答案是5和10。", True), ("$5$;$10$", "\\boxed{5}, \\boxed{10}", True), ("$(0,1)$", "(0,1)", True), ("$(0,1)$", "(0, 1)", True),
    ("$(0,1)$", "[0,1)", False), ("$(-\\infty,0)\\cup(0,1]$", "\\left(-\\infty, 0\\right) \\cup (0,1]", True), ("$y=2x$", "y = 2x", True),
    ("$y=2x$", "2x", False), ("$4-\\mathrm{i}$", "4-i", True), ("$2x+y+1=0$", "2x+y+1=0", True), ("16", "16种", True), ("16", "x=16 cm", True),
    ("2", "1/0", False), ("2", "答案：", None), ("3", "The answer is 3. I am sure.", True), ("1.96", "The answer is 1.96", True),
    ("2", "答案为$2$，其中略。", True), ("2", "The answer is 2, because 1+1=2.", True), ("2", "The answer is 3 because 1+1=2.", False),
    ("2", "综上，a=2。", True), ("2", "所以 $a=2$", True), ("2", "= 2", True), ("2", "So", False), ("2", "综上", False),
    ("5m", "5 km", False), ("5 g", "The answer is 5 kg.", False), ("5m", "5 米", True), ("5 g", "5.0 g", True), ("3个", "3种", True), ("30°", "30度", True),
    ("1", "答案是$1$或$2$", False), ("1", "答案为$1$，$2$", False), ("2", "答案是$2$，不是3", False),
    ("$3n^{2}-2n$", "$3n^2-2n$", True), ("$a_{n}=2^{n}$", "a_n = 2^n", True), ("2^{10}", "2^10", False), ("1000", "$1{,}000$", True),
    ("5", "The answer is .5", False), ("0.5", "The answer is .5.", True),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "text", "right"), CLOZES)
def test_a_cloze_is_right_where_it_is_equal_after_normalisation(answer, text, right):
    assert is_right(text, answer) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [("The answer is " + "9" * 5000, False), ("1 " * 5000, False), ("9" * 5000 + ".", True)],
    ids=["digits", "digits in a row", "the answer"],
)
def test_a_number_that_a_model_repeats_without_end_is_a_text(text, right):
    assert is_right(text, "9" * 5000 if right else "3") is right


def test_endless_repetition_is_read_in_linear_time():
    """It took minutes; now a fraction of a second."""
    begun = time.thread_time()
    assert is_right("x" * 1_000_000, "3") is False
    assert is_right("\\boxed{" * 9000, "3") is False
    assert is_right("\\boxed{" * 9000 + "3" + "}" * 9000, "3") is True
    assert time.thread_time() - begun < 8
