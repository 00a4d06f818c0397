"""Files of parallel lines: whether the same line is the same sentence."""

import random

import pytest
from interactive.parallel_text import sentences
from rich.console import Console

from fastling.dialogues import check_in_step, check_languages
from fastling.errors import UserError
from fastling.interactive.pairs import RUN_LENGTH, Corpus, Pair, out_of_step


def runs_of(*languages: str, late_from: int | None = None, count: int = 20):
    """Runs of pairs whose lengths vary as those of real text; from a line on, the last side is a line late."""
    choose, all_sentences = random.Random(0), sentences()
    several = [choose.choices(range(600), k=choose.randint(1, 6)) for _ in range(count * RUN_LENGTH + 1)]
    sides = [[" ".join(all_sentences[one][at] for at in each) for each in several] for one in languages]
    if late_from is not None:
        sides[-1][late_from:] = sides[-1][late_from - 1 : -1]
    pairs = [Pair(number, *texts) for number, texts in enumerate(zip(*sides, strict=True), 1)]
    return [pairs[at : at + RUN_LENGTH] for at in range(0, count * RUN_LENGTH, RUN_LENGTH)]


def said_of(corpus, runs, capsys) -> str:
    check_in_step(corpus, runs, Console(stderr=True, width=200))
    return capsys.readouterr().err


@pytest.mark.parametrize("languages", [("zh", "en"), ("de", "en"), ("zh", "en", "fr")])
def test_files_in_step_are_not_spoken_of(languages, capsys, tmp_path):
    paths = [tmp_path / language for language in languages]
    corpus = Corpus(*paths[:2], *languages[:2], *paths[2:], *languages[2:])
    assert said_of(corpus, runs_of(*languages), capsys) == ""


def test_where_a_line_is_missing_the_rest_is_out_of_step(capsys, tmp_path):
    corpus = Corpus(tmp_path / "a.zh", tmp_path / "a.en", "zh", "en")
    bad, told = out_of_step(runs_of("zh", "en", late_from=800), "second")
    assert told == 20 and bad == [801, 851, 901, 951]
    said = said_of(corpus, runs_of("zh", "en", late_from=800), capsys)
    assert (
        f"a.en:801: here and elsewhere, in 20 % of a sample, lines do not translate those of {tmp_path}"
        in said
    )


@pytest.mark.parametrize("languages", [("zh", "en"), ("zh", "en", "fr")])
def test_files_out_of_step_are_refused(languages, tmp_path):
    paths = [tmp_path / language for language in languages]
    corpus = Corpus(*paths[:2], *languages[:2], *paths[2:], *languages[2:])
    with pytest.raises(
        UserError, match=f"{languages[-1]}:151: from here on, lines do not translate those of"
    ):
        check_in_step(corpus, runs_of(*languages, late_from=150), Console())


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("source", ("fr", "en", "zh")),
        ("target", ("de", "fr", "zh")),
        ("third", ("de", "en", "fr")),
        (None, ("de", "en", "zh")),
    ],
)
def test_a_file_in_another_language_than_is_said_is_refused(option, said, tmp_path):
    """By the gates alone, what reads as either by chance would be left: German that is called French."""
    corpus = Corpus(tmp_path / "a", tmp_path / "b", *said[:2], tmp_path / "c", said[2])
    runs = runs_of("de", "en", "zh")
    if option is None:
        check_languages(corpus, runs)
        return
    with pytest.raises(
        UserError, match=rf"--{option}-lang: is fr, but \d+ % of a sample of {tmp_path}/. is not"
    ):
        check_languages(corpus, runs)


def test_a_few_lines_in_another_language_are_left_to_the_gates(tmp_path):
    check_languages(Corpus(tmp_path / "a", tmp_path / "b", "fr", "en"), [runs_of("de", "en")[0][:19]])


def test_files_that_lengths_cannot_judge_are_accepted():
    """Sentences of one length, too few of them, and those of which one side is empty."""
    alike = [[Pair(n, "x" * 40, "y" * 60) for n in range(50)]]
    few = [run[:19] for run in runs_of("de", "en", late_from=1)]
    empty = [[pair._replace(second="") for pair in run] for run in runs_of("de", "en")]
    assert out_of_step([*alike, *few, *empty], "second") == ([], 0)


def test_two_odd_stretches_are_reported_and_not_refused(capsys, tmp_path):
    corpus = Corpus(tmp_path / "a.zh", tmp_path / "a.en", "zh", "en")
    assert "in 100 % of a sample" in said_of(corpus, runs_of("zh", "en", late_from=1, count=2), capsys)


@pytest.mark.parametrize(("total", "begins"), [(40, [1, 14, 27]), (10, [1, 4, 7]), (3, [1])])
def test_the_training_sample_is_spread_over_the_whole_file(total, begins, monkeypatch, tmp_path):
    """Of a file with few lines, every line."""
    monkeypatch.setattr("fastling.interactive.pairs.SAMPLED_RUNS", 3)
    monkeypatch.setattr("fastling.interactive.pairs.RUN_LENGTH", 4)
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(f"line {number}\n" for number in range(1, total + 1)))
    runs = Corpus(tmp_path / "a", tmp_path / "b", "de", "en").sample(total)
    lines = [[pair.line for pair in run] for run in runs]
    ends = [*begins[1:], total + 1]
    assert lines == [list(range(begin, min(begin + 4, end))) for begin, end in zip(begins, ends, strict=True)]
    assert all(pair.first == pair.second == f"line {pair.line}" for run in runs for pair in run)
