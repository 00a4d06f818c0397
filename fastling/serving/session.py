"""One person's conversation with a model, for the terminal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from fastling import files
from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel, StreamedAnswer
from fastling.inference.context import fit
from fastling.json_files import json_line
from fastling.model.decoding import Decoding


class Session:
    """A conversation of questions and answers. `decoding.seed` is the first answer's; each has the next."""

    def __init__(self, chat: ChatModel, decoding: Decoding, system: str = ""):
        self.chat, self.decoding, self.system = chat, decoding, system
        self.turns: list[Turn] = []
        self.finish_reasons: list[str] = []
        """For each answer: stop, length, or interrupted."""
        self.dropped = 0
        """Number of turns at the beginning that the model no longer gets."""
        self._asked = 0
        self._written: set[Path] = set()  # files of this conversation

    def set_system(self, system: str) -> None:
        """Set the system text; blank text removes it, as in training.

        Raises UserError if the template has no place for it; the system text then stays as it was.
        """
        system = system if system.strip() else ""
        self.chat.prompt_ids(Conversation((Turn("user", "?"),), system))
        self.system = system

    def reset(self) -> None:
        """Forget the conversation; the system text stays."""
        self.turns, self.finish_reasons, self.dropped = [], [], 0
        self._written.clear()  # the saved files are now the only copies, so they must not be overwritten

    def ask(self, question: str) -> Iterator[str]:
        """Yield pieces of the answer as they come. Closing the iterator ends the answer.

        The text until then is kept; if there is none, the question is not kept either. Raises UserError for a
        question that does not fit; everything then stays as it was.
        """
        conversation = Conversation((*self.turns, Turn("user", question)), self.system)
        dropped_before = self.dropped
        window = fit(self.chat, conversation, self.decoding.max_new_tokens, dropped=dropped_before)
        self.dropped = window.dropped
        decoding = self.decoding
        if decoding.temperature:
            decoding = dataclasses.replace(decoding, seed=decoding.seed + self._asked)
        self._asked += 1
        answer = StreamedAnswer(self.chat, window.prompt, decoding)
        try:
            yield from answer
        finally:
            if answer.text:
                self.turns += [Turn("user", question), Turn("assistant", answer.text)]
                self.finish_reasons.append(answer.finish_reason or "interrupted")
            else:
                self.dropped = dropped_before

    def ask_again(self) -> Iterator[str]:
        """Ask the newest question again, and replace its answer unless the new one is empty; yields as `ask`.

        Raises UserError if there is no question yet.
        """
        if not self.turns:
            raise UserError("/retry", "there is no question yet")
        pair, reason = self.turns[-2:], self.finish_reasons[-1]
        length = len(self.turns)
        del self.turns[-2:], self.finish_reasons[-1]
        try:
            yield from self.ask(pair[0].content)
        finally:
            if len(self.turns) < length:
                self.turns += pair
                self.finish_reasons.append(reason)

    def messages(self) -> list[dict[str, str]]:
        """The whole conversation as OpenAI's messages, including turns that the model is no longer given."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": role, "content": content} for role, content in self.turns]

    def save(self, path: Path) -> None:
        """Write the conversation as a row that `fastling prepare` reads.

        Raises UserError if there is nothing to write, or if the file exists and is not from this session.
        """
        if not self.turns:
            raise UserError("/save", "nothing was said yet")
        if path.suffix != ".jsonl":
            raise UserError("/save", f"the name must end in .jsonl: {path}")
        try:
            path = path.expanduser().absolute()
            if path.exists() and path not in self._written:
                raise UserError("/save", f"exists: {path}", "Name another file.")
            files.write_text(path, json_line({"messages": self.messages()}))
        except (OSError, RuntimeError, ValueError) as error:  # also for an unknown home, or a NUL in a name
            reason = getattr(error, "strerror", error)
            raise UserError("/save", f"cannot be written: {path}: {reason}") from None
        self._written.add(path)
