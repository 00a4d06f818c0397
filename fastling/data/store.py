"""The token store: every proved conversation of some sources, tokenized once, memory-mapped.

A store is a folder named after the digest of all that it depends on: the bytes of the sources and
of the tokenizer, the template, the sequence length, and this format. Same inputs, same folder; it is
written aside and renamed, so it is whole or absent, and many processes that want it build it once.

Its files are hashed from memory while they are written, and hashed again when they are opened, so that a
damaged store is never trained on. The latter is done by one process of each machine (LOCAL_RANK 0, or the
only one), which stops the others if it finds damage. It reads 2 or 4 bytes a token for that, less than every
process reads of the sources to find the store's name.
"""

import collections
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy

from fastling import files
from fastling.data.conversation import Refused
from fastling.data.encode_files import Result, encode_files
from fastling.data.encoding import Encoded, Encoder
from fastling.data.ledger import Ledger
from fastling.data.part import WHOLE, Part
from fastling.data.rows import Row, kind_of
from fastling.data.template import Template
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError
from fastling.json_files import json_line, read_sealed_json, sealed_json
from fastling.locks import alone
from fastling.workers import own_cores

FORMAT = 13
"""Increased whenever the same inputs would give a different store."""
ARRAYS = {
    "document_offsets": numpy.int64,  # (documents + 1,) into tokens
    "span_offsets": numpy.int64,  # (documents + 1,) into spans
    "spans": numpy.int32,  # (turns, 2) [start, stop) of supervised tokens within their document
    "sources": numpy.int16,  # (documents,) index into source names
    "pairs": numpy.int32,  # (documents,) index into pair names, -1: none
    "rows": numpy.int64,  # (documents,) row in the source's file
    "marks": numpy.uint64,  # (documents,) digest of its tokens: copies have the same
}


@dataclass(frozen=True)
class SourceFile:
    """A source as the store needs it."""

    name: str
    path: Path
    pair: str | None


@dataclass(frozen=True)
class Recipe:
    """Everything that a store depends on, and the largest acceptable share of refused rows."""

    sources: tuple[SourceFile, ...]
    tokenizer: Path
    template: Template
    sequence_length: int
    max_refused_share: float = 1.0
    part: Part = WHOLE

    def key(self) -> str:
        """Digest of the files' contents and of how they are read, but not of their paths or dates."""
        fields = {
            "format": FORMAT,
            "sources": [
                (each.name, each.pair, files.sha256(each.path), kind_of(each.path)) for each in self.sources
            ],
            "tokenizer": _digest_tokenizer(self.tokenizer),
            "template": repr(self.template),
            "sequence_length": self.sequence_length,
        }
        if self.part != WHOLE:
            fields["part"] = (self.part.held_out_share, self.part.is_held_out)
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:20]


def _digest_tokenizer(path: Path) -> list[str]:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
    names += ("added_tokens.json",)
    folder = path if path.is_dir() else path.parent
    found = [path] if path.is_file() else []
    found += [folder / name for name in names if (folder / name).exists() and folder / name != path]
    return [files.sha256(each) for each in found]


