"""A conversation that has grown too long -> its end, in whole turns, and the system text."""

import dataclasses
from typing import NamedTuple

from fastling.data.conversation import Conversation
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel

ROOM_FOR_AN_ANSWER = 512
"""Tokens; half of the context where that is less."""


class Window(NamedTuple):
    """What of a conversation the model is fed."""

    conversation: Conversation
    prompt: list[int]
    dropped: int
    """Turns left out at the beginning; always questions with their answers."""


def default_max_new_tokens(chat: ChatModel) -> int:
    """Tokens of an answer where nobody said how many."""
    return max(1, min(ROOM_FOR_AN_ANSWER, chat.longest_sequence // 2))


def fit(chat: ChatModel, conversation: Conversation, max_new_tokens: int, *, dropped: int = 0) -> Window:
    """Leave out the oldest questions with their answers until the next answer fits behind the rest.

    `dropped` turns are left out already. The system text and the newest question always stay; raises
    UserError where even they do not fit.
    """
    while True:
        kept = dataclasses.replace(conversation, turns=conversation.turns[dropped:])
        prompt = chat.prompt_ids(kept)
        if len(prompt) + max_new_tokens <= chat.longest_sequence:
            return Window(kept, prompt, dropped)
        if len(kept.turns) < 3:
            raise UserError(
                "the question",
                f"has with the template {len(prompt)} tokens; with {max_new_tokens} for the answer "
                f"that is beyond the model's {chat.longest_sequence}",
                "Ask something shorter, or for a shorter answer.",
            )
        dropped += 2
