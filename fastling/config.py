"""Every setting of fastling: its name, unit, default and meaning, in one place to read.

`parse` reads defaults, then a YAML file (`--config`), then `--section.key value`, later ones winning.
An unknown key is an error, and so is a setting that would have no effect.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import yaml

from fastling.errors import UserError

PACKAGE = Path(__file__).parent
DEMO_CONFIG = PACKAGE / "configs" / "demo.yaml"

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model is trained: a pretrained folder, or a shape to start from scratch."""

    pretrained: str | None = None
    """Folder with a Hugging Face model (config.json, *.safetensors) or Meta's original files
    (params.json, consolidated.*.pth). Leave out to train from scratch with the shape below."""
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """Implementation of the fused operations."""
    attention: Literal["auto", "flash3", "flash2", "torch", "xformers", "sdpa"] = "auto"
    """Attention backend; a named one is used or refused, never swapped."""
    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] | None = None
    """From scratch: the family (default llama)."""
    vocab_size: int | None = None
    """From scratch: rows of the embedding (default: the tokenizer's size)."""
    hidden_size: int | None = None
    """From scratch: width of the residual stream."""
    intermediate_size: int | None = None
    """From scratch: width of the MLP."""
    num_hidden_layers: int | None = None
    """From scratch: number of layers."""
    num_attention_heads: int | None = None
    """From scratch: number of query heads."""
    num_key_value_heads: int | None = None
    """From scratch: number of key and value heads (default: as many as query heads)."""
    head_dim: int | None = None
    """From scratch: width of a head (default: hidden_size / num_attention_heads)."""
    max_position_embeddings: int | None = None
    """From scratch: longest sequence in tokens (default: data.sequence_length)."""
    rope_theta: float | None = None
    """From scratch: base of the rotary frequencies (default 10000)."""
    rms_norm_eps: float | None = None
    """From scratch: epsilon of RMSNorm (default 1e-6)."""
    tie_word_embeddings: bool | None = None
    """From scratch: one matrix for embedding and head (default false)."""

    def shape(self) -> dict[str, Any]:
        """The settings that describe a model from scratch, without those left out."""
        shape = dataclasses.asdict(self)
        for name in ("pretrained", "kernels", "attention"):
            del shape[name]
        return {name: value for name, value in shape.items() if value is not None}

    def __post_init__(self):
        if self.pretrained and self.shape():
            name = next(iter(self.shape()))
            raise UserError(
                f"model.{name}",
                "has no effect beside model.pretrained, whose own config is used",
                f"Remove model.{name} or model.pretrained.",
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of conversations."""

    name: str
    """Name under which its loss and its tokens are reported."""
    path: str
    """.json, .jsonl (also .gz, .zst) or .parquet; `fastling:demo/...` lies in the package."""
    weight: float = 1.0
    """How often an epoch shows each conversation: 2 twice, 0.5 every other one."""
    pair: str | None = None
    """Language pair, such as zh-en, for rows that carry no "pair" of their own."""

    def __post_init__(self):
        if not self.weight > 0:
            raise UserError(f"data.sources ({self.name}).weight", f"must be > 0: {self.weight}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on."""

    tokenizer: str | None = None
    """A SentencePiece .model, a tokenizer.json, or a folder with one (default: model.pretrained)."""
    template: str = "bayling"
    """bayling, vicuna, alpaca, llama2, llama3, chatml, or a YAML file with your own."""
    sequence_length: int = 2048
    """Tokens in a pack; no conversation is longer."""
    sources: list[Source] = field(default_factory=list)
    """Training data: a list of {name, path, weight, pair}."""
    validation: list[Source] = field(default_factory=list)
    """Held-out data, never trained on: a list of {name, path, pair}."""
    store: str | None = None
    """Folder of the token stores, kept between runs (default: ~/.cache/fastling)."""
    max_refused_share: float = 0.1
    """Stop when more than this share of rows is refused (0 to 1)."""
    workers: int | None = None
    """Processes that tokenize (default: all cores)."""

    def __post_init__(self):
        check_positive("data", self, "sequence_length", "workers")
        for sources in (self.sources, self.validation):
            names = [source.name for source in sources]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise UserError("data.sources", f"two sources have one name: {twice.pop()}")
        for source in self.validation:
            if source.weight != 1.0:
                raise UserError(
                    f"data.validation ({source.name}).weight",
                    "has no effect: held-out data is read once, as it is",
                )


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how much at once, and in which numbers."""

    epochs: int | None = None
    """Passes over the data (default 3 when steps is not given)."""
    steps: int | None = None
    """Optimizer steps, in place of epochs."""
    global_batch_tokens: int = 262144
    """Tokens of one optimizer step over all processes; a multiple of data.sequence_length."""
    micro_batch_tokens: int = 8192
    """At most this many tokens in one forward and backward of one process."""
    loss: Literal["token", "turn", "sample"] = "token"
    """What weighs the same in a step: every supervised token, every turn, or every conversation."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Numbers of forward and backward; weights and optimizer are float32 always."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """full recomputes every layer in backward, selective every second one: less memory, slower."""
    compile: bool = False
    """Compile the layers with torch.compile."""

    def __post_init__(self):
        names = ("epochs", "steps", "global_batch_tokens", "micro_batch_tokens")
        check_positive("train", self, *names)
        if self.epochs and self.steps:
            raise UserError("train.epochs", "has no effect beside train.steps", "Give only one.")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW and its learning rate."""

    lr: float = 2.0e-5
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course after warm-up; wsd is warmup-stable-decay, with a linear decay at the end."""
    warmup_ratio: float = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    decay_ratio: float | None = None
    """wsd only: share of all steps in which it falls (default 0.2)."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end, as a share of lr; without effect (so refused) when constant."""
    weight_decay: float = 0.0
    """On matrices only, not on norms or biases."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1.0e-8
    """Added to the denominator."""

    def __post_init__(self):
        check_positive("optimizer", self, "lr", "clip_norm", "eps")
        for name in ("warmup_ratio", "min_lr_ratio", "weight_decay", "beta1", "beta2", "decay_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"optimizer.{name}", f"must lie in 0 to 1: {value}")
        if self.decay_ratio is not None and self.schedule != "wsd":
            raise UserError("optimizer.decay_ratio", f"has no effect with schedule {self.schedule}")
        if self.min_lr_ratio and self.schedule == "constant":
            raise UserError("optimizer.min_lr_ratio", "has no effect with schedule constant")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How the model lies on the processes."""

    shard: Literal["full", "gradients"] = "full"
    """full frees gathered weights after each layer's forward; gradients keeps them for the
    backward (one gather less, more memory)."""
    replicate: int = 1
    """Copies of the sharded model (HSDP): with one per node, weights are gathered inside a node."""

    def __post_init__(self):
        check_positive("parallel", self, "replicate")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a killed run resumes from."""

    every_steps: int = 500
    """Steps between checkpoints; the last step always has one."""
    keep_last: int = 3
    """How many are kept."""

    def __post_init__(self):
        check_positive("checkpoint", self, "every_steps", "keep_last")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Held-out loss and sample answers during training."""

    every_steps: int = 200
    """Steps between evaluations; the last step always has one."""
    samples: int = 3
    """Held-out questions answered at each evaluation."""
    sample_tokens: int = 64
    """Longest such answer in tokens."""

    def __post_init__(self):
        check_positive("evaluate", self, "every_steps", "sample_tokens")


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is written down. metrics.jsonl always is."""

    wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline works)."""
    project: str = "fastling"
    """Project there."""
    every_steps: int = 1
    """Steps between two lines of metrics."""

    def __post_init__(self):
        check_positive("log", self, "every_steps")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    run_dir: str = "runs/fastling"
    """Folder of the run: config, metrics, checkpoints, export."""
    seed: int = 42
    """Seed of everything random."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)

    def as_yaml(self) -> str:
        """The resolved config, as it is kept with the run."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    @property
    def tokenizer_path(self) -> Path:
        """File or folder of the tokenizer."""
        path = self.data.tokenizer or self.model.pretrained
        if path is None:
            raise UserError(
                "data.tokenizer", "is not set", "Name a tokenizer.model, a tokenizer.json or a folder."
            )
        return resolve(path, "data.tokenizer" if self.data.tokenizer else "model.pretrained")


def check_positive(section: str, settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"{section}.{name}", f"must be > 0: {value}")


def resolve(path: str, where: str) -> Path:
    """A path as the user wrote it -> an existing path; `fastling:x` is x inside the package."""
    inside = path.removeprefix("fastling:")
    resolved = PACKAGE / inside if inside != path else Path(path).expanduser()
    if not resolved.exists():
        raise UserError(where, f"no such file or folder: {path}", f"Looked for {resolved.absolute()}.")
    return resolved


class _Parser(jsonargparse.ArgumentParser):
    """Raises UserError, with the nearest valid name, where argparse would print usage and exit."""

    def error(self, message: str, ex: Exception | None = None):
        cause = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        raise UserError(self.prog, _first_lines(message), "--help shows every option.")


def _first_lines(message: str) -> str:
    """jsonargparse reports every alternative of a union; the first two lines tell the story."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]


def _valid_keys(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for item in dataclasses.fields(cls):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(item.type):
            keys += _valid_keys(item.type, f"{prefix}{item.name}.")
    return keys


def _check_keys(where: str, keys: Sequence[str], valid: Sequence[str]) -> None:
    for key in keys:
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
            leaf = [name for name in valid if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
            nearest = (leaf or near or [None])[0]
            fix = f"Did you mean {nearest}?" if nearest else "--help shows every setting."
            raise UserError(where, f"unknown setting: {key}", fix)


def _flatten(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in tree.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, dict):
            keys += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):  # sources: every item has the same keys
            keys += [f"{prefix}{name}[].{key}" for item in value if isinstance(item, dict) for key in item]
    return keys


def _check_file(path: Path) -> None:
    """Find a misspelled key in a YAML file before anything else looks at it."""
    try:
        tree = yaml.safe_load(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8: byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(where, f"is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise UserError(str(path), "holds no settings", "See configs/ for examples.")
    source_keys = _valid_keys(Source)
    valid = _valid_keys(Config)
    valid += [f"data.{name}[].{key}" for name in ("sources", "validation") for key in source_keys]
    _check_keys(str(path), [str(key) for key in _flatten(tree)], valid)


def build_parser(prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser with every setting as an option; verbs add their own."""
    parser = _Parser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with settings")
    parser.add_class_arguments(Config, nested_key=None)
    return parser


def parse(
    parser: jsonargparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[Config, jsonargparse.Namespace]:
    """Arguments -> (config, everything parsed). Without `--config`, the demo's, after saying so.

    Raises UserError for unknown settings, wrong types and settings without effect.
    """
    arguments = list(arguments)
    options = [part.split("=", 1)[0] for part in arguments if re.match(r"--[a-z]", part)]
    known = [*_valid_keys(Config), "config", "help", "print_config"]
    known += [action.dest for action in parser._actions]
    _check_keys("command line", [name[2:].rstrip("+") for name in options], known)
    for index, part in enumerate(arguments):
        if part == "--config" or part.startswith("--config="):
            value = part.partition("=")[2] or (arguments[index + 1 : index + 2] or [""])[0]
            _check_file(resolve(value, "--config"))
    if not any(name in ("--config", "--help", "--print_config") for name in options):
        arguments = ["--config", str(DEMO_CONFIG), *arguments]
    parsed = parser.parse_args(arguments)
    built = parser.instantiate(parsed)
    names = [item.name for item in dataclasses.fields(Config)]
    return Config(**{name: built[name] for name in names}), built


def uses_demo(arguments: Sequence[str]) -> bool:
    """Whether `parse` takes the demo's config for these arguments."""
    return not any(part.split("=", 1)[0] == "--config" for part in arguments)
