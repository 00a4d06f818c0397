"""`fastling evaluate instructions` on a file of our own in Multi-IF's format."""

import csv
import itertools
import json

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling import evaluate
from fastling.errors import run_command
from fastling.evaluation import instructions
from fastling.evaluation.bootstrap import middle_95
from fastling.evaluation.instruction_checks import make_check
from fastling.evaluation.instructions import Followed, Instruction, follow, loose_forms

pytest.importorskip("langdetect")

NO_COMMA = ("punctuation:no_comma", {})
TITLE = ("detectable_format:title", {})
FEW_WORDS = ("length_constraints:number_words", {"num_words": 6, "relation": "less than"})
ONE_BULLET = ("detectable_format:number_bullet_lists", {"num_bullets": 1})


def row_of(key, language, *turns, prompts=None):
    """A row as the benchmark writes it; each turn adds to the instructions of those before it."""
    row = {"turns": "", "responses": "", "key": key, "turn_index": "0", "language": language}
    for number in (1, 2, 3):
        so_far = list(itertools.chain(*turns[:number]))
        prompt = prompts[number - 1] if prompts else f"turn {number}"
        message = json.dumps({"role": "user", "content": prompt}) if prompt else "None"
        row[f"turn_{number}_prompt"] = message
        row[f"turn_{number}_instruction_id_list"] = json.dumps([name for name, _ in so_far])
        row[f"turn_{number}_kwargs"] = json.dumps([json.dumps(arguments) for _, arguments in so_far])
    return row


ROWS = [
    row_of("1:1:en", "English", [NO_COMMA], [TITLE], [FEW_WORDS]),
    row_of("1:2:en", "English", [NO_COMMA], [ONE_BULLET], [TITLE]),
    row_of("1:1:zh", "Chinese", [NO_COMMA], [TITLE], [FEW_WORDS]),
]
ANSWERS = [
    # all at turn 1; title at 2, its comma forgotten; at 3 the title is on a line that loose scoring leaves out
    ["no comma here", "<<Title>> yes, and", "Sure, here:\n<<My title>> two words"],
    # loose only: a comma in the first line; one bullet; nothing at all
    ["Well, sure:\nhere it is", "* one", ""],
    ["你好，世界", "<<题目>>好", "<<题目>>好的"],
]


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def predictions(path, answers=ANSWERS, rows=ROWS):
    return write_jsonl(
        path, [{"key": row["key"], "answers": each} for row, each in zip(rows, answers, strict=True)]
    )


def run(capsys, *arguments) -> tuple[int, dict, str]:
    status = run_command(evaluate.main, ["instructions", *map(str, arguments)])
    said = capsys.readouterr()
    return status, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err


def test_accuracies_by_turn_and_language(tmp_path, capsys):
    questions, given_answers = write_csv(tmp_path / "q.csv", ROWS), predictions(tmp_path / "p.jsonl")
    status, scores, said = run(capsys, "--questions", questions, "--predictions", given_answers, "--json")
    assert status == 0, said
    english, chinese = (scores["turns"]["1"]["languages"][name] for name in ("English", "Chinese"))
    # turn 1: the first answer follows, the second only without its first line; the Chinese one has a comma
    assert (english["prompt_strict"], english["prompt_loose"]) == (50, 100)
    assert (english["instruction_strict"], english["instruction_loose"]) == (50, 100)
    assert english["overall"] == 75 and english["conversations"] == 2
    assert chinese["overall"] == 0 and scores["overall_turn_1"] == 37.5
    # turn 2, English: no comma 0 of 1 and title 1 of 1; no comma and bullet 2 of 2
    english = scores["turns"]["2"]["languages"]["English"]
    assert (english["prompt_strict"], english["instruction_strict"]) == (50, 75)
    assert scores["turns"]["2"]["languages"]["Chinese"]["overall"] == 100
    # turn 3: a comma, a title, six words; without its first line no comma and four; an empty one has nothing
    english = scores["turns"]["3"]["languages"]["English"]
    assert (english["instruction_strict"], english["instruction_loose"]) == (100 / 6, 50)
    assert (english["prompt_strict"], english["prompt_loose"]) == (0, 50)
    # followed before: at 2, no comma of the first alone; at 3, two of each, lost 1 of them, 2 and 0
    assert scores["forgetting"] == {"2": {"rate": 100, "of": 1}, "3": {"rate": 50, "of": 6}}
    assert scores["checks"]["punctuation:no_comma"]["instructions"] == 9
    assert "1 of 9 answers are empty" in said and "Chinese" in said


