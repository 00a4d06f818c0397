"""`fastling evaluate refinement` on dialogues that `fastling dialogues` writes, and on rows of our own."""

import json
import os
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interactive.parallel_text import write_corpus

from fastling import dialogues, evaluate
from fastling.errors import run_command
from fastling.evaluation import bootstrap, refinement
from fastling.evaluation.revision import chrf

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

REAL = Path(os.environ.get("FASTLING_DATA", "/nowhere")) / "parallel"

CAT = "The old cat slept on the mat on Monday."
DOG = CAT.replace("cat", "dog")


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def messages(*turns):
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def error(wrong, right, reference=CAT, kind="replacement"):
    return {"kind": kind, "start": reference.index(right), "wrong": wrong, "right": right}


def wish(words, turn, step="include_words"):
    return {"words": words, "turn": turn, "step": step}


def row(name="a", **changes):
    """Two wishes, then a faulty draft that they bind, then a right one, then a question about words."""
    bound = [wish("cat", 0), wish("Monday", 0, "keep")]
    turns = messages(
        ("Translate, with cat.", CAT),
        (f"Correct: {DOG}", CAT),
        (f"And this? {CAT}", f"All is well.\n{CAT}"),
        ("Which word is it?", "It is cat."),
    )
    known = [
        {"line": 1, "language": "en", "constraints": bound},
        {"line": 1, "language": "en", "errors": [error("dog", "cat")], "constraints": bound},
        {"line": 1, "language": "en", "lead": "All is well.", "errors": [], "constraints": bound},
        None,
    ]
    return {"id": name, "messages": turns, "turns": known, **changes}


def answers(rows, make):
    return [{"id": row["id"], "answers": make(row)} for row in rows]


def references(row):
    return [each["content"] for each in row["messages"] if each["role"] == "assistant"]


def drafts(row):
    """What the users sent, in place of answers; elsewhere the answers."""
    found = []
    for turn, answer in zip(row["turns"], references(row), strict=True):
        text = answer.removeprefix((turn or {}).get("lead", "")).lstrip("\n")
        for each in (turn or {}).get("errors", []):
            end = each["start"] + len(each["right"])
            text = text[: each["start"]] + each["wrong"] + text[end:]
        found.append(text if turn else answer)
    return found


@pytest.fixture
def run(tmp_path, capsys):
    """(exit status, scores, words) of the command on rows of questions and of predictions."""

    def evaluated(questions, predictions) -> tuple[int, dict, str]:
        given = ["--questions", str(write_rows(tmp_path / "q.jsonl", questions))]
        given += ["--predictions", str(write_rows(tmp_path / "p.jsonl", predictions))]
        status = run_command(evaluate.main, ["refinement", *given, "--json"])
        said = capsys.readouterr()
        return status, json.loads(said.out.splitlines()[-1]) if said.out else {}, said.err

    return evaluated


@pytest.fixture(scope="module", params=[("zh", "en"), ("de", "en")], ids="-".join)
def built(request, tmp_path_factory):
    """Dialogues as a user builds them, of 600 sentences."""
    folder = tmp_path_factory.mktemp("built")
    corpus = write_corpus(folder, *request.param)
    paths = ["--source", corpus.first, "--target", corpus.second, "--out", folder / "out.jsonl"]
    languages = ["--source-lang", corpus.first_language, "--target-lang", corpus.second_language]
    dialogues.main([str(each) for each in (*paths, *languages, "--workers", 1)])
    return read_rows(folder / "out.jsonl")


# On dialogues as they are built -----------------------------------------------------------------------


