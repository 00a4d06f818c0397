"""Meta's original folders, `consolidated.*.pth` and `params.json`, read as if Hugging Face's.

Several files are the shards of tensor parallelism. Meta rotates neighbouring lanes, Hugging Face
the two halves of a head, so the rows of q and k are permuted. Files are memory-mapped and read by
torch's restricted loader (`weights_only=True`), which runs nothing that they contain.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from fastling.errors import UserError, first_line
from fastling.json_files import read_json
from fastling.model.llama_config import LlamaConfig, wrong_size, wrong_type

# Meta's name: (Hugging Face's name, the dimension that tensor parallelism splits, None if whole).
_LAYER_TENSORS = {
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}


# What must be in params.json, and what may.
_PARAMS = {"dim": int, "n_layers": int, "n_heads": int, "norm_eps": float}
_MORE_PARAMS = {
    "n_kv_heads": int,
    "rope_theta": float,
    "use_scaled_rope": bool,
    "rope_scaling_factor": float,
}


class MetaFolder:
    """The tensors of a Meta folder in Hugging Face's names: `shapes`, `read`, `close` and `config`."""

    def __init__(self, folder: Path):
        self._path = folder
        files = _numbered_files(folder)
        self._params = _read_params(folder / "params.json")
        self._shards = [_load(file) for file in files]
        for file, shard in zip(files, self._shards, strict=True):
            if shard.keys() != self._shards[0].keys():
                raise UserError(str(file), f"holds other tensors than {files[0].name}")
        self._sources: dict[str, tuple[str, int | None]] = {}
        for meta_name in self._shards[0]:
            # LLaMA 1 has them in each layer, as layers.0.attention.inner_attention.rope.freqs.
            if not meta_name.endswith("rope.freqs"):
                name, split_dim = self._translate(meta_name)
                shape = tuple(self._shards[0][meta_name].shape)
                if len(shape) != (1 if split_dim is None else 2):
                    raise UserError(str(folder), f"the shape of {meta_name} is not LLaMA's: {shape}")
                self._sources[name] = (meta_name, split_dim)
        self.shapes = {name: self._whole_shape(name) for name in self._sources}
        self._check_whole()
        try:
            self.config = self._read_config()
        except UserError as error:
            raise UserError(str(folder / "params.json"), f"{error.where} {error.what}", error.fix) from None

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return rows start to stop of one tensor, on the CPU in the dtype of the file."""
        meta_name, split_dim = self._sources[name]
        if split_dim is None or len(self._shards) == 1:
            whole = self._shards[0][meta_name]
        else:
            whole = torch.cat([shard[meta_name] for shard in self._shards], dim=split_dim)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            return whole[_half_split_rows(whole.shape[0], self.config.head_dim)[start:stop]]
        return whole[start:stop]

    def close(self) -> None:
        """Do nothing: the memory maps end with their last tensors."""

    def _translate(self, meta_name: str) -> tuple[str, int | None]:
        if meta_name == "tok_embeddings.weight":
            # LLaMA 1 and 2 split the columns, Llama 3 the rows.
            rows_split = self._shards[0][meta_name].shape[-1] == self._params["dim"]
            return "model.embed_tokens.weight", 0 if rows_split else 1
        if meta_name == "norm.weight":
            return "model.norm.weight", None
        if meta_name == "output.weight":
            return "lm_head.weight", 0
        match = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", meta_name)
        if match is None or match[2] not in _LAYER_TENSORS:
            raise UserError(str(self._path), f"a tensor that is not LLaMA's: {meta_name}")
        name, split_dim = _LAYER_TENSORS[match[2]]
        return f"model.layers.{match[1]}.{name}.weight", split_dim

    def _whole_shape(self, name: str) -> tuple[int, ...]:
        meta_name, split_dim = self._sources[name]
        shape = list(self._shards[0][meta_name].shape)
        if split_dim is not None:
            shape[split_dim] = sum(shard[meta_name].shape[split_dim] for shard in self._shards)
        return tuple(shape)

    def _check_whole(self) -> None:
        """Raise UserError if the last files are missing, which shows in the rows: each file has some of every
        matrix."""
        rows, _ = self.shapes.get("model.layers.0.self_attn.q_proj.weight", (self._params["dim"], 0))
        if rows != self._params["dim"]:
            what = (
                f"{len(self._shards)} consolidated.*.pth hold {rows} of {self._params['dim']} rows of queries"
            )
            raise UserError(str(self._path), what, "Copy all of the model's files, and no others.")

    def _read_config(self) -> LlamaConfig:
        """The config. What params.json leaves out, as Meta's code derives it, is read from the tensors."""
        params = self._params
        ffn_size, _ = self.shapes.get("model.layers.0.mlp.gate_proj.weight", (0, 0))
        vocab_size, _ = self.shapes.get("model.embed_tokens.weight", (0, 0))
        rope_theta = params.get("rope_theta", 10000.0)
        scaled = params.get("use_scaled_rope", False)
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=params["dim"],
            intermediate_size=ffn_size,
            num_hidden_layers=params["n_layers"],
            num_attention_heads=params["n_heads"],
            num_key_value_heads=params.get("n_kv_heads"),
            max_position_embeddings=_longest_sequence(rope_theta, scaled, params["norm_eps"]),
            rms_norm_eps=params["norm_eps"],
            rope_theta=rope_theta,
            rope_scaling=_llama3_scaling(params) if scaled else None,
            tie_word_embeddings="lm_head.weight" not in self.shapes,
        )


