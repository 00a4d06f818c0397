"""Scores by COMET (Rei et al. 2020), through the command `comet-score` in an environment of its own.

The versions it requires cannot be installed beside transformers 5. The command reads text files and
prints "FILE<tab>Segment N<tab>score: X" for each sentence, then "FILE<tab>score: X" for all of them.
"""

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastling.errors import RunError, UserError

OPTION = "--comet-command"
SYSTEM_SCORE = re.compile(r"^[^\t]*\tscore: (-?\d+(?:\.\d+)?)\s*$", re.MULTILINE)
SEGMENT_SCORE = re.compile(r"^[^\t]*\tSegment \d+\tscore: ", re.MULTILINE)
MODEL_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def check_command(command: str) -> list[str]:
    """The words of a command. Raises UserError if it cannot be run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(OPTION, f"is no command: {error}") from None
    if not words or shutil.which(words[0]) is None:
        fix = "Give the path of comet-score in the environment that has it (pip install unbabel-comet there)."
        raise UserError(OPTION, f"cannot be run: {words[0] if words else 'nothing'}", fix)
    return words


def comet(
    words: Sequence[str], sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]
) -> dict:
    """{"comet": mean score of all sentences, "comet_model": name}. Raises RunError if the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        for option, name, lines in (
            ("-s", "sources.txt", sources),
            ("-t", "hypotheses.txt", hypotheses),
            ("-r", "references.txt", references),
        ):
            path = Path(folder, name)
            # The command reads Python text files, in which \r also ends a line.
            text = "".join(line.replace("\r", " ").replace("\n", " ") + "\n" for line in lines)
            path.write_bytes(text.encode("utf-8", "replace"))
            arguments += [option, str(path)]
        try:
            done = subprocess.run(
                [*words, *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise RunError(OPTION, f"cannot be run: {words[0]}: {error.strerror}") from None
    return _read(words, done, len(hypotheses))


def _read(words: Sequence[str], done: subprocess.CompletedProcess, sentences: int) -> dict:
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
        raise RunError(OPTION, f"{words[0]} failed, with exit status {done.returncode}: {last[:200]}")
    scores, segments = SYSTEM_SCORE.findall(done.stdout), len(SEGMENT_SCORE.findall(done.stdout))
    if len(scores) != 1:
        raise RunError(OPTION, f"{words[0]} printed {len(scores)} scores of the whole; expected one")
    if segments not in (0, sentences):  # there are none with --only_system
        raise RunError(OPTION, f"{words[0]} scored {segments} of {sentences} sentences")
    return {"comet": float(scores[0]), "comet_model": _model(words, done.stdout + done.stderr)}


def _model(words: Sequence[str], output: str) -> str:
    """The model's name, from --model, else from the folder of the cache that the command's output names."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--model":
            return after
        if word.startswith("--model="):
            return word.removeprefix("--model=")
    found = MODEL_IN_CACHE.search(output)
    return "/".join(found.groups()) if found else "the command's default"