def test_references_are_ideal(built, run):
    status, scores, said = run(built, built)  # a row of dialogues is a prediction, too
    assert status == 0, said
    assert scores["drafts"] > 30 and scores["right_drafts"] > 5 and scores["wishes"] > 30
    ideal = {"fix_rate": 100, "harm_rate": 0, "over_edit_ratio": 1, "over_edited": 0, "no_op_accuracy": 100}
    assert {name: scores[name] for name in ideal} == ideal
    assert scores["wishes_granted"] == 100 and scores["retention"] == 100
    assert scores["chrf_of_versions"] == 100 and scores["gain"] == 100 - scores["chrf_of_drafts"] > 2
    low, high = scores["gain_interval"]
    assert low < scores["gain"] < high
    assert "chrF2 nrefs:1|case:mixed" in said and "TER nrefs:1|case:mixed|tok:tercom|norm:no" in said
    assert scores["dialogues"] + scores["passed_over"] == len(built)


def test_drafts_fix_nothing_and_harm_nothing(built, run):
    _, scores, _ = run(built, answers(built, drafts))
    nothing = {"fix_rate": 0, "harm_rate": 0, "over_edit_ratio": 0, "gain": 0, "gain_interval": [0, 0]}
    assert {name: scores[name] for name in nothing} == nothing and scores["no_op_accuracy"] == 100


def test_words_around_a_version_change_nothing(built, run):
    def chatty(row):
        return [f"Here it is:\n\n**{text.splitlines()[-1]}**\n\nI mended it." for text in references(row)]

    plain, around = run(built, built)[1], run(built, answers(built, chatty))[1]
    for name in ("fix_rate", "harm_rate", "over_edit_ratio", "no_op_accuracy", "gain", "retention"):
        assert around[name] == plain[name], name


def test_empty_answers_fix_nothing_and_lose_everything(built, run):
    _, scores, said = run(built, answers(built, lambda row: [""] * len(row["turns"])))
    worst = {"fix_rate": 0, "harm_rate": 100, "no_op_accuracy": 0, "wishes_granted": 0, "chrf_of_versions": 0}
    assert {name: scores[name] for name in worst} == worst and scores["retention"] is None
    assert scores["over_edit_ratio"] > 1 and scores["empty"] == scores["answers"]
    assert "answers are empty, and scored as such" in said


def test_every_record_is_true_of_its_row(built):
    """From the messages alone: the draft in the user's turn is the answer with the errors put in."""
    seen = 0
    for each in built:
        requests = [message["content"] for message in each["messages"] if message["role"] == "user"]
        assert len(each["turns"]) == len(requests) == len(each["steps"])
        for number, (turn, step) in enumerate(zip(each["turns"], each["steps"], strict=True)):
            assert (turn is None) == (step in ("which_words", "which_better"))
            if turn is None:
                continue
            assert ("errors" in turn) == (step in ("correct_draft", "no_change"))
            assert turn["line"] in each["lines"] and turn["language"] in each["pair"].split("-")
            if "errors" in turn:
                assert drafts(each)[number] in requests[number]
                assert len(turn["errors"]) == (step == "correct_draft")
                seen += 1
            for bound in turn.get("constraints", []):
                assert bound["words"] in references(each)[number]
                assert bound["step"] == each["steps"][bound["turn"]] in ("include_words", "keep")
                assert bound["words"] in requests[bound["turn"]]
    assert seen > 50


