"""Which conversations are held out of the training data."""

from hypothesis import given
from hypothesis import strategies as st

from fastling.data.conversation import Conversation, Turn, parse_row
from fastling.data.part import WHOLE, Part

texts = st.text(st.characters(codec=None), max_size=20)  # lone surrogates, too
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)


def conversation(question: str, answer: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)))


@given(texts, texts, shares)
def test_a_conversation_is_in_exactly_one_part(question, answer, share):
    found = conversation(question, answer)
    assert Part(share).has(found) != Part(share, is_held_out=True).has(found)
    assert WHOLE.has(found)


@given(texts, shares, shares)
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(text, one, other):
    smaller, larger = (Part(share, is_held_out=True) for share in sorted((one, other)))
    assert larger.has(conversation(text, "")) >= smaller.has(conversation(text, ""))


def test_about_as_many_are_held_out_as_asked_for():
    part = Part(0.05, is_held_out=True)
    held_out = sum(part.has(conversation(f"question {number}", "answer")) for number in range(20_000))
    assert abs(held_out - 1000) < 5 * 31  # five standard deviations


def test_copies_are_in_the_same_part_whatever_form_or_name_they_have():
    part = Part(0.5)
    for number in range(40):
        question, answer = f"Say {number}.", f"It is {number}."
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        forms = [
            {"messages": messages},
            {"id": number, "pair": "zh-en", "messages": messages},
            {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
            {"instruction": question, "input": "", "output": answer},
        ]
        assert len({part.has(parse_row(form)) for form in forms}) == 1
