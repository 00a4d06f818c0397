"""The token store: named after its contents, built once, whole or absent."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pyarrow.parquet
import pytest

from fastling import workers
from fastling.data import encode_files as encode_files_module
from fastling.data import store as store_module
from fastling.data.conversation import parse_row
from fastling.data.encode_files import encode_files
from fastling.data.encoding import Encoder
from fastling.data.store import Recipe, SourceFile, Store, open_store
from fastling.data.template import TEMPLATES
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import RunError, UserError, run_command

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "fastling" / "demo" / "tokenizer.model"


def rows(count: int, word: str = "Zeile") -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{word} {i}"},
                {"role": "assistant", "content": "ja " * (i % 5 + 1)},
            ]
        }
        for i in range(count)
    ]


def write(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def recipe(*files: Path, **changes) -> Recipe:
    sources = tuple(SourceFile(file.stem, file, None) for file in files)
    return Recipe(
        **{
            "sources": sources,
            "tokenizer": TOKENIZER,
            "template": TEMPLATES["bayling"],
            "sequence_length": 200,
            **changes,
        }
    )


def encoder(template: str) -> Encoder:
    return Encoder(TEMPLATES[template], load_tokenizer(TOKENIZER), 200)


@pytest.fixture
def data(tmp_path) -> Path:
    return write(tmp_path / "data.jsonl", rows(30))


def arrays(store: Store) -> dict[str, list]:
    names = ("tokens", *store_module.ARRAYS)
    return {name: numpy.asarray(getattr(store, name)).tolist() for name in names}


# What is in it ------------------------------------------------------------------------------------


def test_a_store_holds_what_the_encoder_gives(tmp_path):
    first = write(tmp_path / "first.jsonl", [*rows(3), {"bad": 1}, *rows(2, "mehr")])
    second = write(
        tmp_path / "second.jsonl", [{**row, "pair": "en-de"} for row in rows(2, "noch")] + rows(1, "x")
    )
    sources = (SourceFile("first", first, "zh-en"), SourceFile("second", second, None))
    store = open_store(recipe(sources=sources), tmp_path / "store", workers=1)

    good = [*rows(3), *rows(2, "mehr"), *rows(2, "noch"), *rows(1, "x")]
    expected = encoder("bayling").encode([parse_row(row) for row in good])
    assert len(store) == len(expected) == 8
    for number, each in enumerate(expected):
        tokens, spans = store.document(number)
        assert tokens.tolist() == each.tokens.tolist()
        assert spans.tolist() == each.spans.tolist()
    assert store.document_tokens.tolist() == [len(each.tokens) for each in expected]
    assert store.document_turns.tolist() == [1] * 8
    assert store.document_supervised.tolist() == [each.supervised for each in expected]
    assert store.sources.tolist() == [0] * 5 + [1] * 3
    assert store.rows.tolist() == [0, 1, 2, 4, 5, 0, 1, 2]
    pairs = [store.pair_names[pair] if pair >= 0 else None for pair in store.pairs.tolist()]
    assert pairs == ["zh-en"] * 5 + ["en-de"] * 2 + [None]
    assert store.source_names == ["first", "second"]
    assert store.ledgers["first"]["rows"] == 6
    assert store.ledgers["first"]["refused"] == {"unknown-format": 1}
    total = sum(ledger["trained"] + ledger["masked"] for ledger in store.ledgers.values())
    assert total == len(store.tokens) == store.document_tokens.sum()


def test_refused_rows_are_listed_with_file_line_and_reason(tmp_path):
    path = tmp_path / "data.jsonl"
    good = [json.dumps(row).encode() for row in rows(20)]
    bad = [
        b"{broken",
        b'{"text": "\xff"}',
        b'{"\\ud800": "half a surrogate pair"}',
        json.dumps(rows(1, "lang " * 300)[0]).encode(),
    ]
    path.write_bytes(b"\n".join([*good, b"", *bad]))
    store = open_store(recipe(path), tmp_path / "store", workers=1)
    entries = list(store.refused())
    assert [(each["source"], each["row"], each["location"], each["reason"]) for each in entries] == [
        ("data", 20, f"{path}:22", "broken-json"),
        ("data", 21, f"{path}:23", "invalid-utf8"),
        ("data", 22, f"{path}:24", "unknown-format"),
        ("data", 23, f"{path}:25", "too-long"),
    ]
    assert "has the keys \\ud800" in entries[2]["detail"]
    assert "beyond 200" in entries[3]["detail"]


def test_a_refused_row_is_where_its_file_is_now(tmp_path):
    path = write(tmp_path / "data.jsonl", [*rows(3), {"bad": 1}])
    open_store(recipe(path), tmp_path / "store", workers=1)
    moved = path.rename(tmp_path / "moved.jsonl")
    store = open_store(recipe(sources=(SourceFile("data", moved, None),)), tmp_path / "store", workers=1)
    assert [entry["location"] for entry in store.refused()] == [f"{moved}:4"]
    assert str(path) not in (store.folder / "refused.jsonl").read_text()


def test_small_vocabularies_take_two_bytes_a_token(tmp_path, data):
    store = open_store(recipe(data), tmp_path / "store", workers=1)
    assert store.tokens.dtype == numpy.uint16
    assert isinstance(store.tokens, numpy.memmap)


# Its name -----------------------------------------------------------------------------------------


def test_the_name_follows_the_contents_not_paths_or_dates(tmp_path, data):
    key = recipe(data).key()
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = Path(shutil.copy(data, other / "other-name.jsonl"))
    os.utime(moved, (0, 0))
    tokenizer = Path(shutil.copy(TOKENIZER, other / "tokenizer.model"))
    os.utime(tokenizer, (0, 0))
    sources = (SourceFile("data", moved, None),)
    assert recipe(sources=sources).key() == key
    assert recipe(sources=sources, tokenizer=tokenizer).key() == key
    assert recipe(data, max_refused_share=0.5).key() == key  # decides about a store, is not in it


def test_the_name_changes_with_everything_that_a_store_depends_on(tmp_path, data, kinds):
    (tmp_path / "longer").mkdir()
    longer = write(tmp_path / "longer" / "data.jsonl", rows(31))
    renamed = Path(shutil.copy(data, tmp_path / "renamed.jsonl"))
    folder = tmp_path / "tokenizer"
    shutil.copytree(kinds["byte-level"].path.parent, folder)
    array = Path(shutil.copy(data, tmp_path / "data.json"))
    assert recipe(data).key() == recipe(array).key()  # read alike
    packed = Path(shutil.copy(data, tmp_path / "data.jsonl.gz"))  # by its name; it is not
    table = Path(shutil.copy(data, tmp_path / "data.parquet"))
    keys = [
        *(recipe(sources=(SourceFile("data", each, None),)).key() for each in (packed, table)),
        recipe(data).key(),
        recipe(longer).key(),
        recipe(renamed).key(),  # the source's name is in its ledger
        recipe(data, data).key(),
        recipe(data, renamed).key(),
        recipe(renamed, data).key(),
        recipe(sources=(SourceFile("data", data, "zh-en"),)).key(),
        recipe(data, sequence_length=201).key(),
        recipe(data, template=TEMPLATES["vicuna"]).key(),
        recipe(data, template=dataclasses.replace(TEMPLATES["bayling"], stop=("x",))).key(),
        recipe(data, tokenizer=kinds["sentencepiece"].path).key(),
        recipe(data, tokenizer=folder).key(),
    ]
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|end_of_text|>", "<|eot_id|>"))  # another end token
    keys.append(recipe(data, tokenizer=folder).key())
    (folder / "added_tokens.json").write_text('{"<extra>": 9999}')
    keys.append(recipe(data, tokenizer=folder).key())
    assert len(set(keys)) == len(keys)


def test_a_folder_as_a_source_is_an_error(tmp_path):
    folder = tmp_path / "x.jsonl"
    folder.mkdir()
    with pytest.raises(UserError, match="x.jsonl: cannot be read: Is a directory"):
        open_store(recipe(folder), tmp_path / "store")


def test_a_file_that_is_written_while_it_is_read_makes_no_store(tmp_path, data):
    """Rows that were not there when the store was named would be in it."""

    def write_on(_) -> None:
        with open(data, "a", encoding="utf-8") as file:
            file.write(json.dumps(rows(1, "later")[0]) + "\n")

    with pytest.raises(UserError, match="source data: changed while it was read: .*data.jsonl"):
        open_store(recipe(data), tmp_path / "store", workers=1, progress=write_on)
    assert not list((tmp_path / "store").glob("*/"))
    assert len(open_store(recipe(data), tmp_path / "store", workers=1)) == 31


# Built once ---------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_built(tmp_path, data):
    done = []
    first = open_store(recipe(data), tmp_path / "store", workers=1, progress=done.append)
    assert sum(done) == 30
    second = open_store(recipe(data), tmp_path / "store", workers=1, progress=done.append)
    assert sum(done) == 30
    assert arrays(first) == arrays(second)


@pytest.mark.parametrize(
    "quota, processes",
    [(None, 3), ("max 100000", 3), ("800000 100000", 3), ("150000 100000", 2), ("50000 100000", 1)],
)
def test_no_more_processes_tokenize_than_this_one_has_cores(tmp_path, data, monkeypatch, quota, processes):
    """As under Slurm, or in a container with a quota, on a machine with many more."""
    asked = []
    monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota:
        workers.CPU_QUOTA.write_text(f"{quota}\n")

    def encode_files(paths, encoder, workers, part):
        asked.append(workers)
        return iter(())

    monkeypatch.setattr(store_module, "encode_files", encode_files)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    with pytest.raises(UserError, match="source data: is empty"):
        open_store(recipe(data), tmp_path / "store")
    assert asked == [processes]


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from fastling.data.store import Recipe, SourceFile, open_store
from fastling.data.template import TEMPLATES

data, tokenizer, folder, log, mode = sys.argv[1:]
recipe = Recipe((SourceFile("data", Path(data), None),), Path(tokenizer), TEMPLATES["bayling"], 200)

def progress(rows):
    if mode == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    with open(log, "a") as file:
        file.write(f"{rows}\\n")

store = open_store(recipe, Path(folder), workers=1, progress=progress)
print(len(store), int(store.tokens.astype("int64").sum()))
"""


