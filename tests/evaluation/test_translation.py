"""BLEU and chrF against sacrebleu's own command, hostile lines, and a COMET that is there, fails, or lies."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from fastling.command_line import Parser
from fastling.errors import RunError, UserError
from fastling.evaluation import bleu, comet
from fastling.evaluation.records import read_lines, read_records
from fastling.evaluation.translation import add_options, evaluate, request
from fastling.terminal import make_console

CHINESE = ["我想退款，谢谢。", "他昨天去了北京。", "ABC公司的订单在哪里？", "这是第四句话。"]
CHINESE_OUTPUTS = ["我想要退款，谢谢。", "他去了北京。", "", "这是第四句。"]
ENGLISH = [
    "I want my money back, please.",
    "He went to Beijing yesterday.",
    "Where is the order?",
    "It's the 4th .",
]
ENGLISH_OUTPUTS = ["I want the money back.", "He went to Beijing.", "", "It is the 4th."]


@pytest.fixture
def run(tmp_path):
    """Evaluate lists of lines, or bytes, with further arguments."""

    def evaluate_lines(hypotheses, references, language, *arguments, sources=None):
        parser = Parser("test", "")
        parser.set_defaults(kind="translation", out=None)
        add_options(parser)
        words = []
        for name, lines in (("hypotheses", hypotheses), ("references", references), ("sources", sources)):
            if lines is not None:
                path = tmp_path / f"{name}.txt"
                text = lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode()
                path.write_bytes(text)
                words += [f"--{name}", str(path)]
        options = parser.parse_args([*words, "--target-lang", language, *arguments])
        return evaluate(options, make_console(quiet=True))

    return evaluate_lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hypotheses", "references", "language", "tokenizer"),
    [(CHINESE_OUTPUTS, CHINESE, "zh", "zh"), (ENGLISH_OUTPUTS, ENGLISH, "en", "13a"), (ENGLISH, ENGLISH, "de", "13a")],
)  # fmt: skip
def test_scores_and_signatures_are_those_of_sacrebleus_command(
    run, tmp_path, hypotheses, references, language, tokenizer
):
    scores = run(hypotheses, references, language).scores
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        tmp_path / "references.txt",
        "-i",
        tmp_path / "hypotheses.txt",
    ]
    for name, metric in (
        ("bleu", ["-m", "bleu", "-tok", tokenizer]),
        ("chrf", ["-m", "chrf"]),
        ("chrf_plus_plus", ["-m", "chrf", "--chrf-word-order", "2"]),
    ):
        shown = subprocess.run([*command, *metric, "-w", "6"], capture_output=True, text=True, check=True)
        expected = json.loads(shown.stdout)
        assert scores[name] == pytest.approx(expected["score"], abs=1e-6)
        assert scores[f"{name}_signature"] == expected["signature"]


def test_references_as_hypotheses_give_100(run):
    scores = run(CHINESE, CHINESE, "zh").scores
    assert (scores["bleu"], scores["chrf"], scores["chrf_plus_plus"]) == (100, 100, 100)


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_japanese_and_korean_are_cut_by_mecab_or_the_extra_is_named(run, language, monkeypatch):
    lines = {"ja": ["猫が座っています。"], "ko": ["고양이가 앉아 있다."]}[language]
    package = {"ja": "MeCab", "ko": "mecab_ko"}[language]
    pytest.importorskip(package)
    assert f"tok:{language}-mecab" in run(lines, lines, language).scores["bleu_signature"]
    module = f"sacrebleu.tokenizers.tokenizer_{language}_mecab"
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        run(lines, lines, language)
    assert caught.value.fix == f"pip install 'sacrebleu[{language}]'"


@pytest.mark.parametrize(
    ("given", "code", "tokenizer", "note"),
    [
        ("xx", "xx", "13a", "BLEU splits xx at spaces and punctuation (13a)"),
        ("th", "th", "13a", "BLEU splits th at spaces (13a), of which there are few: compare systems by chrF"),
        ("zh-CN", "zh", "zh", None), ("zho_Hans", "zh", "zh", None), ("EN", "en", "13a", None), ("pt_BR", "pt", "13a", None),
    ],
)  # fmt: skip
def test_translations_into_any_language_are_scored(run, given, code, tokenizer, note):
    result = run(CHINESE, CHINESE, given)
    assert result.scores["target_lang"] == code and f"tok:{tokenizer}|" in result.scores["bleu_signature"]
    assert result.notes == ((note,) if note else ())


@pytest.mark.parametrize(
    ("given", "fix"),
    [("Chinese", "Did you mean zh?"), ("cn", "Did you mean zh?"), ("germn", "Did you mean de?"), ("8", "such as zh")],
)  # fmt: skip
def test_what_is_no_code_of_a_language_is_an_error_that_names_one(run, given, fix):
    with pytest.raises(UserError, match=f"is not a language code: {given}") as caught:
        run(ENGLISH, ENGLISH, given)
    assert fix in caught.value.fix


def test_a_model_is_asked_for_languages_whose_names_are_known(run, tmp_path):
    with pytest.raises(UserError, match="is no language that a model can be asked for: xx") as caught:
        run(None, ENGLISH, "xx", "--model", str(tmp_path), sources=CHINESE)
    assert "any language" in caught.value.fix


def test_empty_hypotheses_are_counted_and_scored_as_empty(run):
    result = run(ENGLISH_OUTPUTS, ENGLISH, "en")
    assert result.scores["empty_hypotheses"] == 1 and "1 of 4" in result.notes[0]
    assert (
        result.scores["bleu"]
        < run([*ENGLISH_OUTPUTS[:2], ENGLISH[2], ENGLISH_OUTPUTS[3]], ENGLISH, "en").scores["bleu"]
    )


def test_all_empty_is_zero(run):
    assert run([""] * 4, ENGLISH, "en").scores["bleu"] == 0


@pytest.mark.parametrize("hypotheses", [ENGLISH[:-1], [*ENGLISH, ""]])
def test_another_number_of_hypotheses_is_an_error_with_both_numbers(run, hypotheses):
    with pytest.raises(UserError, match=rf"{len(hypotheses)} hypotheses, and .*references.txt has 4"):
        run(hypotheses, ENGLISH, "en")


def test_what_unicode_calls_a_line_break_ends_no_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("a\u2028b\x0bc\x85d\x1ce\u2029f\rg\r\n\r\nlast".encode())
    assert read_lines(path) == ["a\u2028b\x0bc\x85d\x1ce\u2029f\rg", "", "last"]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\ufeff")), min_size=1)
)
def test_lines_come_back_as_they_were_written(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "x.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert read_lines(path) == lines


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"a\nb\xff\n", r"txt:2: is not UTF-8")])
def test_files_that_are_no_lines_are_named(run, content, words):
    with pytest.raises(UserError, match=words):
        run(content, ENGLISH, "en")


def test_lines_may_come_through_a_pipe_and_a_folder_is_said_to_be_one(tmp_path):
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        pipe.write(b"eins\nzwei\n")
    assert read_lines(Path(f"/dev/fd/{reading}")) == ["eins", "zwei"]
    os.close(reading)
    for read in (read_lines, read_records):
        with pytest.raises(UserError, match="is a folder"):
            read(tmp_path)
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "none.jsonl")


def test_bootstrap_gives_an_interval_around_the_score(run):
    result = run(ENGLISH_OUTPUTS, ENGLISH, "en", "--bootstrap", "100")
    low, high = result.scores["chrf_interval"]
    assert json.loads(json.dumps(result.as_json()))["bleu_interval"] == result.scores["bleu_interval"]
    assert low < result.scores["chrf"] < high and "bs:100" in result.scores["chrf_signature"]
    assert result.tables[0].columns[2] == "95 % interval"
    with pytest.raises(UserError, match="--bootstrap"):
        run(ENGLISH_OUTPUTS, ENGLISH, "en", "--bootstrap", "1")


def test_options_without_effect_are_errors(run):
    for arguments, sources in (
        (["--user-lang", "zh"], None),
        ([], ENGLISH),
        (["--beams", "5"], None),
        (["--comet-command", sys.executable], None),
    ):
        with pytest.raises(UserError):
            run(ENGLISH, ENGLISH, "en", *arguments, sources=sources)


def test_the_model_is_asked_as_the_paper_asks():
    assert request("Hi.", "zh", "en") == "Provide the Chinese translation for this sentence: Hi."
    assert request("Hi.", "de", "zh") == "提供这句话的德语翻译：Hi."


def test_an_answer_of_several_lines_becomes_one():
    assert bleu.one_line(" a \n\n b\r\nc ") == "a b c" and bleu.one_line("\n ") == ""


def test_a_model_translates_in_place_of_given_hypotheses(run, tiny_export, tmp_path):
    arguments = ["--model", str(tiny_export), "--max-new-tokens", "8", "--limit", "3", "--beams", "2"]
    arguments += ["--keep-answers", str(tmp_path / "kept.jsonl")]
    scores = run(None, ENGLISH, "en", *arguments, sources=CHINESE).scores
    rows = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()[1:]]
    outputs = [bleu.one_line(row["text"]) for row in sorted(rows, key=lambda row: row["question"])]
    assert scores["sentences"] == 3 == len(outputs)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [ENGLISH[:3]]).score, abs=1e-6)
    with pytest.raises(UserError, match="4 sources, and .* has 3"):
        run(None, ENGLISH[:3], "en", *arguments, sources=CHINESE)


# COMET ----------------------------------------------------------------------------------------------

FAKE = """#!{python}
import argparse, sys
parser = argparse.ArgumentParser()
for name in "-s", "-t", "-r", "--model":
    parser.add_argument(name)
