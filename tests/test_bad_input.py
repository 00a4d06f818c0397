"""What a user gets wrong, and what fastling says to it: where, what, and how to mend it.

Every mistake is one row of a table, and the whole message is part of the row. None may end in a
traceback, none may say more than six lines, and none may leave anything behind that would disturb
the next start. FILES stands for a folder of broken files, CONFIG for the config, RUN for the run folder.
"""

import dataclasses
import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DEMO, run_python

from fastling import export, prepare, preview, train
from fastling.errors import MOST_LINES, RunError, UserError, run_command
from fastling.model.huggingface import config_json, hf_tensors
from fastling.model.llama import Llama, LlamaConfig
from fastling.model.safetensors_folder import save_weights
from fastling.training.build import make_loader

VERBS = {"prepare": prepare.main, "preview": preview.main, "train": train.main, "export": export.main}
GOOD_ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
TEMPLATE = 'user: "Q {content}"\nassistant: "A {content}{eos}"\n'
TOKENIZER_FIX = "\n  Llama-3's own tokenizer.model is a tiktoken file: use the tokenizer.json beside it."
HELP = "\n  --help shows every option."
EXAMPLES = "\n  See configs/ for examples."
ONE_OF_THE_TWO = "\n  Remove one of the two."
FROM_SCRATCH = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def sources(*paths: str, **more) -> dict:
    return {"sources": [{"name": f"source-{i}", "path": path, **more} for i, path in enumerate(paths)]}


def pretrained(folder: str) -> dict:
    return {"pretrained": folder, **dict.fromkeys(FROM_SCRATCH)}


