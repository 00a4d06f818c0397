"""SentencePiece's normalization table (NFKC and variants) as steps of a tokenizer.json.

SentencePiece replaces, from left to right, the longest key of its table that begins at each position. The
tokenizers library has two steps that come close. `Precompiled` holds the table itself, but looks up whole
grapheme clusters: it loses marks that follow a key, and misses keys of six bytes. `NFKC` also joins and
reorders what no key spans. So a separator is put between any two characters that no key joins. Then NFKC
changes one key at a time, Precompiled does the rest of the table (spaces, lower case, and characters newer
than the Unicode of tokenizers) on clusters of one character each, and the separators are removed.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import groupby

import numpy as np
from tokenizers import Regex, normalizers

from fastling.errors import UserError

# Noncharacters, which no text has and none of the steps changes.
SEPARATOR = "\ufdd0"
STAND_INS = [chr(code) for code in range(0xFDD1, 0xFDF0)]
LABELS = np.arange(1, 256)
LONGEST_KEY_BYTES, MOST_NODES = 64, 5_000_000
"""More than any table has. In a damaged table keys may be endless or too many."""
MOST_UNLIKE = 100
"""Most keys that are replaced individually; a table with more is not based on NFKC."""
ALL = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]


@cache
def steps_of(charsmap: bytes) -> list[normalizers.Normalizer]:
    """The steps that do what a SentencePiece model's `precompiled_charsmap` says.

    A table that is not built on NFKC is left to `Precompiled` alone. Raises UserError for a damaged one.
    """
    table = read_table(charsmap)
    whole, nfkc = normalizers.Precompiled(charsmap), normalizers.NFKC()
    key_by_key = normalizers.Sequence([nfkc, whole, nfkc])  # the second NFKC joins what the table mapped
    # Table and tokenizers follow different Unicode versions: what only one of them changes is replaced
    # individually.
    unlike = [key for key, replacement in table.items() if key_by_key.normalize_str(key) != replacement]
    unchanged = [char for char in ALL if char not in table and nfkc.normalize_str(char) != char]
    if len(unlike) > MOST_UNLIKE or len(unchanged) > len(STAND_INS):
        return [whole]
    unlike.sort(key=len, reverse=True)
    hidden = list(zip(unchanged, STAND_INS, strict=False))
    return [
        *(normalizers.Replace(key, table[key]) for key in unlike),
        *(normalizers.Replace(char, stand_in) for char, stand_in in hidden),
        normalizers.Replace(Regex(_borders(table)), SEPARATOR),
        key_by_key,
        normalizers.Replace(SEPARATOR, ""),
        *(normalizers.Replace(stand_in, char) for char, stand_in in hidden),
    ]


def read_table(charsmap: bytes) -> dict[str, str]:
    """What each key of the table is replaced by. Raises UserError for a damaged table.

    Its format: the size of a trie, the trie as a double array of 32-bit units (as darts-clone writes it), and
    the replacements, each ended by a zero byte, to which the trie's leaves point.
    """
    try:
        (size,) = struct.unpack_from("<I", charsmap)
        units = np.frombuffer(charsmap, "<u4", size // 4, offset=4)
        return dict(_leaves(units, charsmap[4 + size :]))
    except (struct.error, ValueError, IndexError) as error:
        raise UserError("the tokenizer", f"its table of normalisation is damaged: {error}") from None


def _leaves(units: np.ndarray, replacements: bytes) -> Iterator[tuple[str, str]]:
    """Yield every key of the trie with its replacement. Raises ValueError or IndexError for a damaged one."""

    @cache  # Hangul's syllables have many equal suffix sets, which share a node
    def children(node: int) -> list[tuple[bytes, int, str | None]]:
        places = node ^ LABELS
        places = places[places < len(units)]
        # The top bit marks a leaf; the lowest byte is the label under which a unit is reached.
        found = places[units[places] & 0x800000FF == places ^ node]
        return [(bytes([place ^ node]), *child(place)) for place in found.tolist()]

    def child(place: int) -> tuple[int, str | None]:
        unit = int(units[place])
        node = place ^ _offset(unit)
        if not unit >> 8 & 1:
            return node, None
        start = int(units[node]) & 0x7FFFFFFF
        return node, replacements[start : replacements.index(b"\0", start)].decode()

    waiting, visited = [(_offset(int(units[0])), b"")], 0
    while waiting:
        node, start = waiting.pop()
        visited += 1
        if visited + len(waiting) > MOST_NODES:
            raise ValueError("it has too many keys")
        for label, below, replacement in children(node):
            key = start + label
            if len(key) > LONGEST_KEY_BYTES:
                raise ValueError("a key has no end")
            if replacement is not None:
                yield key.decode(), replacement
            waiting.append((below, key))


def _offset(unit: int) -> int:
    """How far a unit's children are from it, before the exclusive or with their labels."""
    return unit >> 10 << ((unit & 1 << 9) >> 6)


def _borders(table: Mapping[str, str]) -> str:
    """A pattern of the places, of width zero, between two characters that no key spans."""
    products = _products(key for key in table if len(key) > 1)
    # The separator occurs in no text; it keeps the character class from being empty.
    later = {SEPARATOR, *(char for product in products for chars in product[1:] for char in chars)}
    spans = "".join(f"(?!(?<={''.join(map(_class, before))}){_class(last)})" for *before, last in products)
    return rf"(?!\A)(?=[\s\S])(?:(?!{_class(later)})|{spans})"


def _products(keys: Iterable[str]) -> list[tuple[set[str], ...]]:
    """The keys as few products of sets: (A, B) is every a + b. All syllables of Hangul are one or two."""
    products = defaultdict(set)
    for key in keys:
        products[len(key), ()].add(key)
    done = []
    while products:
        longer = defaultdict(set)
        for (length, sets), rests in products.items():
            if length == 0:
                done.append(sets)
                continue
            # Characters with the same continuations form one set.
            by_rest = defaultdict(set)
            for rest in rests:
                by_rest[rest[1:]].add(rest[0])
            for rest, chars in by_rest.items():
                longer[length - 1, (*sets, frozenset(chars))].add(rest)
        products = longer
    return done


def _class(chars: Iterable[str]) -> str:
    return f"[{_ranges(chars)}]"


def _ranges(chars: Iterable[str]) -> str:
    """Characters as they stand in a class of a regular expression, by their numbers."""
    numbers = sorted(map(ord, chars))
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(run) for _, run in runs)]
    return "".join(f"\\x{{{start:X}}}-\\x{{{stop:X}}}" for start, stop in ends)
