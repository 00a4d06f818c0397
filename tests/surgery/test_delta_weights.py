"""Differences from a base: against whole-tensor arithmetic in float64, and every way to be refused."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from surgery.models import change, make_model, tensors_of, tuned

from fastling.errors import UserError
from fastling.model.huggingface import load_pretrained
from fastling.model.meta_format import _half_split_rows
from fastling.surgery import delta_weights
from fastling.surgery.delta_weights import apply_delta, make_delta
from fastling.surgery.folders import narrowed
from fastling.surgery.merging import merge_models

META_NAMES = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
META_PARTS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
}
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def no_warning(text: str) -> None:
    pytest.fail(f"warned: {text}")


@pytest.fixture(scope="module", params=HALF)
def made(request, tmp_path_factory):
    """A base, a fine-tuned target, and their delta, all of one half-precision dtype."""
    folder = tmp_path_factory.mktemp("delta")
    base = make_model(folder / "base", dtype=HALF[request.param])
    target = tuned(base, folder / "target")
    record = make_delta(base, target, folder / "delta", None)
    return folder, record, HALF[request.param]


@pytest.fixture
def copied(made, tmp_path):
    """A folder of its own for a test that damages it; float16 and bfloat16 alike."""
    return shutil.copytree(made[0], tmp_path / "copy")


def test_a_delta_is_not_taken_for_a_model(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(UserError, match="differences from a base, not a model") as caught:
        load_pretrained(folder / "delta")
    assert f"fastling delta apply --base BASE --delta {folder / 'delta'}" in caught.value.fix
    for base, target in (("base", "delta"), ("delta", "target")):
        with pytest.raises(UserError, match="differences from a base, not a model"):
            make_delta(folder / base, folder / target, tmp_path / "out", None)
    with pytest.raises(UserError, match="differences from a base, not a model"):
        merge_models([folder / "target", folder / "delta"], [1, 1], tmp_path / "out", no_warning)
    assert not (tmp_path / "out").exists()


def test_the_difference_is_that_of_float64_rounded_once(made):
    folder, _, dtype = made
    base, target, delta = (tensors_of(folder / name) for name in ("base", "target", "delta"))
    assert delta.keys() == base.keys()
    for name, stored in delta.items():
        assert stored.dtype == dtype
        exact = target[name].double() - base[name].double()
        assert torch.equal(stored.double(), exact)  # within a factor of two: nothing is rounded


def test_applied_it_is_the_target_bit_for_bit(made, tmp_path):
    folder, record, dtype = made
    again = apply_delta(folder / "base", folder / "delta", tmp_path / "out", no_warning)
    assert again == record and record.exact
    assert record.largest_difference == 0 and record.weights_not_exact == 0
    target, found = tensors_of(folder / "target"), tensors_of(tmp_path / "out")
    assert target.keys() == found.keys()
    for name, tensor in target.items():
        assert found[name].dtype == dtype and torch.equal(found[name], tensor)
    for name in ("config.json", "generation_config.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "target" / name).read_bytes()
    assert not (tmp_path / "out" / "delta.json").exists()


@pytest.mark.parametrize(
    ("asked", "stored"), [*((each, each) for each in HALF.values()), (None, torch.float16)], ids=str
)
def test_a_float32_model_comes_back_within_one_rounding_and_the_largest_is_said(tmp_path, asked, stored):
    base = make_model(tmp_path / "base", dtype=torch.float32)
    target = make_model(tmp_path / "target", dtype=torch.float32, seed=9)  # no relation: nothing is exact
    record = make_delta(base, target, tmp_path / "delta", asked)
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "delta").values()} == {stored}
    apply_delta(base, tmp_path / "delta", tmp_path / "out", no_warning)
    was, wanted, found = (tensors_of(tmp_path / name) for name in ("base", "target", "out"))
    largest, count = 0.0, 0
    limits = torch.finfo(stored)
    for name, tensor in wanted.items():
        error = (found[name].double() - tensor.double()).abs()
        exact = (tensor.double() - was[name].double()).abs()
        # half a unit in the last place of the difference, and one of float32 for each of two operations
        bound = exact * limits.eps / 2 + limits.smallest_normal * limits.eps / 2
        bound += (tensor.double().abs() + was[name].double().abs() + exact) * 2**-23
        assert (error <= bound).all(), name
        largest, count = max(largest, float(error.max())), count + int((error > 0).sum())
    assert record.largest_difference == pytest.approx(largest, rel=1e-6)
    assert record.weights_not_exact == count > 0 and not record.exact


@pytest.mark.slow
@given(
    before=st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=12),
    after=st.lists(st.floats(-4, 4, width=16), min_size=12, max_size=12),
)
@settings(max_examples=200)
def test_one_sum_is_the_rounded_sum_of_reals(tmp_path_factory, before, after):
    base = torch.tensor(before, dtype=torch.float16)
    target = torch.tensor(after[: len(before)], dtype=torch.float16)
    stored = narrowed("x", target.float() - base.float(), torch.float16, "here")
    found = delta_weights._sum("x", base, stored, torch.float16, "here")
    assert torch.equal(found, (base.double() + stored.double()).half())
    close = (
        (base.sign() == target.sign()) & (base.abs() <= 2 * target.abs()) & (target.abs() <= 2 * base.abs())
    )
    assert torch.equal(found[close], target[close])  # Sterbenz


def test_rows_of_added_tokens_are_stored_whole(tmp_path):
    base, target = make_model(tmp_path / "base"), make_model(tmp_path / "target", vocab_size=2003, seed=4)
    record = make_delta(base, target, tmp_path / "delta", torch.float16)
    assert record.rows_beyond_base == {"lm_head.weight": 3, "model.embed_tokens.weight": 3}
    stored, wanted = tensors_of(tmp_path / "delta"), tensors_of(tmp_path / "target")
    for name in record.rows_beyond_base:
        assert torch.equal(stored[name][2000:], wanted[name][2000:])
    apply_delta(base, tmp_path / "delta", tmp_path / "out", no_warning)
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["lm_head.weight"][2000:], wanted["lm_head.weight"][2000:])
    assert torch.allclose(found["lm_head.weight"], wanted["lm_head.weight"], atol=1e-4)


def test_shards_and_their_order_change_nothing(tmp_path, monkeypatch):
    base = make_model(tmp_path / "base", shards="40KB")
    target = make_model(tmp_path / "target", shards="60KB", seed=2)
    whole = make_delta(make_model(tmp_path / "whole"), target, tmp_path / "one", None)
    monkeypatch.setattr("fastling.surgery.folders.SHARD_BYTES", 50_000)
    record = make_delta(base, target, tmp_path / "delta", None)
    assert record == whole  # digests are of tensors, in whatever files
    assert len(list((tmp_path / "delta").glob("model-*.safetensors"))) > 2
    apply_delta(base, tmp_path / "delta", tmp_path / "out", no_warning)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    one, many = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "delta")
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_delta_of_other_software_is_applied_with_one_warning(made, tmp_path, copied):
    (copied / "delta/delta.json").unlink()
    warnings = []
    assert apply_delta(copied / "base", copied / "delta", tmp_path / "out", warnings.append) is None
    assert len(warnings) == 1 and "cannot be checked" in warnings[0]
    target, found = tensors_of(copied / "target"), tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in target.items())
    deeper = make_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"does not fit the base .*:\n  model\.layers\.2\..* is only in"):
        apply_delta(deeper, copied / "delta", tmp_path / "other", warnings.append)


def test_old_buffers_and_the_second_copy_of_a_tied_embedding_do_not_count(tmp_path):
    base = make_model(tmp_path / "base", tie_word_embeddings=True)
    target = tuned(base, tmp_path / "target")

    def add(held):
        held["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()

    change(base, add)
    record = make_delta(base, target, tmp_path / "delta", None)
    assert record.delta.keys() == tensors_of(target).keys()


def test_the_base_may_be_metas_original_files(made, tmp_path):
    """Rows of q and k lie in another order there; digests are of Hugging Face's."""
    folder, _, _ = made
    held, found = tensors_of(folder / "base"), {}
    for name, tensor in held.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            permuted = torch.empty_like(tensor)
            permuted[_half_split_rows(len(tensor), 8)] = tensor
            tensor = permuted
        found[META_NAMES.get(name, name)] = tensor
    for hf, meta in META_PARTS.items():
        found = {
            name.replace("model.layers", "layers").replace(hf, meta): each for name, each in found.items()
        }
    meta = tmp_path / "meta"
    meta.mkdir()
    torch.save(found, meta / "consolidated.00.pth")
    (meta / "params.json").write_text(json.dumps({"dim": 16, "n_layers": 2, "n_heads": 2, "norm_eps": 1e-6}))
    apply_delta(meta, folder / "delta", tmp_path / "out", no_warning)
    target, found = tensors_of(folder / "target"), tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], target[name]) for name in target)
    with pytest.raises(UserError, match="Only the base may be Meta's"):
        make_delta(folder / "base", meta, tmp_path / "delta", None)
    with pytest.raises(
        UserError, match="Only later models may be Meta's"
    ):  # who reads it needs a config.json
        merge_models([meta, folder / "base"], [1, 1], tmp_path / "merged", lambda text: None)


