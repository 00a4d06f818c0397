"""Files of rows -> encoded rows, on all cores, in the order of the files.

A worker process holds one encoder; tasks of a few hundred rows go out and results come back in order,
with no more of them under way than the workers need, so memory does not grow with the files.
"""

import collections
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path

from fastling.data.conversation import Refused, Row, parse_row, read_rows
from fastling.data.encoding import Encoded, Encoder
from fastling.data.template import Template
from fastling.data.tokenizer import load_tokenizer

ROWS_PER_TASK = 256
FEW_TASKS = 8
"""With fewer, starting processes would take longer than the work."""

Result = tuple[Encoded | Refused, str | None]
"""What became of a row, and its own language pair."""


def encode_rows(encoder: Encoder, payloads: Sequence) -> list[Result]:
    """Payloads of rows, as `read_rows` gives them -> one result each."""
    parsed = []
    for payload in payloads:
        try:
            parsed.append(parse_row(payload))
        except Refused as refusal:
            parsed.append(refusal)
    good = [each for each in parsed if not isinstance(each, Refused)]
    encoded = iter(encoder.encode(good))
    return [(each, None) if isinstance(each, Refused) else (next(encoded), each.pair) for each in parsed]


def encode_files(
    paths: Sequence[Path], encoder: Encoder, workers: int
) -> Iterator[tuple[int, list[Row], list[Result]]]:
    """(number of the file, rows, results), the same whatever the number of workers."""
    tasks = _tasks(paths)
    first = list(islice(tasks, FEW_TASKS))
    if workers == 1 or len(first) < FEW_TASKS:
        for number, rows in chain(first, tasks):
            yield number, rows, encode_rows(encoder, [row.payload for row in rows])
        return
    context = multiprocessing.get_context("forkserver")
    recipe = (encoder.template.template, encoder.tokenizer.path, encoder.sequence_length)
    with ProcessPoolExecutor(workers, context, _start_worker, recipe) as pool:
        waiting = collections.deque()
        for number, rows in chain(first, tasks):
            waiting.append((number, rows, pool.submit(_work, [row.payload for row in rows])))
            if len(waiting) > 4 * workers:
                number, rows, result = waiting.popleft()
                yield number, rows, result.result()
        for number, rows, result in waiting:
            yield number, rows, result.result()


def _tasks(paths: Sequence[Path]) -> Iterator[tuple[int, list[Row]]]:
    for number, path in enumerate(paths):
        rows = read_rows(path)
        while chunk := list(islice(rows, ROWS_PER_TASK)):
            yield number, chunk


_encoder: Encoder
"""Of a worker process."""


def _start_worker(template: Template, tokenizer: Path, sequence_length: int) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(template, load_tokenizer(tokenizer), sequence_length)


def _work(payloads: list) -> list[Result]:
    return encode_rows(_encoder, payloads)