def test_all_forms_of_the_file_score_alike(tmp_path, capsys):
    decoded = [
        {
            name: [json.loads(each) for each in json.loads(value)]
            if name.endswith("kwargs")
            else json.loads(value)
            if name.endswith(("prompt", "list"))
            else value
            for name, value in row.items()
        }
        for row in ROWS
    ]
    files = (
        write_csv(tmp_path / "q.csv", ROWS),
        write_jsonl(tmp_path / "q.jsonl", ROWS),
        write_jsonl(tmp_path / "d.jsonl", decoded),
    )
    given_answers = predictions(tmp_path / "p.jsonl")
    found = [run(capsys, "--questions", each, "--predictions", given_answers, "--json")[1] for each in files]
    assert found[0] == found[1] == found[2] and found[0]["conversations"] == 3


def test_turns_without_a_prompt_are_counted(tmp_path, capsys):
    rows = [
        row_of("a", "English", [NO_COMMA], [TITLE], [FEW_WORDS], prompts=["one", None, "three"]),
        row_of("b", "English", [NO_COMMA], [TITLE], [FEW_WORDS], prompts=[None, "two", "three"]),
        row_of("c", "English", [("keywords:key_sentences", {})], [NO_COMMA], [TITLE]),
    ]
    questions = write_csv(tmp_path / "q.csv", rows)
    answers = write_jsonl(
        tmp_path / "p.jsonl", [{"key": "a", "text": "x"}, {"key": "c", "answers": ["a", "b", "<<c>>"]}]
    )
    status, scores, said = run(capsys, "--questions", questions, "--predictions", answers, "--json")
    assert status == 0, said
    assert scores["conversations"] == 2 and scores["turns"]["1"]["conversations"] == 1
    assert scores["left_out"][instructions.NO_PROMPT] == 2 + 3
    assert sum("keywords:key_sentences" in what for what in scores["left_out"]) == 1
    assert "left out: 5 turns without a prompt" in said and "left out: 3 instructions" in said


def changed(**columns):
    return [ROWS[0], {**ROWS[1], **columns}]


@pytest.mark.parametrize(
    ("rows", "where", "what"),
    [
        (changed(turn_2_instruction_id_list='["keywords:exist", "b"]'), ":3: turn 2", "unknown instruction"),
        (changed(turn_2_instruction_id_list="[]"), ":3: turn 2", "as many kwargs as instruction ids"),
        (changed(turn_3_kwargs='["{}", "{}", "{}"]'), ":3: turn 3", "takes num_bullets"),
        (changed(turn_1_kwargs='["{"]'), ":3: turn 1", "broken JSON"),
        (changed(turn_1_kwargs="[5]"), ":3: turn 1", "no instruction with its kwargs"),
        (changed(turn_1_kwargs="[" * 5000), ":3: turn 1", "broken JSON"),
        (changed(turn_1_prompt="Write a poem"), ":3: turn_1_prompt", "no message: 'Write a poem'"),
        (changed(turn_1_prompt='{"content": ""}'), ":3: turn_1_prompt", "the message has no text"),
        (changed(turn_1_prompt='["a"]'), ":3: turn_1_prompt", "no message"),
        (changed(turn_1_prompt="7"), ":3: turn_1_prompt", "no message"),
        (changed(key="\x00"), "", ""),
    ],
)
def test_rows_of_another_benchmark_are_named(tmp_path, capsys, rows, where, what):
    questions = write_csv(tmp_path / "q.csv", rows)
    answers = predictions(tmp_path / "p.jsonl", ANSWERS[:2], ROWS[:2])
    status, _, said = run(capsys, "--questions", questions, "--predictions", answers)
    assert status == 2 and f"q.csv{where}" in said and what in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "holds no conversation"),
        (b"key,language\n1,English\n", "has no turn_1_prompt"),
        (b"key\n\xff\xfe\n", "is not UTF-8"),
        (b'key\n"unclosed', "broken CSV"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is not UTF-8"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, capsys, content, what):
    (tmp_path / "q.csv").write_bytes(content)
    answers = predictions(tmp_path / "p.jsonl")
    status, _, said = run(capsys, "--questions", tmp_path / "q.csv", "--predictions", answers)
    assert status == 2 and what in said


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"key": "1:1:en", "answers": ["a", "b"]}], "has no answers to 2 of 3 conversations: 1:2:en"),
        ([{"key": row["key"], "answers": ["a", "b"]} for row in ROWS], "2 answers to the 3 user turns"),
        ([{"key": row["key"], "answers": ["a", "b", None]} for row in ROWS], "no answers that are texts"),
        ([{"key": row["key"]} for row in ROWS], "no answers that are texts"),
        ([{"answers": ["a", "b", "c"]}], "has no key"),
        ([["a"]], "must be an object"),
    ],
)
def test_predictions_that_do_not_match_are_named(tmp_path, capsys, rows, what):
    questions = write_csv(tmp_path / "q.csv", ROWS)
    answers = write_jsonl(tmp_path / "p.jsonl", rows)
    status, _, said = run(capsys, "--questions", questions, "--predictions", answers)
    assert status == 2 and what in said


