"""Stores a model's answers in a file, each as soon as it is finished, so that nothing is asked twice.

The file has JSON lines. The first one, {"fingerprint": {...}}, says what the answers depend on. Each further
line is {"question", "turn", "text", "finish_reason"}, in the order in which answers were finished.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fastling.errors import UserError
from fastling.files import naming
from fastling.json_files import json_line
from fastling.locks import takes

OPENING = b'{"fingerprint": '


class Answer(NamedTuple):
    """A model's answer in one turn."""

    text: str
    finish_reason: str
    """stop; length: cut at --max-new-tokens or at the end of the context; too-long: the prompt does not
    fit the context; refused: an earlier answer cannot be fed back. The last two have no text."""


class KeptAnswers:
    """The answers in a file, which stays open for more until `close`."""

    def __init__(self, path: Path, fingerprint: Mapping[str, object], turns: Sequence[int]):
        """Read the file, or begin it. `turns` is the number of turns of each question.

        A truncated last line is dropped. Raises UserError if the file does not hold kept answers, if its
        fingerprint differs, or if another process writes to it.
        """
        self.path, self._turns = path, turns
        self._answers: dict[tuple[int, int], Answer] = {}
        self._file = open(path, "a+b")
        try:
            self._take_up(fingerprint)
        except BaseException:
            self.close()
            raise

    def _take_up(self, fingerprint: Mapping[str, object]) -> None:
        if not takes(self._file.fileno(), self.path):
            fix = "Wait for it, stop it, or name another file with --keep-answers."
            raise UserError(str(self.path), "is being written by another process", fix)
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and not OPENING.startswith(content[: len(OPENING)]):
            raise self._foreign(1)
        first, *rest = whole.split(b"\n")[:-1] or [b""]
        if whole:
            self._check_fingerprint(first, fingerprint)
        for number, line in enumerate(rest, start=2):
            self._read(number, line)
        self._file.truncate(len(whole))
        if not whole:
            self._write({"fingerprint": fingerprint})

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: int, turn: int) -> Answer | None:
        return self._answers.get((question, turn))

    def add(self, question: int, turn: int, answer: Answer) -> None:
        self._answers[question, turn] = answer
        self._write({"question": question, "turn": turn, **answer._asdict()})

    def close(self) -> None:
        with naming(self.path):  # closing retries a write that failed on a full disk
            self._file.close()

    def _write(self, row: Mapping[str, object]) -> None:
        with naming(self.path):
            self._file.write(json_line(row).encode())
            self._file.flush()

    def _check_fingerprint(self, line: bytes, wanted: Mapping[str, object]) -> None:
        row = self._parse(1, line)
        found = row.get("fingerprint")
        if not isinstance(found, dict):
            raise self._foreign(1)
        others = [name for name in wanted if found.get(name) != wanted[name]]
        if others:
            what = f"holds answers to something else; what differs: {', '.join(others)}"
            fix = "Repeat the command that wrote it, or name another file with --keep-answers."
            raise UserError(str(self.path), what, fix)

    def _read(self, number: int, line: bytes) -> None:
        row = self._parse(number, line)
        question, turn = row.get("question"), row.get("turn")
        answer = Answer(row.get("text"), row.get("finish_reason"))
        right = (
            all(type(each) is int for each in (question, turn))
            and all(isinstance(each, str) for each in answer)
            and 0 <= question < len(self._turns)
            and 0 <= turn < self._turns[question]
        )
        if not right:
            raise self._foreign(number)
        self._answers[question, turn] = answer

    def _parse(self, number: int, line: bytes) -> dict:
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            raise self._foreign(number) from None
        if not isinstance(row, dict):
            raise self._foreign(number)
        return row

    def _foreign(self, number: int) -> UserError:
        what = "is no line of a file of kept answers"
        return UserError(f"{self.path}:{number}", what, "Name another file with --keep-answers.")