def test_the_template_goes_with_the_model(copied):
    (copied / "target/template.yaml").write_text("name: mine\n")
    make_delta(copied / "base", copied / "target", copied / "again", None)
    apply_delta(copied / "base", copied / "again", copied / "out", no_warning)
    assert (copied / "out/template.yaml").read_text() == "name: mine\n"


def test_only_files_that_were_there_when_it_was_made_are_passed_on(copied):
    (copied / "delta/tokenizer.json").write_text("slipped in")
    apply_delta(copied / "base", copied / "delta", copied / "out", no_warning)
    assert not (copied / "out/tokenizer.json").exists()


# Refused ---------------------------------------------------------------------------------------------


def refused(copied, what: str, where: str = "") -> UserError:
    out = copied / "out"
    with pytest.raises(UserError) as caught:
        apply_delta(copied / "base", copied / "delta", out, no_warning)
    assert what in str(caught.value) and where in caught.value.where
    assert not out.exists() and not out.with_name("out.tmp").exists()
    return caught.value


def test_another_base_is_refused_by_the_tensor_that_differs(copied):
    def move(held):
        held["model.norm.weight"][3] += 0.5

    change(copied / "base", move)
    refused(copied, "another base than the delta was made for: model.norm.weight (16,) differs", "base")


def test_the_base_in_another_dtype_is_another_base(copied):
    def widen(held):
        held.update({name: tensor.float() for name, tensor in held.items()})

    change(copied / "base", widen)
    refused(copied, "same weights in another dtype")


