"""Files of rows -> encoded rows, on all cores, in the order of the files.

Each worker process has an encoder, and gets tasks of at most 256 rows or about a megabyte. Results come back
in order. Only a few tasks are in flight at a time, so memory does not grow with the files.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from pathlib import Path
from typing import Any

from fastling.data.conversation import KEYS, Conversation, Refused, parse_row
from fastling.data.encoding import Encoded, Encoder
from fastling.data.part import WHOLE, Part
from fastling.data.rows import BYTES_AT_ONCE, Row, read_rows
from fastling.data.template import Template
from fastling.data.tokenizer import load_tokenizer
from fastling.workers import ahead, start_workers

ROWS_PER_TASK = 256
FEW_TASKS = 8
"""With fewer tasks than this, starting processes would take longer than the work."""

Result = tuple[Encoded | Refused, str | None]
"""The outcome for a row, and the language pair that the row itself names."""


def encode_rows(encoder: Encoder, payloads: Sequence, part: Part = WHOLE) -> list[Result | None]:
    """Payloads of rows, as `read_rows` yields them -> one result each, in order; None for another part's."""
    parsed = [_parse(payload, part) for payload in payloads]
    encoded = iter(encoder.encode([each for each in parsed if isinstance(each, Conversation)]))
    results: list[Result | None] = []
    for each in parsed:
        if isinstance(each, Conversation):
            results.append((next(encoded), each.pair))
        else:
            results.append(each and (each, None))
    return results


def _parse(payload: Any, part: Part) -> Conversation | Refused | None:
    """The conversation of a row, or why it has none; None if it belongs to another part."""
    try:
        conversation = parse_row(payload)
        return conversation if part.has(conversation) else None
    except Refused as found:
        refusal = found
    except RecursionError:  # raised when the message shows a deeply nested value given as a role
        refusal = Refused("unknown-format", "nested too deep")
    return None if part.is_held_out else refusal  # a refused row is counted once


def encode_files(
    paths: Sequence[Path], encoder: Encoder, workers: int, part: Part = WHOLE
) -> Iterator[tuple[int, list[Row], list[Result | None]]]:
    """Yields (number of the file, rows, results), the same for any number of workers."""
    tasks = _tasks(paths)
    first = list(islice(tasks, FEW_TASKS))
    if workers == 1 or len(first) < FEW_TASKS:
        for number, rows in chain(first, tasks):
            yield number, rows, encode_rows(encoder, [row.payload for row in rows], part)
        return
    recipe = (encoder.template.template, encoder.tokenizer.path, encoder.sequence_length, part)
    fix = "Lower it: each takes its own copy of the tokenizer, and some rows."
    with start_workers(workers, _start_worker, *recipe, where="data.workers", fix=fix) as pool:
        started = (
            (number, rows, pool.submit(_work, [row.payload for row in rows]))
            for number, rows in chain(first, tasks)
        )
        for number, rows, future in ahead(started, 4 * workers):
            yield number, rows, _result(future, rows, encoder, part)


def _result(future: Future, rows: list[Row], encoder: Encoder, part: Part) -> list[Result | None]:
    try:
        return future.result()
    except RecursionError:  # a row nested too deep to be sent is refused here as a worker would refuse it
        return encode_rows(encoder, [row.payload for row in rows], part)


def _tasks(paths: Sequence[Path]) -> Iterator[tuple[int, list[Row]]]:
    for number, path in enumerate(paths):
        task: list[Row] = []
        size = 0
        for row in read_rows(path, KEYS):
            task.append(row)
            size += row.size
            if len(task) == ROWS_PER_TASK or size >= BYTES_AT_ONCE:
                yield number, task
                task, size = [], 0
        if task:
            yield number, task


_encoder: Encoder
_part: Part
"""Of a worker process."""


def _start_worker(template: Template, tokenizer: Path, sequence_length: int, part: Part) -> None:
    global _encoder, _part
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder, _part = Encoder(template, load_tokenizer(tokenizer), sequence_length), part


def _work(payloads: list) -> list[Result | None]:
    return encode_rows(_encoder, payloads, _part)