def start(data: Path, folder: Path, log: Path, mode: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, *map(str, (data, TOKENIZER, folder, log, mode))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_many_processes_build_a_store_once(tmp_path, data):
    log = tmp_path / "log"
    processes = [start(data, tmp_path / "store", log, "build") for _ in range(3)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs[0].startswith("30 ") and len(set(outputs)) == 1
    assert log.read_text() == "30\n"


def test_on_a_disk_without_locks_processes_of_a_machine_wait_for_each_other(tmp_path, data, no_locks):
    """By a lock elsewhere; other machines build aside, under a name of their own."""
    built, begun = [], threading.Event()

    def build(progress) -> None:
        built.append(arrays(open_store(recipe(data), tmp_path / "store", workers=1, progress=progress)))

    def slow(rows: int) -> None:
        begun.set()
        (aside,) = (tmp_path / "store").glob("*.tmp")
        assert aside.name.endswith(f"{os.uname().nodename}.tmp")
        time.sleep(0.2)  # in which the other would build, too

    first = threading.Thread(target=build, args=[slow], daemon=True)
    first.start()
    assert begun.wait(60)
    build(lambda rows: built.append("built twice"))
    first.join()
    assert len(built) == 2 and built[0] == built[1]


@pytest.mark.slow
def test_a_build_that_was_killed_leaves_nothing_that_is_used(tmp_path, data):
    folder = tmp_path / "store"
    process = start(data, folder, tmp_path / "log", "die")
    process.communicate(timeout=300)
    assert process.returncode == -9
    key = recipe(data).key()
    assert not (folder / key).exists()
    assert (folder / f"{key}.tmp" / "tokens.bin").exists()
    rebuilt = open_store(recipe(data), folder, workers=1)
    assert arrays(rebuilt) == arrays(open_store(recipe(data), tmp_path / "fresh", workers=1))
    assert sorted(path.name for path in folder.iterdir()) == [key, f"{key}.lock"]


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_store(tmp_path):
    """More than eight tasks, so that processes are started; with rows refused before and after encoding."""
    records = rows(2300)
    records[5], records[900], records[2299] = {"bad": 1}, {"text": ""}, rows(1, "lang " * 300)[0]
    path = write(tmp_path / "data.jsonl", records)
    one = open_store(recipe(path), tmp_path / "one", workers=1)
    two = open_store(recipe(path), tmp_path / "two", workers=2)
    names = sorted(file.name for file in one.folder.iterdir())
    assert names == sorted(file.name for file in two.folder.iterdir())
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    assert one.ledgers["data"]["refused"] == {"unknown-format": 1, "empty-turn": 1, "too-long": 1}


def test_rows_are_read_as_they_are_needed_not_all_at_once(data, monkeypatch):
    """Memory does not grow with the file: when the first results are there, the rest is not yet read."""
    taken = 0

    def counted(path, keys):
        nonlocal taken
        for row in original(path, keys):
            taken += 1
            yield row

    original = encode_files_module.read_rows
    monkeypatch.setattr(encode_files_module, "read_rows", counted)
    monkeypatch.setattr(encode_files_module, "ROWS_PER_TASK", 1)
    results = encode_files([data], encoder("bayling"), workers=1)
    next(results)
    assert taken == encode_files_module.FEW_TASKS
    next(results)
    results.close()


@pytest.mark.slow
def test_long_rows_are_worked_on_a_few_at_a_time(tmp_path):
    """Or memory would grow with the length of rows."""
    long = [{"text": "wort " * 60_000} for _ in range(10)]  # 0.3 MB each
    for name in ("data.jsonl", "data.json", "data.parquet"):
        path = tmp_path / name
        if name == "data.jsonl":
            write(path, long)
        elif name == "data.json":
            path.write_text(json.dumps(long))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(long), path)
        tasks = [len(task) for _, task, _ in encode_files([path], encoder("bayling"), workers=1)]
        assert tasks == [4, 4, 2]


@pytest.mark.slow
def test_a_killed_worker_is_explained(tmp_path):
    path = write(tmp_path / "data.jsonl", rows(6000))
    results = encode_files([path], encoder("bayling"), workers=2)
    next(results)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(RunError, match="data.workers: one of 2 processes was killed, .* memory"):
        list(results)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["unknown", "text"])
