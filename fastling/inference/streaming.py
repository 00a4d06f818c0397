"""Ids that come one by one -> text to show at once, never half a character and never taken back."""

import re
from collections.abc import Sequence

from fastling.data.encoding import Encoder

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_REPLACEMENT = "\ufffd"
_LONGEST_WINDOW = 24
"""Ids that are decoded again with each new one: so each costs the same, however long the answer is."""


class TextStream:
    """The text of a growing list of ids.

    Its pieces, joined, are `Encoder.answer(ids)` up to the first stop string: white space before and
    after the answer is left out. Held back are bytes until the run of bytes is over (decoders read a
    run as a whole: one wrong byte undoes them all), white space until a word follows, and what may be
    the beginning of a stop string.
    """

    def __init__(self, encoder: Encoder, stop_strings: Sequence[str] = ()):
        self.encoder, self.stop_strings = encoder, tuple(stop_strings)
        self._before = ""  # all the text up to the window's `_known` characters, those included
        self._window: list[int] = []  # the newest ids, from one that begins with a whole character
        self._known = 0
        self.text = ""
        """What was given out until now."""
        self.stopped = False
        """A stop string came; what follows it is not text of this answer."""

    def add(self, token_id: int) -> str:
        """Take in one id and return the text that is certain now; often nothing."""
        tokenizer = self.encoder.tokenizer
        if token_id >= tokenizer.vocab_size or token_id in self.encoder.stop_ids:
            return ""  # a row of the embedding that no token has; a token that is no text
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
        """No id follows: return what was held back."""
        if self.stopped:
            return ""
        text = self._whole().lstrip()  # a stop string may end in white space
        cut = self._first_stop(text)
        self.stopped = cut is not None
        return self._give(text[:cut].rstrip())

    def _whole(self) -> str:
        return self._before + self.encoder.tokenizer.decode([self._window])[0][self._known :]

    def _move_window(self, whole: str) -> None:
        """Begin with the newest id, if it is more than white space: what a decoder leaves out at the
        beginning of a text is then left out of this token alone, whatever follows."""
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
        """Characters at the end of a text that a stop string begins with."""
        return max(
            (
                length
                for stop in self.stop_strings
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
