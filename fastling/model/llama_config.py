"""The shape of a model, in Hugging Face's names. A shape that cannot be trained here is refused."""

import math
from dataclasses import dataclass
from typing import get_args, get_type_hints

from fastling.errors import UserError

ABSENT_SETTINGS = {
    "llama": (),
    "mistral": ("attention_bias", "mlp_bias"),
    "qwen2": ("attention_bias", "mlp_bias"),
    "qwen3": ("mlp_bias",),
}
"""Family of models that can be trained -> the settings that it does not have."""
MODEL_TYPES = tuple(ABSENT_SETTINGS)
_SCALING_KEYS = {
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
}
# The largest plausible sizes. Larger ones are a mistake, and would take for ever to build.
_MOST, _MOST_LAYERS = 2**24, 10_000

_EXPECTED = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "an object"
}  # fmt: skip


def wrong_type(kind: type, value: object) -> str | None:
    """What is wrong with the type of a value from a file; None if nothing is. true and NaN are no numbers."""
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and (type(value) is not float or math.isfinite(value)):
        return None
    return f"must be {_EXPECTED[kind]}: {value!r:.60}"


def wrong_size(kind: type, value: object) -> str | None:
    """`wrong_type`, for numbers that must be above 0."""
    return wrong_type(kind, value) or (f"must be > 0: {value}" if value <= 0 else None)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The shape of a model, in Hugging Face's names; the defaults are LLaMA-7B's."""

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: as many as attention heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    max_window_layers: int | None = None  # Qwen's: the window is on the layers from this one on
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    def __post_init__(self):
        def refuse(name: str, what: str) -> None:
            raise UserError(f"model.{name}", f"{what}: {getattr(self, name)}")

        self._check_types()
        if self.model_type not in MODEL_TYPES:
            refuse("model_type", f"not one of {', '.join(MODEL_TYPES)}")
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        # Also beside a head_dim of its own transformers 5 opens no other LLaMA, so none could be exported.
        if self.head_dim is None or self.model_type == "llama":
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                refuse("num_attention_heads", f"does not divide hidden_size {self.hidden_size}")
        if self.head_dim is None:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        may_be_0 = ("initializer_range", "max_window_layers")
        for name, value in vars(self).items():
            if type(value) in (int, float) and value <= 0 and name not in may_be_0:
                refuse(name, "must be > 0")
            most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
            if type(value) is int and value > most:
                refuse(name, f"must be at most {most}")
        if self.num_attention_heads % self.num_key_value_heads:
            refuse("num_key_value_heads", f"does not divide {self.num_attention_heads} heads")
        if self.head_dim % 2:
            refuse("head_dim", "must be even")
        for name in ABSENT_SETTINGS[self.model_type]:
            if getattr(self, name):
                refuse(name, f"{self.model_type} has no such setting")
        if self.rope_scaling is not None:
            self._check_rope_scaling()

    def _check_types(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, (kind, *others) = getattr(self, name), get_args(kind) or (kind,)
            if value is None and others:
                continue
            if what := wrong_type(kind, value):
                raise UserError(f"model.{name}", what)
            object.__setattr__(self, name, kind(value))  # of 1 for 1.0, transformers 5 takes no export

    def _check_rope_scaling(self) -> None:
        kind = self.rope_scaling.get("rope_type")
        if kind not in _SCALING_KEYS:
            supported = ", ".join(_SCALING_KEYS)
            raise UserError("model.rope_scaling", f"rope_type is not one of {supported}: {kind}")
        missing = _SCALING_KEYS[kind] - self.rope_scaling.keys()
        if missing:
            raise UserError("model.rope_scaling", f"{kind} lacks {', '.join(sorted(missing))}")
        for name in sorted(_SCALING_KEYS[kind]):
            if what := wrong_size(float, self.rope_scaling[name]):
                raise UserError(f"model.rope_scaling.{name}", what)
        if kind == "llama3" and self.rope_scaling["low_freq_factor"] >= self.rope_scaling["high_freq_factor"]:
            words = f"must be below high_freq_factor {self.rope_scaling['high_freq_factor']}"
            raise UserError(
                "model.rope_scaling.low_freq_factor", f"{words}: {self.rope_scaling['low_freq_factor']}"
            )

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have biases: always in Qwen2, else with `attention_bias`, as o then has, too."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised, head by head, as in Qwen3."""
        return self.model_type == "qwen3"

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a document. Attention with a sliding window is not implemented, so documents may be
        no longer than the window: up to there it is the same as full attention."""
        return min(self.max_position_embeddings, self.sliding_window or math.inf)

    def check_vocab_size(self, needed: int) -> None:
        """Raise UserError if a tokenizer with `needed` tokens has some that this model has no rows for."""
        if self.vocab_size < needed:
            raise UserError(
                "data.tokenizer",
                f"has {needed} tokens, and the model's embedding has {self.vocab_size} rows",
                "Use the tokenizer that the model was trained with.",
            )

    def check_sequence_length(self, length: int) -> None:
        """Raise UserError if a document of `length` tokens is more than this model can take."""
        if length > self.longest_sequence:
            limit = (
                "max_position_embeddings"
                if self.longest_sequence == self.max_position_embeddings
                else "the attention window (sliding_window)"
            )
            raise UserError(
                "data.sequence_length",
                f"the model takes at most {self.longest_sequence} tokens, by {limit}: {length}",
            )
