"""Every setting of fastling: its name, unit, default and meaning, in one place to read.

`parse` reads defaults, then a YAML file (`--config`), then `--section.key value`, later ones winning.
An unknown key is an error, and so is a setting beside one that leaves it without effect.
"""

import argparse
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from fastling.command_line import Parser
from fastling.errors import UserError
from fastling.other_names import OTHER_NAMES
from fastling.settings import STRICT, Settings, without_effect
from fastling.yaml_file import as_yaml

PACKAGE = Path(__file__).parent
DEMO_CONFIG = PACKAGE / "configs" / "demo.yaml"
Share = Annotated[float, Field(ge=0, le=1)]
MOST_SOURCES = 1 << 15
"""As many as a token store can number (data/store.py)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Model:
    """Which model is trained: a pretrained folder, or a shape to start from scratch."""

    pretrained: str | None = None
    """Folder with a Hugging Face model (config.json, *.safetensors) or Meta's original files
    (params.json, consolidated.*.pth). Leave out to train from scratch with the shape below."""
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """Kernels of norms, rotary, SwiGLU and the loss: auto is triton on a GPU and tiled PyTorch on a CPU;
    reference is plain PyTorch, slow and easy to trust."""
    attention: Literal["auto", "flash3", "flash2", "torch", "xformers", "tiled", "sdpa"] = "auto"
    """Attention backend; a named one is used or refused, never replaced by another."""
    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] | None = None
    """From scratch: the family (default llama)."""
    vocab_size: PositiveInt | None = None
    """From scratch: rows of the embedding (default: the tokenizer's size)."""
    hidden_size: PositiveInt | None = None
    """From scratch: width of the residual stream."""
    intermediate_size: PositiveInt | None = None
    """From scratch: width of the MLP."""
    num_hidden_layers: PositiveInt | None = None
    """From scratch: number of layers."""
    num_attention_heads: PositiveInt | None = None
    """From scratch: number of query heads."""
    num_key_value_heads: PositiveInt | None = None
    """From scratch: number of key and value heads (default: num_attention_heads)."""
    head_dim: PositiveInt | None = None
    """From scratch: width of a head (default: hidden_size / num_attention_heads)."""
    max_position_embeddings: PositiveInt | None = None
    """From scratch: longest sequence in tokens (default: data.sequence_length)."""
    rope_theta: PositiveFloat | None = None
    """From scratch: base of the rotary frequencies (default 10000)."""
    rms_norm_eps: PositiveFloat | None = None
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
        for name, value in self.shape().items() if self.pretrained else ():
            raise without_effect(f"model.{name}", value, "beside model.pretrained, which has its own shape")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """One file of conversations."""

    name: str
    """Name under which its loss and its tokens are reported."""
    path: str
    """.json, .jsonl (also .gz, .zst) or .parquet; `fastling:demo/...` lies in the package."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often an epoch shows each conversation: 2 twice, 0.5 every other one (at most 1000)."""
    pair: str | None = None
    """Language pair, such as zh-en, for rows that carry no "pair" of their own."""

    def __post_init__(self):
        if not self.name:
            raise UserError("data.sources", f"a source needs a name: {self.path}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """What is trained on."""

    tokenizer: str | None = None
    """A SentencePiece .model, a tokenizer.json, or a folder with one (default: model.pretrained)."""
    template: str = "bayling"
    """bayling, vicuna, alpaca, llama2, llama3, chatml, or a YAML file with your own."""
    sequence_length: PositiveInt = 2048
    """Tokens in a pack; no conversation is longer."""
    sources: list[Source] = field(default_factory=list)
    """Training data: a list of {name, path, weight, pair}."""
    validation: list[Source] = field(default_factory=list)
    """Held-out data, never trained on: a list of {name, path, pair}."""
    held_out_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """In place of data.validation: hold out this share of the conversations in data.sources, such as 0.02.
    The text of a conversation decides, so that its copies are held out, too."""
    store: str | None = None
    """Folder of the token stores, kept between runs (default: ~/.cache/fastling)."""
    max_refused_share: Share = 0.5
    """Stop when more than this share of rows is refused (0 to 1), not counting those that are too long."""
    workers: PositiveInt | None = None
    """Processes that tokenize (default: all cores)."""

    def __post_init__(self):
        for where, sources in (("data.sources", self.sources), ("data.validation", self.validation)):
            counts = Counter(source.name for source in sources)
            for name, number in counts.items():
                if number > 1:
                    what = f"two sources have the same name: {name}"
                    raise UserError(where, what, "Give each its own name.")
            if len(sources) > MOST_SOURCES:
                what = f"are more than {MOST_SOURCES:,} sources: {len(sources):,}"
                raise UserError(where, what, "Join files: rows may name a language pair each.")
        if self.validation and self.held_out_share:
            raise without_effect("data.held_out_share", self.held_out_share, "beside data.validation")
        for source in self.validation:
            if source.weight != 1.0:
                name = f"data.validation ({source.name}).weight"
                raise without_effect(name, source.weight, "on held-out data, which is read once")

    @property
    def held_out(self) -> list[Source]:
        """The sources of held-out data; with `held_out_share` they are those of the training data."""
        return self.sources if self.held_out_share else self.validation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """How long to train, on how many tokens at once, and in which precision."""

    epochs: PositiveInt | None = None
    """Passes over the data (default 3 when steps is not given)."""
    steps: PositiveInt | None = None
    """Optimizer steps, in place of epochs."""
    global_batch_tokens: PositiveInt | None = None
    """Tokens of one optimizer step over all processes; a multiple of data.sequence_length (default: 262144,
    rounded down to whole packs, but at least one)."""
    micro_batch_tokens: PositiveInt | None = None
    """At most this many tokens in one forward and backward of one process (default: 8192, or one pack if
    that is more)."""
    loss: Literal["token", "turn", "sample"] = "token"
    """What has equal weight in a step: every supervised token, every turn, or every conversation."""
    precision: Literal["bf16", "fp32", "fp8"] = "bf16"
    """Precision of forward and backward; weights and optimizer state stay float32. fp8 is bf16 with the
    layers' matrix products in float8 (Ada, Hopper or newer; faster only with train.compile)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """full recomputes every layer in backward, selective every second one: less memory, slower."""
    compile: bool = False
    """Compile the layers with torch.compile, once for all packs; not available with attention by sdpa or
    xformers."""
    deterministic: bool = True
    """On a GPU, sum attention's gradients in a fixed order: a resumed run is then the same bit for bit, and
    attention's backward a little slower. A CPU always does."""

    def __post_init__(self):
        if self.epochs and self.steps:
            raise without_effect("train.epochs", self.epochs, "beside train.steps")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    """AdamW and its learning rate."""

    lr: PositiveFloat = 2.0e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Schedule after warm-up; wsd is warmup-stable-decay, with a linear decay at the end."""
    warmup_ratio: Share = 0.03
    """Share of all steps in which the learning rate rises from 0."""
    decay_ratio: Share | None = None
    """wsd only: share of all steps in which the learning rate falls (default 0.2)."""
    min_lr_ratio: Share = 0.0
    """Learning rate at the end, as a share of lr; refused with the constant schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Applied to matrices only, not to norms or biases."""
    clip_norm: PositiveFloat = 1.0
    """Largest norm of the whole gradient, which is scaled down to it if larger."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the second moment."""
    eps: PositiveFloat = 1.0e-8
    """Added to the denominator."""

    def __post_init__(self):
        if self.decay_ratio is not None and self.schedule != "wsd":
            raise without_effect("optimizer.decay_ratio", self.decay_ratio, f"with schedule {self.schedule}")
        if self.min_lr_ratio and self.schedule == "constant":
            raise without_effect("optimizer.min_lr_ratio", self.min_lr_ratio, "with schedule constant")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Parallel:
    """How the model is distributed over the processes."""

    shard: Literal["full", "gradients"] = "full"
    """full frees gathered weights after each layer's forward; gradients keeps them for the
    backward (one gather fewer, more memory)."""
    replicate: PositiveInt = 1
    """Copies of the sharded model (HSDP); with one per node, weights are gathered within a node only."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Checkpoint:
    """What a killed run resumes from."""

    every_steps: PositiveInt = 500
    """Steps between checkpoints; the last step always has one."""
    keep_last: PositiveInt = 3
    """How many are kept."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Evaluate:
    """Held-out loss and sample answers during training."""

    every_steps: PositiveInt = 200
    """Steps between evaluations; the last step always has one."""
    samples: NonNegativeInt = 3
    """Held-out questions answered at each evaluation."""
    sample_tokens: PositiveInt | None = None
    """Longest such answer in tokens (default: 64, or half of data.sequence_length if that is less)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Log:
    """What is logged. metrics.jsonl always is."""

    wandb: bool = False
    """Also log to Weights & Biases (WANDB_MODE=offline works)."""
    project: str = "fastling"
    """W&B project; the variable WANDB_PROJECT replaces the default."""
    every_steps: PositiveInt = 1
    """Steps between lines of metrics."""

    def __post_init__(self):
        if self.project != Log.project and not self.wandb:
            fix = "Set log.wandb too, or remove it."
            raise without_effect("log.project", self.project, "without log.wandb", fix)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """All settings of a run."""

    run_dir: str = "runs/fastling"
    """Folder of the run: config, metrics, checkpoints, export."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of everything random."""
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    optimizer: Optimizer = field(default_factory=Optimizer)
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    log: Log = field(default_factory=Log)

    def __post_init__(self):
        if not self.run_dir:
            raise UserError("run_dir", "is empty", "Name a folder.")
        self._set_by_length(self.data.sequence_length)
        asks = self.evaluate.samples and self.data.held_out
        if asks and self.evaluate.sample_tokens >= self.data.sequence_length:
            raise UserError(
                "evaluate.sample_tokens",
                f"leaves no room for a question (data.sequence_length {self.data.sequence_length}): "
                f"{self.evaluate.sample_tokens}",
                "Lower it, or set evaluate.samples to 0.",
            )

    def _set_by_length(self, length: int) -> None:
        """Fill in the settings that are not given and follow the sequence length."""
        train, evaluate = self.train, self.evaluate
        global_tokens = train.global_batch_tokens or max(1, 262144 // length) * length
        micro_tokens = train.micro_batch_tokens or max(8192, length)
        sample_tokens = evaluate.sample_tokens or max(1, min(64, length // 2))
        train = replace(train, global_batch_tokens=global_tokens, micro_batch_tokens=micro_tokens)
        object.__setattr__(self, "train", train)  # the way to set a field of a frozen dataclass
        object.__setattr__(self, "evaluate", replace(evaluate, sample_tokens=sample_tokens))

    def as_yaml(self) -> str:
        """The resolved config, as it is kept with the run."""
        return as_yaml(dataclasses.asdict(self))

    @property
    def global_packs(self) -> int:
        """Packs of one optimizer step over all processes."""
        return self.train.global_batch_tokens // self.data.sequence_length

    @property
    def run_folder(self) -> Path:
        """`run_dir` as a path."""
        return expand(self.run_dir, "run_dir")

    @property
    def tokenizer_path(self) -> Path:
        """File or folder of the tokenizer."""
        path = self.data.tokenizer or self.model.pretrained
        if path is None:
            raise UserError("data.tokenizer", "is not set", "Name a tokenizer.model or a tokenizer.json.")
        return resolve(path, "data.tokenizer" if self.data.tokenizer else "model.pretrained")


def expand(path: str, where: str) -> Path:
    """A path as the user wrote it, where ~ is a home folder."""
    if "\0" in path:
        raise UserError(where, f"contains a NUL, which no file name may: {path}")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        fix = "Set LC_ALL=C.UTF-8, and unset PYTHONUTF8."
        raise UserError(where, f"cannot be written in {error.encoding}, the locale's: {path}", fix) from None
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(where, f"no user of that name has a home folder: {path}") from None


def resolve(path: str, where: str) -> Path:
    """A path as the user wrote it -> an existing path; `fastling:x` is x inside the package."""
    inside = path.removeprefix("fastling:")
    resolved = PACKAGE / inside if inside != path else expand(path, where)
    if not resolved.exists():
        fix = f"Looked for {resolved.absolute()}."
        if where == "model.pretrained" and path.count("/") == 1:
            fix += f"\n  If it is on Hugging Face's hub, fetch it: hf download {path} --local-dir {path}"
        raise UserError(where, f"no such file or folder: {path}", fix)
    return resolved


def build_parser(prog: str, description: str) -> Parser:
    """A parser with every setting as an option; verbs add their own."""
    usage = f"{prog} [--config FILE] [--section.key VALUE ...] [options]"
    parser = Parser(prog, description, usage)
    words = "YAML file with settings (default: the demo's, whose values differ from the defaults below)"
    parser.add_argument("--config", action="append", metavar="FILE", help=words)
    parser.add_settings(Config, OTHER_NAMES)
    return parser


def parse(parser: Parser, arguments: Sequence[str]) -> tuple[Config, argparse.Namespace]:
    """Arguments -> (config, everything parsed). Without `--config`, the demo's, and says so.

    Raises UserError for unknown settings, wrong types and settings without effect.
    """
    options = parser.parse_args(arguments)
    settings = Settings(Config, OTHER_NAMES)
    for path in options.config or [str(DEMO_CONFIG)]:
        settings.read_file(resolve(path, "--config"))
    settings.read_options(vars(options))
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        # One on the command line replaces the other in a file; null only takes back its own.
        if f"train.{name}" in vars(options) and settings.tree["train"][name] is not None:
            if f"train.{other}" not in vars(options):
                settings.forget(f"train.{other}")
    config = settings.build()
    if not options.config and os.environ.get("RANK", "0") == "0":
        print(f"no --config: this is the demo, in {config.run_dir}", file=sys.stderr)
    return config, options
