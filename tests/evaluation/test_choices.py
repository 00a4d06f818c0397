"""What is read out of an answer to a multiple-choice question: a table of texts as systems write them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.evaluation.choices import extract_choice

CITIES = ("Paris", "London", "Berlin", "Rome")
UNCLEAR = ""

# (text, letters); the letters that are clearly chosen, or UNCLEAR
ENGLISH = [
    ("C", "C"), ("(C)", "C"), ("C.", "C"), ("C)", "C"), ("[C]", "C"), ("c", "C"), ("(c)", "C"), ("  C \n", "C"),
    ("**C**", "C"), ("**(C)**", "C"), ("`C`", "C"), ("$C$", "C"), ('"C"', "C"), ("C!", "C"), ("Option C", "C"),
    ("\\boxed{C}", "C"), ("$\\boxed{\\text{C}}$", "C"), ("So we get \\boxed{(C)}.", "C"), ("<b>C</b>", "C"),
    ("The answer is (B)", "B"), ("The answer is (B).", "B"), ("The answer is B", "B"), ("the answer is b.", "B"),
    ("Answer: b", "B"), ("Answer: B", "B"), ("ANSWER: B", "B"), ("Answer B", "B"), ("Answer\n\nB", "B"),
    ("**Answer:** B", "B"), ("**Answer: (B) London**", "B"), ("Answer: B. London", "B"), ("answer = B", "B"),
    ("The correct answer is: B", "B"), ("The correct option is B.", "B"), ("The best choice is (B).", "B"),
    ("My final answer is B because of the second line.", "B"), ("The answer is option B.", "B"),
    ("The answer to this question is (B).", "B"), ("The answer should be B", "B"), ("Final answer B", "B"),
    ("The answer is most likely B.", "B"), ("The answer must be B, since A is too early.", "B"),
    ("I think B", "B"), ("I think it's B.", "B"), ("I would choose B.", "B"), ("I'd go with (B).", "B"),
    ("I'd go for B", "B"), ("I would not go for A.", UNCLEAR),
    ("I would select option B", "B"), ("Therefore, B.", "B"), ("Thus, (B) is correct.", "B"), ("It is B.", "B"),
    ("B is correct.", "B"), ("B is the correct answer.", "B"), ("Choice B is correct. Choices A and C are incorrect.", "B"),
    ("Option B is the best choice here.", "B"), ("B. London", "B"), ("B) London is the capital of England.", "B"),
    ("(B) because it rains there", "B"), ("B: London", "B"), ("B\n\nExplanation: A is too far south.", "B"),
    ("It rains a lot.\nThe river is the Thames.\n\nB", "B"), ("London", "B"), ("london.", "B"),
    ("The answer is London.", "B"), ("The correct answer is: London", "B"), ("Answer: **London**", "B"),
    ("The answer is A. Wait, no: the answer is B.", "B"), ("Is it A? No. The answer is B.", "B"),
    ("(A) is wrong. (C) is wrong. (D) is wrong. The answer is (B).", "B"), ("The answer is not A but B.", "B"),
    ("At first I thought A. But A is wrong, so the answer is B.", "B"), ("A is incorrect. B is correct.", "B"),
    ("If the answer is A, it never rains. So the answer is B.", "B"), ("The answer isn't A. The answer is B.", "B"),
    ("The answer is B, not A.", "B"), ("The answer is (B) because (A), (C) and (D) are wrong.", "B"),
    ("I would not choose A. I would choose B.", "B"), ("The answer is A because B is wrong", "A"), ("The answer is B. D is true of France.", "B"),
    ("The answer is a.", "A"), ("The answer is A", "A"), ("The answer is (A) Paris, a city.", "A"), ("A. Paris", "A"),
    ("A", "A"), ("The answer is A Paris", "A"), ("Let me think about Paris (A) and London (B). Answer: (A)", "A"),
    ("A and C", "AC"), ("A, C", "AC"), ("AC", "AC"), ("A C", "AC"), ("(A)(C)", "AC"), ("A, C and D", "ACD"),
    ("The answer is A and C.", "AC"), ("Answer: ACD", "ACD"), ("The correct answers are (A) and (D).", "AD"),
    ("Both A and C are correct.", "AC"), ("The answer is both A and C.", "AC"), ("\\boxed{ACD}", "ACD"),
    ("A & C", "AC"), ("Step 1: (A) no.\nStep 2: (B) yes.\nSo the answer is: (B)", "B"),
    # nothing that can be counted on
    ("", UNCLEAR), ("   \n", UNCLEAR), (".", UNCLEAR), ("I do not know.", UNCLEAR), ("I think so.", UNCLEAR),
    ("A cat sat on the mat.", UNCLEAR), ("A", "A"), ("A city in France.", UNCLEAR), ("The answer is A cat.", UNCLEAR),
    ("The answer is a city.", UNCLEAR), ("The answer is complicated.", UNCLEAR), ("I cannot answer.", UNCLEAR),
    ("Because.", UNCLEAR), ("not A", UNCLEAR), ("Not B.", UNCLEAR), ("The answer is not A.", UNCLEAR),
    ("The answer isn't B", UNCLEAR), ("I would not choose A.", UNCLEAR), ("A is wrong.", UNCLEAR),
    ("A or B", UNCLEAR), ("B\n\nA or so I thought at first.", "B"), ("The answer is A or B.", UNCLEAR), ("A/B", UNCLEAR), ("either (A) or (B)", UNCLEAR),
    ("The answer is either A or C", UNCLEAR), ("Answer: A, B or C", UNCLEAR), ("\\boxed{A or B}", UNCLEAR),
    ("A\nB\nC\nD", UNCLEAR), ("(A) Paris (B) London (C) Berlin (D) Rome", UNCLEAR),
    ("A. Paris\nB. London\nC. Berlin\nD. Rome", UNCLEAR), ("Is it A?", UNCLEAR), ("The answer is A?", UNCLEAR),
    ("Answer: (A) Paris (B) London (C) Berlin (D) Rome", UNCLEAR), ("E", UNCLEAR), ("The answer is (E).", UNCLEAR),
    ("If the answer is A, what follows?", UNCLEAR), ("Why is the answer B?", UNCLEAR), ("Madrid", UNCLEAR),
    ("The answer is BAD.", UNCLEAR), ("Vitamin C is healthy.", UNCLEAR), ("Plan B failed.", UNCLEAR),
    ("A is correct. C is correct.", UNCLEAR), ("Paris or London", UNCLEAR), ("None of the above.", UNCLEAR),
    ("The answer is B-flat.", UNCLEAR), ("B?", UNCLEAR), ("The set A = {1, 2} is closed.", UNCLEAR), ("Therefore A = B.", UNCLEAR),
    ("The passage mentions Paris (A) and Rome (D).", UNCLEAR), ("The answer is 42.", UNCLEAR), ("I", UNCLEAR),
]  # fmt: skip
CHINESE = [
    ("答案是选项(D)。", "D"), ("答案是选项（D）。", "D"), ("答案是D", "D"), ("答案：D", "D"), ("答案:D", "D"), ("答案为Ｄ。", "D"),
    ("正确答案：C", "C"), ("正确答案是 C。", "C"), ("正确答案是选项C", "C"), ("【答案】C", "C"), ("**答案**：C", "C"),
    ("答案应该是C", "C"), ("答案应为C项。", "C"), ("选 A", "A"), ("选A", "A"), ("选A。", "A"), ("故选A。", "A"),
    ("答：A", "A"), ("由题意得x=2。\n解答：（A）。", "A"), ("答：A或B", UNCLEAR), ("答：不知道", UNCLEAR),
    ("故选：A", "A"), ("因此选择A。", "A"), ("应选A", "A"), ("应该选择选项A。", "A"), ("我选（A）", "A"), ("本题选A项", "A"),
    ("我认为是B", "B"), ("我认为应该是B。", "B"), ("所以答案是B。", "B"), ("因此，正确的选项是B。", "B"), ("综上，B。", "B"),
    ("（Ｂ）", "B"), ("Ⓑ", "B"), ("Ｂ．", "B"), ("B、伦敦", "B"), ("B。因为下雨", "B"), ("选项B正确", "B"), ("B项正确。", "B"),
    ("B是正确的。", "B"), ("B是正确答案。", "B"), ("A错误，B正确，C错误，D错误。", "B"), ("B符合题意", "B"),
    ("选项A错误，选项B错误，选项D错误，故选C。", "C"), ("答案不是A而是B", "B"), ("不选A，选B。", "B"), ("如果选A，则矛盾。所以选B。", "B"),
    ("答案是A。不对，重新计算，答案是B。", "B"), ("A项说法错误；B项说法错误；故答案为D", "D"), ("答案：\nD", "D"), ("答案\nD", "D"),
    ("解：由题意得x=2，故选 D .", "D"), ("答案是 (D) Rome", "D"), ("根据材料，答案是Rome。", "D"), ("答案为\\boxed{D}", "D"),
    ("答案是AD", "AD"), ("选ABD", "ABD"), ("故选：AC．", "AC"), ("答案：A、C", "AC"), ("A和C", "AC"), ("A、C都正确", "AC"),
    ("正确答案是A和C。", "AC"), ("选项A与C正确", "AC"), ("The answer is 选项B。", "B"),
    # nothing that can be counted on
    ("不知道。", UNCLEAR), ("答案不是A。", UNCLEAR), ("不选A", UNCLEAR), ("不应选A", UNCLEAR), ("A错误", UNCLEAR), ("A不正确", UNCLEAR),
    ("A或B", UNCLEAR), ("答案是A或B", UNCLEAR), ("选A还是B？", UNCLEAR), ("选A吗？", UNCLEAR), ("选项A提到了巴黎。", UNCLEAR),
    ("答案是A型血", UNCLEAR), ("集合A包含于B", UNCLEAR), ("所以A=B", UNCLEAR), ("A正确，C正确", UNCLEAR), ("以上都不对", UNCLEAR),
    ("C. 按才德标准遴选\n(D) 临时差遣", UNCLEAR), ("A. 评价是正确的\nB. 是片面的", UNCLEAR), ("应当选A", "A"),
    ("如果选A，结果会怎样", UNCLEAR), ("为什么选A", UNCLEAR), ("选项", UNCLEAR), ("我们来逐一分析每个选项。", UNCLEAR), ("答案：", UNCLEAR),
    ("选E", UNCLEAR), ("首先，选项A说的是巴黎，选项B说的是伦敦", UNCLEAR),
]  # fmt: skip
# Written after the rules were, to see what they miss; what was missed then mended some of them.
LATER = [
("Based on the passage, the correct answer is (C) Berlin.","C"),("Sure! The answer is D. Let me know if you need more.","D"),("根据题意，本题应选择选项 B，因为伦敦位于英国。","B"),
("A选项不符合，B选项不符合，C选项符合题意，因此答案选C。","C"),("答案选C","C"),("答案是“C”","C"),("正确答案为：（D）Rome。","D"),("The right answer would be option (A): Paris.","A"),
("### Answer\n(D)","D"),("Let's think step by step. A is in France, B is in England. The question asks for Germany. So C.","C"),("So, the answer is:\n\n**B**","B"),
("因此，选项D是正确的。","D"),("选项 C 是最合适的答案。","C"),("My answer: C","C"),("The final answer is $\\boxed{\\textbf{(B)}}$.","B"),("Hence the correct option is (A).","A"),
("The answer is C) Berlin","C"),("B is the best answer.","B"),("The only correct statement is B.","B"),("We can eliminate A, C, and D. The answer is therefore B.","B"),
("I'm not sure, but I think the answer is D.","D"),("It cannot be A. It cannot be B. I would pick D.","D"),("Neither A nor B is correct.",""),("None of A, B, C is right, so D","D"),
("Option A: Paris. Option B: London.",""),("The correct answer is not listed.",""),("A. Incorrect.\nB. Correct.\nC. Incorrect.\nD. Incorrect.","B"),("A: wrong; B: wrong; C: right; D: wrong","C"),
("答案：无",""),("这道题的答案是C选项，即柏林。","C"),("此题选D","D"),("本题答案为A。","A"),("由此可知，B项正确，故本题选B。","B"),("综上所述，正确选项为C。","C"),("我不能确定答案是A还是B。",""),
("As an AI language model, I cannot see the image.",""),("Both B and D could be right.",""),("The answer is A, B, C, and D.","ABCD"),("answer:c","C"),("ans: B","B"),("(D) is the right choice.","D"),("D is right","D"),
("Therefore, the answer is option C, Berlin.","C"),("The passage says Paris is in France. Therefore London is wrong.",""),("Answer is B","B"),("Correct: B","B"),("B. ","B"),("The city is Berlin.",""),("Is the answer B? Yes, the answer is B.","B"),
("选择：D","D"),("所以，答案是：**D. Rome**","D"),("因为A错，所以选B","B"),("不能选A，也不能选B，只能选C","C"),("A、B、D错误，C正确","C"),("A、B错误，C、D正确","CD"),("C，因为柏林是德国首都","C"),("C 因为柏林是德国首都","C"),
("The answer is definitely not A; it's C.","C"),("The answer: (B), i.e. London","B"),("正确的是B","B"),("正确的是B和C","BC"),("下列说法正确的是D","D"),("Ans. C","C"),("Choice C.","C"),("D because it's in Italy","D"),("答案就是A","A"),("选B吧","B"),("应该是C吧","C")
]  # fmt: skip
OTHERS = [
    ("It rains a lot.\n\nAnswer: B", "B"), ("A is far off.\n\n\n  Answer: (B)", "B"), ("ABC.\n\n**Answer: B**", "B"),
    ("略。\n\n答：B", "B"), ("It rains.\n\nAnswer\n\nB", "B"), ("So:\n\nCorrect: B", "B"),
    ("D is the answer.", "D"), ("D is my final answer", "D"), ("It has to be D.", "D"), ("The answer is indeed D.", "D"),
    ("The answer is, of course, D.", "D"), ("The answer turns out to be D.", "D"), ("Answer → D", "D"), ("D seems right.", "D"),
    ("Definitely B!", "B"), ("1. B", "B"), ("Option C best captures the meaning.", "C"), ("This matches (C).", "C"),
    ("So x=3, which corresponds to option C.", "C"), ("Line 5 supports choice C.", "C"), ("London (B)", "B"),
    ("The correct answer is London (B).", "B"), ("The answer is London, not Paris.", "B"), ("London, i.e. B", "B"),
    ("The answer is London because it rains.", "B"), ("I think the answer is London, which is in England.", "B"),
    ("选项D最符合题意。", "D"), ("D选项最为合适。", "D"), ("D是最佳选项", "D"), ("D为本题答案", "D"), ("应选择的选项是C。", "C"),
    ("在A、B、C、D四个选项中，B最合适。", "B"), ("对应选项B。", "B"), ("结论：C", "C"), ("答案无疑是C", "C"), ("正确的有ABD", "ABD"),
    ("C选项", "C"), ("C项", "C"), ("[答案]C", "C"), ("正确答案是London（B）", "B"), ("答案是London，而不是Rome。", "B"),
    # nothing that can be counted on
    ("D is not the answer.", UNCLEAR), ("If D is the answer, what follows?", UNCLEAR), ("The answer is London (C).", UNCLEAR),
    ("Option A matches line 1, option B matches line 2.", UNCLEAR), ("This matches (A). This matches (B).", UNCLEAR),
    ("A最好不要", UNCLEAR), ("A符合史实，B符合史实", UNCLEAR), ("The answer is London or Rome.", UNCLEAR), ("1. A\n2. B", UNCLEAR),
    ("If B best fits the text", UNCLEAR), ("结论：A项与B项都错", UNCLEAR),
]  # fmt: skip
# An option's text that is called the answer, what is left over, a result: only at the end of a text.
AT_THE_END = [
    ("Berlin is the answer.", "C"), ("It rains. So Berlin is the correct answer!", "C"), ("Therefore, Berlin is my final answer", "C"),
    ("C. Berlin is the answer.", "C"), ("Berlin是答案。", "C"), ("所以Berlin是正确答案", "C"), ("**Berlin** is the right choice.", "C"),
    ("Result: B", "B"), ("It rains.\nResult: (B).", "B"), ("**Result:** B", "B"),
    ("D remains", "D"), ("Only D remains.", "D"), ("A, B and C are wrong. D remains.", "D"), ("I can rule A, B and C out, so (D) remains.", "D"),
    ("We can eliminate A, B and C; D remains.", "D"), ("A remains.", "A"),
    # nothing that can be counted on
    ("Berlin is the answer?", UNCLEAR), ("Berlin is not the answer.", UNCLEAR), ("If it rains, Berlin is the answer.", UNCLEAR),
    ("Paris or Berlin is the answer.", UNCLEAR), ("Neither Paris nor Berlin is the answer.", UNCLEAR), ("Some say Berlin is the answer.", UNCLEAR),
    ("Berlin is the answer. No, I do not know.", UNCLEAR), ("Berlin不是答案。", UNCLEAR), ("Berlin是答案吗？", UNCLEAR),
    ("Madrid is the answer.", UNCLEAR), ("Berlin is the answer to everything.", UNCLEAR), ("I doubt that Berlin is the answer", UNCLEAR),
    ("Result: A is larger than B.", UNCLEAR), ("Result: A\nThat cannot be.", UNCLEAR), ("Result: A or B", UNCLEAR), ("Result: B?", UNCLEAR),
    ("A evaporates. B remains.", UNCLEAR), ("If only D remains, we are done", UNCLEAR), ("D remains unclear.", UNCLEAR), ("Only D remains?", UNCLEAR),
    ("A remains of a castle", UNCLEAR), ("A, B and C are wrong. D remains to be seen.", UNCLEAR), ("Not only D remains.", UNCLEAR),
]  # fmt: skip
# Texts that reason first: what is compared, put aside or thought better of is not chosen.
REASONED = [
    ("Among A, B, C and D, B is the best.", "B"), ("Among A, B, and C, C is the correct answer.", "C"), ("Unlike A and C, D is right.", "D"),
    ("Of the options A and B, B fits best.", "B"), ("All of A, B and C are correct.", "ABC"), ("A, B and C is correct.", "ABC"),
    ("A、B、C、D中，B最符合。", "B"), ("排除A、B、C，剩下D。", "D"), ("That leaves option C as the only possibility.", "C"),
    ("I think it's C. Hmm, on reflection, B.", "B"), ("I'd say C. On second thought, D.", "D"), ("The answer is A... no, B.", "B"),
    ("我认为是C。再想一下，还是B吧。", "B"), ("Is it A? No, B.", "B"), ("The answer is A. Wait, it's B.", "B"), ("This leaves us with C.", "C"),
    ("The answer is A, and B is wrong.", "A"), ("答案是A，B错误。", "A"), ("故选A，B、C错误", "A"), ("Thus A, C are wrong. B is correct.", "B"),
    ("A) Paris: incorrect\nB) London: correct\nC) Berlin: incorrect\nD) Rome: incorrect", "B"), ("A. Paris ✗\nB. London ✓\nC. Berlin ✗", "B"),
    ("The answer is Berlin, the capital of Germany.", "C"), ("The answer is London since it rains.", "B"), ("Answer: London, since it rains", "B"), ("The most appropriate choice is D.", "D"), ("The correct letter is D.", "D"),
    ("The answer that best fits is D.", "D"), ("B would be the best choice.", "B"), ("B fits the description best.", "B"),
    ("Thus, option B (London) is correct.", "B"), ("Not A, not B, not C: it has to be D.", "D"), ("答案不是A，也不是B，而是C。", "C"),
    ("The answer is B a city in England.", "B"), ("So the closest option is (D).", "D"),
    # nothing that can be counted on
    ("So A, B and D are wrong.", UNCLEAR), ("Therefore A, C and D can be eliminated.", UNCLEAR), ("Hence B, C, and D describe cities.", UNCLEAR),
    ("It is A, B or C.", UNCLEAR), ("I think A, B are wrong.", UNCLEAR), ("The answer is A, B, and C are wrong.", UNCLEAR),
    ("Option B (or A) is wrong.", UNCLEAR), ("If it rains: B is not correct.", UNCLEAR), ("There is no C.", UNCLEAR), ("He left A.", UNCLEAR), ("This leaves A and B.", UNCLEAR), ("是A还是B，我拿不准。", UNCLEAR),
    ("Actually, A: Paris is far away.", UNCLEAR), ("B would be correct if it rained.", UNCLEAR), ("A. Paris - no\nB. London - no", UNCLEAR),
    ("Paris, the capital of France, is large.", UNCLEAR), ("London since 1900 is larger.", UNCLEAR), ("The most common choice is A.", UNCLEAR), ("Option A is like option B.", UNCLEAR),
]  # fmt: skip
NUMBERS = ("20", "25", "30", "blue", "②③")
# (text, letters) for options that are numbers and small letters, repeated with their letter as AGIEval
# writes them, "(B)25"
REPEATED = [
    ("(B)25", "B"), ("(B) 25", "B"), ("B)25", "B"), ("B.25", "B"), ("B:25", "B"), ("B、25", "B"), ("B．25", "B"),
    ("（B）25", "B"), ("[B]25", "B"), ("【B】25", "B"), ("(B)25.", "B"), ("(B)25, because 5*5=25", "B"),
    ("(B)25\n\nBecause 5*5=25", "B"), ("B．25\n解析：略", "B"), ("(b)25", "B"), ("(D)blue", "D"), ("D、blue", "D"),
    ("(E)②③", "E"), ("(E)23", "E"), ("B 25", "B"), ("B - 25", "B"), ("Option (B) 25", "B"), ("Option B: 25", "B"),
    ("选项B：25", "B"), ("\\boxed{(B)25}", "B"), ("The answer is (B), as \\boxed{x=25}.", "B"), ("The answer is (B)25", "B"), ("答案选项：B", "B"), ("Sure! B", "B"),
    ("Correct answer - B", "B"), ("Answer - B", "B"), ('{"answer": "B"}', "B"), ("好的。B", "B"),
    # nothing that can be counted on
    ("(B)251", UNCLEAR), ("B.255", UNCLEAR), ("(A)blueprint", UNCLEAR), ("(B)25 is wrong", UNCLEAR), ("b 25", UNCLEAR),
    ("(A)20 (B)25 (C)30 (D)blue (E)②③", UNCLEAR), ("(A)20\n(B)25", UNCLEAR), ("(A)20. (B)25.", UNCLEAR),
    ("Option A: 20. Option B: 25.", UNCLEAR), ("B25", UNCLEAR), ("B 25 30", UNCLEAR), ("Sure!", UNCLEAR), ("(B)30", UNCLEAR),
]  # fmt: skip
DENIED = [
    ("Answer: A is wrong.", UNCLEAR), ("Answer: A is incorrect because it is in France.", UNCLEAR), ("答案：A错，B对", "B"),
    ("答案A错误", UNCLEAR), ("The answer: A cannot be right. B fits.", UNCLEAR), ("(A) Paris is incorrect.", UNCLEAR),
    ("(A) Paris is not mentioned. (B) London is mentioned in line 3.", UNCLEAR), ("A. Paris is ruled out by line 3.", UNCLEAR),
    ("A. Paris doesn't fit.", UNCLEAR), ("A. Paris does not fit.\nB. London fits.", "B"), ("The answer is A, B doesn't fit.", "A"),
    ("(A) Paris is correct.", "A"), ("A. Paris is in France", "A"), ("Answer: A, B and C are wrong", "A"),
    ("Whether it is B, I cannot say.", UNCLEAR), ("All except B are correct.", UNCLEAR), ("All of them but B are true.", UNCLEAR), ("除了B都正确。", UNCLEAR),
]  # fmt: skip
# Texts that go through the options: what stands between a letter and what is said of it is the option's own.
WEIGHED = [
    ("(A) Paris is incorrect. (B) London is correct.", "B"), ("A. Paris is incorrect. B. London is correct.", "B"),
    ("(B) London is incorrect. (A) Paris is correct. (C) Berlin is incorrect.", "A"), ("(A) Paris is out, (B) “London” is the answer.", "B"),
    ("(A) Paris is in France. (B) London is correct.", "B"), ("(A) is in France. (B) is correct.", "B"), ("A．巴黎在法国，故A不符合；B．伦敦在英国，故B符合题意", "B"),
    ("A. Paris is in France; B. London is in England, so B is correct.", "B"), ("（A）Paris错误。（B）London是正确的。", "B"),
    # nothing that can be counted on
    ("(A) Paris is correct. (B) London is correct.", UNCLEAR), ("If (B) London is correct, it rains.", UNCLEAR), ("(A) Paris is not correct.", UNCLEAR),
    ("A．巴黎在法国，不合题意；B．伦敦在英国，符合题意；C．柏林在德国，不合题意", UNCLEAR), ("A) 巴黎 - 错误 B) 伦敦 - 正确", UNCLEAR),
    ("(A) Paris is in France. (B) London is in England.", UNCLEAR), ("A. Paris does not fit. B. London fits.", UNCLEAR),
]  # fmt: skip
MISSED = [
    ("I choose to answer B.", "B"), ("ans B", "B"), ("B it is", "B"), ("Berlin is the city.", "C"),
    ("(A) Paris is not the answer. It is (B) London.", "B"),
]  # fmt: skip
"""Clear to a person and not read: counted as unanswered, which is the side to err on."""


@pytest.mark.parametrize(
    ("text", "letters"), ENGLISH + CHINESE + LATER + OTHERS + AT_THE_END + REASONED + DENIED + WEIGHED
)
def test_only_clear_choices_are_read(text, letters):
    choice = extract_choice(text, CITIES)
    assert choice == (frozenset(letters) if letters else None), choice


@pytest.mark.parametrize(("text", "letters"), REPEATED)
def test_an_option_repeated_with_its_letter_is_chosen(text, letters):
    choice = extract_choice(text, NUMBERS)
    assert choice == (frozenset(letters) if letters else None), choice


def test_a_letter_and_a_text_that_are_another_options_text_choose_that_one():
    assert extract_choice("A cat", ["cat", "A cat", "dog"]) == {"B"}
    assert extract_choice("A cat, as it were", ["cat", "hen"]) is None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is (B) A big fall in crime.", "The answer is (B) A big fall in crime, as line 3 says.", "Answer: B A big fall in crime",
        "The answer is **(B) A big fall**", "I choose (B) A fall of crime for this one.", "故选（B）A big fall in crime。",
    ],
)  # fmt: skip
def test_an_article_behind_a_letter_is_no_second_choice(text):
    assert extract_choice(text, ["Stop it", "A big fall in crime", "No", "Yes"]) == {"B"}


def test_an_options_own_capital_behind_its_letter_is_no_second_choice():
    assert extract_choice("The answer is (B) A NEXUS card.", ["A passport", "A NEXUS card", "D-Day"]) == {"B"}
    assert extract_choice("The answer is (C) D-Day.", ["A passport", "A NEXUS card", "D-Day", "x"]) == {"C"}


@pytest.mark.parametrize(
    "text", ["The answer is (B)-3", "答案是：(B)$-3$。", "Answer: B-3", "因此，答案是选项(B)-3。"]
)
def test_an_option_that_looks_like_more_of_a_formula_is_chosen_by_its_letter(text):
    assert extract_choice(text, ["3", "-3", "-1+12 i", "0"]) == {"B"}
    assert extract_choice(text, ["3", "-5", "-1+12 i", "0"]) is None


@pytest.mark.parametrize(
    "text",
    [
        "4 a is the answer, I think.", "x=5 a is correct.", "So b>a is the best choice of all.", "A \\subseteq B is correct.",
        "f(x)=3(x) d is right", "At 0°C is the answer here.", "Washington, D.C. is the answer, I think.", "Vitamin C is the correct answer, as it seems.",
    ],
)  # fmt: skip
def test_the_last_letter_of_a_formula_or_of_an_option_is_no_choice(text):
    assert extract_choice(text, ["vitamin A", "vitamin C", "7 a", "none of these"]) is None


@pytest.mark.parametrize(
    "text",
    ["It was in 1995\nB is correct.", "(1) A is wrong. (2) B is correct.", "A is wrong => B is correct", "-> B is right"],
)  # fmt: skip
def test_a_letter_behind_a_number_or_an_arrow_is_a_choice(text):
    assert extract_choice(text, CITIES) == {"B"}


@pytest.mark.parametrize(("text", "letters"), MISSED)
def test_a_choice_that_is_missed_counts_as_unanswered_and_not_as_another_letter(text, letters):
    assert extract_choice(text, CITIES) in (None, frozenset(letters))


def test_the_table_is_large_and_has_both_kinds_in_both_languages():
    for table, least in ((ENGLISH, 120), (CHINESE, 75)):
        assert len(table) >= least
        assert sum(letters == UNCLEAR for _, letters in table) >= 20


@given(st.text(alphabet=st.characters(exclude_categories=["L", "S"]), max_size=60))
def test_a_text_without_letters_chooses_nothing(text):
    assert extract_choice(text, CITIES) is None


@given(st.text(max_size=200), st.integers(2, 26))
def test_any_text_is_read_without_an_error_and_only_letters_of_options_come_out(text, num_options):
    choice = extract_choice(text, [f"option number {number}" for number in range(num_options)])
    assert choice is None or choice <= {chr(ord("A") + number) for number in range(num_options)}


@given(
    st.sampled_from("ABCD"),
    st.sampled_from(["The answer is ({}).", "答案是选项({})。", "{}", "故选{}。", "Answer: {}"]),
)
def test_each_letter_is_read_alike(letter, form):
    assert extract_choice(form.format(letter), CITIES) == {letter}


@pytest.mark.slow
def test_a_long_answer_is_read_in_linear_time():
    """A small model repeats itself up to its limit."""
    start = time.thread_time()
    for unit in (
        "A ",
        "A, ",
        "the answer is ",
        "(",
        "选",
        "not A but ",
        "A or ",
        "\\boxed{",
        "I think that ",
        "the answer is indeed ",
        "Definitely ",
        "matches (",
    ):
        extract_choice(unit * 3000, CITIES)
    assert time.thread_time() - start < 5


def test_an_option_that_is_a_letter_is_not_taken_for_another():
    assert extract_choice("The answer is $a$.", ["x", "$a$", "b", "c"]) == {"B"}
    assert extract_choice("So $a$ is the answer.", ["x", "$a$", "b", "c"]) == {"B"}
    assert extract_choice("So B is the answer.", ["x", "a", "c", "b"]) == {"B"}
    assert extract_choice(
        "It is in Washington, D.C. is the answer.", ["x", "y", "It is in Washington, D.C."]
    ) == {"C"}


def test_options_of_the_same_text_are_not_told_apart_by_it():
    assert extract_choice("Paris", ["Paris", "Paris", "Rome"]) is None
    assert extract_choice("Paris, because it is the capital.", ["Paris", "Paris", "Rome"]) is None


def test_an_option_that_begins_with_another_ones_letter_is_chosen_by_its_text():
    cells = ["B cells", "T cells", "Mast cells"]
    assert extract_choice("The answer is B cells because they make antibodies.", cells) == {"A"}


def test_a_long_option_is_announced_by_its_whole_text():
    long = "a long road " * 20 + "through the hills"
    assert extract_choice(f"The answer is {long}.", ["a path", long, "a lane"]) == {"B"}