@pytest.mark.skipif(not REAL.is_dir(), reason="needs FASTLING_DATA")
@pytest.mark.parametrize("pair", ["zh-en", "de-en"])
def test_references_of_real_text_are_ideal(tmp_path, run, pair):
    first, second = pair.split("-")
    for code in (first, second):
        lines = (REAL / f"{pair}.{code}").read_text(encoding="utf-8").split("\n")[:3000]
        (tmp_path / f"text.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    paths = ["--source", tmp_path / f"text.{first}", "--target", tmp_path / f"text.{second}"]
    languages = ["--source-lang", first, "--target-lang", second, "--workers", 1]
    dialogues.main([str(each) for each in (*paths, *languages, "--out", tmp_path / "out.jsonl")])
    rows = read_rows(tmp_path / "out.jsonl")
    _, scores, _ = run(rows, rows)
    assert scores["fix_rate"] == 100 and scores["harm_rate"] == 0 and scores["over_edited"] == 0
    assert scores["no_op_accuracy"] == scores["retention"] == scores["wishes_granted"] == 100


def test_a_model_is_asked_turn_by_turn(tiny_export, tmp_path, capsys):
    rows = [row("a"), row("b"), row("c")]
    out, questions = tmp_path / "out.json", write_rows(tmp_path / "q.jsonl", rows)
    given = [
        "--questions",
        questions,
        "--model",
        tiny_export,
        "--max-new-tokens",
        4,
        "--limit",
        2,
        "--out",
        out,
    ]
    assert run_command(evaluate.main, ["refinement", *map(str, given)]) == 0, capsys.readouterr().err
    scores = json.loads(out.read_text(encoding="utf-8"))
    assert scores["dialogues"] == 2 and scores["answers"] == 8 and scores["drafts"] == 2
    assert scores["harm_rate"] > 50 and scores["fix_rate"] == 0  # what an untrained model says is noise
    assert "answers before it as history" in " ".join(scores["notes"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "--predictions"),
        (["--predictions", "p.jsonl", "--model", "m"], "cannot be given with --model"),
        (["--predictions", "p.jsonl", "--limit", "5"], "has no effect without --model"),
        (["--predictions", "p.jsonl", "--beams", "5"], "has no effect without --model"),
        (["--predictions", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_options_that_do_not_go_together_are_told(tmp_path, capsys, options, what):
    given = ["--questions", str(write_rows(tmp_path / "q.jsonl", [row()]))]
    assert run_command(evaluate.main, ["refinement", *given, *options]) == 2
    assert what in capsys.readouterr().err


# On rows of our own -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([CAT, CAT, CAT, ""], {"wishes_granted": 100, "retention": 100, "fix_rate": 100}),
        # what was never granted cannot be forgotten
        ([DOG, CAT, CAT, ""], {"wishes_granted": 50, "retention": 100}),
        # turn 2 forgets cat, turn 3 forgets Monday, of two each; letter case counts of what is to be kept
        ([CAT, DOG, CAT.lower(), ""], {"wishes_granted": 100, "retention": 50, "fix_rate": 0}),
        ([CAT.upper(), CAT, CAT, ""], {"wishes_granted": 50, "retention": 100}),
        (["", "", "", ""], {"wishes_granted": 0, "retention": None, "no_op_accuracy": 0}),
        ([CAT, "", "", ""], {"wishes_granted": 100, "retention": 0}),
        # turn 3 says that nothing is wrong, and does not give the text back
        ([CAT, CAT, "It is right.", ""], {"no_op_accuracy": 0, "retention": 50}),
        ([CAT, f"{CAT} Really.", CAT, ""], {"fix_rate": 100, "harm_rate": 0, "over_edit_ratio": 3}),
        ([CAT, "The cat slept on the mat.", CAT, ""], {"fix_rate": 100, "harm_rate": 100 * 3 / 9}),
    ],
)
def test_numbers_are_those_of_the_definitions(run, said, expected):
    _, scores, _ = run([row()], [{"id": "a", "answers": said}])
    assert {name: scores[name] for name in expected} == expected


def test_retention_is_told_by_turn(run):
    _, scores, said = run([row()], [{"id": "a", "answers": [CAT, DOG, CAT, ""]}])
    assert scores["retention_by_turn"] == {
        "2": {"retention": 50, "wishes": 2},
        "3": {"retention": 100, "wishes": 2},
    }
    assert "earlier wishes kept in turn 2" in said


def test_dialogues_with_nothing_to_measure_are_passed_over(run):
    plain = {"id": "b", "messages": messages(("Translate.", CAT)), "turns": [{"line": 1, "language": "en"}]}
    _, scores, said = run([row(), plain], answers([row()], references))
    assert scores["passed_over"] == 1 and "1 dialogues have no draft and no wish" in said
    status, _, said = run([plain], answers([plain], references))
    assert status == 2 and "no dialogue with a draft or a wish" in said


TURN = {"line": 1, "language": "en"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"turns": None}, "has no record of its turns"),
        ({"turns": [None]}, "has no record of its turns"),
        ({"turns": [5, None, None, None]}, "turn 1 is no record: '5' should be of the type dict"),
        ({"turns": [{**TURN, "lead": "Yes."}, None, None, None]}, "does not begin with the lead 'Yes.'"),
        ({"turns": [{**TURN, "errors": [error("bird", "cat")]}, None, None, None]}, "draft is not in the user's"),
        ({"turns": [{**TURN, "errors": [{"kind": "a"}]}, None, None, None]}, "turn 1 is no record: no 'start'"),
        ({"turns": [{**TURN, "errors": [{**error("x", "cat"), "start": 1}]}, None, None, None]}, "is not at 1"),
        ({"turns": [{**TURN, "errors": [{**error("x", "cat"), "start": "1"}]}, None, None, None]}, "type int"),
        ({"turns": [{**TURN, "errors": "cat"}, None, None, None]}, "should be of the type list"),
        ({"turns": [{**TURN, "constraints": [wish("dog", 0)]}, None, None, None]}, "the reference lacks 'dog'"),
        ({"turns": [{**TURN, "constraints": [wish("cat", 1)]}, None, None, None]}, "does not come before"),
        ({"messages": []}, "no conversation: no-assistant-turn"),
        ({"messages": "x"}, "no conversation: unknown-format"),
        ({"id": None}, "has no id"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_dialogue_is_named(run, changes, what):
    status, _, said = run([row(), row("b", **changes)], [])
    assert status == 2 and "q.jsonl:2" in said and what in said, said


@pytest.mark.parametrize(
    ("predictions", "what"),
    [
        ([], "is empty"),
        ([{"id": "x", "answers": []}], "has no answers to 1 of 1 conversations: a"),
        ([{"id": "a", "answers": ["x"]}], "1 answers to the 4 user turns of id a"),
        ([{"id": "a", "answers": [1, 2, 3, 4]}], "holds no answers that are texts"),
        ([{"id": "a", "messages": [{"role": "assistant"}]}], "holds no answers that are texts"),
        ([{"id": ["a"], "answers": []}], "has no id"),
        (
            [{"id": "a", "answers": ["x"] * 4}, {"id": "a", "answers": ["x"] * 4}],
            ":2: id a is answered already",
        ),
    ],
)
def test_predictions_that_do_not_match_are_named(run, predictions, what):
    status, _, said = run([row()], predictions)
    assert status == 2 and "p.jsonl" in said and what in said


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=3), min_size=1, max_size=8)
)
def test_the_interval_is_that_of_a_bootstrap_over_dialogues(pairs):
    pairs.append([(1.0, 2.0)])
    some = [each for each in pairs if each]
    generator = numpy.random.default_rng(bootstrap.SEED)
    drawn = generator.integers(len(some), size=(1000, len(some)))
    means = []
    for places in drawn.tolist():
        gains = [after - before for at in places for before, after in some[at]]
        means.append(sum(gains) / len(gains))
    expected = [float(numpy.percentile(means, edge)) for edge in (2.5, 97.5)]
    assert refinement.interval(pairs) == pytest.approx(expected, abs=1e-9)


def test_the_gain_is_a_mean_over_drafts(run):
    rows = [row("a"), row("b")]
    said = [{"id": "a", "answers": [CAT, CAT, CAT, ""]}, {"id": "b", "answers": [CAT, DOG, CAT, ""]}]
    _, scores, _ = run(rows, said)
    assert scores["gain"] == pytest.approx((100 - chrf(DOG, CAT)) / 2) and scores["fix_rate"] == 50
    low, high = scores["gain_interval"]
    assert low == 0 and high == pytest.approx(100 - chrf(DOG, CAT))
