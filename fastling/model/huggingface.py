"""Models from and to folders: Hugging Face's safetensors and config.json; Meta's format is read as well.

Weights are streamed: each rank reads only the rows that it owns, straight into its own parameters, and an
export holds one shard in memory.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from fastling.errors import UserError
from fastling.json_files import read_json
from fastling.model.llama import Llama, local_rows, reshard, whole
from fastling.model.llama_config import ABSENT_SETTINGS, MODEL_TYPES, LlamaConfig
from fastling.model.meta_format import MetaFolder
from fastling.model.safetensors_folder import SafetensorsFolder

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Names that config.json and LlamaConfig share; those of the first group must be there.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "initializer_range",
)
# What an absent key means to transformers, where that is not LlamaConfig's default.
_DEFAULTS = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""As options name them."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
DELTA_RECORD = "delta.json"
"""What `fastling delta make` writes beside the differences."""


def load_pretrained(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Llama:
    """Return the model of a Hugging Face or a Meta folder, whole, on one device.

    Raises UserError for a folder that holds none, and TypeError for a dtype that is not torch's.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"load_pretrained: dtype must be torch's own, such as torch.float32: {dtype!r}")
    model = Llama.on_meta(read_config(path)).to(dtype)
    model.to_empty(device=device)
    load_weights(model, path)
    return model


def read_config(folder: str | Path, *, may_be_delta: bool = False) -> LlamaConfig:
    """Return the shape that a folder's config.json (or Meta's params.json) describes.

    Reads the spellings of transformers 4 and 5. Raises UserError for a model that cannot be trained here and,
    unless `may_be_delta`, for the folder of a delta, which looks like a model.
    """
    folder = Path(folder)
    _refuse_other_folders(folder, may_be_delta)
    if _is_meta_folder(folder):
        return MetaFolder(folder).config
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("model_type") not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        what = f"model_type {raw.get('model_type')!r} is not supported; these are: {supported}"
        raise UserError(str(file), what)
    raw = _DEFAULTS[raw["model_type"]] | raw
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(str(file), f"hidden_act must be silu: {raw['hidden_act']}")
    if raw.get("quantization_config"):
        raise UserError(str(file), "the model is quantized", "Give its unquantized original.")
    missing = [name for name in _REQUIRED if raw.get(name) is None]
    if missing:
        raise UserError(str(file), f"lacks {', '.join(missing)}")
    given = {name: raw[name] for name in _shared_names(raw["model_type"]) if raw.get(name) is not None}
    try:
        rope_theta, rope_scaling = _read_rope(raw, file)
        return LlamaConfig(
            model_type=raw["model_type"],
            **_read_window(raw),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            **given,
        )
    except UserError as error:
        if error.where == str(file):
            raise
        raise UserError(str(file), f"{error.where} {error.what}", error.fix) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(str(file), f"holds a value of the wrong type: {error}") from None


def _refuse_other_folders(folder: Path, may_be_delta: bool) -> None:
    """Raise UserError, with what to do instead, for a folder of anything but a model."""
    if not may_be_delta and (folder / DELTA_RECORD).is_file():
        fix = f"fastling delta apply --base BASE --delta {folder} --out DIR makes the model."
        raise UserError(str(folder), "holds differences from a base, not a model", fix)
    adapter = next(filter(Path.is_file, map(folder.joinpath, _ADAPTER)), None)
    if adapter:  # transformers would add it to weights in the same folder
        fix = "Merge it into the model (PEFT's merge_and_unload), or move it to another folder."
        raise UserError(str(adapter), "is an adapter, which is not read", fix)
    if not _is_meta_folder(folder) and not (folder / "config.json").is_file():
        fix = "Give a Hugging Face folder (config.json) or Meta's original files (params.json)."
        if (folder / "export").is_dir():
            fix = f"This is the folder of a run; its model is {folder / 'export'}."
        elif (folder / "checkpoints").is_dir():
            fix = (
                f"This is the folder of a run; fastling export --run {folder} --out DIR makes a model of it."
            )
        raise UserError(str(folder), "holds no model: there is no config.json", fix)


def _shared_names(model_type: str) -> list[str]:
    """The shared names that a family has; it ignores others, whatever its config.json says of them."""
    return [name for name in _REQUIRED + _OPTIONAL if name not in ABSENT_SETTINGS[model_type]]


