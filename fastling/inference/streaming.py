"""Turns ids, as they arrive, into text to show at once: never half a character, and never retracted."""

import re
from collections.abc import Sequence

from fastling.data.encoding import Encoder

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACEMENT = "\ufffd"
_LONGEST_WINDOW = 24
"""Most ids that are decoded again with each new id, so that its cost does not grow with the answer."""


class TextStream:
    """The text of a growing list of ids.

    The pieces of text, joined, are `Encoder.answer(ids)` up to the first stop string, so without white space
    around the answer. Three things are held back: byte tokens until the run of bytes is over, since decoders
    read a run as a whole and one wrong byte spoils all of it; white space until a word follows; and whatever
    may be the beginning of a stop string.
    """

    def __init__(self, encoder: Encoder, stop_strings: Sequence[str] = ()):
        self.encoder, self.stop_strings = encoder, tuple(stop_strings)
        self._before = ""  # all the text up to the window's `_known` characters, those included
        self._window: list[int] = []  # the newest ids, from one that begins with a whole character
        self._known = 0
        self.text = ""
        """The text that was returned so far."""
        self.stopped = False
        """Whether a stop string has come; no text after it belongs to this answer."""

    def add(self, token_id: int) -> str:
        """Take in one id and return the text that is certain now; often nothing."""
        tokenizer = self.encoder.tokenizer
        if token_id >= tokenizer.vocab_size or token_id in self.encoder.stop_ids:
            return ""  # an id that the tokenizer does not have, or a stop token: neither is text
        self._window.append(token_id)
        if _BYTE.fullmatch(tokenizer.piece(token_id)):
            return ""
        whole = self._whole()
        if whole.endswith(_REPLACEMENT):
            return ""
        if len(self._window) > _LONGEST_WINDOW:
            self._move_window(whole)
        text = whole.lstrip()
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped = True
            return self._give(text[:cut].rstrip())
        return self._give(text[: len(text) - self._may_become_stop(text)].rstrip())

    def end(self) -> str:
        """Call when no id follows. Returns the text that was held back."""
        if self.stopped:
            return ""
        text = self._whole().lstrip()  # a stop string may end in white space
        cut = self._first_stop(text)
        self.stopped = cut is not None
        return self._give(text[:cut].rstrip())

    def _whole(self) -> str:
        return self._before + self.encoder.tokenizer.decode([self._window])[0][self._known :]

    def _move_window(self, whole: str) -> None:
        """Let the window begin with the newest id, if it is more than white space.

        A decoder may leave out a space at the beginning of a text. `_known` counts what it makes of this
        token alone, so that the same characters are skipped whatever follows.
        """
        newest = self.encoder.tokenizer.decode([self._window[-1:]])[0]
        if newest.strip():
            self._before, self._window, self._known = whole, self._window[-1:], len(newest)

    def _give(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _first_stop(self, text: str) -> int | None:
        found = [text.find(stop) for stop in self.stop_strings]
        return min((place for place in found if place >= 0), default=None)

    def _may_become_stop(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop string."""
        return max(
            (
                length
                for stop in self.stop_strings
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