options = parser.parse_args()
print("loading models--Unbabel--wmt22-comet-da/snapshots", file=sys.stderr)
files = [open(path, encoding="utf-8").readlines() for path in (options.s, options.t, options.r)]
assert len(set(map(len, files))) == 1, list(map(len, files))
same = [hypothesis == reference for _, hypothesis, reference in zip(*files)]
for number, score in enumerate(same):
    print(f"{{options.t}}\\tSegment {{number}}\\tscore: {{score:.4f}}")
print(f"{{options.t}}\\tscore: {{sum(same) / len(same):.4f}}")
"""


@pytest.fixture
def comet_command(tmp_path):
    """Write a command in the place of comet-score."""

    def write(text=FAKE) -> str:
        path = tmp_path / "comet score"
        path.write_text(text.format(python=sys.executable))
        path.chmod(0o755)
        return f"'{path}'"

    return write


def test_comet_is_what_its_command_says_and_its_model_is_recorded(run, comet_command):
    hypotheses = [ENGLISH[0], "a\rb\u2028c", "", ENGLISH[3]]
    command = comet_command()
    result = run(hypotheses, ENGLISH, "en", "--comet-command", command, sources=CHINESE)
    assert (result.scores["comet"], result.scores["comet_model"]) == (0.5, "Unbabel/wmt22-comet-da")
    named = run(hypotheses, ENGLISH, "en", "--comet-command", f"{command} --model X/y", sources=CHINESE)
    assert named.scores["comet_model"] == "X/y" and "COMET" in named.tables[-1].title


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!{python}\nimport sys; sys.exit('no such model')", "exit status 1: no such model"),
        ("#!{python}\nprint('score: 3')", "0 scores"),
        ("#!{python}\nprint('x\\tscore: 0.1\\ny\\tscore: 0.2')", "2 scores"),
        ("#!{python}\nprint('x\\tSegment 0\\tscore: 0.1\\nx\\tscore: 0.2')", "scored 1 of 4"),
        ("#!{python}\nprint('x\\tscore: nan')", "0 scores"),
        ("#!/no/such/interpreter\n", "cannot be run"),
    ],
)
def test_a_comet_that_fails_loses_no_bleu(run, comet_command, script, words):
    result = run(ENGLISH, ENGLISH, "en", "--comet-command", comet_command(script), sources=CHINESE)
    assert result.scores["bleu"] == 100 and result.scores["comet"] is None
    assert isinstance(result.failure, RunError) and words in str(result.failure)


@pytest.mark.parametrize("command", ["/no/such/comet-score", "", "'unclosed"])
def test_a_missing_comet_command_is_reported_before_any_work(run, command):
    with pytest.raises(UserError, match="--comet-command"):
        run(ENGLISH, ENGLISH, "en", "--comet-command", command, sources=CHINESE)


def test_a_model_that_nobody_names_is_the_commands_default():
    done = types.SimpleNamespace(returncode=0, stdout="x\tscore: -0.25\n", stderr="")
    assert comet._read(["c"], done, 3) == {"comet": -0.25, "comet_model": "the command's default"}