class Store:
    """An opened store. Documents are numbered over all sources in order."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder, self.recipe = folder, recipe
        self.manifest = self._read_manifest()
        self.source_names: list[str] = self.manifest["sources"]
        self.pair_names: list[str] = self.manifest["pairs"]
        self.ledgers: dict[str, dict] = self.manifest["ledgers"]
        self.tokens = self._map("tokens", numpy.dtype(self.manifest["token_type"]))
        for name, kind in ARRAYS.items():
            setattr(self, name, self._map(name, numpy.dtype(kind)))
        self.spans = self.spans.reshape(-1, 2)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self._check_digests()

    def _damaged(self, name: str, what: str) -> UserError:
        return UserError(str(self.folder / name), what, f"Delete {self.folder}; it will be rebuilt.")

    def _read_manifest(self) -> dict:
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if fields := read_sealed_json(self.folder / "manifest.json"):
                return fields
        raise self._damaged("manifest.json", "is not what was written")

    def _map(self, name: str, kind: numpy.dtype) -> numpy.ndarray:
        path, length = self.folder / f"{name}.bin", self.manifest["lengths"][name]
        if not path.exists() or path.stat().st_size != length * kind.itemsize:
            raise self._damaged(path.name, "has the wrong size")
        return numpy.memmap(path, kind, "r", shape=(length,)) if length else numpy.empty(0, kind)

    def _check_digests(self) -> None:
        for name, digest in self.manifest["digests"].items():
            if not (self.folder / name).is_file() or files.sha256(self.folder / name) != digest:
                raise self._damaged(name, "is not what was written")

    def __len__(self) -> int:
        return len(self.document_offsets) - 1

    @property
    def document_tokens(self) -> numpy.ndarray:
        """(documents,) tokens of each."""
        return numpy.diff(self.document_offsets)

    @property
    def document_turns(self) -> numpy.ndarray:
        """(documents,) supervised turns of each."""
        return numpy.diff(self.span_offsets)

    @property
    def document_supervised(self) -> numpy.ndarray:
        """(documents,) supervised tokens of each."""
        sizes = numpy.concatenate([[0], numpy.cumsum(self.spans[:, 1] - self.spans[:, 0])])
        return sizes[self.span_offsets[1:]] - sizes[self.span_offsets[:-1]]

    def documents_of(self, source: int) -> slice:
        """The numbers of a source's documents, by the number of the source."""
        return slice(*numpy.searchsorted(self.sources, [source, source + 1]).tolist())

    def document(self, index: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """(tokens (n,), spans (turns, 2)) of one document."""
        start, stop = self.document_offsets[index : index + 2]
        first, last = self.span_offsets[index : index + 2]
        return self.tokens[start:stop], self.spans[first:last]

    def count_copies(self) -> dict[str, int]:
        """Source -> how many of its documents have the same tokens as an earlier document of this store."""
        is_copy = numpy.ones(len(self), dtype=bool)
        is_copy[numpy.unique(self.marks, return_index=True)[1]] = False  # the first of each
        return self.count(is_copy)

    def count_among(self, other: "Store", documents: numpy.ndarray) -> dict[str, int]:
        """Source -> how many of its documents are also among the numbered `documents` of another store."""
        return self.count(numpy.isin(self.marks, other.marks[documents]))

    def count(self, chosen: numpy.ndarray) -> dict[str, int]:
        """Source -> how many of the chosen documents (numbers, or a mask) it has."""
        counts = numpy.bincount(self.sources[chosen], minlength=len(self.source_names))
        return dict(zip(self.source_names, counts.tolist(), strict=True))

    def refused(self) -> Iterator[dict]:
        """Yields every refused row: source, row, location (by the file's present path), reason, detail."""
        paths = {source.name: source.path for source in self.recipe.sources}
        with open(self.folder / "refused.jsonl", encoding="utf-8") as file:
            for entry in map(json.loads, file):
                yield entry | {"location": f"{paths[entry['source']]}:{entry['location']}"}


def default_store() -> Path:
    """fastling in the user's cache folder. Raises UserError if there is no such folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastling"
    except RuntimeError:  # the user has no home folder
        what = "is not set, and there is no home folder whose .cache could be used instead"
        raise UserError("data.store", what, "Name a folder.") from None


def open_store(
    recipe: Recipe, folder: Path, *, workers: int | None = None, progress: Callable[[int], None] | None = None
) -> Store:
    """The store of a recipe, built first if it is not there. Many processes may call it at once.

    `progress` is called with the number of rows done since the last call.
    Raises UserError when no row is left, or more rows are refused than the recipe allows.
    """
    before = _states(recipe)
    final = folder / recipe.key()
    if not (final / "manifest.json").exists():
        # A starting worker imports the script that started it: without a __main__ guard there, it would
        # come back here and wait for ever for the lock that its parent holds.
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise RuntimeError("call this under `if __name__ == '__main__':` in your script")
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f"{final.name}.lock") as machine:
            if not (final / "manifest.json").exists():
                aside = final.with_name(f"{final.name}{machine}.tmp")
                with files.gone_after_error(aside):
                    _build(recipe, aside, workers, progress)
                    _check_unchanged(recipe, before)
                    files.publish(aside, final)
    store = Store(final, recipe)
    _check_refused(recipe, store)
    return store


def _states(recipe: Recipe) -> list[tuple[int, int, int]]:
    """Size, time of change and inode of each source's file."""
    found = [source.path.stat() for source in recipe.sources]
    return [(each.st_size, each.st_mtime_ns, each.st_ino) for each in found]


def _check_unchanged(recipe: Recipe, before: list[tuple[int, int, int]]) -> None:
    """Raise UserError if a source has changed since the store's name was made from it."""
    for source, now, then in zip(recipe.sources, _states(recipe), before, strict=True):
        if now != then:
            fix = "Start again when nothing writes to it any more."
            raise UserError(f"source {source.name}", f"changed while it was read: {source.path}", fix)


def _check_refused(recipe: Recipe, store: Store) -> None:
    if recipe.part.is_held_out:  # perhaps a single row of a source; the part that is trained on is checked
        return
    for name, ledger in store.ledgers.items():
        refused = sum(ledger["refused"].values())
        if ledger["rows"] == 0 and recipe.part == WHOLE:
            path = next(source.path for source in recipe.sources if source.name == name)
            raise UserError(f"source {name}", f"is empty, it has no rows: {path}")
        # Rows beyond the sequence length are not a fault of the data, and the ledger counts them anyway.
        faulty = refused - ledger["refused"].get("too-long", 0)
        if refused and (ledger["kept"] == 0 or faulty > recipe.max_refused_share * ledger["rows"]):
            reasons = ", ".join(f"{count} {reason}" for reason, count in ledger["refused"].items())
            first = next(entry for entry in store.refused() if entry["source"] == name)
            limit = f"data.max_refused_share ({recipe.max_refused_share}) is the limit."
            raise UserError(
                f"source {name}",
                f"{refused} of {ledger['rows']} rows are refused: {reasons[:200]}",
                f"The first: {first['location']}: {first['reason']} {first['detail'][:120]}\n"
                f"  All of them: {store.folder / 'refused.jsonl'}. "
                + (limit if ledger["kept"] else "Nothing is left to train on."),
            )


def _build(recipe: Recipe, folder: Path, workers: int | None, progress: Callable[[int], None] | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # remains of a killed build
    folder.mkdir(parents=True)
    encoder = Encoder(recipe.template, load_tokenizer(recipe.tokenizer), recipe.sequence_length)
    with _Writer(folder, recipe, encoder.tokenizer.vocab_size) as writer:
        paths = [source.path for source in recipe.sources]
        for source, rows, results in encode_files(paths, encoder, workers or own_cores(), recipe.part):
            writer.add(source, rows, results)
            if progress:
                progress(len(rows))


class _HashedFile:
    """A file that is being written, with the digest of its content, taken from memory."""

    def __init__(self, path: Path):
        self.path = path
        self._file, self._hash = open(path, "wb"), hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._hash.update(content)
        with files.naming(self.path):
            self._file.write(content)

    def close(self) -> None:
        with files.naming(self.path):
            self._file.close()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class _Writer:
    """Appends results to the files of a store; memory does not grow with the tokens."""

    def __init__(self, folder: Path, recipe: Recipe, vocab_size: int):
        self.folder, self.recipe = folder, recipe
        self.token_type = numpy.dtype(numpy.uint16 if vocab_size <= 1 << 16 else numpy.uint32)
        self.files = {name: _HashedFile(folder / f"{name}.bin") for name in ("tokens", *ARRAYS)}
        self.refused = _HashedFile(folder / "refused.jsonl")
        self.opened = [*self.files.values(), self.refused]
        self.lengths = collections.Counter()
        self.ledgers = [Ledger() for _ in recipe.sources]
        self.pairs: dict[str, int] = {}

    def __enter__(self) -> "_Writer":
        self._append("document_offsets", [0])
        self._append("span_offsets", [0])
        return self

    def _append(self, name: str, values) -> None:
        array = numpy.asarray(values, ARRAYS.get(name, self.token_type)).reshape(-1)
        self.files[name].write(array.tobytes())
        self.lengths[name] += len(array)

    def add(self, source: int, rows: list[Row], results: list[Result | None]) -> None:
        kept: list[tuple[Row, Encoded, str | None]] = []
        of_this_part = ((row, each) for row, each in zip(rows, results, strict=True) if each)
        for row, (result, pair) in of_this_part:
            self.ledgers[source].add(result)
            if isinstance(result, Refused):
                self._refuse(source, row, result)
            else:
                kept.append((row, result, pair or self.recipe.sources[source].pair))
        if not kept:
            return
        encoded = [each for _, each, _ in kept]
        offsets = {
            "document_offsets": self.lengths["tokens"] + numpy.cumsum([len(each.tokens) for each in encoded]),
            "span_offsets": self.lengths["spans"] // 2 + numpy.cumsum([len(each.spans) for each in encoded]),
        }
        for name, values in offsets.items():
            self._append(name, values)
        self._append("tokens", numpy.concatenate([each.tokens for each in encoded]))
        self._append("spans", numpy.concatenate([each.spans for each in encoded]))
        self._append("sources", [source] * len(kept))
        self._append("pairs", [self._pair_number(pair) for _, _, pair in kept])
        self._append("rows", [row.index for row, _, _ in kept])
        self._append("marks", [self._mark(each.tokens) for each in encoded])

    def _mark(self, tokens: numpy.ndarray) -> int:
        content = numpy.asarray(tokens, self.token_type).tobytes()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    def _pair_number(self, pair: str | None) -> int:
        return self.pairs.setdefault(pair, len(self.pairs)) if pair else -1

    def _refuse(self, source: int, row: Row, refusal: Refused) -> None:
        file = self.recipe.sources[source]
        entry = {
            "source": file.name,
            "row": row.index,
            "location": row.location.removeprefix(f"{file.path}:"),  # the file may be moved
            "reason": refusal.reason,
            "detail": refusal.detail,
        }
        self.refused.write(json_line(entry).encode())

    def __exit__(self, kind, *_) -> None:
        with ExitStack() as closing:  # closes all of them, even if the disk is full
            for file in self.opened:
                closing.callback(file.close)
        if kind is not None:
            return
        for ledger in self.ledgers:
            ledger.check()
        names = [source.name for source in self.recipe.sources]
        fields = {
            "format": FORMAT,
            "sources": names,
            "pairs": list(self.pairs),
            "token_type": self.token_type.name,
            "lengths": {name: self.lengths[name] for name in self.files},
            "ledgers": {name: ledger.as_dict() for name, ledger in zip(names, self.ledgers, strict=True)},
            "digests": {file.path.name: file.digest for file in self.opened},
        }
        (self.folder / "manifest.json").write_text(sealed_json(fields), encoding="utf-8")