def test_rows_nested_too_deep_for_a_worker_are_refused_or_ignored(key, tmp_path):
    deep = json.loads("[" * 900 + "]" * 900)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([*rows(2300), {**rows(1)[0], "unknown": deep}, {key: deep}]))
    store = open_store(recipe(path), tmp_path / "store", workers=2)
    assert store.ledgers["data"]["kept"] == 2301
    assert store.ledgers["data"]["refused"] == {"unknown-format" if key == "unknown" else "not-text": 1}


def test_a_row_too_deep_to_be_shown_is_refused(monkeypatch):
    def too_deep(payload):
        raise RecursionError

    monkeypatch.setattr(encode_files_module, "parse_row", too_deep)
    ((refusal, _),) = encode_files_module.encode_rows(encoder("bayling"), [b"{}"])
    assert (refusal.reason, refusal.detail) == ("unknown-format", "nested too deep")


def test_two_builds_in_one_process_do_not_mix_their_encoders(data, monkeypatch):
    monkeypatch.setattr(encode_files_module, "ROWS_PER_TASK", 10)

    def lengths(template: str):
        for _, _, results in encode_files([data], encoder(template), workers=1):
            yield [len(result.tokens) for result, _ in results]

    mixed = list(zip(lengths("bayling"), lengths("vicuna"), strict=True))
    assert mixed == list(zip(list(lengths("bayling")), list(lengths("vicuna")), strict=True))