def test_one_flipped_bit_of_a_delta_is_found(copied):
    path = copied / "delta/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refused(copied, "is damaged: ", "delta")


def test_half_a_delta_is_found(copied):
    path = copied / "delta/model.safetensors"
    path.write_bytes(path.read_bytes()[:20_000])
    refused(copied, "is damaged", "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_a_small_file_of_a_delta_is_checked_too(copied, name):
    path = copied / "delta" / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1") + b"\n")
    refused(copied, f"is damaged: {name}" if name != "config.json" else "", "delta")
    path.unlink()
    refused(copied, "")


def test_a_missing_shard_is_named(tmp_path, monkeypatch):
    base = make_model(tmp_path / "base")
    monkeypatch.setattr("fastling.surgery.folders.SHARD_BYTES", 50_000)
    make_delta(base, make_model(tmp_path / "target", seed=3), tmp_path / "delta", None)
    next((tmp_path / "delta").glob("model-00002-*")).unlink()
    refused(tmp_path, "is missing", "model-00002-of-")


def test_names_and_shapes_are_refused_with_both_shapes(tmp_path):
    base = make_model(tmp_path / "base")
    other = make_model(tmp_path / "other", intermediate_size=32)
    with pytest.raises(UserError) as caught:
        make_delta(base, other, tmp_path / "delta", None)
    said = str(caught.value)
    assert "mlp.down_proj.weight is (16, 24) in" in said and "and (16, 32) in" in said
    deeper = make_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"model\.layers\.2\..*is only in .*deeper"):
        make_delta(base, deeper, tmp_path / "delta", None)
    fewer = make_model(tmp_path / "fewer", vocab_size=1990)
    with pytest.raises(UserError, match=r"lm_head\.weight is \(2000, 16\).*\(1990, 16\)"):
        make_delta(base, fewer, tmp_path / "delta", None)
    narrow = make_model(tmp_path / "narrow", num_key_value_heads=1)  # only embeddings may have grown
    with pytest.raises(UserError, match=r"k_proj\.weight is \(8, 16\) in .*narrow, and \(16, 16\)"):
        make_delta(narrow, base, tmp_path / "delta", None)
    assert not (tmp_path / "delta").exists()


def test_a_float16_overflow_is_refused_and_bf16_accepted(tmp_path):
    base = make_model(tmp_path / "base", dtype=torch.bfloat16)
    target = tuned(base, tmp_path / "target")

    def blow_up(held):
        held["model.norm.weight"][0] = 1e6

    change(target, blow_up)
    with pytest.raises(UserError, match=r"model\.norm\.weight overflows float16.*9\.994e\+05"):
        make_delta(base, target, tmp_path / "delta", torch.float16)
    assert make_delta(base, target, tmp_path / "delta", torch.bfloat16).largest_difference < 1e4


def test_non_finite_weights_are_refused(tmp_path):
    base = make_model(tmp_path / "base")
    target = tuned(base, tmp_path / "target")

    def spoil(held):
        held["model.norm.weight"][0] = float("nan")

    change(target, spoil)
    with pytest.raises(UserError, match=r"model\.norm\.weight .* not finite"):
        make_delta(base, target, tmp_path / "delta", None)
    assert [path.name for path in tmp_path.iterdir() if "delta" in path.name] == []


def edited(**changes):
    return lambda content: content | changes


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited(format="fastling-delta-9"), "is not of the format"),
        (lambda content: [content], "holds no JSON object"),
        (edited(base=[]), "base is missing or of another kind"),
        (edited(weights="many"), "weights is missing or of another kind"),
        (edited(result_dtype="load"), "result_dtype is 'load'"),
        (edited(delta={}), "is not what was written"),
        (edited(files={"../../etc/passwd": "0"}), "outside its folder"),
        (lambda content: {key: content[key] for key in content if key != "files"}, "files is missing"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(copied, edit, said):
    path = copied / "delta/delta.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    refused(copied, said)


def test_half_a_record_is_refused(copied):
    path = copied / "delta/delta.json"
    path.write_text(path.read_text()[:100])
    refused(copied, "is not valid JSON", "delta.json")


def test_a_result_that_differs_from_what_make_computed_is_not_kept(copied):
    path = copied / "delta/delta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result_digest": "0" * 64}))
    refused(copied, "came out other than when the delta was made")
