"""Files of rows -> encoded rows, on all cores, in the order of the files.

Each worker process has an encoder, and gets tasks of at most 256 rows or about a megabyte. Results come back
in order. Only a few tasks are in flight at a time, so memory does not grow with the files.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from pathlib import Path

from fastling.data.conversation import KEYS, Refused, parse_row
from fastling.data.encoding import Encoded, Encoder
from fastling.data.rows import BYTES_AT_ONCE, Row, read_rows
from fastling.data.template import Template
from fastling.data.tokenizer import load_tokenizer
from fastling.workers import ahead, start_workers

ROWS_PER_TASK = 256
FEW_TASKS = 8
"""With fewer tasks than this, starting processes would take longer than the work."""

Result = tuple[Encoded | Refused, str | None]
"""The outcome for a row, and the language pair that the row itself names."""


def encode_rows(encoder: Encoder, payloads: Sequence) -> list[Result]:
    """Payloads of rows, as `read_rows` yields them -> one result each, in order."""
    parsed = []
    for payload in payloads:
        try:
            parsed.append(parse_row(payload))
        except Refused as refusal:
            parsed.append(refusal)
        except RecursionError:  # raised when the message shows a deeply nested value given as a role
            parsed.append(Refused("unknown-format", "nested too deep"))
    good = [each for each in parsed if not isinstance(each, Refused)]
    encoded = iter(encoder.encode(good))
    return [(each, None) if isinstance(each, Refused) else (next(encoded), each.pair) for each in parsed]


def encode_files(
    paths: Sequence[Path], encoder: Encoder, workers: int
) -> Iterator[tuple[int, list[Row], list[Result]]]:
    """Yields (number of the file, rows, results), the same for any number of workers."""
    tasks = _tasks(paths)
    first = list(islice(tasks, FEW_TASKS))
    if workers == 1 or len(first) < FEW_TASKS:
        for number, rows in chain(first, tasks):
            yield number, rows, encode_rows(encoder, [row.payload for row in rows])
        return
    recipe = (encoder.template.template, encoder.tokenizer.path, encoder.sequence_length)
    fix = "Lower it: each takes its own copy of the tokenizer, and some rows."
    with start_workers(workers, _start_worker, *recipe, where="data.workers", fix=fix) as pool:
        started = (
            (number, rows, pool.submit(_work, [row.payload for row in rows]))
            for number, rows in chain(first, tasks)
        )
        for number, rows, future in ahead(started, 4 * workers):
            yield number, rows, _result(future, rows, encoder)


def _result(future: Future, rows: list[Row], encoder: Encoder) -> list[Result]:
    try:
        return future.result()
    except RecursionError:  # a row nested too deep to be sent is refused here as a worker would refuse it
        return encode_rows(encoder, [row.payload for row in rows])


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
"""Of a worker process."""


def _start_worker(template: Template, tokenizer: Path, sequence_length: int) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(template, load_tokenizer(tokenizer), sequence_length)


def _work(payloads: list) -> list[Result]:
    return encode_rows(_encoder, payloads)
