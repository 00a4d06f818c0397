"""Each check of Multi-IF on responses that follow its instruction and on those that only seem to."""

import json

import pytest

from fastling.evaluation.instruction_checks import CHECKS, DISABLED, make_check
from fastling.evaluation.instruction_text import language_of

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

LONG_CHINESE = "今天天气很好，我们去公园散步。孩子们在草地上玩耍，老人坐在树下聊天。"
LONG_ENGLISH = "the old man walked slowly along the river and thought about his children."
HINDI = "आज मौसम बहुत अच्छा है और हम बगीचे में घूमने जा रहे हैं।"
KANNADA = "ಇಂದು ಹವಾಮಾನ ತುಂಬಾ ಚೆನ್ನಾಗಿದೆ ಮತ್ತು ನಾವು ಉದ್ಯಾನವನಕ್ಕೆ ಹೋಗುತ್ತೇವೆ."
RUSSIAN = "Сегодня хорошая погода, и мы идём гулять в парк вместе с детьми."

TABLE = {
    ("keywords:existence", '{"keywords": ["justice", "C++"]}'): (
        ["Justice needs C++.", "c++ and JUSTICE", "injustice in C++11"],
        ["justice", "C and justice", "c+ + justice", ""],
    ),
    ("keywords:existence", '{"keywords": ["十字军", "été"]}'): (
        ["第一次十字军东征 Été", "十字军e\u0301te\u0301".replace("e\u0301", "é")],
        ["十字 军 été", "十字军 ete", "été"],
    ),
    ("keywords:frequency", '{"keyword": "ball (red)", "frequency": 2, "relation": "at least"}'): (
        ["ball (red), Ball (Red)", "ball (red) ball (red) ball (red)", "xball (red)ball (red)"],
        ["ball (red)", "ball red ball red", "ball", "(red) (red)"],
    ),
    ("keywords:frequency", '{"keyword": "स्वास्थ्य", "frequency": 2, "relation": "less than"}'): (
        ["", "स्वास्थ्य", "कुछ और"],
        ["स्वास्थ्य स्वास्थ्य", "स्वास्थ्य, स्वास्थ्य और स्वास्थ्य"],
    ),
    ("keywords:forbidden_words", '{"forbidden_words": ["vote", "C++"]}'): (
        ["voters devote time", "C + +", "pivote", ""],
        ["Vote!", "to vote.", "_ C++_", "C++", "vote\nvote"],
    ),
    ("keywords:forbidden_words", '{"forbidden_words": ["禁止", "किताब", "ตลาด"]}'): (
        ["允许", "मेरी किताबें", "禁 止"],
        ["这里禁止吸烟。", "वह किताब है", "ไปตลาดนัด", "禁止"],
    ),
    ("keywords:letter_frequency", '{"letter": "#", "let_frequency": 4, "let_relation": "at least"}'): (
        ["####", "#a #b #c #d", "###\n##"],
        ["###", "abcd", "＃＃＃＃", ""],
    ),
    ("keywords:letter_frequency", '{"letter": "Ж", "let_frequency": 2, "let_relation": "less than"}'): (
        ["ж", "Жук", "", "z z z"],
        ["жЖ", "Жук и уж", "жужжит"],
    ),
    ("language:response_language", '{"language": "zh"}'): (
        [LONG_CHINESE, "你好", "這是一個繁體字的句子。", "使用 Python 编写的程序。", "12345"],
        [LONG_ENGLISH, "これは日本語の文章です。", "한국어 문장입니다.", RUSSIAN],
    ),
    ("language:response_language", '{"language": "zh-cn"}'): ([LONG_CHINESE], [LONG_ENGLISH, HINDI]),
    ("language:response_language", '{"language": "kn"}'): ([KANNADA, "..."], [HINDI, LONG_ENGLISH, RUSSIAN]),
    ("language:response_language", '{"language": "hi"}'): ([HINDI], [KANNADA, LONG_CHINESE, LONG_ENGLISH]),
    ("change_case:english_capital", "{}"): (
        [LONG_ENGLISH.upper(), "THE WEATHER IS GOOD TODAY, 100 % OF IT!", "HELLO MY DEAR FRIEND, HOW ARE YOU?"],
        [LONG_ENGLISH, "DAS WETTER IST HEUTE SEHR SCHÖN UND WIR GEHEN", RUSSIAN.upper(), "123", "HELLO FRIENd"],
    ),
    ("change_case:english_lowercase", "{}"): (
        [LONG_ENGLISH, "what are they doing with the toy guns?", "ok, this is all in small letters: 5!"],
        [LONG_ENGLISH.capitalize(), "aujourd'hui il fait beau et nous allons au parc", LONG_CHINESE, "123"],
    ),
    ("change_case:capital_word_frequency", '{"capital_frequency": 2, "capital_relation": "at least"}'): (
        ["I AM", "WELL-KNOWN U.S. law", "ЭТО ВАЖНО", "DON'T STOP"],
        ["WELL-KNOWN", "Hello World", "U.S.", "你好世界", "DON'T"],
    ),
    ("change_case:capital_word_frequency", '{"capital_frequency": 1, "capital_relation": "less than"}'): (
        ["none here", "", "Hello World", "iPhone", "你好"],
        ["I", "NASA", "und das IST es"],
    ),
    ("punctuation:no_comma", "{}"): (
        ["none", "你好。我很好、真的。", "1 000", "a;b"],
        ["a, b", "你好，世界", "مرحبا، عالم", "これは、本です", "1,000"],
    ),
    ("length_constraints:number_words", '{"num_words": 5, "relation": "at least"}'): (
        ["one two three four five", "我爱北京天", "हिन्दी में लिखा गया है", "don't stop now please", "a b c d_e f"],
        ["one two three four", "我爱北京", "हिन्दी में", "我爱3.5%", "☺️ ☺️ ☺️ ☺️ ☺️"],
    ),
    ("length_constraints:number_words", '{"num_words": 4, "relation": "less than"}'): (
        ["one two three", "你好吗？", "हिन्दी भाषा में", "", "привет, мир!"],
        ["one two three four", "你好AI人", "我们来了", "a-b-c-d"],
    ),
    ("length_constraints:number_sentences", '{"num_sentences": 2, "relation": "at least"}'): (
        ["One. Two.", "你好。世界", "यह एक है। यह दो है।", "Really? Yes!", "Go... Then stop.", "第一行\n第二行"],
        ["Dr. Smith met J. K. Rowling.", "他说：“好。”", "यह एक है।", "It costs 3.5 dollars", "他得了3.5分", "1. One"],
    ),
    ("length_constraints:number_sentences", '{"num_sentences": 2, "relation": "less than"}'): (
        ["No end", "真的吗？！", "e.g. this one", "Wait!!!", "हाँ!!", '"Why?" he asked.', "Привет, г. Москва"],
        ["A cat. A dog.", "好。不好。", "Yes! No?", "क्या? हाँ।", "I saw it. I did."],
    ),
    ("length_constraints:number_paragraphs", '{"num_paragraphs": 3}'): (
        ["a\n***\nb\n***\nc", "a *** b *** c", "***\na\n***\nb\n***\nc\n***", "一***二***三"],
        ["a\n***\nb", "a***b***c***d", "a\n***\n***\nb\n***\nc", "a\n\nb\n\nc", ""],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        '{"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "weekend"}',
    ): (
        ["a\n\nWeekend is here.", "a\n\n\n\n'weekend' b", "a\n \nweekend, b", "\n\na\n\nweekend: b\n\n"],
        ["weekend\n\na", "a\n\nweekends", "a\n\nthe weekend", "a\nweekend", "a\n\nweekend\n\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        '{"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "首先"}',
    ): (
        ["首先我们来看。", "“首先”是开头", "首先"],
        ["我们首先", "首 先", "首先一\n\n二"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        '{"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"}',
    ): ([], ["a", "a\n\na", "b"]),
    ("detectable_content:number_placeholders", '{"num_placeholders": 2}'): (
        ["[name] [address]", "[姓名]，[地址]", "[a][b][c]"],
        ["[name]", "[a\nb] [c]", "(a) (b)", "【姓名】【地址】", "]["],
    ),
    ("detectable_content:postscript", '{"postscript_marker": "P.S."}'): (
        ["Bye.\nP.S. more", "p. s. more", "text P.S. x", "P.P.S. more"],
        ["PS more", "P.S more", "tips.s. more", "附言：再见"],
    ),
    ("detectable_content:postscript", '{"postscript_marker": "P.P.S"}'): (
        ["P.P.S more", "p. p. s. more", "\nP.P.S.\nmore"],
        ["P.S. more", "PPS", "", "P.P. more"],
    ),
    ("detectable_content:postscript", '{"postscript_marker": "附言"}'): (["再见。\n附言：好"], ["P.S. 好", "附 言"]),
    ("detectable_format:number_bullet_lists", '{"num_bullets": 2}'): (
        ["* a\n* b", "- a\n- b", "x\n  * a\n  - b\ny", "- 一\n---\n- 二", "* a\n***\n* b", "*a\n*b"],
        ["* a", "* a\n* b\n* c", "• a\n• b", "**a**\n**b**", "1. a\n2. b", "---\n---", "a * b\nc - d"],
    ),
    ("detectable_format:constrained_response", "{}"): (
        ["My answer is yes.", "  My answer is no. ", "Well: My answer is maybe."],
        ["my answer is yes.", "My answer is yes", "Yes.", "我的答案是是。", "My answer is  no."],
    ),
    ("detectable_format:number_highlighted_sections", '{"num_highlights": 2}'): (
        ["*a* and *b*", "**a** **b**", "*a*\n**b**", "*一*，*二*"],
        ["*a*", "***a***", "** ** *a*", "*a\nb* *c", "_a_ _b_", "* a\n* b"],
    ),
    (
        "detectable_format:multiple_sections",
        '{"section_spliter": "PARAGRAPH", "num_sections": 2}',
    ): (
        ["PARAGRAPH 1 a PARAGRAPH 2 b", "PARAGRAPH1\nPARAGRAPH2\nPARAGRAPH3", "**PARAGRAPH 1**\n**PARAGRAPH 2**"],
        ["PARAGRAPH 1", "Paragraph 1 Paragraph 2", "PARAGRAPH A PARAGRAPH B", "PARAGRAPH  1 PARAGRAPH  2"],
    ),
    ("detectable_format:multiple_sections", '{"section_spliter": "(部分", "num_sections": 1}'): (
        ["(部分 1) 内容", "(部分２"],
        ["部分 1", "(部分一"],
    ),
    ("detectable_format:json_format", "{}"): (
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n[]\n```", '```JSON {"键": "值"}```', ' "text" '],
        ["{'a': 1}", "Here: {}", '{"a": 1,}', "", "[" * 100_000, '```json\n{"a": 1}\n``` done'],
    ),
    ("detectable_format:title", "{}"): (
        ["<<poem of joy>>", "a\n<<题目>>\nb", "<<<x>>>"],
        ["<joy>", "<<>>", "<< >>", "《题目》", "<<a\nb>>", "<<a>"],
    ),
    ("combination:two_responses", "{}"): (
        ["a\n******\nb", "a******b", "******\na\n******\nb\n******", "一******二"],
        ["a", "a******a", "a******b******c", "a************b", "a *** b", "******a******", ""],
    ),
    ("combination:repeat_prompt", '{"prompt_to_repeat": " Write a Poem. "}'): (
        ["Write a poem. Roses are red", "\nWRITE A POEM.\n\nRoses", "Write a Poem."],
        ["Sure! Write a poem. Roses", "Write a poem, Roses", '"Write a poem." Roses', "Write"],
    ),
    ("startend:end_checker", '{"end_phrase": "Any other questions?"}'): (
        ["Yes. Any other questions?", 'Yes. "any OTHER questions?"', "“Hm. Any other questions?”\n "],
        ["Any other questions? Yes.", "Any other questions", "", "Any other\nquestions?", "Any other questions??"],
    ),
    ("startend:end_checker", '{"end_phrase": "he said \\"yes.\\""}'): (['So he said "yes."'], ["So he said yes."]),
    ("startend:end_checker", '{"end_phrase": "谢谢。"}'): (["好。谢谢。", "「好。谢谢。」"], ["谢谢", "谢谢。再见"]),
    ("startend:quotation", "{}"): (
        ['"a"', "“你好”", "«Да»", "「はい」", "„Ja“", ' "a "b" c"\n', "『はい』"],
        ['"', "'a'", '"a" b', "a", "", '“a"', "```\"a\"```"],
    ),
}  # fmt: skip


