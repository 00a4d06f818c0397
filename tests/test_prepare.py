"""`fastling prepare`: the ledger, the refused rows, and that nothing is done twice."""

import errno
import itertools
import json
import os
import re
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from conftest import DEMO, config_of, tiny_settings

from fastling import locks, prepare
from fastling.data import store
from fastling.data.conversation import parse_row
from fastling.data.encoding import Encoder
from fastling.data.part import Part
from fastling.errors import UserError, run_command

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, you!"}]}
LONG = {"messages": [{"role": "user", "content": "Hi " * 500}, {"role": "assistant", "content": "Hello"}]}
OPEN = {"messages": [*GOOD["messages"], {"role": "user", "content": "And you?"}]}


def write(path: Path, rows) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def sources(tmp_path) -> list[dict]:
    """Two sources of one's own: one with a row of every fate, one that is fine."""
    mixed = [GOOD, LONG, "", "{broken", {**GOOD, "pair": "de-en"}, OPEN, {"a": 1}]
    return [
        {"name": "mixed", "path": write(tmp_path / "mixed.jsonl", mixed), "pair": "zh-en"},
        {"name": "fine", "path": write(tmp_path / "fine.jsonl", [GOOD] * 5)},
    ]


@pytest.fixture
def run(tiny_run, tmp_path, sources, capsys):
    """Run prepare on the two sources; return (its JSON, what it said, the run folder)."""

    def run(*arguments: str, **data) -> tuple[dict, str, Path]:
        config = tiny_run(data={"sources": sources, "validation": [], "max_refused_share": 0.9} | data)
        assert run_command(prepare.main, ["--config", str(config), "--json", *arguments]) == 0
        out, err = capsys.readouterr()
        assert len(out.splitlines()) == 1
        return json.loads(out), err, tmp_path / "run"

    return run


# The ledger -----------------------------------------------------------------------------------------


def test_every_row_and_every_token_is_accounted_for(run):
    found, _, _ = run()
    mixed, fine = found["sources"]["mixed"], found["sources"]["fine"]
    assert (mixed["rows"], mixed["kept"], mixed["cut"]) == (6, 3, 1)
    assert mixed["refused"] == {"too-long": 1, "broken-json": 1, "unknown-format": 1}
    assert mixed["dropped"].keys() == {"too-long", "after-last-answer"}
    assert (fine["rows"], fine["kept"], fine["refused"], fine["dropped"]) == (5, 5, {}, {})
    for ledger in (mixed, fine):
        assert ledger["rows"] == ledger["kept"] + sum(ledger["refused"].values())
        assert ledger["tokens"] == ledger["trained"] + ledger["masked"] + sum(ledger["dropped"].values())
    # The same conversation three times, five times: the same tokens each time.
    assert mixed["trained"] * 5 == fine["trained"] * 3


def test_a_share_of_the_conversations_is_held_out_and_never_trained_on(tiny_run, sources, tmp_path):
    lines = [json.loads(line) for line in (DEMO / "train.jsonl").read_text("utf-8").splitlines()]
    copies = [
        {"messages": line["messages"]} for line in lines[::-1]
    ]  # none beside the first, all without ids
    many = {"name": "many", "path": write(tmp_path / "many.jsonl", lines + copies)}
    data = {"sources": [*sources, many], "validation": [], "held_out_share": 0.2, "max_refused_share": 0.9}
    prepared = prepare.prepare_data(config_of("--config", tiny_run(data=data)))
    whole = prepare.prepare_data(
        config_of("--config", tiny_run(data=data | {"held_out_share": None}))
    ).training
    parts = prepared.stores

    def rows(number: int, store) -> list[int]:
        return store.rows[store.documents_of(number)].tolist()

    for number, (name, ledger) in enumerate(whole.ledgers.items()):
        assert sorted(sum((rows(number, part) for part in parts), [])) == rows(number, whole)
        for count in ("rows", "kept", "tokens", "trained", "masked"):
            assert sum(part.ledgers[name][count] for part in parts) == ledger[count]
    refused = [str(entry) for part in parts for entry in part.refused()]
    assert sorted(refused) == sorted(map(str, whole.refused()))
    held_out = prepared.validation.ledgers["many"]["kept"]
    assert 0.1 * 2 * len(lines) < held_out < 0.3 * 2 * len(lines)
    assert not any(prepared.trained_on.values())