def _read_rope(raw: dict, file: Path) -> tuple[float, dict | None]:
    """Return (theta, scaling) from one dict, `rope_parameters` (transformers 5), or from two keys (4).

    Where a config has both they must agree, since some versions of transformers read one and some the other.
    """
    given = [raw[name] for name in ("rope_parameters", "rope_scaling") if raw.get(name)]
    if any(each.get("partial_rotary_factor") not in (None, 1) for each in (*given, raw)):
        raise UserError(str(file), "rotary embedding of a part of each head is not supported")
    for each in given:
        types = [each[name] for name in ("rope_type", "type") if name in each]
        _check_same(file, "rope_type", types)
        others = sorted(each.keys() - {"rope_theta", "partial_rotary_factor"})
        if others and not types:
            what = f"gives rotary embedding {', '.join(others)}, and no rope_type to say what becomes of it"
            raise UserError(str(file), what)
    scalings = [_scaling(each) for each in given]
    for name, places in (
        ("rope_theta", (*given, raw)),
        ("original_max_position_embeddings", (*filter(None, scalings), raw)),
    ):
        _check_same(file, name, [each[name] for each in places if name in each])
    _check_same(file, "rope_scaling", scalings)
    # transformers then takes rope_scaling, and its default for a theta that stands elsewhere.
    if len(given) == 2 and "rope_theta" in given[0] and "rope_theta" not in given[1] | raw:
        said = f"rope_theta {given[0]['rope_theta']} in rope_parameters alone, not read beside rope_scaling"
        raise UserError(str(file), f"says {said}", "Say it outside of both, or take rope_scaling out.")
    theta = next((each["rope_theta"] for each in (*given, raw) if "rope_theta" in each), 10000.0)
    return theta, scalings[0] if scalings else None


def _check_same(file: Path, name: str, values: list) -> None:
    if any(value != values[0] for value in values):
        said = " and ".join(map(str, values))
        fix = "Versions of transformers differ in which they take: make them the same."
        raise UserError(str(file), f"says {name} more than once, and not the same: {said}", fix)


def _scaling(given: dict) -> dict | None:
    """The scaling that one of the two dicts says, in the newer spelling; None if nothing is scaled."""
    scaling = {name: value for name, value in given.items() if name not in ("rope_theta", "type")}
    scaling.setdefault("rope_type", given.get("type", "default"))
    return None if scaling["rope_type"] == "default" else scaling


def _read_window(raw: dict) -> dict[str, int | None]:
    """The settings of a sliding window: Mistral has it on all layers, Qwen, if it uses one, from layer
    max_window_layers (28) on."""
    if raw["model_type"] == "mistral":
        return {"sliding_window": raw["sliding_window"]}
    used = raw["model_type"] != "llama" and raw.get("use_sliding_window")
    if not used or raw["sliding_window"] is None:
        return {}
    first = raw.get("max_window_layers")
    sliding = [number >= (28 if first is None else first) for number in range(raw["num_hidden_layers"])]
    kinds = ["sliding_attention" if each else "full_attention" for each in sliding]
    if raw.get("layer_types") not in (None, kinds):
        raise UserError("layer_types", "is not what max_window_layers makes: an export could not say so")
    return {"sliding_window": raw["sliding_window"], "max_window_layers": first}


def config_json(
    config: LlamaConfig,
    *,
    bos_token_id: int | None,
    eos_token_id: list[int],
    pad_token_id: int | None,
    dtype: torch.dtype,
) -> dict:
    """Return the content of config.json in the spellings of transformers 4 and 5 both.

    Version 5's own `save_pretrained` writes only the new ones, which older readers skip in silence.
    """
    dtype_name = str(dtype).removeprefix("torch.")
    scaling = config.rope_scaling or {"rope_type": "default"}
    content = {
        "architectures": [_ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in _shared_names(config.model_type)},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "rope_theta": config.rope_theta,
        "rope_scaling": _older_spelling(config.rope_scaling),
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "torch_dtype": dtype_name,
        "dtype": dtype_name,
        "use_cache": True,
        "transformers_version": "4.40.0",  # the oldest that reads all of this; only told, never needed
    }
    if config.model_type != "llama":
        content["sliding_window"] = config.sliding_window
    if config.model_type in ("qwen2", "qwen3"):
        content["use_sliding_window"] = config.sliding_window is not None
        if config.max_window_layers is not None:
            content["max_window_layers"] = config.max_window_layers
    return content


def _older_spelling(scaling: dict | None) -> dict | None:
    """rope_scaling as every transformers 4 reads it: before 4.43 it could only be a type and a factor."""
    if scaling is None or scaling["rope_type"] != "linear":
        return scaling
    others = {name: value for name, value in scaling.items() if name != "rope_type"}
    return {"type": "linear", **others, "factor": float(scaling["factor"])}


def load_weights(model: Llama, folder: str | Path) -> None:
    """Fill a materialised model from a folder, one tensor's rows at a time.

    Parameters may be plain or sharded by FSDP on their rows, in any floating dtype. Raises one
    UserError that names every missing, unexpected or misshapen tensor before any is written.
    """
    folder = Path(folder)
    with closing(open_weights(folder)) as source:
        _fill(model, source, folder)


