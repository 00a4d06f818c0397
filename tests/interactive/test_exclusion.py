"""What is held out is known again, in text and in dialogues."""

import json

import pytest

from fastling.errors import UserError
from fastling.interactive.exclusion import Exclusion, read_exclusion


def test_sentences_of_evaluation_sets_are_known_whole_and_in_part():
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    exclusion = Exclusion([long, "短句。", "一二三四五六七八九十甲乙丙丁戊己庚辛壬癸子丑寅卯"])
    assert exclusion.holds(
        "And then: Two, three, four five six seven eight nine ten eleven twelve thirteen fourteen!"
    )
    assert not exclusion.holds("two three four five six seven eight nine ten eleven twelve thirteen")
    assert exclusion.holds("短句") and not exclusion.holds("短句子")
    assert exclusion.holds("说三四五六七八九十甲乙丙丁戊己庚辛壬癸子丑")
    assert not exclusion.holds("三四五六七八九十甲乙丙丁")
    assert not Exclusion().holds(long)
    untidy = Exclusion(["Das Fru\u0308hjahr &amp; der Auto\xadfahrer"])
    assert untidy.holds("Das Frühjahr & der Autofahrer")


def test_sentences_on_lines_of_a_prompt_are_known(tmp_path):
    told = {
        "messages": [{"content": "Which is better?\nSource: Es ging gut.\n1. It went well.\n2：情况很好。"}]
    }
    (tmp_path / "held.jsonl").write_text(json.dumps(told | {"n": [1, "All right.\nIt is late."]}) + "\n\n")
    exclusion = read_exclusion([tmp_path / "held.jsonl"])
    for sentence in ("Es ging gut.", "It went well.", "情况很好。", "It is late.", "Which is better?"):
        assert exclusion.holds(sentence), sentence
    assert not exclusion.holds("It is late, all right.") and not exclusion.holds("Source")


def test_json_of_several_lines_is_refused_with_what_puts_it_on_one(tmp_path):
    path = tmp_path / "held.json"
    path.write_text(json.dumps([{"text": "Es ging gut."}], indent=2))
    with pytest.raises(UserError, match=r"held.json:1: is no line of JSON\n  .*`jq -c .`"):
        read_exclusion([path])
    path.write_text(json.dumps([{"text": "Es ging gut."}]))
    assert read_exclusion([path]).holds("Es ging gut.")