def test_a_source_whose_held_out_rows_are_all_refused_does_not_stop(tiny_run, tmp_path):
    def row(number: int, times: int = 1) -> dict:
        return {"prompt": f"{number} " * times, "completion": "Hello"}

    part = Part(0.2, is_held_out=True)
    long = next(row(number, 500) for number in itertools.count() if part.has(parse_row(row(number, 500))))
    trained = [row(number) for number in range(20) if not part.has(parse_row(row(number)))]
    files = {"one": [long, *trained], "other": [row(number) for number in range(100, 140)]}
    sources = [
        {"name": name, "path": write(tmp_path / f"{name}.jsonl", rows)} for name, rows in files.items()
    ]
    data = {"sources": sources, "validation": [], "held_out_share": 0.2}
    prepared = prepare.prepare_data(config_of("--config", tiny_run(data=data)))
    one = prepared.validation.ledgers["one"]
    assert (one["rows"], one["kept"], one["refused"]) == (1, 0, {"too-long": 1})


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ([GOOD], {"held_out_share": 1e-9}, "data.held_out_share: holds out none of the 1 conversation(s): 1e-09"),
        ([GOOD], {"held_out_share": 1 - 1e-9}, "data.held_out_share: leaves none to train on of the 1 "),
        ([], {"held_out_share": 0.5}, "source mine: is empty, it has no rows: "),
        ([GOOD], {"held_out_share": 1}, "data.held_out_share: must be < 1: 1"),
        ([GOOD], {"held_out_share": 0.1, "validation": [{"name": "a", "path": "a.jsonl"}]},
         "data.held_out_share: has no effect beside data.validation: 0.1"),
    ],
)  # fmt: skip
def test_a_share_that_cannot_be_held_out_is_an_error(tiny_run, tmp_path, rows, changes, said):
    mine = {"name": "mine", "path": write(tmp_path / "mine.jsonl", rows)}
    path = tiny_run(data={"sources": [mine], "validation": []} | changes)
    with pytest.raises(UserError) as caught:
        prepare.prepare_data(config_of("--config", path))
    assert said in str(caught.value)


def test_the_ledger_is_said_in_words(run):
    found, said, _ = run()
    lines = [line.split() for line in said.replace("│", " ").replace(",", "").splitlines()]
    for name, ledger in found["sources"].items():
        (line,) = [line for line in lines if line[:1] == [name] and len(line) == 9]
        numbers = [ledger["rows"], ledger["kept"], ledger["cut"], sum(ledger["refused"].values())]
        numbers += [ledger["tokens"], ledger["trained"], ledger["masked"], sum(ledger["dropped"].values())]
        assert line[1:] == [str(number) for number in numbers]
    assert "mixed: 1 row refused: broken-json" in said
    dropped = found["sources"]["mixed"]["dropped"]["too-long"]
    assert f"mixed: {dropped:,} tokens dropped: too-long" in said
    assert f"{found['packs']} packs of 256 tokens, " in said


def test_the_ledger_is_kept_with_the_run(run):
    found, _, run_dir = run()
    assert json.loads((run_dir / "ledger.json").read_text()) == found
    assert not list(run_dir.glob("*.tmp"))


def test_the_ledger_of_what_a_run_was_trained_on_is_not_replaced_by_a_look_at_other_data(run):
    _, _, run_dir = run()
    ledger = (run_dir / "ledger.json").read_text()
    (run_dir / "manifest.json").write_text(json.dumps({"store": Path(json.loads(ledger)["store"]).name}))
    run("--train.steps", "3")  # the same data
    assert (run_dir / "ledger.json").read_text() != ledger
    ledger = (run_dir / "ledger.json").read_text()
    _, said, _ = run("--data.template", "vicuna")
    assert (run_dir / "ledger.json").read_text() == ledger
    assert "holds a run on other data: its ledger and refused rows stay" in said


