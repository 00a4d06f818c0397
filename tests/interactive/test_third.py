"""Text in a third language: the same sentence asked for in one language, then in another."""

import dataclasses
import json
import random

import pytest
from interactive.parallel_text import corpus_of, knowledge_of, pairs_of, recipe_of, sentences, write_corpus

from fastling import dialogues
from fastling.errors import run_command
from fastling.interactive import build, gates
from fastling.interactive.dialogue import Dialogue
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.pairs import Pair
from fastling.interactive.phrasings import load_phrasings
from fastling.interactive.rules import BUILDERS

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without


def options(corpus, out, *more) -> list[str]:
    paths = ["--source", corpus.first, "--target", corpus.second, "--third", corpus.third, "--out", out]
    languages = ["--source-lang", corpus.first_language, "--target-lang", corpus.second_language]
    languages += ["--third-lang", corpus.third_language]
    return [str(each) for each in (*paths, *languages, "--workers", 1, *more)]


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_sentence_is_asked_for_in_two_languages(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path, "zh", "en", third="de"), tmp_path / "out.jsonl"
    assert run_command(dialogues.main, options(corpus, out, "--json")) == 0
    counts, rows = json.loads(capsys.readouterr().out), rows_of(out)
    assert counts["types"].keys() == BUILDERS.keys() and not any("third" in key for key in counts["rejects"])
    found = [row for row in rows if row["type"] == "switch_target"]
    assert len(found) > 10 and all(row["third_file"] == "text.de" for row in found)
    assert not any("third_file" in row or "switch_target" in row["steps"] for row in rows if row not in found)
    targets = set()
    for row in found:
        first, second = row["turns"][:2]
        assert row["steps"][:2] == ["translate", "switch_target"] and first["line"] == second["line"]
        origin = row["pair"].split("-")[0]
        assert {origin, first["language"], second["language"]} == {"zh", "en", "de"} and origin != "de"
        for turn, answer in zip((first, second), row["messages"][1:4:2], strict=True):
            assert answer["content"] == sentences()[turn["language"]][turn["line"] - 1]
        assert sentences()[origin][first["line"] - 1] in row["messages"][0]["content"]
        targets.add((first["language"], second["language"]))
        # "And this one?" would be about the language asked for last; and of its words nothing is known.
        assert row["steps"][2:3] in ([], ["translate"], ["include_words"], ["keep"])
    assert {("en", "de"), ("de", "en"), ("zh", "de"), ("de", "zh")} == targets


def test_the_file_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LINES_PER_CHUNK", 60)
    corpus = write_corpus(tmp_path, "zh", "en", third="de")
    written = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.jsonl"
        recipe = recipe_of(dataclasses.replace(knowledge_of("zh", "en", "de"), corpus=corpus), 3)
        build.write_dialogues(recipe, out, total=600, count=150, workers=workers)
        written.append(out.read_bytes())
    assert written[0] == written[1] and b'"switch_target"' in written[0]


def test_only_the_third_text_is_left_out_where_it_is_bad(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path, "zh", "en", third="de"), tmp_path / "out.jsonl"
    lines = corpus.third.read_text(encoding="utf-8").splitlines()
    bad = ["", sentences()["en"][1], sentences()["zh"][2], lines[3] * 3, lines[4] + ',"']
    corpus.third.write_text("\n".join(bad + lines[5:300] + [""] * 300) + "\n", encoding="utf-8")
    dialogues.main(options(corpus, out, "--json", "--mix", "switch_target=1,translate=1"))
    counts, rows = json.loads(capsys.readouterr().out), rows_of(out)
    assert counts["rejects"].items() >= {"third-empty-line": 301, "third-wrong-language": 1}.items()
    assert counts["rejects"]["third-untranslated"] == 1
    assert counts["rejects"]["third-length-ratio"] == counts["rejects"]["third-unfinished"] == 1
    first = [row["lines"][0] for row in rows if row["type"] == "switch_target"]
    assert first and min(first) > 5 and max(first) <= 300
    assert {row["lines"][0] for row in rows if row["type"] == "translate"} & set(range(301, 601))


