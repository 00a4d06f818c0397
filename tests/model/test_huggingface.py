"""Folders in and out: configs in both spellings, streamed weights, exports, Meta's format."""

import dataclasses
import json
import math
import zipfile
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from fastling.errors import RunError, UserError
from fastling.model import safetensors_folder
from fastling.model.decoding import Decoding
from fastling.model.generation import generate
from fastling.model.huggingface import config_json, hf_tensors, load_pretrained, load_weights, read_config
from fastling.model.llama import Llama, LlamaConfig
from fastling.model.safetensors_folder import save_weights

TINY = LlamaConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def export(model: Llama, folder, dtype=torch.float32, **options) -> None:
    save_weights(hf_tensors(model), folder, dtype=dtype, **options)
    content = config_json(model.config, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=None, dtype=dtype)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture
def exported(tmp_path) -> SimpleNamespace:
    torch.manual_seed(0)
    model = Llama(TINY)
    export(model, tmp_path)
    return SimpleNamespace(model=model, folder=tmp_path)


def edit_json(file, **changes) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


# ---- config.json


def test_our_config_reads_the_same_in_every_spelling(oracle, tmp_path):
    """As transformers wrote it, as we write it, and with either generation of keys taken away."""
    config = read_config(oracle.folder)
    content = config_json(config, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    file = tmp_path / "config.json"
    for removed in ((), ("rope_theta", "rope_scaling"), ("rope_parameters",)):
        file.write_text(json.dumps({k: v for k, v in content.items() if k not in removed}))
        assert read_config(tmp_path) == config


def test_transformers_reads_our_config_as_its_own(oracle, tmp_path):
    content = config_json(
        read_config(oracle.folder),
        bos_token_id=1,
        eos_token_id=[2, 3],
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    (tmp_path / "config.json").write_text(json.dumps(content))
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    original = oracle.model.config
    assert content["architectures"] == [type(oracle.model).__name__]
    assert type(read) is type(original)
    assert (read.eos_token_id, read.dtype) == ([2, 3], torch.bfloat16)
    same = ("hidden_size", "intermediate_size", "num_key_value_heads", "rope_parameters")
    same += ("tie_word_embeddings", "rms_norm_eps", "max_position_embeddings", "vocab_size")
    for name in same:
        assert getattr(read, name) == getattr(original, name), name
    for name in {"head_dim", "sliding_window"} & original.to_dict().keys():
        assert getattr(read, name) == getattr(original, name), name


def test_numbers_without_a_point_are_exported_as_transformers_5_takes_them(exported, tmp_path):
    edit_json(tmp_path / "config.json", initializer_range=1, rms_norm_eps=1)
    made = read_config(tmp_path)
    content = config_json(made, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert transformers.AutoConfig.from_pretrained(tmp_path).rms_norm_eps == 1.0


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_absent_keys_have_transformers_defaults(family, tmp_path):
    shape = {"vocab_size": 99, "hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(
        json.dumps(shape | {"model_type": family, "num_attention_heads": 32})
    )
    ours, theirs = read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    for name in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(ours, name) == getattr(theirs, name, 4096 // 32), name
    for name in ("tie_word_embeddings", "attention_bias", "initializer_range", "sliding_window"):
        assert getattr(ours, name) == (getattr(theirs, name, None) or getattr(LlamaConfig, name)), name


@pytest.mark.parametrize("layers", [None, 0, 1])
def test_on_which_layers_qwens_window_is_stays_as_it_was(layers, tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": layers}
    changes = {name: value for name, value in window.items() if value is not None}
    made = dataclasses.replace(TINY, model_type="qwen2", sliding_window=48, max_window_layers=layers)
    content = config_json(made, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    assert changes.items() <= content.items()
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path) == made
    kinds = transformers.AutoConfig.from_pretrained(tmp_path).layer_types
    expected = transformers.Qwen2Config(num_hidden_layers=made.num_hidden_layers, **changes).layer_types
    assert kinds == expected
    edit_json(tmp_path / "config.json", layer_types=kinds)  # as transformers 5 writes it
    assert read_config(tmp_path) == made
    edit_json(tmp_path / "config.json", layer_types=["sliding_attention", *kinds[1:-1], "full_attention"])
    with pytest.raises(UserError, match="layer_types is not what max_window_layers makes"):
        read_config(tmp_path)


@pytest.mark.parametrize("factor", [None, 1, 1.0])
def test_a_partial_rotary_factor_of_the_whole_head_is_accepted(factor, tmp_path):
    content = config_json(TINY, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(content | {"partial_rotary_factor": factor}))
    assert read_config(tmp_path) == TINY


@pytest.mark.parametrize(("family", "window"), [("llama", 8), ("qwen2", None), ("qwen3", None)], ids=str)
def test_a_window_that_transformers_does_not_slide_is_none(family, window, tmp_path):
    """And is read back as none: the check after training would refuse the export."""
    made = dataclasses.replace(TINY, model_type=family)
    content = config_json(made, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    content |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path) == made
    kinds = getattr(transformers.AutoConfig.from_pretrained(tmp_path), "layer_types", None)
    assert set(kinds or ()) <= {"full_attention"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            "'gpt2' is not supported; these are: llama, mistral, qwen2, qwen3",
        ),
        ({"hidden_act": "gelu"}, "hidden_act must be silu: gelu"),
        ({"quantization_config": {"bits": 4}}, "the model is quantized"),
        ({"hidden_size": "gone"}, "lacks hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads does not divide 4 heads: 3"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": "gone"},
            "not one of linear, llama3: dynamic",
        ),
        ({"rope_theta": 5e5}, "says rope_theta more than once, and not the same: 10000.0 and 500000.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "says rope_scaling more than once, and not the same: None and {'factor': 2.0, 'rope_type': 'linear'}",
        ),
        (
            {
                "rope_parameters": {"rope_type": "llama3", "original_max_position_embeddings": 64},
                "original_max_position_embeddings": 16,
            },
            "says original_max_position_embeddings more than once, and not the same: 64 and 16",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2.0}},
            "says rope_type more than once, and not the same: default and linear",
        ),
        (
            {"rope_scaling": {"rope_type": "default"}, "rope_theta": "gone"},
            "says rope_theta 10000.0 in rope_parameters alone, not read beside rope_scaling",
        ),
        ({"partial_rotary_factor": 0.5}, "a part of each head is not supported"),
        (
            {"rope_scaling": {"factor": 2.0}},
            "gives rotary embedding factor, and no rope_type to say what becomes of it",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "gives rotary embedding full_attention, and no rope_type to say what becomes of it",
        ),
    ],
)
def test_each_unusable_config_is_refused_in_words(exported, changes, message):
    edit_json(exported.folder / "config.json", **changes)
    with pytest.raises(UserError, match=message) as refused:
        read_config(exported.folder)
    assert "config.json" in refused.value.where


def test_old_spellings_and_absent_keys(exported):
    file = exported.folder / "config.json"
    linear = {"type": "linear", "factor": 2}
    edit_json(file, rope_parameters="gone", rope_theta=5e5, rope_scaling=linear)
    config = read_config(exported.folder)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2}
    edit_json(file, rope_theta="gone", rope_scaling=linear | {"rope_theta": 5e5})
    assert read_config(exported.folder) == config  # as transformers 5 reads it
    edit_json(file, model_type="mistral")
    assert read_config(exported.folder).sliding_window == 4096  # transformers' default
    edit_json(file, sliding_window=None)
    assert read_config(exported.folder).sliding_window is None
    edit_json(file, model_type="qwen2", sliding_window=8, use_sliding_window=False)
    assert read_config(exported.folder).sliding_window is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": None}, "rope_theta must be a number: None"),
        ({"rope_theta": "10000"}, "rope_theta must be a number: '10000'"),
        ({"vocab_size": "1000"}, "vocab_size must be a whole number: '1000'"),
        ({"hidden_size": 32.0}, "hidden_size must be a whole number: 32.0"),
        ({"num_key_value_heads": True}, "num_key_value_heads must be a whole number: True"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number: '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number: nan"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false: 'false'"),
        ({"rope_scaling": {"type": "linear", "factor": "8"}}, "rope_scaling.factor must be a number: '8'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor must be > 0: 0"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(exported, changes, said):
    """And `"false"` is not taken for true."""
    edit_json(exported.folder / "config.json", rope_parameters="gone", **changes)
    with pytest.raises(UserError, match=f"config.json: model.{said}"):
        read_config(exported.folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_endless_brackets_are_refused(exported, name):
    (exported.folder / name).write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(UserError, match=f"{name}: is not valid JSON: maximum recursion"):
        load_pretrained(exported.folder)


@pytest.mark.parametrize(
    ("index", "what"),
    [
        ("[1]", "holds no JSON object: \\[1\\]"),
        ("{}", "has no weight_map of tensors to files"),
        ('{"weight_map": ["a"]}', "has no weight_map of tensors to files"),
        ('{"weight_map": {"a": 1}}', "has no weight_map of tensors to files"),
    ],
)
def test_an_index_that_is_valid_json_but_none_is_named(exported, index, what):
    """Whoever opens the folder: to train, to export, or to take a difference."""
    (exported.folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=what):
        load_pretrained(exported.folder)


def test_a_folder_without_a_model_and_broken_json(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_pretrained(tmp_path)


def test_linear_scaling_is_spelled_for_transformers_before_4_43_too(tmp_path):
    """Which took a rope_scaling of exactly two fields, a type and a factor with a point in it."""
    made = dataclasses.replace(TINY, rope_scaling={"rope_type": "linear", "factor": 4})
    content = config_json(made, bos_token_id=1, eos_token_id=[2], pad_token_id=0, dtype=torch.bfloat16)
    assert content["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert isinstance(content["rope_scaling"]["factor"], float)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_config(tmp_path) == made
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_type"] == "linear"


def test_linear_scaling_equals_transformers(tmp_path):
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    config = transformers.LlamaConfig(
        vocab_size=67,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=scaling,
        attention_bias=True,
        mlp_bias=True,
    )
    theirs = transformers.LlamaForCausalLM(config).float()
    theirs.save_pretrained(tmp_path)
    tokens = torch.arange(40)
    with torch.no_grad():
        ours = load_pretrained(tmp_path).logits(tokens, torch.tensor([0, 40], dtype=torch.int32))
        torch.testing.assert_close(ours, theirs(tokens[None]).logits[0], atol=1e-5, rtol=1e-5)


# ---- weights


@pytest.mark.parametrize("max_shard_bytes", [5 * 2**30, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_then_load_is_bit_equal(tmp_path, max_shard_bytes, dtype):
    torch.manual_seed(0)
    model = Llama(TINY).to(dtype)
    export(model, tmp_path, dtype, max_shard_bytes=max_shard_bytes)
    again = load_pretrained(tmp_path, dtype=dtype)
    for (name, saved), loaded in zip(model.named_parameters(), again.parameters(), strict=True):
        assert loaded.dtype == dtype
        assert torch.equal(saved, loaded), name


def test_transformers_reads_our_export(oracle, tmp_path):
    export(load_pretrained(oracle.folder), tmp_path, max_shard_bytes=20_000)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, parameter in oracle.model.named_parameters():
        assert torch.equal(parameter, theirs.get_parameter(name)), name


def test_shards_are_numbered_indexed_and_leave_nothing_stale(exported):
    folder = exported.folder
    export(exported.model, folder, max_shard_bytes=10_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    sizes = [sum(t.nbytes for t in load_file(folder / file).values()) for file in files]
    assert sum(sizes) == index["metadata"]["total_size"]
    assert max(sizes) <= 10_000
    export(exported.model, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    modes = {file.stat().st_mode for file in folder.iterdir()}
    assert len(modes) == 1  # the weights as readable to others as any file


def test_a_full_disk_is_reported_and_leaves_no_weights_behind(exported, quota):
    before = load_file(exported.folder / "model.safetensors")
    shards = iter([("small", torch.ones(100)), ("large", torch.ones(2000))])
    with pytest.raises(RunError, match="the weights could not be written: .*File too large"):
        save_weights(shards, exported.folder, max_shard_bytes=1000, dtype=torch.float32)
    assert {path.name for path in exported.folder.iterdir()} == {"config.json", "model.safetensors"}
    assert all(map(torch.equal, load_file(exported.folder / "model.safetensors").values(), before.values()))


@pytest.mark.parametrize(
    ("mesh_shape", "rank", "shard"),
    [((4,), 0, 0), ((4,), 1, 1), ((4,), 3, 3), ((40,), 39, 39), ((2, 4), 6, 2)],
    ids=["first", "second", "ragged last", "empty last", "hybrid"],
)
def test_each_rank_of_fsdp_holds_its_own_rows(exported, mesh_shape, rank, shard):
    """One rank at a time, without communication; 67 rows do not divide by 4, nor 32 by 40."""
    whole = load_pretrained(exported.folder)
    world_size, num_shards = math.prod(mesh_shape), mesh_shape[-1]
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        names = ("replicate", "shard")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        with torch.device("meta"):
            model = Llama(TINY)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        for fill in (partial(load_weights, folder=exported.folder), Llama.reset_parameters):
            for parameter in model.parameters():
                parameter.detach().to_local().fill_(float("nan"))
            torch.manual_seed(0)  # as `exported` was made
            fill(model)
            for name, parameter in model.named_parameters():
                chunks = whole.get_parameter(name).chunk(num_shards)
                expected = chunks[shard] if shard < len(chunks) else chunks[0][:0]
                assert torch.equal(parameter.to_local(), expected), name
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shard_layers", [True, False])
def test_an_export_after_a_forward_holds_the_weights_not_their_bfloat16_copies(exported, shard_layers):
    """FSDP leaves the root's weights gathered, in the compute dtype, until a backward comes."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        model = load_pretrained(exported.folder)
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=False)
        for layer in model.model.layers if shard_layers else ():
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        with torch.no_grad():
            model.logits(torch.arange(5), torch.tensor([0, 5], dtype=torch.int32))
        for name, tensor in hf_tensors(model):
            assert torch.equal(tensor, load_file(exported.folder / "model.safetensors")[name]), name
        generate(model, [[1, 2]], Decoding(max_new_tokens=2), stop_ids=set())
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    finally:
        dist.destroy_process_group()


def test_every_tensor_that_does_not_fit_is_named_at_once(exported):
    file = exported.folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.layers.9.extra.weight"] = torch.ones(2)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.ones(8, 32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # harmless, old
    save_file(tensors, file)
    with pytest.raises(UserError) as refused:
        load_pretrained(exported.folder)
    assert refused.value.what.splitlines() == [
        "does not fit its config:",
        "  misshapen: model.layers.0.self_attn.k_proj.weight is (8, 32), the config says (16, 32)",
        "  missing: model.norm.weight (32,)",
        "  unexpected: model.layers.9.extra.weight (2,)",
    ]


def test_a_head_in_a_tied_models_file_must_be_the_embedding(exported):
    """Where it is another matrix, transformers 4 drops it and 5 does not tie: neither in silence here."""
    edit_json(exported.folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"lm_head.weight is not the embedding, as tie_word_embeddings"):
        load_pretrained(exported.folder)
    file = exported.folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    model = load_pretrained(exported.folder)
    assert model.head_weight is model.model.embed_tokens.weight
    head = tensors.pop("lm_head.weight")
    for name, extra in (("lm_head.weight", torch.ones(3, 32)), ("head.weight", head)):
        save_file(tensors | {name: extra}, file)
        with pytest.raises(UserError) as refused:
            load_pretrained(exported.folder)
        assert f"unexpected: {name} {tuple(extra.shape)}" in refused.value.what


def test_nan_weights_are_named_at_loading(exported):
    file = exported.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 4] = math.nan
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"layers.1.self_attn.v_proj.weight holds what is no finite number"):
        load_pretrained(exported.folder)
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 4] = 1e5
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"v_proj.weight holds what is no finite number as float16"):
        load_pretrained(exported.folder, dtype=torch.float16)
    load_pretrained(exported.folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("elsewhere", ["/etc/passwd", "../model.safetensors", "C:\\x.safetensors"])
def test_an_index_may_not_lead_out_of_its_folder(exported, elsewhere):
    index = {"weight_map": {"model.norm.weight": elsewhere}}
    (exported.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names a file outside its folder"):
        load_pretrained(exported.folder)


def test_unreadable_weights_are_not_called_missing(exported, monkeypatch):
    def refused(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(safetensors_folder, "open", refused, raising=False)
    with pytest.raises(PermissionError, match="Permission denied: .*model.safetensors"):
        load_pretrained(exported.folder)


def test_an_incomplete_or_unsafe_folder_is_refused_in_words(exported):
    folder = exported.folder
    export(exported.model, folder, max_shard_bytes=10_000)
    shard = next(folder.glob("model-00002-of-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(UserError, match="is damaged"):
        load_pretrained(folder)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="numbered shards but no model.safetensors.index.json"):
        load_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.Q4_K_M.gguf").touch()
    with pytest.raises(UserError, match="holds no model.safetensors") as refused:
        load_pretrained(folder)
    assert "GGUF and other formats are not read" in refused.value.fix
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="holds pickle files .* can run code") as refused:
        load_pretrained(folder)
    assert "Convert it" in refused.value.fix


def test_a_tensor_stored_twice_is_refused(exported):
    """transformers takes the whole file, or the last shard that holds a tensor: whichever, one is stale."""
    folder = exported.folder
    export(exported.model, folder, max_shard_bytes=10_000)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    whole = load_file(second)
    save_file(whole | {name: tensor * 2 for name, tensor in load_file(first).items()}, second)
    with pytest.raises(UserError, match=f"{second.name}: holds .*, which {first.name} holds as well"):
        load_pretrained(folder)
    save_file(whole | {"model.layers.9.extra.weight": torch.ones(2)}, second)  # which the index does not say
    with pytest.raises(UserError, match=r"unexpected: model.layers.9.extra.weight \(2,\)"):
        load_pretrained(folder)
    save_file(whole, second)
    load_pretrained(folder)
    save_file(dict(hf_tensors(exported.model)), folder / "model.safetensors")
    with pytest.raises(UserError, match=r"holds weights twice: model.safetensors, and the files that"):
        load_pretrained(folder)
    index = {"weight_map": {name: "model.safetensors" for name, _ in hf_tensors(exported.model)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_pretrained(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(exported, name):
    (exported.folder / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: is an adapter, which is not read"):
        load_pretrained(exported.folder)


def test_quantized_tensors_are_refused(exported):
    file = exported.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(UserError, match="model.norm.weight is quantized: I8"):
        load_pretrained(exported.folder)


# ---- Meta's original format


def meta_tensors(model: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The inverse of the published conversion, one row at a time: lane i of a half -> lane 2i."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads

    def interleave(weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(weight)
        for row in range(weight.shape[0]):
            head, lane = divmod(row, head_dim)
            half, pair = divmod(lane, head_dim // 2)
            out[head * head_dim + 2 * pair + half] = weight[row]
        return out

    tensors = {
        "tok_embeddings.weight": model.model.embed_tokens.weight.detach(),
        "norm.weight": model.model.norm.weight.detach(),
        "output.weight": model.lm_head.weight.detach(),
        "rope.freqs": torch.ones(head_dim // 2),
    }
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        tensors |= {
            f"layers.{i}.{name}.weight": weight.detach()
            for name, weight in {
                "attention.wq": interleave(attention.q_proj.weight),
                "attention.wk": interleave(attention.k_proj.weight),
                "attention.wv": attention.v_proj.weight,
                "attention.wo": attention.o_proj.weight,
                "feed_forward.w1": mlp.gate_proj.weight,
                "feed_forward.w2": mlp.down_proj.weight,
                "feed_forward.w3": mlp.up_proj.weight,
                "attention_norm": layer.input_layernorm.weight,
                "ffn_norm": layer.post_attention_layernorm.weight,
            }.items()
        }
    return tensors


def write_meta(folder, tensors, num_files: int, embedding_dim: int, **params) -> None:
    split_dims = {"tok_embeddings": embedding_dim, "output": 0}
    split_dims |= dict.fromkeys(("wq", "wk", "wv", "w1", "w3"), 0)
    split_dims |= dict.fromkeys(("wo", "w2"), 1)
    for i in range(num_files):
        shard = {}
        for name, tensor in tensors.items():
            dim = split_dims.get(name.removesuffix(".weight").split(".")[-1])
            piece = tensor if dim is None else tensor.chunk(num_files, dim)[i]
            shard[name] = piece.contiguous().clone()
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-6, "vocab_size": -1} | params
    (folder / "params.json").write_text(json.dumps(params))


@pytest.fixture(scope="module")
def meta_oracle() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=68,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.mark.parametrize(("num_files", "embedding_dim"), [(1, 0), (2, 0), (2, 1)])
def test_metas_format_equals_transformers(meta_oracle, tmp_path, num_files, embedding_dim):
    write_meta(tmp_path, meta_tensors(meta_oracle), num_files, embedding_dim, n_kv_heads=2)
    model = load_pretrained(tmp_path)
    assert (model.config.vocab_size, model.config.intermediate_size) == (68, 48)
    assert not model.config.tie_word_embeddings
    tokens = torch.arange(30)
    with torch.no_grad():
        ours = model.logits(tokens, torch.tensor([0, 30], dtype=torch.int32))
        torch.testing.assert_close(ours, meta_oracle(tokens[None]).logits[0], atol=1e-5, rtol=1e-5)
    for name, tensor in hf_tensors(model):
        assert torch.equal(tensor, meta_oracle.get_parameter(name)), name


def test_metas_shards_are_read_in_the_order_of_their_numbers(meta_oracle, tmp_path):
    """Also where no zeros lead them, and text would put 10 before 2."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn([48] * tensor.dim(), generator=draw)
        for name, tensor in meta_tensors(meta_oracle).items()
    }
    write_meta(tmp_path, tensors, 12, 0, dim=48, n_heads=12, n_kv_heads=12)
    whole = dict(hf_tensors(load_pretrained(tmp_path)))
    for file in tmp_path.glob("consolidated.0?.pth"):
        file.rename(tmp_path / file.name.replace(".0", "."))
    for name, tensor in hf_tensors(load_pretrained(tmp_path)):
        assert torch.equal(tensor, whole[name]), name


def test_llama_1_has_rotary_frequencies_in_each_layer(meta_oracle, tmp_path):
    """Which every converter passes over: the tables are computed."""
    more = {f"layers.{i}.attention.inner_attention.rope.freqs": torch.ones(4) for i in range(2)}
    tensors = meta_tensors(meta_oracle)
    del tensors["rope.freqs"]
    write_meta(tmp_path, tensors | more, 2, 1, n_kv_heads=2)
    for name, tensor in hf_tensors(load_pretrained(tmp_path)):
        assert torch.equal(tensor, meta_oracle.get_parameter(name)), name


def test_defaults_for_what_params_json_omits(meta_oracle, tmp_path):
    tensors = meta_tensors(meta_oracle)
    del tensors["output.weight"]
    write_meta(tmp_path, tensors, 1, 0, n_kv_heads=2, rope_theta=5e5, use_scaled_rope=True)
    config = read_config(tmp_path)
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 131072
    assert config.rope_scaling["factor"] == 32.0  # as small as Llama 3.2
    for params, longest in [
        ({"norm_eps": 1e-6}, 2048),
        ({"norm_eps": 1e-5}, 4096),
        ({"rope_theta": 5e5}, 8192),
        ({"rope_theta": 1e6}, 16384),
    ]:
        write_meta(tmp_path, tensors, 1, 0, n_kv_heads=2, **params)
        assert read_config(tmp_path).max_position_embeddings == longest


def test_meta_folders_that_cannot_be_read_are_refused_in_words(meta_oracle, tmp_path):
    tensors = meta_tensors(meta_oracle)
    (tmp_path / "params.json").write_text('{"dim": 32}')
    with pytest.raises(UserError, match="no consolidated"):
        load_pretrained(tmp_path)
    write_meta(tmp_path, tensors | {"layers.0.attention.router.weight": torch.ones(1)}, 1, 0)
    with pytest.raises(UserError, match="not LLaMA's: layers.0.attention.router.weight"):
        load_pretrained(tmp_path)
    (tmp_path / "params.json").write_text('{"dim": 32}')
    with pytest.raises(UserError, match="lacks n_heads, n_layers, norm_eps"):
        load_pretrained(tmp_path)
    write_meta(tmp_path, tensors, 2, 0, n_kv_heads=2)
    torch.save({"norm.weight": torch.ones(32)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(UserError, match="other tensors than consolidated.00.pth"):
        load_pretrained(tmp_path)
    write_meta(tmp_path, tensors, 2, 0, n_kv_heads=2)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "consolidated.02.pth")
    with pytest.raises(UserError, match="lacks consolidated.01.pth"):
        load_pretrained(tmp_path)
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(UserError, match=r"1 consolidated.\*.pth hold 16 of 32 rows of queries"):
        load_pretrained(tmp_path)
    (tmp_path / "consolidated.00 (1).pth").touch()
    with pytest.raises(UserError, match=r"consolidated.00 \(1\).pth: is not one of numbered shards"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"dim": "32"}, "params.json: dim must be a whole number: '32'"),
        ({"n_heads": 7}, "params.json: model.num_attention_heads does not divide hidden_size 32: 7"),
        ({"n_heads": None}, "params.json: n_heads must be a whole number: None"),
        ({"n_layers": 0}, "params.json: n_layers must be > 0: 0"),
        ({"norm_eps": "1e-6"}, "params.json: norm_eps must be a number: '1e-6'"),
        ({"rope_theta": True}, "params.json: rope_theta must be a number: True"),
        ({"use_scaled_rope": 1}, "params.json: use_scaled_rope must be true or false: 1"),
    ],
)
def test_params_of_wrong_types_are_refused_in_words(meta_oracle, tmp_path, params, said):
    write_meta(tmp_path, meta_tensors(meta_oracle), 1, 0, **{"n_kv_heads": 2, **params})
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([1], "consolidated.00.pth: holds no tensors with names: list"),
        ({5: torch.ones(2)}, "consolidated.00.pth: holds no tensors with names: 5"),
        ({"norm.weight": 5}, "norm.weight is no tensor of floating-point numbers: int"),
        ({"norm.weight": torch.ones(32, dtype=torch.int8)}, "norm.weight is no tensor .*: torch.int8"),
        ({"norm.weight": torch.ones(32).to_sparse()}, "norm.weight is no plain tensor"),
        ({"norm.weight": torch.ones(32, device="meta")}, "norm.weight is no plain tensor"),
        ({"tok_embeddings.weight": torch.zeros(5)}, r"shape of tok_embeddings.weight is not LLaMA's: \(5,\)"),
        ({"layers.0.feed_forward.w1.weight": torch.zeros(5)}, "shape of layers.0.feed_forward.w1.weight"),
    ],
)
def test_a_pth_file_of_something_else_is_refused_in_words(meta_oracle, tmp_path, change, said):
    tensors = meta_tensors(meta_oracle)
    write_meta(tmp_path, tensors, 1, 0, n_kv_heads=2)
    torch.save(tensors | change if isinstance(change, dict) else change, tmp_path / "consolidated.00.pth")
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path)


def test_a_pth_file_whose_index_is_cut_is_refused_in_words(tmp_path):
    """Its EOFError has no words of its own."""
    with zipfile.ZipFile(tmp_path / "consolidated.00.pth", "w") as file:
        file.writestr("cut/data.pkl", b"")
        file.writestr("cut/version", b"3\n")
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 1, "n_heads": 4, "norm_eps": 1e-6}')
    with pytest.raises(UserError, match="cannot be read as a plain file of tensors: EOFError"):
        load_pretrained(tmp_path)


class Payload:
    def __reduce__(self):
        return print, ("this code ran",)


def test_code_in_a_pth_file_does_not_run(tmp_path, capsys):
    torch.save({"norm.weight": Payload()}, tmp_path / "consolidated.00.pth")
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 1, "n_heads": 4, "norm_eps": 1e-6}')
    with pytest.raises(UserError, match="plain file of tensors: it holds more than tensors") as refused:
        load_pretrained(tmp_path)
    assert "trust" not in str(refused.value), "torch goes on to advise to load it all the same"
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "holds no JSON object"),
        ('{"model_type": ["llama"]}', "is not supported"),
        ("HIDDEN", "wrong type|must be|does not divide"),
    ],
)
def test_a_config_of_wrong_types_is_refused_in_words(tmp_path, content, said):
    if content == "HIDDEN":
        fields = {
            "model_type": "llama", "hidden_size": "abc", "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 8, "rms_norm_eps": 1e-6,
        }  # fmt: skip
        content = json.dumps(fields)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_config(tmp_path)


def test_a_dtype_by_its_name_is_refused_in_words(tmp_path):
    with pytest.raises(TypeError, match="such as torch.float32: 'float32'"):
        load_pretrained(tmp_path, dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("holds", "said"), [("export", "its model is .*export"), ("checkpoints", "fastling export --run")]
)
def test_a_run_folder_given_as_a_model_names_its_export(tmp_path, holds, said):
    (tmp_path / holds).mkdir()
    with pytest.raises(UserError, match=f"the folder of a run.*{said}"):
        load_pretrained(tmp_path)