def test_json_tells_the_plan(run):
    found, _, _ = run("--train.steps", "null", "--train.epochs", "2", "--train.global_batch_tokens", "512")
    assert found["sequence_length"] == 256 and found["template"] == "bayling"
    assert sum(found["packs_per_epoch"]) == found["packs"]
    assert found["steps"] == -(-found["packs"] // 2)
    assert 0 < found["fill"] <= 1
    assert Path(found["store"]).is_dir()


def test_held_out_data_has_a_ledger_of_its_own(run):
    validation = [{"name": "held-out", "path": "fastling:demo/held-out.jsonl"}]
    found, said, _ = run(validation=validation)
    assert found["sources"].keys() == {"mixed", "fine"}
    assert found["validation"]["held-out"]["rows"] == len((DEMO / "held-out.jsonl").read_text().splitlines())
    assert "held-out (held out)" in said


def test_copies_and_what_is_held_out_and_trained_on_are_told(run, tmp_path):
    """A held-out loss on what is trained on would tell of memory, and nothing else would say so."""
    other = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]}
    validation = [
        {"name": "leaking", "path": write(tmp_path / "leaking.jsonl", [other, GOOD])},
        {"name": "clean", "path": write(tmp_path / "clean.jsonl", [other])},
    ]
    found, said, _ = run(validation=validation)
    assert found["copies"] == {"mixed": 1, "fine": 5}  # of mixed's first row, whatever their pair
    assert found["validation_trained_on"] == {"leaking": 1, "clean": 0}
    assert "mixed: copies of earlier rows: 1" in said
    assert "leaking (held out): rows that are trained on, too: 1" in said
    assert "clean (held out)" not in said.split("dropped")[-1]