def test_pairs_held_out_in_the_third_language_are_not_used(tmp_path, capsys):
    corpus, out = write_corpus(tmp_path, "zh", "en", third="de"), tmp_path / "out.jsonl"
    (tmp_path / "held.txt").write_text("\n".join(sentences()["de"][100:200]), encoding="utf-8")
    dialogues.main(options(corpus, out, "--json", "--exclude", tmp_path / "held.txt"))
    assert json.loads(capsys.readouterr().out)["rejects"]["excluded"] >= 100
    assert not any(100 < line <= 200 for row in rows_of(out) for line in row["lines"])


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        ("", "empty-line"),
        ("This is the old museum of the town.", "wrong-language"),
        ("Kurz und gut.", "length-ratio"),
        ("Das ist das alte Museum der Stadt,", "unfinished"),
        ("Anna Keller, Tom Baker, museum old town", "untranslated"),
        ("Das ist das alte Museum der Stadt.", None),
    ],
)
def test_gates_of_the_third_text(third, reason):
    second = "Anna Keller, Tom Baker: the museum, the old town"
    pair = Pair(1, "安娜和汤姆，这是镇上的老博物馆的照片。", second, third)
    knowledge = dataclasses.replace(knowledge_of("zh", "en", "de"), length_ratio=2.5, third_ratio=2.0)
    assert gates.check_pair(pair, knowledge, Exclusion()) is None
    assert gates.check_third(pair, knowledge) == reason


def test_a_third_text_that_is_held_out_excludes_its_pair():
    pair = pairs_of("zh", "en", "de")[0]
    knowledge = knowledge_of("zh", "en", "de")
    assert gates.check_pair(pair, knowledge, Exclusion([pair.third])) == "excluded"
    assert gates.check_pair(pair._replace(third=""), knowledge, Exclusion([pair.third])) is None


def mistake(tmp_path, name):
    """(arguments, what is said) of one mistake."""
    corpus, out = write_corpus(tmp_path, "zh", "en", 40, third="de"), tmp_path / "out.jsonl"
    good = options(corpus, out)
    two = [each for each in good if each not in ("--third", str(corpus.third), "--third-lang", "de")]
    if name == "another length":
        corpus.third.write_text("Nur eine Zeile.\n", encoding="utf-8")
        return good, f"{corpus.third}: ends after 1 lines, and {corpus.first} goes on"
    if name == "a longer third":
        corpus.third.write_text("Eine Zeile.\n" * 41, encoding="utf-8")
        return good, f"{corpus.first}: ends after 40 lines, and {corpus.third} goes on"
    cases = {
        "the file of the source": (["--third", corpus.first], "--third: is the file of the source"),
        "the file of the target": (["--third", corpus.second], "--third: is the file of the target"),
        "a language of the pair": (["--third-lang", "en"], "--third-lang: is the language of the target: en"),
        "an unknown language": (["--third-lang", "xx"], "--third-lang: unknown language: xx"),
        "no such file": (["--third", "none.de"], "--third: no such file: none.de"),
        "no use for it": (["--mix", "keep=1"], "--third: has no effect without switch_target in --mix"),
    }
    if name in cases:
        more, said = cases[name]
        return [*good, *map(str, more)], said
    if name == "a model":
        model = ["--generator-url", "http://x/v1", "--generator-model", "m"]
        return [*[each for each in good if each not in ("--workers", "1")], *model], "--third: has no effect"
    if name == "no third":
        return [*two, "--mix", "switch_target=1"], "--mix: switch_target needs --third"
    if name == "a language alone":
        return [*two, "--third-lang", "de"], "--third-lang: has no effect without --third"
    return [*two, "--third", str(corpus.third)], "--third-lang: is not set"


@pytest.mark.parametrize(
    "name",
    ["another length", "a longer third", "the file of the source", "the file of the target", "no such file",
     "a language of the pair", "an unknown language", "no use for it", "a model", "no third",
     "a language alone", "no language"],
)  # fmt: skip
def test_mistakes_are_explained(tmp_path, capsys, name):
    arguments, said = mistake(tmp_path, name)
    assert run_command(dialogues.main, arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (tmp_path / "out.jsonl").exists() and not list(tmp_path.glob("*.tmp"))


def test_a_corpus_of_two_has_no_third():
    assert corpus_of("zh", "en").third is None and {len(pair.third) for pair in pairs_of("zh", "en")} == {0}


def test_without_a_third_text_there_is_nothing_to_switch_to():
    knowledge = knowledge_of("zh", "en", "de")
    pair = knowledge.corpus.directed(pairs_of("zh", "en", "de")[0]._replace(third=""), "zh")
    dialogue = Dialogue(knowledge, load_phrasings("en"), random.Random(0))
    assert not BUILDERS["switch_target"](dialogue, [pair]) and not dialogue.turns
