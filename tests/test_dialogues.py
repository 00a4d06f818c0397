"""`fastling dialogues`, as a user runs it."""

import dataclasses
import gzip
import json
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import DEMO, run_python
from interactive.parallel_text import corpus_of, knowledge_of, recipe_of, sentences, write_corpus
from misbehaving_server import completion, serving

from fastling import dialogues
from fastling.errors import run_command
from fastling.interactive import build
from fastling.interactive.languages import LANGUAGES, OTHER_LANGUAGES
from fastling.interactive.pairs import Corpus
from fastling.interactive.rules import BUILDERS

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

REAL = Path(os.environ.get("FASTLING_DATA", "/nowhere")) / "parallel"


def options(corpus, out, *more) -> list[str]:
    paths = ["--source", corpus.first, "--target", corpus.second, "--out", out]
    languages = ["--source-lang", corpus.first_language, "--target-lang", corpus.second_language]
    return [str(each) for each in (*paths, *languages, "--workers", 1, *more)]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_corpus_becomes_dialogues(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path, "zh", "en"), tmp_path / "out.jsonl"
    assert run_command(dialogues.main, options(corpus, out, "--json")) == 0
    said = capsys.readouterr()
    counts, rows = json.loads(said.out), rows_of(out)
    assert counts["dialogues"] == len(rows) > 250 and counts["pairs"] == {"zh-en": 600}
    assert counts["types"].keys() == BUILDERS.keys() - {"switch_target"}
    assert sum(counts["types"].values()) == len(rows) and not any("third_file" in row for row in rows)
    assert counts["distinct_3"].keys() == counts["types"].keys() and "distinct-3" in said.err
    assert all(0.1 < share <= 1 for share in counts["distinct_3"].values())
    assert counts["turns"] == sum(len(row["messages"]) for row in rows) / 2
    assert counts["user_languages"].keys() == {"zh", "en"} and counts["directions"].keys() == {
        "zh-en",
        "en-zh",
    }
    assert f"{len(rows):,} dialogues of 600 pairs" in said.err
    assert len({row["id"] for row in rows}) == len(rows)
    used = [line for row in rows for line in row["lines"]]
    assert len(used) == len(set(used)) and set(used) <= set(range(1, 601))
    assert {row["source_file"] for row in rows} == {"text.zh"}
    assert 0.05 < counts["right_drafts"] < 0.3
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_seed_gives_the_same_file(tmp_path, capsys):
    corpus = write_corpus(tmp_path)
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.jsonl"
        dialogues.main(options(corpus, out, "--seed", seed))
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_the_file_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path)
    monkeypatch.setattr(build, "LINES_PER_CHUNK", 60)
    recipe = recipe_of(with_corpus(corpus), 3)
    written = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.jsonl"
        build.write_dialogues(recipe, out, total=600, count=100, workers=workers)
        written.append(out.read_bytes())
    assert written[0] == written[1] and written[0].count(b"\n") == 100


def with_corpus(corpus):
    """What is learned from the sentences, as if from these files."""
    return dataclasses.replace(knowledge_of(corpus.first_language, corpus.second_language), corpus=corpus)


@pytest.mark.parametrize("count", [1, 7, 100])
def test_a_count_is_met_and_spread_over_the_file(tmp_path, count, monkeypatch):
    monkeypatch.setattr(build, "LINES_PER_CHUNK", 100)
    recipe = recipe_of(with_corpus(write_corpus(tmp_path)))
    tally = build.write_dialogues(recipe, tmp_path / "out.jsonl", total=600, count=count)
    rows = rows_of(tmp_path / "out.jsonl")
    assert len(rows) == tally.dialogues == count
    if count == 100:
        by_part = [sum(part * 100 < row["lines"][0] <= part * 100 + 100 for row in rows) for part in range(6)]
        assert max(by_part) - min(by_part) <= 2