@pytest.mark.parametrize(("epochs", "shown"), [(1, 1), (2, 2)])
def test_a_held_out_row_that_no_step_shows_is_not_said_to_be_trained_on(run, tmp_path, epochs, shown):
    """With a weight of 0.5 an epoch shows one of two rows."""
    bye = {"messages": [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you!"}]}
    both = write(tmp_path / "both.jsonl", [GOOD, bye])
    data = {"sources": [{"name": "half", "path": both, "weight": 0.5}]}
    data["validation"] = [{"name": "leaking", "path": both}]
    found, _, _ = run("--train.steps", "null", "--train.epochs", str(epochs), **data)
    assert found["validation_trained_on"] == {"leaking": shown}


def test_a_source_that_the_steps_do_not_reach_is_told(run, tmp_path):
    few = {"name": "few", "path": write(tmp_path / "few.jsonl", [GOOD] * 2), "weight": 0.1}
    many = {"name": "many", "path": write(tmp_path / "many.jsonl", [GOOD] * 50)}
    _, said, _ = run("--train.steps", "1", sources=[few, many])
    assert "few: no step shows any of its rows" in said and "many: no step" not in said
    _, said, _ = run("--train.steps", "200", sources=[few, many])
    assert "no step shows" not in said


def test_epochs_that_make_few_steps_are_told_and_steps_that_were_asked_for_are_not(run):
    _, said, _ = run("--train.epochs", "1")
    assert "1 step(s) teach a model little: lower train.global_batch_tokens" in said
    _, said, _ = run("--train.steps", "1")
    assert "teach a model little" not in said


def test_without_json_nothing_is_on_stdout(tiny_run, sources, capsys):
    config = tiny_run(data={"sources": sources, "max_refused_share": 0.9})
    assert run_command(prepare.main, ["--config", str(config)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ledger: tokens = trained + masked + dropped")


def test_a_tokenizer_that_cannot_be_exported_is_refused_before_any_row_is_read(tiny_run, tmp_path, capsys):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Hello, you!"] * 20), model_prefix=str(tmp_path / "suffix"), model_type="bpe",
        vocab_size=280, byte_fallback=True, treat_whitespace_as_suffix=True, minloglevel=2,
    )  # fmt: skip
    data = {"tokenizer": str(tmp_path / "suffix.model"), "store": str(tmp_path / "store")}
    assert run_command(prepare.main, ["--config", str(tiny_run(data=data))]) == 2
    assert "suffix.model: no exact tokenizer.json can be built; it differs on" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_tokenizer_of_another_model_is_refused(tiny_run, tmp_path, capsys):
    lines = (DEMO / "train.jsonl").read_text(encoding="utf-8").splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "other"), model_type="bpe",
        vocab_size=1500, byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    (tmp_path / "base").mkdir()
    shape = dict.fromkeys(tiny_settings(tmp_path)["model"])
    for name, status in (("tokenizer.model", 0), ("other.model", 2)):
        path = tmp_path / name
        if name == "tokenizer.model":
            shutil.copy(DEMO / name, path)
            shutil.copy(DEMO / name, tmp_path / "base")
        model = shape | {"pretrained": str(tmp_path / "base")}
        config = tiny_run(model=model, data={"tokenizer": str(path)})
        assert run_command(prepare.main, ["--config", str(config)]) == status
    said = capsys.readouterr().err
    assert re.search(
        r"data.tokenizer: is unlike .*base/tokenizer.model: only \d+ of 1500 tokens are the same", said
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_position_embeddings": 128}, "data.sequence_length: the model takes at most 128 tokens"),
        ({"vocab_size": 100}, "data.tokenizer: has 2000 tokens, and the model's embedding has 100 rows"),
    ],
    ids=["length", "vocabulary"],
)
def test_data_that_does_not_fit_the_model_is_refused_before_any_row_is_read(
    tiny_run, tmp_path, capsys, fields, said
):
    base, model = tmp_path / "base", tiny_settings(tmp_path)["model"]
    base.mkdir()
    shutil.copy(DEMO / "tokenizer.model", base)
    config = tiny_run(
        model=dict.fromkeys(model) | {"pretrained": str(base)}, data={"store": str(tmp_path / "store")}
    )
    shape = {"model_type": "llama", "vocab_size": 2000, "max_position_embeddings": 256, **model}
    (base / "config.json").write_text(json.dumps(shape | fields))
    assert run_command(prepare.main, ["--config", str(config)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    (base / "config.json").write_text(json.dumps(shape))
    assert run_command(prepare.main, ["--config", str(config)]) == 0


def test_a_model_that_knows_conversations_in_another_form_is_told(tiny_run, tmp_path, capsys):
    """An export of one template, trained on with another, would answer well in neither."""
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(DEMO / "tokenizer.model", base)
    pretrained = dict.fromkeys(tiny_settings(tmp_path)["model"]) | {"pretrained": str(base)}
    for template, told in (("vicuna", False), ("bayling", True)):
        config = tiny_run(model=pretrained, data={"template": template})
        bound = prepare.make_encoder(config_of("--config", config)).template
        if not told:
            (base / "chat_template.jinja").write_text(bound.jinja())
        assert run_command(prepare.main, ["--config", str(config)]) == 0
        said = f"{base} has learned conversations by its chat_template.jinja (vicuna), which differs from"
        assert (f"{said} data.template bayling" in capsys.readouterr().err) is told


# Refused rows ---------------------------------------------------------------------------------------


def test_refused_rows_are_listed_with_file_and_line(run, tmp_path):
    _, _, run_dir = run(store=str(tmp_path / "store"))
    entries = [json.loads(line) for line in (run_dir / "refused.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["row"], entry["reason"]) for entry in entries] == [
        ("mixed", 1, "too-long"),
        ("mixed", 2, "broken-json"),
        ("mixed", 5, "unknown-format"),
    ]
    # The empty line 3 is no row, and yet counts as a line.
    assert [entry["location"] for entry in entries] == [
        f"{tmp_path}/mixed.jsonl:{line}" for line in (2, 4, 7)
    ]
    assert entries[2]["detail"].startswith("has the keys a;")


def test_refused_rows_that_were_held_out_are_listed_too(run, tmp_path):
    path = write(tmp_path / "held-out.jsonl", [GOOD, {"b": 1}])
    _, said, run_dir = run(validation=[{"name": "held-out", "path": path}])
    entries = [json.loads(line) for line in (run_dir / "refused.jsonl").read_text().splitlines()]
    assert "held-out (held out): 1 row refused: unknown-format" in said
    assert [entry["source"] for entry in entries] == [*["mixed"] * 3, "held-out"]
    assert entries[3]["location"] == f"{path}:2"


def test_without_refused_rows_the_list_is_there_and_empty(run, sources):
    _, _, run_dir = run(sources=sources[1:])
    assert (run_dir / "refused.jsonl").read_text() == ""


# Nothing twice --------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many conversations each call of Encoder.encode was given."""
    calls = []
    encode = Encoder.encode

    def spy(self, conversations):
        calls.append(len(conversations))
        return encode(self, conversations)

    monkeypatch.setattr(Encoder, "encode", spy)
    return calls


def test_unchanged_data_is_not_tokenized_again(run, encoded, tmp_path):
    first, said, _ = run(store=str(tmp_path / "store"))
    assert sum(encoded) == 4 + 5  # the rows that can be parsed
    encoded.clear()
    again, said_again, _ = run(store=str(tmp_path / "store"))
    assert encoded == []
    assert (again, said_again) == (first, said)


def test_changes_that_leave_the_tokens_alone_tokenize_nothing_again(run, encoded, sources, tmp_path):
    first, _, _ = run(store=str(tmp_path / "store"))
    encoded.clear()
    shutil.copyfile(sources[0]["path"], tmp_path / "moved.jsonl")
    sources[0]["path"] = str(tmp_path / "moved.jsonl")
    sources[1]["weight"] = 3.0
    again, _, _ = run(
        "--seed",
        "1",
        "--optimizer.lr",
        "0.5",
        "--run_dir",
        str(tmp_path / "run"),
        store=str(tmp_path / "store"),
    )
    assert encoded == []
    assert again["store"] == first["store"]


@pytest.mark.parametrize(
    "change",
    [
        lambda sources: {"sequence_length": 128},
        lambda sources: {"template": "vicuna"},
        lambda sources: write(Path(sources[1]["path"]), [GOOD] * 4) and {},
        lambda sources: sources[1].update(pair="de-en") or {},
        lambda sources: sources[1].update(name="other") or {},
    ],
    ids=["length", "template", "content", "pair", "name"],
)
def test_changed_data_is_tokenized_again(run, sources, tmp_path, change):
    first, _, _ = run(store=str(tmp_path / "store"))
    changes = change(sources)
    again, _, _ = run("--train.global_batch_tokens", "1024", store=str(tmp_path / "store"), **changes)
    assert again["store"] != first["store"]


# Sources --------------------------------------------------------------------------------------------


def test_a_weight_says_how_often_an_epoch_shows_a_source(run, sources):
    sources[1]["weight"] = 2.0
    arguments = ("--train.steps", "null", "--train.epochs", "1")
    config_and_plan = prepared(run, sources, arguments)
    shown = [config_and_plan.training.sources[number] for number in config_and_plan.plan.documents]
    assert [shown.count(source) for source in (0, 1)] == [3, 10]


def test_few_conversations_are_shown_in_some_epochs_only(run, sources):
    """With steps, an epoch that shows half a conversation is too little; over three epochs it is enough."""
    for source in sources:
        source["weight"] = 0.1  # of 3, and of 5
    plan = prepared(run, sources, ("--train.steps", "null", "--train.epochs", "3")).plan
    assert plan.packs_per_epoch == (0, 1, 1)


def test_a_source_of_which_all_epochs_show_nothing_is_named(run, sources, tiny_run, capsys):
    sources[0]["weight"] = 0.1  # of 3
    config = tiny_run(data={"sources": sources, "validation": [], "max_refused_share": 0.9})
    arguments = ["--config", str(config), "--train.steps", "null", "--train.epochs", "1"]
    assert run_command(prepare.main, arguments) == 2
    said = capsys.readouterr().err
    assert "source mixed: weight: is so low that 1 epoch(s) show no conversation: 0.3 of one" in said
    assert run_command(prepare.main, [*arguments, "--train.epochs", "2"]) == 0  # 0.6 of one


def test_names_that_look_like_markup_or_smileys_are_shown_as_they_are(run, sources):
    for source, name in zip(sources, ("x[/y]", "alpaca[zh] :smile:"), strict=True):
        source["name"] = name
    _, said, _ = run()
    assert "x[/y]: 1 row refused: broken-json" in said
    assert "alpaca[zh] :smile:" in said


def test_a_row_s_own_pair_stands_before_its_source_s(run, sources):
    training = prepared(run, sources, ()).training
    names = [*training.pair_names, None]  # -1: none
    pairs = [names[number] for number in training.pairs]
    assert pairs == ["zh-en", "de-en", "zh-en", *[None] * 5]


def prepared(run, sources, arguments) -> prepare.Prepared:
    """What prepare made, as training gets it."""
    found = []
    summary = prepare.summary

    def spy(made):
        found.append(made)
        return summary(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "summary", spy)
        run(*arguments)
    return found[0]


def test_a_damaged_store_says_what_to_delete(run, tiny_run, sources, tmp_path, capsys):
    found, _, _ = run(store=str(tmp_path / "store"))
    tokens = Path(found["store"]) / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    config = tiny_run(data={"sources": sources, "store": str(tmp_path / "store"), "validation": []})
    assert run_command(prepare.main, ["--config", str(config)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tokens}: has the wrong size\n  Delete {found['store']}; it will be rebuilt.\n"
    )


def test_a_store_s_folder_that_is_read_only_is_told_and_enough_where_the_store_is_there(
    run, tiny_run, sources, tmp_path, capsys, monkeypatch
):
    folder = str(tmp_path / "store")
    run(store=folder)

    def on_a_read_only_disk(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(locks, "open", on_a_read_only_disk, raising=False)
    run(store=folder)
    config = tiny_run(data={"sources": sources, "store": folder, "template": "vicuna"})
    assert run_command(prepare.main, ["--config", str(config)]) == 2
    said = f"data.store: cannot be written: {folder}: Read-only file system\n  Name another folder."
    assert said in capsys.readouterr().err


def test_the_default_store_is_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.default_store() == tmp_path / "fastling"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.default_store() == tmp_path / ".cache/fastling"


def test_a_cache_folder_whose_name_is_no_utf_8_is_kept_in_the_ledger(monkeypatch, tmp_path, tiny_run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caf\udce9"))
    arguments = ["--config", str(tiny_run()), "--data.store", "null"]
    prepared = prepare.prepare_data(config_of(*arguments))
    prepare.keep_records(prepared, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "ledger.json").read_text(encoding="utf-8"))
    assert kept["store"] == str(prepared.training.folder)
    assert "/caf\udce9/" in kept["store"]


def test_refused_rows_are_not_all_held_in_memory(monkeypatch, tmp_path):
    held = SimpleNamespace(refused=lambda: ({"detail": "x" * 10_000} for _ in range(2000)))
    monkeypatch.setattr(prepare, "summary", lambda prepared: {})
    tracemalloc.start()
    try:
        prepare.keep_records(SimpleNamespace(stores=[held]), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert (tmp_path / "refused.jsonl").read_text() == f'{{"detail": "{"x" * 10_000}"}}\n' * 2000


def test_without_a_home_folder_the_setting_to_use_is_named(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # known to no list of users
    with pytest.raises(UserError, match="data.store: is not set, and there is no home folder"):
        store.default_store()


def test_a_held_out_source_and_a_pair_of_other_rows_may_not_share_a_name(run, tmp_path, tiny_run, capsys):
    """One of the two losses would be told as the other's. Of the same rows it is one loss."""
    named = {"name": "zh-en", "path": write(tmp_path / "named.jsonl", [GOOD] * 2), "pair": "zh-en"}
    run(validation=[named])
    other = {"name": "other", "path": write(tmp_path / "other.jsonl", [{**GOOD, "pair": "zh-en"}])}
    config = tiny_run(data={"validation": [named, other]})
    assert run_command(prepare.main, ["--config", str(config)]) == 2
    assert "a source has the name of a language pair, but other rows: zh-en" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "pair"), [(["before"], None), (["a", "a_before"], None), (["a"], "before")]
)
def test_a_held_out_loss_may_not_have_the_name_of_an_earlier_one(tmp_path, tiny_run, capsys, names, pair):
    """Of all that is held out, or of another source: one of the two would be told as the other."""
    path = write(tmp_path / "held-out.jsonl", [GOOD])
    config = tiny_run(data={"validation": [{"name": name, "path": path, "pair": pair} for name in names]})
    assert run_command(prepare.main, ["--config", str(config)]) == 2
    said = f"data.validation: a source or language pair cannot have this name: {pair or names[-1]}\n"
    assert said in capsys.readouterr().err