def _numbered_files(folder: Path) -> list[Path]:
    """consolidated.00.pth, consolidated.01.pth, ... in order. Raises UserError if one is missing or twice."""
    files = {}
    for file in sorted(folder.glob("consolidated.*.pth")):
        match = re.fullmatch(r"consolidated\.(\d{1,4})\.pth", file.name)
        if match is None or int(match[1]) in files:
            raise UserError(str(file), "is not one of numbered shards", "Move copies to another folder.")
        files[int(match[1])] = file
    if not files:
        raise UserError(str(folder), "has params.json but no consolidated.*.pth")
    for number in range(len(files)):
        if number not in files:
            raise UserError(
                str(folder), f"lacks consolidated.{number:02d}.pth", "Copy all of the model's files."
            )
    return [files[number] for number in sorted(files)]


def _read_params(file: Path) -> dict:
    params = read_json(file)
    missing = _PARAMS.keys() - params.keys()
    if missing:
        raise UserError(str(file), f"lacks {', '.join(sorted(missing))}")
    for name, kind in (_PARAMS | _MORE_PARAMS).items():
        check = wrong_type if kind is bool else wrong_size
        if name in params and (what := check(kind, params[name])):
            raise UserError(str(file), f"{name} {what}")
    return params


def _load(file: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each have errors of their own
        said = first_line(error)
        if said.startswith("Weights only"):  # torch's own message advises to load the file all the same
            said = "it holds more than tensors, which could run code"
        raise UserError(str(file), f"cannot be read as a plain file of tensors: {said}") from None
    if not isinstance(held, dict):
        raise UserError(str(file), f"holds no tensors with names: {type(held).__name__}")
    for name, tensor in held.items():
        if not isinstance(name, str):
            raise UserError(str(file), f"holds no tensors with names: {name!r:.60}")
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UserError(str(file), f"{name} is no tensor of floating-point numbers: {kind}")
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
            raise UserError(str(file), f"{name} is no plain tensor, but one that is sparse, nested or empty")
    return held


def _half_split_rows(num_rows: int, head_dim: int) -> Tensor:
    """Meta's row for each Hugging Face row: lane pairs (2i, 2i + 1) become (i, i + D/2)."""
    rows = torch.arange(num_rows).view(-1, head_dim // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


def _longest_sequence(rope_theta: float, scaled: bool, norm_eps: float) -> int:
    """Longest sequence in tokens, which params.json does not say: LLaMA 1 and 2 are told apart by norm_eps
    alone, in which their largest models do not differ."""
    if scaled:
        return 131072
    if rope_theta >= 1e6:  # Code Llama
        return 16384
    if rope_theta >= 5e5:  # Llama 3
        return 8192
    return 4096 if norm_eps > 5e-6 else 2048


def _llama3_scaling(params: dict) -> dict:
    # Llama 3.1 stretches by 8; the small 3.2 models by 32, which their params.json does not say.
    factor = params.get("rope_scaling_factor", 8.0 if params["dim"] >= 4096 else 32.0)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