def test_conversations_of_one_key_are_told_apart_by_their_order(tmp_path, capsys):
    rows = [ROWS[0], {**ROWS[0]}]
    questions = write_csv(tmp_path / "q.csv", rows)
    good, bad = ["a", "<<b>>", "<<c>>"], ["", "", ""]
    found = []
    for answers in ([good, bad], [good, good], [good], [good, good, bad]):
        path = predictions(tmp_path / "p.jsonl", answers, [ROWS[0]] * len(answers))
        found.append(run(capsys, "--questions", questions, "--predictions", path, "--json"))
    assert [each[0] for each in found] == [0, 0, 2, 2] and "fewer rows than questions" in found[2][2]
    assert "p.jsonl:3: key 1:1:en is answered already" in found[3][2]
    assert (found[0][1]["overall_turn_1"], found[1][1]["overall_turn_1"]) == (50, 100)


def test_a_model_is_asked_turn_by_turn(tiny_export, tmp_path, capsys):
    questions, kept = write_csv(tmp_path / "q.csv", ROWS), tmp_path / "kept.jsonl"
    given = ["--questions", questions, "--model", tiny_export, "--max-new-tokens", 3, "--keep-answers", kept]
    status, scores, said = run(capsys, *given, "--limit", 1, "--json")
    assert status == 0, said
    assert scores["conversations"] == 1 and scores["answers"] == 3 and kept.exists()
    assert scores["turns"].keys() == {"1", "2", "3"} and scores["turns"]["1"]["languages"].keys() == {
        "English"
    }


# Against definitions written out ----------------------------------------------------------------------


@given(st.text(alphabet="a*\n ,", max_size=20))
def test_loose_forms_are_the_eight_of_the_benchmark(answer):
    lines = answer.split("\n")
    expected = [answer, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip()]
    expected.append("\n".join(lines[1:-1]).strip())
    expected += [form.replace("*", "") for form in expected]
    assert sorted(loose_forms(answer)) == sorted(expected)


@given(st.text(alphabet="a*\n ,-", max_size=20))
def test_strict_implies_loose_and_an_empty_answer_follows_nothing(answer):
    for name, arguments in (NO_COMMA, ONE_BULLET, FEW_WORDS):
        (found,) = follow([Instruction(name, "", make_check(name, arguments))], answer)
        assert found.loose or not found.strict
        if not answer.strip():
            assert not found.loose


def followed(flags, names="abc"):
    return [
        [Followed(Instruction(name, "{}", bool), flag, flag) for name, flag in zip(names, turn, strict=False)]
        for turn in flags
    ]


@given(st.lists(st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for n in (1, 2, 3))), min_size=1))
def test_forgetting_is_counted_instruction_by_instruction(conversations):
    found = instructions.forgetting([followed(flags) for flags in conversations])
    for turn in (1, 2):
        could = [
            (flags, at)
            for flags in conversations
            for at in range(turn + 1)
            if any(at < len(flags[earlier]) and flags[earlier][at] for earlier in range(turn))
        ]
        lost = sum(not flags[turn][at] for flags, at in could)
        assert found[turn + 1] == (100 * lost / len(could) if could else None, len(could))


def test_the_interval_is_that_of_a_plain_bootstrap():
    generator = numpy.random.default_rng(5)
    answers = [followed([generator.random(3) < 0.7])[0] for _ in range(60)]
    counts = numpy.array([instructions._counts(answer) for answer in answers], dtype=float)
    low, high = middle_95(instructions.resampled_overall(counts, numpy.random.default_rng(0)))
    means = []
    for _ in range(3000):
        drawn = [answers[at] for at in generator.integers(60, size=60)]
        prompt = sum(all(each.strict for each in answer) for answer in drawn) / 60
        each = sum(each.strict for answer in drawn for each in answer) / 180
        means.append(100 * (prompt + each) / 2)  # loose is the same here
    expected = numpy.percentile(means, (2.5, 97.5))
    assert abs(low - expected[0]) < 1.5 and abs(high - expected[1]) < 1.5
    assert low < instructions.accuracies(counts.sum(axis=0)).mean() < high
    again = instructions.resampled_overall(counts, numpy.random.default_rng(0))
    assert middle_95(again) == [low, high] and len(again) == 10_000


def test_languages_are_drawn_apart_so_that_their_mean_is_surer_than_each():
    answers = [followed([[at % 2 == 0] * 3])[0] for at in range(40)]
    scores = instructions._turn_scores({"English": answers, "French": answers})
    low, high = scores["overall_interval"]
    for each in scores["languages"].values():
        first, last = each["overall_interval"]
        assert 0.6 < (high - low) / (last - first) < 0.8  # 1 / sqrt(2)
