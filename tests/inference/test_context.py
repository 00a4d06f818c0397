"""What of a long conversation is left when the context is full."""

from types import SimpleNamespace

import pytest
from inference.conftest import write_export

from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.inference.chat_model import load_chat_model
from fastling.inference.context import ROOM_FOR_AN_ANSWER, default_max_new_tokens, fit


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return load_chat_model(
        write_export(tmp_path_factory.mktemp("context") / "model", max_position_embeddings=256)
    )


def conversation(pairs: int, words: int = 5) -> Conversation:
    turns = []
    for number in range(pairs):
        turns += [Turn("user", f"question {number} " + "wort " * words), Turn("assistant", f"答案 {number}")]
    return Conversation((*turns, Turn("user", "the newest")), "Be brief.")


@pytest.mark.slow
def test_conversations_that_fit_stay_whole(chat):
    short = conversation(1)
    window = fit(chat, short, 20)
    assert (window.conversation, window.dropped) == (short, 0)
    assert window.prompt == chat.prompt_ids(short)


@pytest.mark.parametrize("room", [1, 20, 60, 120])
def test_the_oldest_questions_go_with_their_answers_and_no_more_than_must(chat, room):
    long = conversation(30)
    window = fit(chat, long, room)
    kept = window.conversation
    assert kept.system == long.system
    assert kept.turns == long.turns[window.dropped :] and window.dropped % 2 == 0
    assert kept.turns[0].role == "user" and kept.turns[-1].content == "the newest"
    assert len(window.prompt) + room <= 256
    one_more = Conversation(long.turns[window.dropped - 2 :], long.system)
    assert len(chat.prompt_ids(one_more)) + room > 256
    assert window.prompt == chat.prompt_ids(kept)


def test_dropped_turns_stay_dropped(chat):
    long = conversation(3, words=1)
    assert fit(chat, long, 1, dropped=4).dropped == 4


def test_a_long_conversation_is_encoded_a_few_times_not_once_for_each_turn(chat, monkeypatch):
    tried, prompt_ids = [], chat.prompt_ids
    monkeypatch.setattr(chat, "prompt_ids", lambda kept: tried.append(len(kept.turns)) or prompt_ids(kept))
    assert fit(chat, conversation(200), 1).dropped > 300
    assert len(tried) <= 10


def test_a_question_that_is_too_long_alone_is_refused(chat):
    asked = Conversation(
        (*conversation(2).turns, Turn("assistant", "x"), Turn("user", "wort " * 400)), "Be brief."
    )
    with pytest.raises(UserError, match=r"the question: has with the template \d+ tokens; with 20 .* 256"):
        fit(chat, asked, 20)
    exact = 256 - len(chat.prompt_ids(Conversation((Turn("user", "x"),))))
    assert fit(chat, Conversation((Turn("user", "x"),)), exact).dropped == 0
    with pytest.raises(UserError):
        fit(chat, Conversation((Turn("user", "x"),)), exact + 1)


def test_an_answer_gets_half_of_a_small_context_and_a_fixed_part_of_a_large_one(chat):
    assert default_max_new_tokens(chat) == 128
    assert default_max_new_tokens(SimpleNamespace(longest_sequence=131_072)) == ROOM_FOR_AN_ANSWER
