"""What a revision of a draft is measured by, against definitions written out."""

import functools
import itertools
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import TER

from fastling.evaluation import revision
from fastling.evaluation.revision import (
    Error,
    common_length,
    count_runs,
    edit_rate,
    holds,
    is_fixed,
    is_unchanged,
    lost_tokens,
    make_draft,
    tokens,
    version_of,
)

CAT = "The old cat slept on the mat on Monday."
AI = "人工智能改变了20个国家的经济。"


def drafted(reference, *errors):
    """errors: (wrong, right); each where its right words first are, an addition after the text before |."""
    found = []
    for wrong, right in errors:
        start = reference.index(right.split("|")[0]) + (len(right) - 1 if right.endswith("|") else 0)
        found.append(Error("some", start, wrong, "" if right.endswith("|") else right))
    return make_draft(reference, found)


def fixes(draft, version):
    return [is_fixed(fault, tokens(draft.reference), tokens(version)) for fault in draft.faults]


# Tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("It's 1,235 km.", ["It", "'", "s", "1", ",", "235", "km", "."]),
        ("20th", ["20", "th"]),
        ("人工智能AI在2024年", ["人", "工", "智", "能", "AI", "在", "2024", "年"]),
        ("cafe\u0301 हिन्दी", ["café", "हिन्दी"]),
        ("これはカメラ", list("これはカメラ")),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("a_b ☺️", ["a", "_", "b", "☺️"]),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@given(st.text())
def test_tokens_leave_out_nothing_but_spaces(text):
    left = "".join(each for each in text if not each.isspace())
    joined = "".join(tokens(text))
    assert unicodedata.normalize("NFC", joined) == unicodedata.normalize("NFC", left)


# Drafts ---------------------------------------------------------------------------------------------


def test_a_draft_is_made_of_its_errors():
    draft = drafted(CAT, ("dog", "cat"), (" in silence", "slept|"), ("", " on Monday"))
    assert draft.text == "The old dog slept in silence on the mat."
    assert [(fault.wrong, fault.right) for fault in draft.faults] == [
        (("dog",), ("cat",)),
        (("in", "silence"), ()),
        ((), ("on", "Monday")),
    ]
    assert list(draft.right_tokens) == tokens("The old slept on the mat.")


def test_errors_within_a_word_are_about_the_word():
    (fault,) = drafted("Two cats slept.", ("", "s ")).faults
    assert (fault.wrong, fault.right) == (("catslept",), ("cats", "slept"))
    (fault,) = make_draft("In 1987 he", [Error("number", 5, "2", "8")]).faults
    assert (fault.wrong, fault.right) == (("1927",), ("1987",))


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([Error("a", 4, "x", "cat")], "'cat' is not at 4"),
        ([Error("a", 8, "x", "cat slept"), Error("b", 12, "y", "slept")], "overlap"),
        ([Error("a", 400, "x", "")], "is not at 400"),
        ([Error("a", -3, "x", "ay.")], "is not at -3"),
        ([Error("a", 8, "cat", "cat")], "changes nothing"),
        ([Error("a", 7, "  ", " ")], "changes nothing"),
        ([Error("a", 4, "", "old "), Error("b", 8, "old ", "")], "together change nothing"),
        ([Error("a", 8, "k", "c"), Error("b", 10, "p", "t")], "two errors are in one word"),
    ],
)
def test_errors_that_cannot_be_are_refused(errors, words):
    with pytest.raises(ValueError, match=words):
        make_draft(CAT, errors)


# Fixes and harm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "error", "version", "fixed"),
    [
        (CAT, ("dog", "cat"), CAT, True),
        (CAT, ("dog", "cat"), "An aged cat was asleep.", True),
        (CAT, ("dog", "cat"), "The old dog and cat slept.", False),
        (CAT, ("dog", "cat"), "The old animal slept.", False),
        (CAT, ("dog", "cat"), "The old doggy, a cat, slept.", True),
        (CAT, ("dog", "cat"), "The old cats slept.", False),
        (CAT, ("Cat", "cat"), "The old Cat slept.", False),
        (CAT, ("", " on Monday"), "The cat slept on the mat on Monday.", True),
        (CAT, ("", " on Monday"), "On Monday the cat slept.", False),
        (CAT, (" and dog", "cat|"), "The old cat slept.", True),
        (CAT, (" and dog", "cat|"), "", False),
        (CAT, (" and dog", "cat|"), "I am sorry.", False),
        (CAT, (" and dog", "cat|"), "The dog and cat slept.", True),
        (CAT, ("mat the", "the mat"), "He slept on the mat.", True),
        (CAT, ("the the", "the"), "The old cat slept on the the mat.", False),
        (CAT, ("?", "."), "The old cat slept?", False),
        (AI, ("30", "20"), AI, True),
        (AI, ("30", "20"), "20个国家，不是30个。", False),
        (AI, ("30", "20"), "200个国家。", False),
        (AI, ("国家的经济", "国家的经济"[::-1]), AI, None),
        (AI, ("经济的国家", "国家的经济"), "国家的经济变了。", True),
        (
            "20 of 25 came.",
            ("20", "25"),
            "20 of 20 came.",
            False,
        ),  # the reference has the wrong one elsewhere
        ("20 of 25 came.", ("20", "25"), "20 of 25 came.", True),
        ("on and on he went", ("on", "on and on"), "on he went", False),
        ("20 of 20 came.", ("25", "20"), "25 of 20 came.", False),  # and the right one twice
        ("20 of 20 came.", ("25", "20"), "20 of 30 came.", False),
    ],
)
def test_an_error_is_fixed_or_is_not(reference, error, version, fixed):
    if fixed is None:
        with pytest.raises(ValueError, match="substring"):
            drafted(reference, error)
        return
    assert fixes(drafted(reference, error), version) == [fixed]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "do", "1", "你"]), max_size=8)