# (name, verb, changes of a good config or its whole text, further arguments, what is said)
CONFIG_MISTAKES = [
    ("a section misspelled", {"optimiser": {"lr": 1}}, "CONFIG:1: unknown setting: optimiser\n  Did you mean optimizer?"),
    ("a key misspelled", {"optimizer": {"lrr": 1}}, "CONFIG:1: unknown setting: optimizer.lrr\n  Did you mean optimizer.lr?"),
    ("a key of another section", {"train": {"sequence_length": 8}}, "CONFIG:1: unknown setting: train.sequence_length\n  Did you mean data.sequence_length?"),
    ("another trainer's key", {"optimizer": {"learning_rate": 1}}, "CONFIG:1: unknown setting: optimizer.learning_rate\n  Did you mean optimizer.lr?"),
    ("a key of three sections", {"every_steps": 1}, "CONFIG:1: unknown setting: every_steps\n  Did you mean checkpoint.every_steps or evaluate.every_steps or log.every_steps?"),
    ("nothing like any key", {"xyzzy": 1}, "CONFIG:1: unknown setting: xyzzy\n  --help shows every setting."),
    ("a key with a dot", {"optimizer.lr": 1}, "CONFIG:1: unknown setting: optimizer.lr\n  Write it inside its section: optimizer: {lr: ...}."),
    ("a key of a source misspelled", {"data": sources("x.jsonl", wieght=2)}, "CONFIG:1: unknown setting: data.sources[0].wieght\n  Did you mean data.sources[0].weight?"),
    ("a source without path", {"data": {"sources": [{"name": "a"}]}}, "CONFIG:1: data.sources[0]: lacks path"),
    ("a source without anything", {"data": {"sources": [{"name": "a", "path": "b"}, {}]}}, "CONFIG:1: data.sources[1]: lacks name"),
    ("a source with an empty name", {"data": {"sources": [{"name": "", "path": "a.jsonl"}]}}, "data.sources: a source needs a name: a.jsonl"),
    ("a path as source", {"data": {"sources": ["a.jsonl"]}}, "CONFIG:1: data.sources[0]: expected {name, path, weight, pair}: a.jsonl"),
    ("one source, no list", {"data": {"sources": {"name": "a", "path": "b"}}}, "CONFIG:1: data.sources: expected a list: a mapping"),
    ("a weight in words", {"data": sources("a", "b", weight="many")}, "CONFIG:1: data.sources[0].weight: expected a number: many"),
    ("two sources of one name", {"data": {"sources": [{"name": "a", "path": "b"}] * 2}}, "data.sources: two sources have one name: a\n  Name them apart."),
    ("text for a number", {"optimizer": {"lr": "abc"}}, "CONFIG:1: optimizer.lr: expected a number: abc"),
    ("nothing for a number", {"optimizer": {"lr": None}}, "CONFIG:1: optimizer.lr: expected a number: nothing"),
    ("a list for a number", {"optimizer": {"lr": [1]}}, "CONFIG:1: optimizer.lr: expected a number: a list"),
    ("not a number", {"optimizer": {"lr": "nan"}}, "CONFIG:1: optimizer.lr: expected a number: nan"),
    ("half a step", {"train": {"steps": 1.5}}, "CONFIG:1: train.steps: expected a whole number: 1.5"),
    ("text for yes or no", {"train": {"compile": "maybe"}}, "CONFIG:1: train.compile: expected true or false: maybe"),
    ("a number for text", {"run_dir": 5}, "CONFIG:1: run_dir: expected text: 5\n  Put it in quotes."),
    ("a list for a section", {"optimizer": [1]}, "CONFIG:1: optimizer: expected {lr, schedule, warmup_ratio, decay_ratio, ...}: a list"),
    ("text for a section", {"model": "llama"}, "CONFIG:1: model: expected {pretrained, kernels, attention, model_type, ...}: llama"),
    ("a bad choice", {"train": {"loss": "tokens"}}, "CONFIG:1: train.loss: must be one of token, turn, sample: tokens\n  Did you mean token?"),
    ("a family we have not", {"model": {"model_type": "gpt2"}}, "CONFIG:1: model.model_type: must be one of llama, mistral, qwen2, qwen3: gpt2"),
    ("a negative rate", {"optimizer": {"lr": -1}}, "CONFIG:1: optimizer.lr: must be > 0: -1"),
    ("a negative length", {"data": {"sequence_length": -256}}, "CONFIG:1: data.sequence_length: must be > 0: -256"),
    ("a negative weight", {"data": sources("a.jsonl", weight=-1)}, "CONFIG:1: data.sources[0].weight: must be > 0: -1"),
    ("a negative seed", {"seed": -1}, "CONFIG:1: seed: must be >= 0: -1"),
    ("negative samples", {"evaluate": {"samples": -1}}, "CONFIG:1: evaluate.samples: must be >= 0: -1"),
    ("steps of zero", {"checkpoint": {"every_steps": 0}}, "CONFIG:1: checkpoint.every_steps: must be > 0: 0"),
    ("a share above 1", {"optimizer": {"warmup_ratio": 3}}, "CONFIG:1: optimizer.warmup_ratio: must be <= 1: 3"),
    ("a share of rows above 1", {"data": {"max_refused_share": 10}}, "CONFIG:1: data.max_refused_share: must be <= 1: 10"),
    ("a moment without end", {"optimizer": {"beta2": 1}}, "CONFIG:1: optimizer.beta2: must be < 1: 1"),
    ("an empty run folder", {"run_dir": ""}, "run_dir: is empty\n  Name a folder."),
    ("epochs beside steps", {"train": {"epochs": 2}}, "train.epochs: has no effect beside train.steps: 2" + ONE_OF_THE_TWO),
    ("a shape beside a folder", {"model": {"pretrained": "x"}}, "model.hidden_size: has no effect beside model.pretrained, which has its own shape: 32" + ONE_OF_THE_TWO),
    ("decay without wsd", {"optimizer": {"decay_ratio": 0.1}}, "optimizer.decay_ratio: has no effect with schedule cosine: 0.1" + ONE_OF_THE_TWO),
    ("a constant rate that falls", {"optimizer": {"schedule": "constant", "min_lr_ratio": 0.1}}, "optimizer.min_lr_ratio: has no effect with schedule constant: 0.1" + ONE_OF_THE_TWO),
    ("a weight on held-out data", {"data": {"validation": [{"name": "a", "path": "b", "weight": 2}]}}, "data.validation (a).weight: has no effect on held-out data, which is read once: 2.0" + ONE_OF_THE_TWO),
    ("no sources", {"data": {"sources": []}}, "data.sources: names no data\n  Give a list of {name, path}."),
    ("no tokenizer", {"data": {"tokenizer": None}}, "data.tokenizer: is not set\n  Name a tokenizer.model or a tokenizer.json."),
    ("a batch of broken packs", {"train": {"global_batch_tokens": 1000}}, "train.global_batch_tokens: is no multiple of data.sequence_length (256): 1000\n  The nearest that is: 1024."),
]  # fmt: skip
TEXT_MISTAKES = [
    ("a bracket left open", "seed: [1\nrun_dir: x\n", "CONFIG:2: is not valid YAML: expected ',' or ']', but got ':'" + EXAMPLES),
    ("a tab", "train:\n\tsteps: 1\n", "CONFIG:2: is not valid YAML: found character '\\t' that cannot start any token" + EXAMPLES),
    ("two documents", "seed: 1\n---\nseed: 2\n", "CONFIG:2: is not valid YAML: but found another document" + EXAMPLES),
    ("a list", "- seed\n", "CONFIG: holds no settings" + EXAMPLES),
    ("nothing", "", "CONFIG: holds no settings" + EXAMPLES),
    ("comments only", "# seed: 1\n", "CONFIG: holds no settings" + EXAMPLES),
    ("a key twice", "run_dir: x\nseed: 1\nseed: 2\n", "CONFIG:3: seed: is given twice" + ONE_OF_THE_TWO),
    ("a mapping as key", "? {a: b}\n: 1\n", "CONFIG:1: is not valid YAML: found unhashable key" + EXAMPLES),
    ("a list that holds itself", "data: {sources: &a [*a]}\n", "CONFIG:1: data.sources[0]: expected {name, path, weight, pair}: a list"),
    ("code in a tag", "seed: !!python/object/apply:os.getpid []\n", "CONFIG:1: is not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getpid'" + EXAMPLES),
    ("an impossible date", "run_dir: 2026-13-45\n", "CONFIG: is not valid YAML: month must be in 1..12" + EXAMPLES),
    ("Latin-1", "run_dir: Gr\xf6\xdfe\n".encode("latin-1"), "CONFIG: is not UTF-8: byte 11\n  Save it as UTF-8."),
    ("UTF-16", "seed: 1\n".encode("utf-16"), "CONFIG: is not UTF-8: byte 0\n  Save it as UTF-8."),
]  # fmt: skip
ARGUMENT_MISTAKES = [
    ("a misspelled setting", ["--optimizer.lrr", "1"], "command line: unknown setting: optimizer.lrr\n  Did you mean optimizer.lr?"),
    ("a setting without its section", ["--lr", "1"], "command line: unknown setting: lr\n  Did you mean optimizer.lr?"),
    ("hyphens", ["--run-dir=x"], "command line: unknown setting: run-dir\n  Did you mean run_dir?"),
    ("half a name", ["--optimizer.weight", "1"], "command line: unknown setting: optimizer.weight\n  Did you mean optimizer.weight_decay?"),
    ("a whole section", ["--optimizer", "{lr: 1}"], "command line: unknown setting: optimizer\n  Did you mean optimizer.lr?"),
    ("a stray word", ["train.jsonl"], "fastling prepare: unexpected: train.jsonl" + HELP),
    ("no value", ["--optimizer.lr"], "fastling prepare: argument --optimizer.lr: expected one argument" + HELP),
    ("text for a number", ["--optimizer.lr", "fast"], "--optimizer.lr: expected a number: fast"),
    ("infinity", ["--optimizer.lr", "inf"], "--optimizer.lr: expected a number: inf"),
    ("an open bracket", ["--data.sources", "[{"], "--data.sources: expected a list: [{"),
    ("a key of a source", ["--data.sources", "[{name: a, paht: b}]"], "command line: unknown setting: data.sources[0].paht\n  Did you mean data.sources[0].path?"),
    ("a bad choice", ["--model.attention", "flash"], "--model.attention: must be one of auto, flash3, flash2, torch, xformers, sdpa: flash\n  Did you mean flash3?"),
    ("no config there", ["--config", "FILES/none.yaml"], "--config: no such file or folder: FILES/none.yaml\n  Looked for FILES/none.yaml."),
    ("a folder as config", ["--config", "FILES"], "FILES: cannot be read: Is a directory\n  Give a YAML file."),
    ("a config without name", ["--config"], "fastling prepare: argument --config: expected one argument" + HELP),
]  # fmt: skip
DATA_MISTAKES = [
    ("a source that is not there", sources("FILES/none.jsonl"), "source source-0: no such file or folder: FILES/none.jsonl\n  Looked for FILES/none.jsonl."),
    ("a source that does not come with fastling", sources("fastling:demo/none.jsonl"), "source source-0: no such file or folder: fastling:demo/none.jsonl\n  Looked for DEMO/none.jsonl."),
    ("a folder as source", sources("FILES"), "FILES: cannot be read: Is a directory"),
    ("a source of an unknown kind", sources("FILES/rows.txt"), "FILES/rows.txt: unknown kind of file\n  Use .json, .jsonl, .jsonl.gz, .jsonl.zst or .parquet."),
    ("an empty source", sources("FILES/empty.jsonl"), "source source-0: is empty: it has no rows"),
    ("every row refused", sources("FILES/refused.jsonl"), "source source-0: 3 of 3 rows are refused: 3 unknown-format\n  The first: FILES/refused.jsonl:1: unknown-format has the keys a;"),
    ("too many rows refused", sources("FILES/half.jsonl"), "source source-0: 1 of 2 rows are refused: 1 broken-json\n  The first: FILES/half.jsonl:3: broken-json column 2:"),
    ("a broken JSON array", sources("FILES/broken.json"), "FILES/broken.json:2: broken JSON: "),
    ("a cut .gz", sources("FILES/cut.jsonl.gz"), "FILES/cut.jsonl.gz: cannot be read: "),
    ("a .parquet that is none", sources("FILES/text.parquet"), "FILES/text.parquet: cannot be read as parquet: "),
    ("a tokenizer that is not there", {"tokenizer": "FILES/none.model"}, "data.tokenizer: no such file or folder: FILES/none.model\n  Looked for FILES/none.model."),
    ("random bytes as tokenizer", {"tokenizer": "FILES/random.model"}, "FILES/random.model: is not a SentencePiece model" + TOKENIZER_FIX),
    ("text as tokenizer", {"tokenizer": "FILES/rows.txt"}, "FILES/rows.txt: is not a SentencePiece model" + TOKENIZER_FIX),
    ("a tiktoken file", {"tokenizer": "FILES/tiktoken.model"}, "FILES/tiktoken.model: is not a SentencePiece model" + TOKENIZER_FIX),
    ("text as tokenizer.json", {"tokenizer": "FILES/text.json"}, "FILES/text.json: is not a tokenizer.json: "),
    ("an empty object as tokenizer.json", {"tokenizer": "FILES/object.json"}, "FILES/object.json: is not a tokenizer.json: "),
    ("a folder without tokenizer", {"tokenizer": "FILES/nothing"}, "FILES/nothing: holds neither tokenizer.json nor tokenizer.model"),
    ("an unknown template", {"template": "baylin"}, "data.template: no such template: baylin\n  Use bayling, vicuna, alpaca, llama2, llama3, chatml, or a .yaml file."),
    ("a template that is not there", {"template": "FILES/none.yaml"}, "data.template: no such file: FILES/none.yaml"),
    ("a template that is no YAML", {"template": "FILES/open.yaml"}, "FILES/open.yaml: is not valid YAML: "),
    ("a template that is a list", {"template": "FILES/list.yaml"}, "FILES/list.yaml: a template needs at least the patterns user and assistant"),
    ("a template's key misspelled", {"template": "FILES/sytem.yaml"}, "FILES/sytem.yaml: unknown setting: sytem\n  A template has: "),
    ("a number as pattern", {"template": "FILES/number.yaml"}, "FILES/number.yaml: user must be text: 5"),
    ("a pattern with two contents", {"template": "FILES/twice.yaml"}, "template twice: user needs {content} exactly once"),
    ("an answer without end", {"template": "FILES/endless.yaml"}, "template endless: a control token must follow {content} in assistant: it is how an answer ends\n  Write {eos} there, or list the token under control_tokens."),
    ("a system text without system", {"template": "FILES/unused.yaml"}, "template unused: default_system has no effect without system"),
    ("a begin with content", {"template": "FILES/begin.yaml"}, "template begin: begin has no place for {content}"),
    ("a template's token that is not there", {"template": "FILES/token.yaml"}, "data.template: token: needs the token <|u|>, which DEMO/tokenizer.model does not have\n  Choose a template that was made for this tokenizer."),
    ("another model's template", {"template": "llama3"}, "data.template: llama3: needs the token <|start_header_id|>, which DEMO/tokenizer.model does not have\n  Choose"),
    ("a store in a file", {"store": "FILES/rows.txt"}, "data.store: cannot be written: FILES/rows.txt: File exists"),
]  # fmt: skip
PREVIEW_MISTAKES = [
    ("rows in words", ["--rows", "first"], "--rows: must be a row or a range such as 0-9: first"),
    ("rows backwards", ["--rows", "9-3"], "--rows: must be a row or a range such as 0-9: 9-3"),
    ("a huge row", ["--rows", "9" * 30], f"--rows: must be a row or a range such as 0-9: {'9' * 30}"),
    ("rows beyond the end", ["--rows", "100000-100001"], "--rows: no source has such rows: 100000-100001\n  Rows count from 0."),
    ("an unknown source", ["--source", "dmeo"], "--source: no such source: dmeo\n  There are: demo, held-out."),
    ("a page beside JSON", ["--json", "--html", "x.html"], "--html: has no effect beside --json: x.html" + ONE_OF_THE_TWO),
    ("no sources", ["--data.sources", "[]"], "data.sources: names no data\n  Give a list of {name, path}."),
]  # fmt: skip
MODEL_MISTAKES = [
    ("half a shape", {"model": {"hidden_size": None}}, "model.hidden_size: is not set\n  Give model.pretrained, or the whole shape of a new model."),
    ("heads that do not divide", {"model": {"num_attention_heads": 5}}, "model.num_attention_heads: does not divide hidden_size 32: 5"),
    ("negative layers", {"model": {"num_hidden_layers": -2}}, "CONFIG:1: model.num_hidden_layers: must be > 0: -2"),
    ("sequences beyond the positions", {"model": {"max_position_embeddings": 64}}, "data.sequence_length: the model takes at most 64 tokens, by max_position_embeddings: 256"),
    ("a vocabulary too small", {"model": {"vocab_size": 10}}, "data.tokenizer: has 2000 tokens, and the model's embedding has 10 rows\n  Use the tokenizer that the model was made with."),
    ("a folder that is not there", {"model": pretrained("FILES/none")}, "model.pretrained: no such file or folder: FILES/none\n  Looked for FILES/none."),
    ("a folder without model", {"model": pretrained("FILES/nothing")}, "FILES/nothing: holds no model: there is no config.json\n  Give a Hugging Face folder (config.json) or Meta's original files (params.json)."),
    ("another model family", {"model": pretrained("FILES/gpt2")}, "FILES/gpt2/config.json: model_type 'gpt2' is not supported; these are: llama, mistral, qwen2, qwen3"),
    ("a model of another shape", {"model": pretrained("FILES/shape")}, "FILES/shape: does not fit its config:\n  misshapen: model.layers.0.mlp.down_proj.weight is (32, 64), the config says (32, 96)\n"),
    ("pickles", {"model": pretrained("FILES/pickle")}, "FILES/pickle: holds pickle files (.bin), which can run code\n  Convert it: transformers' save_pretrained writes safetensors."),
    ("damaged weights", {"model": pretrained("FILES/damaged")}, "FILES/damaged/model.safetensors: is damaged: "),
    ("a model without tokenizer", {"model": pretrained("FILES/good"), "data": {"tokenizer": None}}, "FILES/good: holds neither tokenizer.json nor tokenizer.model"),
    ("micro-batches below a pack", {"train": {"micro_batch_tokens": 100}}, "train.micro_batch_tokens: is less than one pack (data.sequence_length 256): 100\n  Give at least 256, or a shorter data.sequence_length."),
    ("copies that do not divide", {"parallel": {"replicate": 3}}, "parallel.replicate: does not divide the 1 processes: 3"),
    ("a backend that cannot run", {"model": {"attention": "flash2"}}, "model.attention: 'flash2' cannot run on cpu in torch.float32: needs a CUDA device\n  auto picks one that can run"),
    ("kernels that cannot run", {"model": {"kernels": "triton"}}, "model.kernels: "),
    ("a file as run folder", {"run_dir": "FILES/rows.txt"}, "run_dir: cannot be written: "),
    ("a run folder inside a file", {"run_dir": "FILES/rows.txt/run"}, "run_dir: cannot be written: "),
]  # fmt: skip
EXPORT_MISTAKES = [
    ("nothing", [], "fastling export: the following arguments are required: --run, --out" + HELP),
    ("unknown numbers", ["--run", "RUN", "--out", "OUT", "--dtype", "int8"], "fastling export: argument --dtype: invalid choice: 'int8' (choose from"),
    ("half an option", ["--run", "RUN", "--out", "OUT", "--dtyp", "fp16"], "command line: unknown setting: dtyp\n  Did you mean dtype?"),
    ("a folder without run", ["--run", "FILES", "--out", "OUT"], "--run: holds no run: FILES\n  A run folder has a config.yaml and checkpoints/."),
    ("a run without checkpoint", ["--run", "FILES/begun", "--out", "OUT"], "FILES/begun: has no checkpoint yet\n  Training writes one every checkpoint.every_steps."),
    ("onto somebody's folder", ["--run", "RUN", "--out", "FILES/thesis"], "FILES/thesis: exists and is not an export\n  Name another folder, or delete it."),
    ("onto the run itself", ["--run", "RUN", "--out", "RUN"], "RUN: exists and is not an export\n  Name another folder, or delete it."),
    ("onto a file", ["--run", "RUN", "--out", "FILES/rows.txt"], "FILES/rows.txt: exists and is not an export\n  Name another folder, or delete it."),
    ("into a file", ["--run", "RUN", "--out", "FILES/rows.txt/out"], "FILES/rows.txt/out: cannot be written: "),
]  # fmt: skip


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The folder of broken files."""
    folder = tmp_path_factory.mktemp("broken")
    row = json.dumps(GOOD_ROW)
    texts = {
        "rows.txt": row,
        "empty.jsonl": "\n",
        "refused.jsonl": '{"a": 1}\n' * 3,
        "half.jsonl": f"{row}\n\n{{broken\n",
        "broken.json": f"[{row},\n{{]",
        "cut.jsonl.gz": "\x1f",
        "text.parquet": "PAR",
        "tiktoken.model": "IQ== 0\nIg== 1\nIw== 2\n" * 100,
        "text.json": "hello",
        "object.json": "{}",
        "open.yaml": "user: [",
        "list.yaml": "- user",
        "sytem.yaml": TEMPLATE + "sytem: x",
        "number.yaml": TEMPLATE.replace('"Q {content}"', "5"),
        "twice.yaml": TEMPLATE.replace("Q", "{content}"),
        "endless.yaml": TEMPLATE.replace("{eos}", ""),
        "unused.yaml": TEMPLATE + "default_system: x",
        "begin.yaml": TEMPLATE + 'begin: "{content}"',
        "token.yaml": TEMPLATE.replace("Q", "<|u|>") + 'control_tokens: ["<|u|>"]',
        "nothing/nothing": "",
        "thesis/thesis.tex": "years of work",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="latin-1")
    (folder / "random.model").write_bytes(bytes(range(256)) * 16)
    for name in ("good", "gpt2", "shape", "pickle", "damaged"):
        make_model(folder / name)
    (folder / "pickle/model.safetensors").rename(folder / "pickle/pytorch_model.bin")
    (folder / "damaged/model.safetensors").write_bytes(b"\xff" * 100)
    for name, key, value in (("gpt2", "model_type", "gpt2"), ("shape", "intermediate_size", 96)):
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**config, key: value}))
    return folder


def make_model(folder: Path) -> None:
    """A pretrained folder, weights and config.json only, with as many tokens as the demo's tokenizer has."""
    folder.mkdir()
    shape = LlamaConfig(
        vocab_size=2000, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    save_weights(hf_tensors(Llama(shape)), folder)
    config = config_json(shape, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def say(tiny_run, broken, tmp_path, capsys):
    """Run a verb with a mistake; return its exit status and what it said.

    The placeholders of the tables are put in on the way in, and put back on the way out.
    """

    def run(verb: str, *arguments: str, text: str | bytes | None = None, **changes) -> tuple[int, str]:
        places = {"FILES": str(broken), "OUT": str(tmp_path / "out")}
        if verb != "export":
            config = tiny_run(**changes)
            filled = config.read_text().replace("FILES", str(broken))
            config.write_bytes(
                filled.encode() if text is None else text if isinstance(text, bytes) else text.encode()
            )
            places["CONFIG"] = str(config)
            arguments = ("--config", str(config), *arguments)
        for name, path in places.items():
            arguments = [each.replace(name, path) for each in arguments]
        status = run_command(VERBS[verb], arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "Traceback" not in out
        assert out == ""
        # A training has shown its ledger by the time that it looks at the device.
        assert err.startswith("error: ") or err.startswith("ledger: ") and verb == "train", err
        message = err[err.index("error: ") :]
        assert len(message.splitlines()) <= MOST_LINES
        for name, path in [*places.items(), ("DEMO", str(DEMO))]:
            message = message.replace(path, name)
        return status, message

    yield run
    # Nothing that the next start would take for a run that has begun, or for an export.
    run_dir = tmp_path / "run"
    assert not any((run_dir / name).exists() for name in ("metrics.jsonl", "export", "loss.png"))
    assert not list(run_dir.glob("checkpoints/*"))
    assert not (tmp_path / "out").exists()


def table(rows):
    return pytest.mark.parametrize("case", [pytest.param(row, id=row[0]) for row in rows])


@table(CONFIG_MISTAKES)
def test_a_mistake_in_the_config(say, tmp_path, case):
    _, changes, expected = case
    status, message = say("prepare", **changes)
    assert message == f"error: {expected}\n"
    assert status == 2
    assert not (tmp_path / "run").exists()


@table(TEXT_MISTAKES)
def test_a_config_that_is_no_config(say, tmp_path, case):
    _, text, expected = case
    assert say("preview", text=text) == (2, f"error: {expected}\n")
    assert not (tmp_path / "run").exists()


@table(ARGUMENT_MISTAKES)
def test_a_mistake_on_the_command_line(say, tmp_path, case):
    _, arguments, expected = case
    assert say("prepare", *arguments) == (2, f"error: {expected}\n")
    assert not (tmp_path / "run").exists()


@table(DATA_MISTAKES)
def test_a_mistake_in_the_data(say, tmp_path, case):
    _, changes, expected = case
    status, message = say("prepare", data=changes)
    assert message.startswith(f"error: {expected}")
    assert status == 2
    assert not (tmp_path / "run").exists()


def test_the_refused_rows_can_all_be_read(say, broken):
    """The message names the first refused row, the file with all of them, and the setting that allows more."""
    _, message = say("prepare", data=sources("FILES/half.jsonl"))
    path = Path(message.split("All of them: ")[1].split(". data.max")[0])
    (entry,) = map(json.loads, path.read_text().splitlines())
    assert (entry["source"], entry["row"], entry["reason"]) == ("source-0", 1, "broken-json")
    assert entry["location"] == f"{broken}/half.jsonl:3"
    assert "data.max_refused_share (0.1) says how many are too many." in message


@table(PREVIEW_MISTAKES)
def test_a_mistake_of_preview(say, case):
    _, arguments, expected = case
    assert say("preview", *arguments) == (2, f"error: {expected}\n")


@table(MODEL_MISTAKES)
def test_a_mistake_found_when_training_starts(say, case):
    _, changes, expected = case
    status, message = say("train", **changes)
    assert message.startswith(f"error: {expected}")
    assert status == 2


def test_a_model_that_does_not_fit_is_not_complained_about_at_length(say):
    _, message = say("train", model=pretrained("FILES/shape"))
    assert message.splitlines()[-1] == "  ... and 5 lines more"


def test_wandb_that_is_not_installed_is_found_before_anything_is_done(say, monkeypatch, tmp_path):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    said = say("train", log={"wandb": True})
    assert said == (2, "error: log.wandb: wandb is not installed\n  pip install 'fastling[wandb]'\n")
    assert not (tmp_path / "run").exists()


def test_packs_that_the_processes_cannot_share(say, monkeypatch):
    def loader_of_three(config, world, *rest):
        return make_loader(config, dataclasses.replace(world, size=3), *rest)

    monkeypatch.setattr(train, "make_loader", loader_of_three)
    assert say("train") == (
        2,
        "error: train.global_batch_tokens: 1024 makes 4 packs of 256, which 3 processes cannot share evenly\n"
        "  Use a multiple of 768, or a number of processes that divides 4.\n",
    )


@pytest.fixture
def small_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


def test_a_disk_too_small_for_the_export_is_found_before_the_first_step(say, small_disk, tmp_path):
    status, message = say("train")
    assert status == 2
    assert message.endswith(
        "run/export: the disk has 0.000 GiB free, the export needs 0.001\n"
        "  Make room, or name a folder on another disk.\n"
    )
    assert not (tmp_path / "run/export.tmp").exists()


def test_a_file_where_the_export_goes_is_found_before_the_first_step(say, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/export").write_text("")
    status, message = say("train")
    assert (status, message.splitlines()[1]) == (2, "  Name another folder, or delete it.")
    (tmp_path / "run/export").unlink()


def test_a_file_where_the_checkpoints_go_is_found_before_the_first_step(say, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("")
    status, message = say("train")
    assert status == 2
    assert message.startswith("error: run_dir: cannot be written: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory, broken) -> Path:
    """A finished run of two steps, begun by mistake with an attention that cannot run here."""
    folder = tmp_path_factory.mktemp("run") / "run"
    changes = {"run_dir": folder, "train.steps": 2, "train.epochs": "null", "train.global_batch_tokens": 512}
    changes |= {"data.validation": "[]", "model.hidden_size": 24, "model.num_hidden_layers": 1}
    arguments = [f"--{name}={value}" for name, value in changes.items()]
    assert run_command(train.main, [*arguments, "--model.attention", "flash2"]) == 2
    (broken / "begun").mkdir()
    shutil.copyfile(folder / "config.yaml", broken / "begun/config.yaml")
    mended = run_python("fastling.train", *arguments)
    assert mended.returncode == 0, mended.stderr
    assert "resuming" not in mended.stderr
    return folder


def test_after_a_mistake_the_mended_config_trains(run):
    """What a failed start left in the run folder did not disturb the next one."""
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "export/model.safetensors").exists()
    assert "attention: auto" in (run / "config.yaml").read_text()


@table(EXPORT_MISTAKES)
def test_a_mistake_of_export(say, run, broken, case):
    _, arguments, expected = case
    before = sorted(path.name for path in run.iterdir())
    status, message = say("export", *[argument.replace("RUN", str(run)) for argument in arguments])
    assert message.replace(str(run), "RUN").startswith(f"error: {expected}")
    assert status == 2
    assert sorted(path.name for path in run.iterdir()) == before
    assert (broken / "thesis/thesis.tex").read_text() == "years of work"


def test_export_does_not_delete_the_folder_it_is_started_in(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "work").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run_command(export.main, ["--run", str(run), "--out", "."]) == 2
    assert "exists and is not an export" in capsys.readouterr().err
    assert (tmp_path / "work").exists()


def test_export_onto_a_disk_too_small(say, run, small_disk):
    status, message = say("export", "--run", str(run), "--out", "OUT")
    assert status == 2
    assert message.startswith("error: OUT: the disk has 0.000 GiB free")


def test_export_of_a_damaged_checkpoint_names_the_tensor(run, tmp_path, capsys):
    """The arguments are right, the run is not: exit status 1."""
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (weights,) = damaged.glob("checkpoints/*/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    arguments = ["--run", str(damaged), "--out", str(tmp_path / "out"), "--json"]
    assert run_command(export.main, arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    first, *rest = err.splitlines()
    assert "step-00000002: damaged, so not used: " in first and " is not what was saved" in first
    assert rest == [
        f"error: {damaged}/checkpoints: no checkpoint is undamaged",
        "  Restore one, or choose another run_dir to start anew.",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("problem", "status", "said"),
    [
        (UserError("where", "what", "fix"), 2, "error: where: what\n  fix\n"),
        (RunError("where", "what"), 1, "error: where: what\n"),
        (PermissionError(13, "Permission denied", "/data/x"), 1, "error: /data/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: while writing: No space left on device\n"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard\n"),
        (
            UserError("x", "\n".join(map(str, range(9)))),
            2,
            "error: x: 0\n1\n2\n3\n4\n  ... and 4 lines more\n",
        ),
    ],
    ids=str,
)
def test_how_a_verb_ends(problem, status, said, capsys):
    def fail(arguments):
        raise problem

    assert run_command(fail, []) == status
    assert capsys.readouterr().err == said


def test_one_rank_speaks_for_all(monkeypatch, capsys):
    def fail(arguments):
        raise UserError("where", "what")

    monkeypatch.setitem(os.environ, "RANK", "3")
    assert run_command(fail, []) == 2
    assert capsys.readouterr().err == ""


def test_a_mistake_of_ours_is_not_hidden():
    """Only what a user can mend is said in words; an error in fastling itself keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        run_command(lambda arguments: 1 // 0, [])
