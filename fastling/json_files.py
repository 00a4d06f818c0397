"""JSON, read and written: whole files, sealed ones, and files of lines."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from fastling.errors import UserError
from fastling.files import write_parts

_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def json_text(content: dict) -> str:
    r"""Return an object as indented JSON; what is no UTF-8 (in a file's name) is escaped as \udce9."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def json_line(content: object) -> str:
    r"""Return a value as one line of JSON, with its line end, that every reader takes for one line.

    Text is not escaped, with two exceptions: the characters at which `str.splitlines` breaks a line as well
    (U+0085, U+2028, U+2029), and what cannot be encoded as UTF-8 (in the name of a file).
    """
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def read_json_lines(path: Path) -> list[dict]:
    """Return the objects that `json_lines` yields."""
    return list(json_lines(path))


def json_lines(path: Path) -> Iterator[dict]:
    """Yield the objects of a file of JSON lines, one after another; none if there is no such file.

    Lines that a kill or a full disk has left broken are skipped.
    """
    if path.exists():
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    yield line


def drop_later_steps(path: Path, last: int) -> None:
    """Keep of a file of JSON lines, if it is there, those of steps up to `last`; not those without a step."""
    if os.path.lexists(path):  # a link that leads nowhere is replaced, too, before somebody writes through it
        steps = ((line.get("step"), line) for line in json_lines(path))
        write_parts(path, (json_line(line) for step, line in steps if isinstance(step, int) and step <= last))


def read_json(file: Path) -> dict:
    """Return the object that a JSON file holds. Raises UserError, naming the file, if it holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(str(file), f"is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(str(file), f"holds no JSON object: {str(found)[:40]}")
    return found


def read_json_if_there(file: Path) -> dict:
    """Return the object that a JSON file holds, or {} if there is no such file. Raises as `read_json`."""
    return read_json(file) if file.is_file() else {}


def sealed_json(content: dict) -> str:
    """Text of a JSON file that holds an object and a digest of it."""
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal}, indent=1)


def read_sealed_json(file: Path) -> dict | None:
    """Return the object in a file of `sealed_json`, None if a character of the file has changed.

    A file that is no JSON object with a seal raises whatever reading it leads to.
    """
    text = file.read_text(encoding="utf-8")
    content = json.loads(text)
    del content["sha256"]
    return content if text == sealed_json(content) else None
