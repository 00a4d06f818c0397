"""One person's conversation with a model, as the terminal keeps it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from fastling import files
from fastling.data.conversation import Conversation, Turn
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel, StreamedAnswer
from fastling.inference.context import fit
from fastling.model.generation import Decoding


class Session:
    """Questions and their answers, in turn. `decoding.seed` is of the first answer; each has the next."""

    def __init__(self, chat: ChatModel, decoding: Decoding, system: str = ""):
        self.chat, self.decoding, self.system = chat, decoding, system
        self.turns: list[Turn] = []
        self.finish_reasons: list[str] = []
        """Of each answer: stop, length, or interrupted."""
        self.dropped = 0
        """Turns at the beginning that the model is no longer fed."""
        self._asked = 0
        self._written: set[Path] = set()  # files of this conversation

    def set_system(self, system: str) -> None:
        """Blank text is none, as in training.

        Raises UserError where the template has no place for it; the system text then stays.
        """
        system = system if system.strip() else ""
        self.chat.prompt_ids(Conversation((Turn("user", "?"),), system))
        self.system = system

    def reset(self) -> None:
        """Forget what was said; the system text stays."""
        self.turns, self.finish_reasons, self.dropped = [], [], 0
        self._written.clear()  # what was saved is nowhere else from here on

    def ask(self, question: str) -> Iterator[str]:
        """Pieces of the answer, as they come. To close the iterator ends the answer.

        What was said until then is kept; where nothing was, neither is the question. Raises UserError
        for a question that does not fit; everything then stays as it was.
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
        """Take back the newest answer and ask its question again; where nothing comes, it stays.

        Raises UserError where there is no question yet.
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
        """The whole conversation as OpenAI's messages, also what the model is no longer fed."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": role, "content": content} for role, content in self.turns]

    def save(self, path: Path) -> None:
        """Write the conversation as a row that `fastling prepare` reads.

        Raises UserError where there is nothing to write, or a file of somebody else's.
        """
        if not self.turns:
            raise UserError("/save", "nothing was said yet")
        if path.suffix != ".jsonl":
            raise UserError("/save", f"the name must end in .jsonl: {path}")
        try:
            path = path.expanduser().absolute()
            if path.exists() and path not in self._written:
                raise UserError("/save", f"exists: {path}", "Name another file.")
            files.write_text(path, files.json_line({"messages": self.messages()}))
        except (OSError, RuntimeError, ValueError) as error:  # also nobody's home folder, and a NUL in a name
            reason = getattr(error, "strerror", error)
            raise UserError("/save", f"cannot be written: {path}: {reason}") from None
        self._written.add(path)