def open_weights(folder: Path) -> SafetensorsFolder | MetaFolder:
    """Return the tensors of a folder in Hugging Face's names: `shapes`, `read` and `close`."""
    return MetaFolder(folder) if _is_meta_folder(folder) else SafetensorsFolder(folder)


def _is_meta_folder(folder: Path) -> bool:
    return (folder / "params.json").is_file() and not (folder / "config.json").is_file()


@torch.no_grad()
def _fill(model: Llama, source: SafetensorsFolder | MetaFolder, folder: Path) -> None:
    reshard(model)
    check_shapes(model, source.shapes, folder)
    for name, parameter in model.named_parameters():
        local, start, stop = local_rows(parameter)
        piece_start = 0  # in rows of the fused parameter
        for piece_name, num_rows in _pieces(name, parameter.shape[0], model.config):
            first = max(start, piece_start)
            last = min(stop, piece_start + num_rows)
            if first < last:
                rows = source.read(piece_name, first - piece_start, last - piece_start)
                if name == _EMBEDDING and _HEAD in source.shapes and model.config.tie_word_embeddings:
                    check_tied(rows, source.read(_HEAD, first, last), folder)
                rows = rows.to(local.dtype)
                if not rows.isfinite().all():
                    dtype = str(local.dtype).removeprefix("torch.")
                    raise UserError(str(folder), f"{piece_name} holds what is no finite number as {dtype}")
                local[first - start : last - start].copy_(rows)
            piece_start += num_rows


def check_tied(embedding: Tensor, head: Tensor, folder: Path) -> None:
    """Raise UserError if a head that is said to be the embedding is another matrix, which would be lost."""
    if not torch.equal(embedding, head.to(embedding.dtype)):
        raise UserError(
            str(folder),
            f"{_HEAD} is not the embedding, as tie_word_embeddings in config.json says",
            "Set tie_word_embeddings to false there to train both; to train the embedding as both, "
            f"take {_HEAD} out of the weights.",
        )


def _pieces(name: str, num_rows: int, config: LlamaConfig) -> list[tuple[str, int]]:
    """Return Hugging Face's names for the rows of one of our parameters, in order."""
    if ".qkv_proj." in name:
        q_rows = config.num_attention_heads * config.head_dim
        kv_rows = config.num_key_value_heads * config.head_dim
        parts = [("q_proj", q_rows), ("k_proj", kv_rows), ("v_proj", kv_rows)]
        return [(name.replace("qkv_proj", part), rows) for part, rows in parts]
    if ".gate_up_proj." in name:
        parts = ("gate_proj", "up_proj")
        return [(name.replace("gate_up_proj", part), num_rows // 2) for part in parts]
    return [(name, num_rows)]


def check_shapes(model: Llama, found: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise one UserError that names every missing, unexpected or misshapen tensor of a folder."""
    wanted = hf_shapes(model)
    unexpected = {
        name
        for name in found.keys() - wanted.keys()
        # Old exports hold the rotary frequencies; tied models may hold the embedding twice.
        if not name.endswith("rotary_emb.inv_freq")
        and not (name == _HEAD and model.config.tie_word_embeddings and found[name] == wanted[_EMBEDDING])
    }
    complaints = [f"missing: {name} {wanted[name]}" for name in wanted.keys() - found.keys()]
    complaints += [f"unexpected: {name} {found[name]}" for name in unexpected]
    complaints += [
        f"misshapen: {name} is {found[name]}, the config says {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    if complaints:
        what = "\n  ".join(["does not fit its config:", *sorted(complaints)])
        raise UserError(str(folder), what)


def hf_shapes(model: Llama) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by Hugging Face's names, in the model's order."""
    return {
        piece: (rows, *parameter.shape[1:])
        for name, parameter in model.named_parameters()
        for piece, rows in _pieces(name, parameter.shape[0], model.config)
    }


def hf_tensors(
    model: Llama, *, wanted: bool = True, wait: Callable[[], object] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face's name, whole tensor on the CPU) for every weight.

    Of a sharded model one parameter is gathered at a time, so all ranks must iterate together. They call
    `wait` before each, for a rank that is slow with the one before. A rank that has not `wanted` the weights
    takes part in that and is given none.
    """
    reshard(model)
    for name, parameter in model.named_parameters():
        if wait:
            wait()
        tensor = whole(parameter.detach())
        if not wanted:
            continue
        tensor = tensor.cpu()
        pieces = _pieces(name, tensor.shape[0], model.config)
        split = tensor.split([rows for _, rows in pieces])
        yield from zip((piece for piece, _ in pieces), split, strict=True)