CASES = [
    pytest.param(name, json.loads(arguments), response, expected, id=f"{name}-{expected}-{response[:30]!r}")
    for (name, arguments), sides in TABLE.items()
    for expected, responses in zip((True, False), sides, strict=True)
    for response in responses
]


@pytest.mark.parametrize(("name", "arguments", "response", "expected"), CASES)
def test_a_response_follows_or_does_not(name, arguments, response, expected):
    pytest.importorskip("langdetect")
    assert make_check(name, arguments)(response) is expected


@pytest.mark.parametrize("sign", ["[", "<", "*", "-", "- ", "* ", '"', "`", "a.", "P.", ">"])
def test_a_response_of_one_sign_is_checked_at_once(sign):
    pytest.importorskip("langdetect")
    for name, arguments in TABLE:
        make_check(name, json.loads(arguments))(sign * 50_000)


def test_every_check_is_in_the_table():
    assert {name for name, _ in TABLE} == CHECKS.keys() and len(CHECKS) == 25
    assert not DISABLED & CHECKS.keys()


@pytest.mark.parametrize("relation", ["less than", "at least"])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_relations_are_less_than_and_at_least(relation, number):
    arguments = {"keyword": "a", "frequency": 2, "relation": relation}
    assert make_check("keywords:frequency", arguments)("a" * number) == (
        number < 2 if relation == "less than" else number >= 2
    )


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("keywords:exist", {}, "unknown instruction: 'keywords:exist'"),
        ("keywords:existence", {}, "keywords:existence takes keywords; wrong or missing: keywords"),
        ("keywords:existence", {"keywords": ["a"], "keyword": "b"}, "wrong or missing: keyword"),
        ("keywords:existence", {"keywords": []}, "no list of texts"),
        ("keywords:existence", {"keywords": ["a", 5]}, "5 is no text"),
        ("keywords:existence", {"keywords": "abc"}, "no list of texts"),
        ("keywords:letter_frequency", {"letter": " ", "let_frequency": 1, "let_relation": "at least"}, "no text"),
        ("punctuation:no_comma", {"n": 1}, "takes no arguments; wrong or missing: n"),
        ("length_constraints:number_words", {"num_words": 5, "relation": "at most"}, "'at most' is no relation"),
        ("length_constraints:number_words", {"num_words": 5, "relation": None}, "wrong or missing: relation"),
        ("length_constraints:number_words", {"num_words": "5", "relation": "at least"}, "no whole number"),
        ("length_constraints:number_words", {"num_words": True, "relation": "at least"}, "no whole number"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "no whole number"),
        ("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"}, "no whole number"),
        ("length_constraints:number_words", {"num_words": float("nan"), "relation": "at least"}, "whole number"),
        ("language:response_language", {"language": "tlh"}, "'tlh' is no language that can be told"),
    ],
)  # fmt: skip
def test_unknown_instructions_are_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make_check(name, arguments)


def test_null_arguments_count_as_absent():
    check = make_check("punctuation:no_comma", {"num_words": None, "relation": None})
    assert check("a b") and not check("a, b")
    assert make_check("length_constraints:number_paragraphs", {"num_paragraphs": 2.0})("a***b")


def test_a_response_is_always_judged_alike():
    """By itself the detector takes these for two or three languages in turn."""
    pytest.importorskip("langdetect")
    for response in ("hotel taxi", "radio video", "amor total"):
        assert len({language_of(response) for _ in range(40)}) == 1