def test_too_large_a_count_is_reported(tmp_path, capsys):
    dialogues.main(options(write_corpus(tmp_path, count=100), tmp_path / "out.jsonl", "--count", 5000))
    assert "of 5,000 dialogues" in capsys.readouterr().err


def test_a_mix_is_kept_to(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path), tmp_path / "out.jsonl"
    dialogues.main(options(corpus, out, "--mix", "correct_draft=1,no_change=0,translate=1", "--json"))
    said = capsys.readouterr()
    types = json.loads(said.out)["types"]
    assert types.keys() == {"correct_draft", "translate"}
    assert 0.7 < types["correct_draft"] / types["translate"] < 1.4
    assert "0 % of the drafts need no change" in said.err


def test_no_sentence_of_an_evaluation_set_is_used(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path), tmp_path / "out.jsonl"
    held_out = sentences()["en"][100:200]
    (tmp_path / "held.txt").write_text(
        "\n".join(text.upper().rstrip(".") for text in held_out), encoding="utf-8"
    )
    row = json.dumps({"src": sentences()["de"][300], "constraint": ["x"]})
    (tmp_path / "held.jsonl").write_text(row + "\n", encoding="utf-8")
    paths = ("--exclude", tmp_path / "held.txt", tmp_path / "held.jsonl")
    dialogues.main(options(corpus, out, *paths, "--json"))
    assert json.loads(capsys.readouterr().out)["rejects"]["excluded"] >= 101
    written = out.read_text(encoding="utf-8")
    assert not any(text in written for text in held_out) and sentences()["de"][300] not in written
    assert not any(100 < line <= 200 or line == 301 for row in rows_of(out) for line in row["lines"])


def test_empty_and_repeated_lines_are_counted_out(tmp_path, capsys):
    corpus = write_corpus(tmp_path, count=300)
    for path in corpus[:2]:
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([*lines, *lines[:40], *[""] * 20]) + "\n", encoding="utf-8")
    dialogues.main(options(corpus, tmp_path / "out.jsonl", "--json"))
    counts = json.loads(capsys.readouterr().out)
    assert counts["rejects"]["duplicate"] == 40 and counts["rejects"]["empty-line"] == 20
    assert max(line for row in rows_of(tmp_path / "out.jsonl") for line in row["lines"]) <= 300


def test_packed_files_are_read(tmp_path):
    corpus = write_corpus(tmp_path)
    packed = [path.with_name(path.name + ".gz") for path in corpus[:2]]
    for path, other in zip(corpus[:2], packed, strict=True):
        other.write_bytes(gzip.compress(path.read_bytes()))
    dialogues.main(options(corpus, tmp_path / "plain.jsonl"))
    dialogues.main(options(corpus._replace(first=packed[0], second=packed[1]), tmp_path / "packed.jsonl"))
    for plain, other in zip(
        rows_of(tmp_path / "plain.jsonl"), rows_of(tmp_path / "packed.jsonl"), strict=True
    ):
        assert plain["messages"] == other["messages"]