# Damage and bad data ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", *store_module.ARRAYS])
@pytest.mark.parametrize("damage", ["cut", "longer", "missing"])
def test_a_damaged_file_is_named(name, damage, tmp_path, data):
    store = open_store(recipe(data), tmp_path / "store", workers=1)
    path = store.folder / f"{name}.bin"
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] if damage == "cut" else content + b"\0")
    with pytest.raises(UserError, match=f"{name}.bin: has the wrong size\n  Delete .*; it will be rebuilt"):
        open_store(recipe(data), tmp_path / "store", workers=1)
    shutil.rmtree(store.folder)
    assert len(open_store(recipe(data), tmp_path / "store", workers=1)) == 30


@pytest.mark.parametrize("name", ["tokens.bin", "document_offsets.bin", "refused.jsonl"])
def test_a_flipped_bit_is_found_before_anything_is_used(name, tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl", [*rows(30), {"bad": 1}])
    store = open_store(recipe(path), tmp_path / "store", workers=1)
    content = bytearray((store.folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (store.folder / name).write_bytes(content)
    said = f"{name}: is not what was written\n  Delete {store.folder}; it will be rebuilt."
    with pytest.raises(UserError, match=said):
        open_store(recipe(path), tmp_path / "store", workers=1)
    monkeypatch.setenv("LOCAL_RANK", "1")  # trusts the one beside it, which stops them both
    open_store(recipe(path), tmp_path / "store", workers=1)


def test_a_missing_list_of_refused_rows_is_named(tmp_path, data):
    store = open_store(recipe(data), tmp_path / "store", workers=1)
    (store.folder / "refused.jsonl").unlink()
    with pytest.raises(UserError, match="refused.jsonl: is not what was written"):
        open_store(recipe(data), tmp_path / "store", workers=1)


@pytest.mark.parametrize("damage", ["cut", "empty", "{}", "[]", "another number", "deep"])
def test_a_damaged_manifest_is_named(damage, tmp_path, data):
    store = open_store(recipe(data), tmp_path / "store", workers=1)
    path = store.folder / "manifest.json"
    text = path.read_text()
    changed = {"cut": text[:200], "empty": "", "another number": text.replace("30", "31"), "deep": "[" * 9999}
    assert changed["another number"] != text
    path.write_text(changed.get(damage, damage))
    with pytest.raises(
        UserError, match="manifest.json: is not what was written\n  Delete .*; it will be rebuilt"
    ):
        open_store(recipe(data), tmp_path / "store", workers=1)


def test_a_full_disk_is_explained(tmp_path, data, monkeypatch, capsys):
    def opened(path, *mode, **options):
        return open("/dev/full" if Path(path).name == "tokens.bin" else path, *mode, **options)

    monkeypatch.setattr(store_module, "open", opened, raising=False)
    status = run_command(lambda arguments: open_store(recipe(data), tmp_path / "store", workers=1), [])
    aside = tmp_path / "store" / f"{recipe(data).key()}.tmp"
    said = f"error: {aside / 'tokens.bin'}: No space left on device\n"
    assert (status, capsys.readouterr().err) == (1, said)
    assert not aside.exists()  # it would keep the disk full


def test_too_many_refused_rows_stop_with_the_first_of_that_source(tmp_path):
    fine = write(tmp_path / "fine.jsonl", [*rows(20), {"bad": 1}])
    poor = write(tmp_path / "poor.jsonl", [*rows(6), {"text": ""}, {"text": 7}, {"text": ""}, rows(1)[0]])
    for share in (1.0, 0.3):
        assert (
            len(open_store(recipe(fine, poor, max_refused_share=share), tmp_path / "store", workers=1)) == 27
        )
    with pytest.raises(UserError) as stopped:
        open_store(recipe(fine, poor, max_refused_share=0.29), tmp_path / "store", workers=1)
    assert stopped.value.where == "source poor"
    assert stopped.value.what == "3 of 10 rows are refused: 2 empty-turn, 1 not-text"
    assert f"The first: {poor}:7: empty-turn turn 1 (text)" in stopped.value.fix
    assert "data.max_refused_share (0.29)" in stopped.value.fix
    listed = stopped.value.fix.split("All of them: ")[1].split(". data")[0]
    assert len(Path(listed).read_text().splitlines()) == 4


def test_rows_beyond_the_sequence_length_do_not_stop_while_any_is_left(tmp_path):
    long = {"text": "word " * 2000}
    path = write(tmp_path / "long.jsonl", [*rows(1), long, long])
    assert len(open_store(recipe(path, max_refused_share=0.0), tmp_path / "store", workers=1)) == 1
    path = write(tmp_path / "bad.jsonl", [*rows(1), long, {"text": ""}])
    with pytest.raises(UserError, match="2 of 3 rows are refused: 1 too-long, 1 empty-turn"):
        open_store(recipe(path, max_refused_share=0.3), tmp_path / "store", workers=1)


@pytest.mark.parametrize("others", [0, 5])
def test_a_source_without_any_kept_row_stops(others, tmp_path):
    bad = write(tmp_path / "bad.jsonl", [{"text": ""}, {"bad": 1}])
    files = [write(tmp_path / "good.jsonl", rows(others))] if others else []
    with pytest.raises(UserError, match="source bad: 2 of 2 rows are refused") as stopped:
        open_store(recipe(*files, bad), tmp_path / "store", workers=1)
    assert f"{bad}:1: empty-turn" in str(stopped.value)
    assert str(stopped.value).endswith("Nothing is left to train on.")  # however many are allowed


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_source_stops(content, tmp_path):
    path = tmp_path / "empty.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"source empty: is empty, it has no rows: {path}"):
        open_store(recipe(path), tmp_path / "store", workers=1)


def test_a_file_that_breaks_off_leaves_no_store(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows(5))[:-20])
    for _ in range(2):
        with pytest.raises(UserError, match="data.json:1: broken JSON"):
            open_store(recipe(path), tmp_path / "store", workers=1)
    path.write_text(json.dumps(rows(5)))
    assert len(open_store(recipe(path), tmp_path / "store", workers=1)) == 5


@pytest.mark.slow
def test_any_number_of_language_pairs_fits(tmp_path):
    records = [{"text": "a", "pair": f"p{number}"} for number in range(33_000)]
    store = open_store(recipe(write(tmp_path / "data.jsonl", records)), tmp_path / "store", workers=1)
    assert store.pairs.tolist() == list(range(33_000))


# Real data ----------------------------------------------------------------------------------------


@pytest.mark.skipif("FASTLING_DATA" not in os.environ, reason="FASTLING_DATA names no folder with real data")
def test_real_instructions_are_proved_with_llamas_tokenizer(tmp_path):
    folder = Path(os.environ["FASTLING_DATA"])
    sources = [folder / "instructions" / name for name in ("alpaca-zh.json", "sharegpt-dummy.json")]
    llama = recipe(*sources, tokenizer=folder / "tokenizers" / "llama.model", sequence_length=2048)
    store = open_store(llama, tmp_path / "store")
    for ledger in store.ledgers.values():
        assert set(ledger["refused"]) <= {"empty-turn"}
        assert ledger["kept"] >= 0.999 * ledger["rows"]