@st.composite
def drafts(draw):
    words = draw(st.lists(st.sampled_from(["a", "b", "c", "do", "1", "."]), min_size=3, max_size=10))
    reference = " ".join(words)
    at = draw(st.integers(0, len(words) - 1))
    count = draw(st.integers(0, min(2, len(words) - at)))
    start = len(" ".join(words[:at])) + bool(at)
    right = " ".join(words[at : at + count])
    wrong = " ".join(draw(st.lists(st.sampled_from(["a", "b", "x", "2"]), max_size=2)))
    if not count:
        wrong += " " * bool(wrong)
    error = Error("any", start, wrong, right)
    if tokens(wrong) == tokens(right):
        return make_draft(reference, [])
    return make_draft(reference, [error])


@given(drafts())
def test_the_reference_fixes_everything_and_harms_nothing(draft):
    assert all(fixes(draft, draft.reference)) and lost_tokens(draft, tokens(draft.reference)) == 0
    assert lost_tokens(draft, tokens(draft.text)) == 0 and lost_tokens(draft, []) == len(draft.right_tokens)


@given(WORDS, WORDS)
def test_a_common_subsequence_is_as_long_as_by_the_textbook(first, second):
    @functools.cache
    def longest(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    assert common_length(first, second) == longest(0, 0)


@given(WORDS, st.lists(st.sampled_from(["a", "b", "1"]), min_size=1, max_size=3))
def test_runs_are_counted_with_their_overlaps(text, run):
    places = itertools.product(range(len(text)), [len(run)])
    assert count_runs(text, run) == sum(text[at : at + length] == run for at, length in places)


@given(
    st.lists(st.sampled_from("abc你."), max_size=8),
    st.lists(st.sampled_from("abc你."), min_size=1, max_size=8),
)
def test_the_edit_rate_is_sacrebleus_ter_of_the_tokens(text, draft):
    expected = TER(case_sensitive=True).sentence_score(" ".join(text), [" ".join(draft)]).score
    assert edit_rate(" ".join(text), " ".join(draft)) == expected


def test_the_edit_rate_counts_edits_per_token_of_the_draft():
    assert edit_rate("", "a b c d") == 100 and edit_rate("A b c d", "a b c d") == 25
    assert edit_rate("a b c d e f", "a b c d") == 50 and edit_rate("我们你", "你我们") == pytest.approx(
        100 / 3
    )


def test_a_rambling_answer_is_measured_in_time():
    started = time.thread_time()
    assert edit_rate("words and words and so on " * 200, CAT) > 1000
    assert common_length(tokens(CAT) * 50, tokens(CAT) * 500) == 500
    assert time.thread_time() - started < 10


# The version in an answer ---------------------------------------------------------------------------

DRAFT = "The old dog slept on the mat on Monday."
ZH_DRAFT = "人工智能改变了30个国家的经济。"


@pytest.mark.parametrize(
    ("answer", "draft", "version"),
    [
        (CAT, DRAFT, CAT),
        (f"  {CAT}\n", DRAFT, CAT),
        (f"Here it is:\n{CAT}", DRAFT, CAT),
        (f"Here it is: {CAT}", DRAFT, CAT),
        (f"**Corrected:** {CAT}", DRAFT, CAT),
        (f"**Corrected**: {CAT}", DRAFT, CAT),
        (f"**Corrected: {CAT}**", DRAFT, CAT),
        (f"Corrected: **{CAT}**", DRAFT, CAT),
        (f"修改如下：**{AI}**", ZH_DRAFT, AI),
        (f"Nothing is wrong with it.\n{CAT}", DRAFT, CAT),
        (f'Sure!\n\n"{CAT}"\n\nI put "cat" for "dog".', DRAFT, CAT),
        (f"Draft: {DRAFT}\nRevised: {CAT}\n\nChanges:\n- dog became cat", DRAFT, CAT),
        (f"```\n{CAT}\n```", DRAFT, CAT),
        (f"**{CAT}**", DRAFT, CAT),
        (f"修改如下：{AI}", ZH_DRAFT, AI),
        (f"译文没有问题，不用改。\n{ZH_DRAFT}", ZH_DRAFT, ZH_DRAFT),
        (f"修改如下：\n“{AI}”\n把30改成了20。", ZH_DRAFT, AI),
        ("警告：水很深。", "提醒：水很深。", "警告：水很深。"),
        ("修改如下：警告：水很深。", "提醒：水很深。", "警告：水很深。"),
        ("Note: it is 10:30.", "Note: it is 11:30.", "Note: it is 10:30."),
        ("It is 10:30 now.", "It is 11:30 now.", "It is 10:30 now."),
        ("“Yes,” he said, “yes.”", "“Yes,” he said, “no.”", "“Yes,” he said, “yes.”"),
        ("“Yes,” he said, “yes.”", "He said, “no.”", "“Yes,” he said, “yes.”"),
        ("“Stop now.”", "“Stop not.”", "“Stop now.”"),
        ("One\nTwo\n\nDone.", "One\nTow", "One\nTwo"),
        ("One\nTwo", "One\nTow\nThree", "One\nTwo"),
        ("", DRAFT, ""),
        ("\n \n", DRAFT, ""),
        ("Sorry.", DRAFT, "Sorry."),
        ("Translation:", DRAFT, "Translation:"),
        ("“The “old” cat.”", "The “old old” cat.", "The “old” cat."),
        ("“The” cat is “old”", "“The” cat cat is “old”", "“The” cat is “old”"),
        ("„Die „alte“ Katze.“", "Die „alte alte“ Katze.", "Die „alte“ Katze."),
        ("“Die „alte“ Katze.”", "Die „alte alte“ Katze.", "Die „alte“ Katze."),
        ("““The” cat is “old”.”", "“The” cat cat is “old”.", "“The” cat is “old”."),
        ("“A” cat is “old”", "A cat is “old”", "“A” cat is “old”"),
        (
            "Mr Weiß, too, is standing firm: they stay.",
            "Mr Weiß, too, is standing standing standing firm: they stay.",
            "Mr Weiß, too, is standing firm: they stay.",
        ),
        (
            "Corrected: Most of what is said of it has one idea in common: it pays.",
            "Most of what is said of it has one ideas in common: it pays.",
            "Most of what is said of it has one idea in common: it pays.",
        ),
    ],
)
def test_the_version_is_found_in_an_answer(answer, draft, version):
    assert version_of(answer, draft) == version


@given(st.text(max_size=60), st.text(min_size=1, max_size=60))
def test_any_answer_has_a_version(answer, draft):
    assert isinstance(version_of(answer, draft), str)


@pytest.mark.parametrize(
    ("version", "draft", "unchanged"),
    [
        ("A  b", "A b ", True),
        ("cafe\u0301", "café", True),
        ("a b", "A b", False),
        ("好，", "好,", False),
        ("", "a", False),
    ],
)
def test_a_version_is_unchanged_up_to_spaces_and_the_encoding_of_accents(version, draft, unchanged):
    assert is_unchanged(version, draft) is unchanged


@pytest.mark.parametrize(
    ("text", "words", "any_case", "found"),
    [
        ("Environment matters", "environment", True, True),
        ("Environment matters", "environment", False, False),
        ("environments matter", "environment", True, False),
        ("the National Security Advisor (NSA)", "national security advisor", True, True),
        ("在1976年", "1976", False, True),
        ("在19760年", "1976", False, False),
        ("人工智能", "工智", True, True),
        ("", "a", True, False),
    ],
)
def test_words_are_held_as_whole_tokens(text, words, any_case, found):
    assert holds(text, words, any_case=any_case) is found


def test_of_a_long_text_that_is_no_revision_no_moves_are_looked_for(monkeypatch):
    """TER would look for them for minutes here, so it is not asked."""
    monkeypatch.setattr(revision, "_ter", None)
    text = [chr(0x4E00 + 79 * place % 300) for place in range(999)]
    draft = [chr(0x4E00 + place) for place in range(300)]
    rate = edit_rate("".join(text), "".join(draft))
    assert 100 * (999 - common_length(draft, text)) / 300 <= rate <= 100 * 999 / 300


def test_in_a_long_revision_a_move_is_one_edit():
    draft = "".join(chr(0x4E00 + place) for place in range(300))
    text = draft[:10] + draft[15:20] + draft[10:15] + draft[20:]
    assert edit_rate(text, draft) == pytest.approx(100 / 300)