def lines_without_context(tmp_path) -> Corpus:
    """A corpus of sentences that have nothing in common with their neighbours."""
    rooms = [[f"room{number}x{word}" for word in range(6)] for number in range(300)]
    for language, stop in (("de", "das ist"), ("en", "this is")):
        lines = [f"{stop} {' '.join(words)}{language}." for words in rooms]
        (tmp_path / f"text.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Corpus(tmp_path / "text.de", tmp_path / "text.en", "de", "en")


def test_lines_without_context_are_not_continued(tmp_path, capsys):
    dialogues.main(options(lines_without_context(tmp_path), tmp_path / "out.jsonl"))
    assert "continue_text is left out" in capsys.readouterr().err
    assert all(row["type"] != "continue_text" for row in rows_of(tmp_path / "out.jsonl"))


def test_prepare_takes_the_dialogues(tmp_path):
    corpus, out = write_corpus(tmp_path), tmp_path / "out.jsonl"
    dialogues.main(options(corpus, out, "--count", 60))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run_dir: {tmp_path / 'run'}\n"
        "model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}\n"
        f"data: {{tokenizer: {DEMO / 'tokenizer.model'}, sequence_length: 2048, "
        f"sources: [{{name: interactive, path: {out}}}]}}\n"
        "train: {global_batch_tokens: 2048}\n",
        encoding="utf-8",
    )
    done = run_python("fastling.prepare", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    ledger = json.loads(done.stdout)["sources"]["interactive"]
    assert ledger["rows"] == ledger["kept"] == 60


@pytest.mark.parametrize(
    ("language", "name", "sentence"),
    [
        ("ja", "Japanese", "{number}番の箱は東京の倉庫に置いてあります。"),
        ("es", "Spanish", "La caja {number} está en el almacén de Tokio."),
        ("ru", "Russian", "Коробка {number} стоит на складе в Токио."),
    ],
)
@pytest.mark.parametrize("other", ["en", "ko"])
def test_any_pair_of_languages_users_write_in_those_that_have_phrasings(
    tmp_path, language, name, sentence, other
):
    """And in English where neither has."""
    beside = {
        "en": "Box {number} is in the warehouse in Tokyo.",
        "ko": "{number}번 상자는 도쿄의 창고에 있습니다.",
    }
    corpus = corpus_of(language, other, folder=tmp_path)
    for path, text in ((corpus.first, sentence), (corpus.second, beside[other])):
        path.write_text("".join(text.format(number=n) + "\n" for n in range(100, 160)), encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert run_command(dialogues.main, options(corpus, out)) == 0
    rows = rows_of(out)
    assert {row["user_lang"] for row in rows} == {"en"}
    assert {row["pair"] for row in rows} == {f"{language}-{other}", f"{other}-{language}"}
    assert {"translate", "switch_direction"} <= {row["type"] for row in rows}
    assert any(name in row["messages"][0]["content"] for row in rows)


def break_it(tmp_path, name):
    """(arguments, the whole of what is said) of one mistake."""
    corpus, out = write_corpus(tmp_path, count=40), tmp_path / "out.jsonl"
    good = options(corpus, out)
    known = f"Known are: {', '.join(LANGUAGES + OTHER_LANGUAGES)}."
    if name == "different lengths":
        corpus.second.write_text("One line only.\n", encoding="utf-8")
        fix = "Give files in which the same line is the same sentence."
        return good, f"{corpus.second}: ends after 1 lines, and {corpus.first} goes on\n  {fix}"
    if name == "the same file":
        fix = "Give its translation."
        return [
            *good,
            "--target",
            str(corpus.first),
        ], f"--target: is the file of the source: {corpus.first}\n  {fix}"
    if name == "the same language":
        return [*good, "--target-lang", "de"], "--target-lang: is the language of the source: de"
    if name == "an unknown language":
        return [*good, "--source-lang", "xx"], f"--source-lang: unknown language: xx\n  {known}"
    if name == "an unknown user":
        return [
            *good,
            "--user-lang",
            "xx",
        ], "--user-lang: no phrasings for users of: xx\n  There are: en, zh, de, fr."
    if name == "no folder":
        return [
            *good,
            "--out",
            f"{tmp_path}/no/out.jsonl",
        ], f"--out: no such folder: {tmp_path}/no\n  Make it first."
    if name == "a folder as file":
        (tmp_path / "folder.jsonl").mkdir()
        return [*good, "--out", f"{tmp_path}/folder.jsonl"], f"--out: is a folder: {tmp_path}/folder.jsonl"
    if name == "another kind of file":
        return [*good, "--out", "out.txt"], "--out: must end in .jsonl: out.txt"
    if name == "no file":
        return [*good, "--source", "none.de"], "--source: no such file: none.de"
    if name == "no evaluation set":
        return [*good, "--exclude", "none.txt"], "--exclude: no such file: none.txt"
    if name == "no number":
        return [*good, "--count", "0"], "--count: must be > 0: 0"
    if name == "no such type":
        return [*good, "--mix", "rhyme=1"], f"--mix: no such type: rhyme\n  There are: {', '.join(BUILDERS)}."
    if name == "no weight":
        return [*good, "--mix", "keep"], "--mix: expected TYPE=NUMBER: keep"
    if name == "nothing in the mix":
        return [*good, "--mix", "keep=0"], "--mix: leaves nothing to build: keep=0"
    if name == "empty files":
        corpus.first.write_text("")
        corpus.second.write_text("")
        return good, f"{corpus.first}: is empty"
    if name == "not text":
        corpus.first.write_bytes(b"gut\n\xff\xfe\n")
        return good, f"{corpus.first}:2: is not UTF-8\n  Save the file as UTF-8."
    packed = tmp_path / "text.de.gz"
    packed.write_bytes(b"no gzip")
    return [*good, "--source", str(packed)], f"{packed}: cannot be read: Not a gzipped file (b'no')"


MISTAKES = (
    "different lengths", "the same file", "the same language", "an unknown language", "an unknown user", "no folder",
    "a folder as file", "another kind of file", "no file", "no evaluation set", "no number", "no such type",
    "no weight", "nothing in the mix", "empty files", "not text", "not packed",
)  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained(tmp_path, capsys, name):
    arguments, said = break_it(tmp_path, name)
    assert run_command(dialogues.main, arguments) == 2
    assert capsys.readouterr().err.strip() == f"error: {said}"
    assert not list(tmp_path.glob("*.tmp")) and not (tmp_path / "out.jsonl").exists()


def test_a_misspelled_option_is_named_before_the_one_that_it_leaves_missing(tmp_path, capsys):
    arguments = options(write_corpus(tmp_path, count=40), tmp_path / "out.jsonl")
    arguments[arguments.index("--source-lang")] = "--sorce-lang"
    assert run_command(dialogues.main, arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: command line: unknown setting: sorce-lang\n  Did you mean source-lang?"


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    corpus, out = write_corpus(tmp_path, count=40), tmp_path / "out.jsonl"
    out.write_text("old")
    monkeypatch.setattr(build, "make_chunk", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dialogues.main(options(corpus, out))
    assert out.read_text() == "old" and not list(tmp_path.glob("*.tmp"))


def test_two_that_write_one_file_do_not_write_into_each_other_s(tmp_path, capsys):
    """The second is told; what a killed one has left is in nobody's way."""
    corpus, out = write_corpus(tmp_path, count=40), tmp_path / "out.jsonl"
    out.with_name("out.jsonl.tmp").write_text("x" * 10**6)
    with build.whole_or_absent(out) as file:
        file.write("first\n")
        assert run_command(dialogues.main, options(corpus, out)) == 2
        assert f"error: --out: is being written by another process: {out}" in capsys.readouterr().err
    assert out.read_text() == "first\n"
    assert run_command(dialogues.main, options(corpus, out)) == 0


def test_a_file_in_another_language_is_refused_and_what_was_there_stays(tmp_path, capsys):
    corpus = write_corpus(tmp_path, "de", "en", count=100)
    arguments = options(corpus, tmp_path / "out.jsonl", "--json", "--source-lang", "fr")
    (tmp_path / "out.jsonl").write_text("as it was")
    assert run_command(dialogues.main, arguments) == 2
    said = capsys.readouterr()
    assert f"--source-lang: is fr, but 100 % of a sample of {corpus.first} is not" in said.err
    assert not said.out and (tmp_path / "out.jsonl").read_text() == "as it was"


def test_a_corpus_that_is_held_out_whole_is_a_failed_run(tmp_path, capsys):
    corpus = write_corpus(tmp_path, count=100)
    arguments = options(corpus, tmp_path / "out.jsonl", "--exclude", corpus.first)
    assert run_command(dialogues.main, arguments) == 1
    said = "not one dialogue could be built from 100 pairs\n  Not used: excluded 100."
    assert said in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="FASTLING_DATA names no folder with parallel/")
def test_real_text(tmp_path, capsys):
    """A slice of human translations: most lines pass, every kind is possible."""
    for language in ("zh", "en"):
        lines = (REAL / f"zh-en.{language}").read_text(encoding="utf-8").splitlines()[4000:6000]
        (tmp_path / f"text.{language}").write_text("\n".join(lines), encoding="utf-8")
    corpus = Corpus(tmp_path / "text.zh", tmp_path / "text.en", "zh", "en")
    dialogues.main(options(corpus, tmp_path / "out.jsonl", "--json"))
    counts = json.loads(capsys.readouterr().out)
    assert counts["dialogues"] > 700 and counts["types"].keys() == BUILDERS.keys() - {"switch_target"}


# With a model -----------------------------------------------------------------------------------------


@pytest.fixture
def model_server():
    pytest.importorskip("openai")
    with serving(good) as server:
        yield server


def good(number, body):
    """Any turn that passes: the translation before, with words around it that nobody gave before."""
    prompt = body["messages"][0]["content"]
    before = re.split("assistant: |translation: ", prompt)[-1].split("\n\n", 1)[0]
    words = (
        ("What we know is this", "that is all")
        if "English translation" in prompt
        else ("So ist es", "genau so")
    )
    return 200, completion(
        json.dumps({"request": REQUEST, "answer": f"{words[0]}: {before} {words[1]} {number % 9}."})
    )


REQUEST = "Would you please make it sound the way that people say it? At most 60 words."


def generate(corpus, out, server, *more) -> list[str]:
    paths = ["--source", corpus.first, "--target", corpus.second, "--out", out]
    languages = ["--source-lang", corpus.first_language, "--target-lang", corpus.second_language]
    model = ["--generator-url", server.url, "--generator-model", "m", "--user-lang", "en"]
    return [str(each) for each in (*paths, *languages, *model, *more)]


def test_a_model_writes_the_further_turns(tmp_path, capsys, model_server):
    (tmp_path / "prompts").mkdir()
    for kind in ("style", "grammar", "length", "suggestion", "simulation"):
        text = "Rewrite this $target_language translation: $translation"
        (tmp_path / "prompts" / f"{kind}.txt").write_text(text)
    corpus, out = write_corpus(tmp_path, "de", "en"), tmp_path / "out.jsonl"
    arguments = generate(
        corpus, out, model_server, "--count", 12, "--generator-prompts", tmp_path / "prompts", "--json"
    )
    assert run_command(dialogues.main, arguments) == 0
    said = capsys.readouterr()
    counts, rows = json.loads(said.out), rows_of(out)
    assert counts["dialogues"] == len(rows) == 12 and counts["tokens"] == 100 * len(model_server.bodies)
    assert {row["pair"] for row in rows} <= {"de-en", "en-de"}
    for row in rows:
        assert len(row["messages"]) >= 4 and row["messages"][2]["content"] == REQUEST
        assert row["generator"] == "m" and row["user_lang"] == "en"
    asked = len(model_server.bodies)
    first = out.read_bytes()
    assert run_command(dialogues.main, arguments) == 0  # again, from what was answered
    assert out.read_bytes() == first and len(model_server.bodies) == asked


def test_counts_are_told_in_one_order_whatever_order_answers_come_in(tmp_path, capsys, model_server):
    corpus = write_corpus(tmp_path, "de", "en", count=60)
    assert run_command(dialogues.main, generate(corpus, tmp_path / "out.jsonl", model_server, "--json")) == 0
    said = capsys.readouterr()
    counts = json.loads(said.out)
    for counted in (counts["types"], counts["rejects"]):
        assert list(counted.items()) == sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    assert len({*counts["types"].values()}) < len(counts["types"])  # some are equally frequent


def test_a_type_that_only_rules_build_is_not_told_to_be_left_out(tmp_path, capsys, model_server):
    corpus = lines_without_context(tmp_path)
    run_command(dialogues.main, generate(corpus, tmp_path / "out.jsonl", model_server, "--count", 1))
    assert "continue_text" not in capsys.readouterr().err


def test_pairs_are_drawn_until_the_count_is_reached(tmp_path, capsys, model_server):
    """Where one turn of three is junk; no pair twice, and no further than the pairs go."""
    model_server.behave = lambda number, body: good(number, body) if number % 3 else (200, completion("no"))
    corpus, out = write_corpus(tmp_path, "de", "en", count=100), tmp_path / "out.jsonl"
    assert run_command(dialogues.main, generate(corpus, out, model_server, "--count", 20, "--json")) == 0
    rows = rows_of(out)
    lines = [row["lines"][0] for row in rows]
    assert json.loads(capsys.readouterr().out)["dialogues"] == len(rows) == len(set(lines)) == 20
    assert min(lines) < 30 and max(lines) > 70
    assert run_command(dialogues.main, generate(corpus, out, model_server, "--count", 500)) == 0
    assert "of 500 dialogues: no more pairs are left" in capsys.readouterr().err


def test_a_model_that_writes_nothing_of_use_is_a_failed_run_soon(tmp_path, capsys, model_server):
    model_server.behave = lambda number, body: (200, completion("no"))
    corpus, out = write_corpus(tmp_path, "de", "en"), tmp_path / "out.jsonl"
    assert run_command(dialogues.main, generate(corpus, out, model_server, "--count", 50)) == 1
    said = capsys.readouterr().err
    assert "not one dialogue could be built" in said and "no whole JSON object" in said
    assert len(model_server.bodies) == 300 and not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--generator-model", "m"], "--generator-model: has no effect without --generator-url"),
        (["--generator-url", "http://x/v1"], "--generator-model: is not set"),
        (["--generator-url", "http://x/v1", "--generator-model", "m", "--mix", "keep=1"], "--mix: has no effect with --generator-url"),
        (["--generator-url", "http://x/v1", "--generator-model", "m", "--generator-prompts", "nowhere"], "--generator-prompts: no such folder: nowhere"),
        (["--generator-url", "http://x/v1", "--generator-model", "m", "--generator-requests", "0"], "--generator-requests: must be > 0: 0"),
        (["--generator-url", "http://x/v1", "--generator-model", "m", "--generator-timeout", "inf"], "--generator-timeout: must be > 0: inf"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_about_the_model_is_named(tmp_path, capsys, more, said):
    corpus = write_corpus(tmp_path)
    arguments = [each for each in options(corpus, tmp_path / "out.jsonl") if each not in ("--workers", "1")]
    assert run_command(dialogues.main, [*arguments, *more]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_server_that_fails_leaves_no_file_but_what_was_answered(tmp_path, capsys, model_server):
    model_server.behave = lambda number, body: (401, "{}")
    corpus, out = write_corpus(tmp_path, "de", "en"), tmp_path / "out.jsonl"
    assert run_command(dialogues.main, generate(corpus, out, model_server, "--count", 5)) == 1
    assert "refuses m: 401" in capsys.readouterr().err
    assert not out.exists() and (tmp_path / "out.jsonl.answers.sqlite").exists()


def test_without_the_client_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "fastling.remote", raising=False)
    monkeypatch.delitem(sys.modules, "fastling.interactive.generate", raising=False)
    monkeypatch.delitem(sys.modules, "fastling.interactive.refinements", raising=False)
    arguments = [
        each
        for each in options(write_corpus(tmp_path), tmp_path / "out.jsonl")
        if each not in ("--workers", "1")
    ]
    model = ["--generator-url", "http://127.0.0.1:1/v1", "--generator-model", "m"]
    assert run_command(dialogues.main, [*arguments, *model]) == 2
    said = capsys.readouterr().err
    assert "--generator-url: needs the package openai" in said and "fastling[dialogues]" in said
