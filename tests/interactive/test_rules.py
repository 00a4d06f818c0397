"""What dialogues promise, on many of them; and every gate refuses what it is there for."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interactive.parallel_text import NAMES, knowledge_of, pairs_of, recipe_of

from fastling.interactive import gates
from fastling.interactive.build import Slot, make_dialogue
from fastling.interactive.constraints import items_to_keep, renderings, words_to_include
from fastling.interactive.dialogue import Dialogue, Wish
from fastling.interactive.drafts import MAKERS, Draft, Sentence, is_sound, make_draft
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.knowledge import learn
from fastling.interactive.languages import is_stop_word
from fastling.interactive.pairs import Direction, Pair
from fastling.interactive.phrasings import Phrasings, load_phrasings
from fastling.interactive.rules import BUILDERS, NEEDS_TWO, directed, follow_up

PAIRS = st.sampled_from(
    [
        ("de", "en"),
        ("zh", "en"),
        ("zh", "de"),
        ("fr", "en"),
        ("zh", "fr"),
        ("de", "fr"),
        ("zh", "en", "de"),
        ("de", "en", "fr"),
    ]
)
SEEDS = st.integers(0, 10**6)
many = settings(max_examples=60)


def dialogue_of(languages, seed, kind=None):
    """A dialogue as the builders write it, before any gate."""
    knowledge, choose = knowledge_of(*languages), random.Random(seed)
    start = choose.randrange(590)
    pairs = pairs_of(*languages)[start : start + 3]
    pairs = directed(knowledge.corpus, pairs, choose.choice(languages[:2]))
    for each in [kind] if kind else choose.sample(list(BUILDERS), len(BUILDERS)):
        dialogue = Dialogue(knowledge, load_phrasings(choose.choice(languages[:2])), choose)
        if BUILDERS[each](dialogue, pairs):
            if each != "continue_text":
                follow_up(dialogue, pairs[1:])
            return dialogue
    return None


@pytest.mark.slow
@many
@given(PAIRS, SEEDS)
def test_dialogues_by_rules_pass_every_gate(languages, seed):
    assert gates.check_dialogue(dialogue_of(languages, seed)) is None


@pytest.mark.slow
@many
@given(PAIRS, SEEDS)
def test_every_answer_is_a_reference_or_says_something_about_one(languages, seed):
    """Checked from the messages alone."""
    knowledge = knowledge_of(*languages)
    slot = Slot(pairs_of(*languages)[seed % 590 :][:3], list(BUILDERS), random.Random(seed))
    slot.choose.shuffle(slot.kinds)
    row = json.loads(make_dialogue(recipe_of(knowledge, seed), slot, Counter()).row)
    texts = {text for pair in slot.pairs for text in pair[1:]}
    answers = [each["content"] for each in row["messages"] if each["role"] == "assistant"]
    for step, answer in zip(row["steps"], answers, strict=True):
        if step == "no_change":
            assert answer.split("\n", 1)[1] in texts
        elif step not in ("which_words", "which_better"):
            assert answer in texts
    assert [each["role"] for each in row["messages"]] == ["user", "assistant"] * len(answers)
    assert set(row["lines"]) <= {pair.line for pair in slot.pairs}
    assert 1 <= len(answers) <= 4


@many
@given(PAIRS, SEEDS)
def test_a_faulty_draft_differs_in_its_span_only(languages, seed):
    knowledge, choose = knowledge_of(*languages), random.Random(seed)
    pair = knowledge.corpus.directed(choose.choice(pairs_of(*languages)), choose.choice(languages[:2]))
    draft = make_draft(pair, knowledge, choose)
    text, reference = draft.text, pair.reference
    assert text != reference
    head, tail = draft.start, len(reference) - draft.start - len(draft.right)
    assert (
        text[:head] == reference[:head] and text[len(text) - tail :] == reference[head + len(draft.right) :]
    )
    assert len(text) == head + len(draft.wrong) + tail


def test_no_fault_is_made_that_its_words_do_not_single_out():
    """A small "baker" is in "bakery", too."""
    knowledge = knowledge_of("de", "en")
    pairs = directed(knowledge.corpus, pairs_of("de", "en"), "de")
    pair = next(each for each in pairs if "bakery" in each.reference and "Tom Baker" in each.reference)
    wrong = {make_draft(pair, knowledge, random.Random(seed)).wrong for seed in range(200)}
    assert "tom" in wrong and "baker" not in wrong


@pytest.mark.parametrize("kind", MAKERS)
def test_every_fault_is_what_its_name_says(kind):
    knowledge, choose, found, lengths = knowledge_of("de", "en"), random.Random(1), 0, set()
    for number in range(300):
        pair = knowledge.corpus.directed(choose.choice(pairs_of()), ("de", "en")[number % 2])
        sentence = Sentence(pair, knowledge, choose)
        place = MAKERS[kind].make(sentence)
        if not place or not is_sound(draft := Draft(kind, pair.reference, *place), sentence.words):
            continue
        found += 1
        before, after = (Counter(re.findall(r"\w+|[.?]", text)) for text in (pair.reference, draft.text))
        assert "  " not in draft.text and draft.text == draft.text.strip()
        changed = (before - after, after - before)
        if kind in ("omission", "repetition"):
            assert draft.start > 0
            lengths.add(len(draft.span.split()))
        if kind == "omission":
            assert draft.wrong == "" and len(draft.text) < len(pair.reference)
        elif kind in ("addition", "repetition"):
            assert not changed[0] and changed[1]
        elif kind == "order":
            assert not changed[0] and not changed[1]
            small, large = draft.right.split()
            assert is_stop_word(small, pair.target) and not is_stop_word(large, pair.target)
        elif kind == "number":
            assert draft.wrong.isdigit() and draft.right.isdigit() and len(draft.wrong) == len(draft.right)
            assert draft.wrong not in pair.text
        elif kind == "case":
            assert draft.wrong == draft.right.lower() != draft.right
        elif kind == "replacement":
            assert changed[0].total() == changed[1].total() == 1 and draft.wrong not in pair.reference
        else:
            assert {draft.wrong, draft.right} == {"?", "."}
    assert found > 15 and (not lengths or lengths >= {1, 2, 3})


@pytest.mark.parametrize(
    ("text", "reference", "wrong"),
    [
        ("是真的。", "It is true.", "?"),
        ("是真的吗？", "Say whether it is true.", None),
        ("说是真的。", "It is true, is it?", None),
        ("Is it true?", "请说说是不是真的。", None),
        ("It is true.", "是真的。", "？"),
        ("是真的。", "It is true", None),
    ],
)
def test_no_end_is_called_wrong_that_the_source_has(text, reference, wrong):
    origin, target = ("en", "zh") if text[0] == "I" else ("zh", "en")
    pair = Direction(1, origin, target, text, reference)
    place = MAKERS["punctuation"].make(Sentence(pair, knowledge_of("zh", "en"), random.Random(0)))
    assert (place and place[1]) == wrong


def test_a_french_question_has_its_space():
    pair = Direction(1, "en", "fr", "It is true.", "Cela est vrai.")
    assert (
        MAKERS["punctuation"].make(Sentence(pair, knowledge_of("fr", "en"), random.Random(0)))[1] == "\u00a0?"
    )


def test_a_draft_without_a_known_word_pair_is_never_called_right():
    """The lines of a corpus are not all translations of each other."""
    knowledge, (pair,) = knowledge_of("de", "en"), directed(knowledge_of().corpus, pairs_of()[:1], "de")
    for reference, right in ((pair.reference, True), ("Many thanks to all who came here.", False)):
        dialogue = Dialogue(knowledge, load_phrasings("en"), random.Random(0))
        assert BUILDERS["no_change"](dialogue, [pair._replace(reference=reference)]) is right


def test_nobody_says_the_same_sentence_twice(monkeypatch):
    spoken = []

    def say(phrasings, choose, key, said, **values):
        spoken.append(said)
        return original(phrasings, choose, key, said, **values)

    original = Phrasings.say
    monkeypatch.setattr(Phrasings, "say", say)
    dialogues = [dialogue_of(("zh", "en", "de"), seed) for seed in range(100)]
    for dialogue in dialogues:
        assert sum(said is dialogue.said for said in spoken) == len(dialogue.said)


def test_the_languages_are_named_again_after_a_draft_and_a_question_about_words(monkeypatch):
    monkeypatch.setattr("fastling.interactive.rules.WHICH_WORDS_AGAIN", 1.0)
    found, names = Counter(), ("English", "German", "Englisch", "Deutsch")
    for seed in range(40):
        for kind in ("correct_draft", "no_change", "translate"):
            dialogue = dialogue_of(("de", "en"), seed, kind)
            if dialogue and dialogue.steps[:2] == [kind, "which_words"] and len(dialogue.versions) > 1:
                request = dialogue.turns[2][0]
                found[kind, any(name in request for name in names)] += 1
    assert found["correct_draft", True] > 5 and found["no_change", True] > 5
    assert not found["correct_draft", False] and not found["no_change", False]
    assert found["translate", False] > 5


@many
@given(PAIRS, SEEDS)
def test_wishes_hold_in_every_later_version(languages, seed):
    dialogue = dialogue_of(languages, seed, "include_words")
    if dialogue is None:
        return
    assert dialogue.wishes
    for wish in dialogue.wishes:
        assert wish.words in dialogue.turns[wish.turn][0]  # asked for
        for turn, pair in dialogue.versions:
            if turn >= wish.turn and pair.line == wish.line:
                assert wish.words in dialogue.turns[turn][1]


def test_a_wish_binds_the_correction_of_a_later_draft():
    later = [dialogue_of(("de", "en"), seed, "include_words") for seed in range(60)]
    again = [each for each in later if each and each.steps[1:2] == ["correct_draft"]]
    assert again
    for dialogue in again:
        first, second = dialogue.versions[:2]
        assert first.pair == second.pair and gates.wishes_hold(dialogue)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_kind_begins_with_what_it_is_called(kind):
    found = [dialogue for seed in range(30) if (dialogue := dialogue_of(("zh", "en", "de"), seed, kind))]
    assert len(found) > 5
    for dialogue in found:
        assert kind in dialogue.steps[:2]
        if kind in NEEDS_TWO:
            assert len(dialogue.lines) > 1
        if kind == "which_better":
            first = dialogue.turns[0][0]
            assert dialogue.drafts[0].text in first and dialogue.pairs[0].reference in first
            assert dialogue.drafts[0].span in dialogue.turns[0][1]
        if kind == "switch_direction":
            assert dialogue.pairs[0].origin == dialogue.pairs[1].target
    if kind == "which_better":
        order = [
            each.turns[0][0].index(each.drafts[0].text) < each.turns[0][0].index(each.pairs[0].reference)
            for each in found
        ]
        assert {True, False} == set(order)


def test_words_to_ask_for_are_whole_meaningful_and_known_to_render_a_word():
    knowledge, choose = knowledge_of("zh", "en"), random.Random(0)
    for pair in directed(knowledge.corpus, pairs_of("zh", "en")[:200], "zh"):
        words = words_to_include(pair, knowledge, choose)
        assert len(words) <= 3 and [pair.reference.index(word) for word in words] == sorted(
            pair.reference.index(word) for word in words
        )
        for word in words:
            assert word in pair.reference.rstrip(".").split()
            assert word.casefold() not in ("the", "with", "for") and word not in " ".join(NAMES)
        assert set(words) <= {target for _, target in renderings(pair, knowledge)}


@pytest.mark.parametrize(
    ("text", "reference", "items"),
    [
        ("Er traf Frank Galicia im Jahr 2015.", "He met Frank Galicia in 2015.", ["Frank Galicia", "2015"]),
        ("Er hat 1.000 Euro.", "He has 1,000 euros.", []),
        ("Er hat 1.000 Euro.", "He has 1.000 euros.", []),
        ("In der Stadt", "In the city", []),
        ("Es sind 28-jährige.", "They are 28 years old.", []),
        ("Der Film ist neu.", "Film is new.", []),
        ("KGO meldet 15 und 15.", "KGO reports 15 and 15.", ["KGO"]),
        ("Das war im November mit Anna.", "That was in November with Anna.", ["Anna"]),
    ],
)
def test_items_to_keep(text, reference, items):
    assert items_to_keep(Direction(1, "de", "en", text, reference)) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [("他在2015年遇到Frank Galicia。", ["Frank Galicia", "2015"]), ("有2015万人和Frank Galiciano。", [])],
)
def test_items_to_keep_of_chinese(text, items):
    assert items_to_keep(Direction(1, "zh", "en", text, "He met Frank Galicia in 2015.")) == items


# Gates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "first", "second"),
    [
        ("empty-line", "", "Nothing is here."),
        ("untranslated", "Letztes Jahr war gut für uns.", "letztes Jahr war gut für uns."),
        ("too-short", "Ja.", "Yes, of course."),
        ("too-long", "Das ist es. " * 100, "This is it. " * 100),
        ("unfinished", "Letztes Jahr war gut,", "Last year was good,"),
        ("unfinished", 'Er sagte: "Letztes Jahr war gut.', 'He said: "Last year was good."'),
        ("unfinished", "Letztes Jahr war gut.", ", and last year was good."),
        ("unfinished", "Letztes Jahr war gut.", "and last year was good."),
        ("unfinished", "Letztes Jahr (2008 war gut.", "Last year (2008) was good."),
        (None, "iPhones waren letztes Jahr :( nicht gut.", "eBay wasn’t :-( good last year."),
        (None, "...letztes Jahr war das gut.", "... last year that was good."),
        ("damaged", "Letztes Jahr war sch?n für uns.", "Last year was nice for us."),
        ("damaged", "Letztes Jahr war schÃ¶n fÃ¼r uns.", "Last year was nice for us."),
        ("damaged", "Letztes Jahr war schön für uns.", "Last year wasnâ€™t nice for us."),
        ("damaged", "Letztes Jahr war schön\x85 für uns.", "Last year was nice for us."),
        (None, "Mehr auf https://x.de/suche?jahr=1 für uns.", "More on https://x.de/suche?jahr=1 for us."),
        ("markup", "<b>Letztes Jahr</b> war gut für uns.", "Last year was good for us."),
        ("markup", "Letztes Jahr war gut für uns.", "Last year was good for us.</s>"),
        (None, "<b>Letztes Jahr</b> war 3 < 5 für uns.", "<b>Last year</b> was 3 < 5 and > 2 for us."),
        ("other-years", "Das war 2008 ein gutes Jahr.", "This was a good year in 2012."),
        (None, "Das galt von 2008 bis etwa 2010.", "That was so from 2008 till around 2011."),
        (None, "Es kamen 2.500 Leute zu uns.", "Some 2500 people came to us."),
        ("capitals", "Letztes Jahr war gut für uns.", "LAST YEAR WAS GOOD FOR US."),
        (None, "LETZTES JAHR WAR GUT FÜR UNS.", "LAST YEAR WAS GOOD FOR US."),
        ("wrong-language", "Last year was good for us and them.", "Last year was also good for us all."),
        (
            "length-ratio",
            "Das war ein gutes Jahr.",
            "This was a good year for all of us, and we are very happy about it.",
        ),
        ("excluded", "Das war ein gutes Jahr.", "This was a good year."),
        (None, "Das war ein schönes Jahr.", "This was a beautiful year."),
    ],
)
def test_gates_of_pairs(reason, first, second):
    exclusion = Exclusion(["THIS was a good year!"])
    assert gates.check_pair(Pair(1, first, second), knowledge_of("de", "en"), exclusion) == reason


def test_small_letters_tell_a_cut_line_only_where_others_begin_with_capitals():
    """A corpus may be written in small letters throughout; Chinese knows no capitals."""
    small = [Pair(each.line, each.first.lower(), each.second) for each in pairs_of("de", "en")]
    knowledge = learn(knowledge_of("de", "en").corpus, [small])
    assert knowledge.capital == {"en"} and knowledge_of("zh", "en", "de").capital == {"en", "de"}
    assert gates.check_pair(small[0], knowledge, Exclusion()) is None
    cut = small[0]._replace(second=small[0].second.lower())
    assert gates.check_pair(cut, knowledge, Exclusion()) == "unfinished"


def test_chinese_is_no_text_in_capitals():
    knowledge, nothing = knowledge_of("zh", "en"), Exclusion()
    assert (
        gates.check_pair(Pair(1, "NBA去年很好。", "The NBA was good last year."), knowledge, nothing) is None
    )
    assert gates.check_pair(Pair(1, "去年很好。", "LAST YEAR WAS GOOD."), knowledge, nothing) == "capitals"


def broken(reason: str) -> Dialogue:
    """A dialogue with what a gate is there to refuse."""
    kind = {"constraint-broken": "include_words", "constraint-not-in-the-source": "include_words"}.get(
        reason, "correct_draft"
    )
    dialogue = next(
        each
        for seed in range(50)
        if (each := dialogue_of(("de", "en"), seed, kind)) and (kind == "include_words" or each.pointed)
    )
    asked, answer = dialogue.turns[0]
    if reason == "final-is-not-the-reference":
        dialogue.turns[0] = (asked, answer[:-1] + "!")
    elif reason == "draft-differs-elsewhere":
        dialogue.drafts[0] = replace(dialogue.drafts[0], start=0, right="Nothing of the kind")
    elif reason == "faulty-answer":
        dialogue.turns.append(("And?", "Here:\n" + dialogue.drafts[0].text))
    elif reason == "feedback-names-nothing":
        dialogue.pointed.append((dialogue.drafts[0], "nowhere", ""))
    elif reason == "constraint-broken":
        dialogue.wishes.append(Wish(0, dialogue.pairs[0].line, "submarine"))
    elif reason == "constraint-not-in-the-source":
        dialogue.wishes.append(Wish(0, dialogue.pairs[0].line, dialogue.pairs[0].reference[-8:-2]))
    else:
        dialogue.turns.append(("And?", " "))
    return dialogue


@pytest.mark.parametrize("reason", gates.DIALOGUE_GATES)
def test_gates_of_dialogues(reason):
    assert gates.check_dialogue(broken(reason)) == reason
