"""Shortens a conversation that has grown too long: its last turns and the system text stay."""

import bisect
import dataclasses
from typing import NamedTuple

from fastling.data.conversation import Conversation
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel

ROOM_FOR_AN_ANSWER = 512
"""Tokens; half of the context where that is less."""


class Window(NamedTuple):
    """The part of a conversation that the model is given."""

    conversation: Conversation
    prompt: list[int]
    dropped: int
    """Number of turns left out at the beginning; always whole pairs of question and answer."""


def default_max_new_tokens(chat: ChatModel) -> int:
    """Most tokens of an answer, if the user names no limit."""
    return max(1, min(ROOM_FOR_AN_ANSWER, chat.longest_sequence // 2))


def fit(chat: ChatModel, conversation: Conversation, max_new_tokens: int, *, dropped: int = 0) -> Window:
    """Leave out the oldest questions and answers until max_new_tokens more tokens fit after the rest.

    The first `dropped` turns are left out in any case. The system text and the newest question always stay;
    raises UserError if even they do not fit.
    """

    def window(dropped: int) -> Window:
        kept = dataclasses.replace(conversation, turns=conversation.turns[dropped:])
        return Window(kept, chat.prompt_ids(kept), dropped)

    def fits(window: Window) -> bool:
        return len(window.prompt) + max_new_tokens <= chat.longest_sequence

    found = window(dropped)
    if not fits(found):
        # By bisection: a long question may drop hundreds of turns, and each try encodes all the others.
        starts = range(dropped, len(conversation.turns), 2)
        place = bisect.bisect_left(starts, True, lo=1, key=lambda start: fits(window(start)))
        found = window(starts[min(place, len(starts) - 1)])
    if not fits(found):
        raise UserError(
            "the question",
            f"has with the template {len(found.prompt)} tokens; with {max_new_tokens} for the answer "
            f"that is beyond the model's {chat.longest_sequence}",
            "Ask something shorter, or for a shorter answer.",
        )
    return found
