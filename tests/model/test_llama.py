"""The network against transformers, packed against unpacked, and the promises around its tables."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers

from fastling.errors import UserError
from fastling.model.huggingface import hf_tensors, load_pretrained
from fastling.model.llama import Llama, LlamaConfig

TINY = LlamaConfig(
    vocab_size=67,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def tiny_model() -> Llama:
    torch.manual_seed(0)
    return Llama(replace(TINY, initializer_range=0.3))


def gradients_in_hf_names(model: Llama) -> dict[str, torch.Tensor]:
    """The gradients of the fused parameters split as their weights are."""
    holder = Llama(model.config)
    for ours, theirs in zip(holder.parameters(), model.parameters(), strict=True):
        ours.data = theirs.grad
    return dict(hf_tensors(holder))


def test_logits_equal_transformers(oracle, pack):
    model = load_pretrained(oracle.folder)
    with torch.no_grad():
        ours = model.logits(pack.tokens, pack.cu_seqlens)
        theirs = [oracle.model(document[None]).logits[0] for document in pack.documents]
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-5, rtol=1e-5)


def test_packed_loss_and_every_gradient_equal_unpacked_transformers(oracle, pack):
    model = load_pretrained(oracle.folder)
    loss = model.loss(pack)
    loss.backward()

    oracle.model.zero_grad()
    nll = [
        F.cross_entropy(oracle.model(document[None]).logits[0, :-1], document[1:], reduction="none")
        for document in pack.documents
    ]
    their_loss = (torch.cat(nll) * pack.weights).sum()
    their_loss.backward()

    torch.testing.assert_close(loss, their_loss, atol=1e-5, rtol=1e-5)
    ours = gradients_in_hf_names(model)
    theirs = {name: parameter.grad for name, parameter in oracle.model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(
            gradient,
            theirs[name],
            atol=1e-5 * max(scale, 1.0),
            rtol=1e-4,
            msg=lambda m, n=name: n + m,
        )


def test_packed_equals_one_document_at_a_time(pack):
    model = tiny_model()
    model.loss(pack).backward()
    packed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    weights = pack.weights.split([length - 1 for length in pack.lengths])
    for document, document_weights in zip(pack.documents, weights, strict=True):
        loss, nll = model(
            document,
            torch.tensor([0, len(document)], dtype=torch.int32),
            labels=document[1:],
            loss_index=torch.arange(len(document) - 1),
            weights=document_weights,
        )
        assert loss.dtype == nll.dtype == torch.float32 and not nll.requires_grad
        loss.backward()
    for parameter, gradient in zip(model.parameters(), packed, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_a_document_does_not_see_another_bit_for_bit(pack):
    """Change the first document: the others' logits and the gradients of their loss stay."""
    model = tiny_model()
    first = pack.lengths[0]
    others = pack.loss_index >= first
    results = []
    for tokens in (pack.tokens, pack.tokens.clone()):
        if results:
            tokens[:first] = (tokens[:first] + 1) % TINY.vocab_size
        model.zero_grad()
        logits = model.logits(tokens, pack.cu_seqlens)[first:]
        loss, _ = model(
            tokens,
            pack.cu_seqlens,
            labels=pack.labels[pack.loss_index][others],
            loss_index=pack.loss_index[others],
            weights=pack.weights[others],
        )
        loss.backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


def test_omitted_arguments_are_derived(pack):
    model = tiny_model()
    given = model(
        pack.tokens,
        pack.cu_seqlens,
        positions=pack.positions,
        max_seqlen=pack.max_seqlen,
        lengths=pack.lengths,
    )
    assert torch.equal(given, model.logits(pack.tokens, pack.cu_seqlens))


def test_borders_may_be_int64():
    model, tokens = tiny_model(), torch.arange(6)
    given = model.logits(tokens, torch.tensor([0, 2, 6], dtype=torch.int32))
    assert torch.equal(model.logits(tokens, torch.tensor([0, 2, 6])), given)
    with pytest.raises(
        ValueError, match="logits: cu_seqlens must be torch.int64 or torch.int32: torch.float32"
    ):
        model.logits(tokens, torch.tensor([0.0, 2.0, 6.0]))


@pytest.mark.parametrize("borders", [[0, 3, 7], [1, 6], [0, 8], [0, 4, 2, 6], [], [[0, 6]]], ids=str)
def test_borders_that_do_not_match_the_tokens_are_refused(borders):
    with pytest.raises(ValueError, match=r"logits: cu_seqlens must ascend from 0 to the 6 tokens"):
        tiny_model().logits(torch.arange(6), torch.tensor(borders, dtype=torch.int32))


def test_a_batch_dimension_is_refused_in_words():
    with pytest.raises(ValueError, match=r"no batch dimension: \(1, 6\)"):
        tiny_model().logits(torch.arange(6)[None], torch.tensor([0, 6], dtype=torch.int32))


@pytest.mark.parametrize("strange", [67, -1])
def test_tokens_outside_the_vocabulary_are_refused(strange):
    with pytest.raises(ValueError, match=f"logits: tokens must be ids from 0 to 66: {strange}$"):
        tiny_model().logits(torch.tensor([1, strange]), torch.tensor([0, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="tokens must be torch.int64 or torch.int32: torch.float32"):
        tiny_model().logits(torch.ones(2), torch.tensor([0, 2], dtype=torch.int32))


def test_labels_of_only_the_supervised_rows_are_refused(pack):
    pack.labels = pack.labels[pack.loss_index]
    with pytest.raises(ValueError, match=r"loss: labels must be of all tokens, \(29,\): \(24,\)"):
        tiny_model().loss(pack)


def test_logit_index_gives_the_same_rows(pack):
    model = tiny_model()
    last = pack.cu_seqlens[1:].long() - 1
    rows = model(pack.tokens, pack.cu_seqlens, logit_index=last)
    expected = model.logits(pack.tokens, pack.cu_seqlens)[last]
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-6)


def test_nothing_supervised_gives_zero_loss_and_zero_gradients(pack):
    model = tiny_model()
    none = torch.empty(0, dtype=torch.int64)
    loss, nll = model(pack.tokens, pack.cu_seqlens, labels=none, loss_index=none, weights=torch.empty(0))
    loss.backward()
    assert loss.item() == 0.0 and nll.shape == (0,)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_rotary_tables_stay_float32_and_right_through_casts_and_to_empty():
    expected = tiny_model().rotary_cos
    cast = tiny_model().to(torch.bfloat16)
    assert cast.lm_head.weight.dtype == torch.bfloat16
    with torch.device("meta"):
        empty = Llama(TINY)
    assert empty.rotary_cos.is_meta
    empty.to_empty(device="cpu")
    for model in (cast, empty):
        assert model.rotary_cos.dtype == torch.float32
        assert torch.equal(model.rotary_cos, expected)
    assert not any("rotary" in name for name in cast.state_dict())


def test_one_seed_gives_one_model_however_it_is_built():
    torch.manual_seed(3)
    direct = Llama(TINY)
    with torch.device("meta"):
        model = Llama(TINY)
    model.to_empty(device="cpu")
    torch.manual_seed(3)
    with torch.device("meta"):  # or a GPU, which would draw other numbers
        model.reset_parameters()
    for ours, theirs in zip(model.parameters(), direct.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert 0.018 < model.model.embed_tokens.weight.std().item() < 0.022
    assert torch.equal(model.model.norm.weight, torch.ones(TINY.hidden_size))


def test_tied_model_has_no_head_of_its_own():
    model = Llama(replace(TINY, tie_word_embeddings=True))
    assert model.head_weight is model.model.embed_tokens.weight
    assert not any("lm_head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("limits", "longest", "says"),
    [
        ({"sliding_window": 8, "model_type": "mistral"}, 8, "sliding_window"),
        ({"max_position_embeddings": 8}, 8, "max_position_embeddings"),
        ({"sliding_window": 9999, "model_type": "mistral"}, 64, None),
    ],
)
def test_a_document_longer_than_the_model_can_take_is_refused(pack, limits, longest, says):
    model = Llama(replace(TINY, **limits))
    assert model.config.longest_sequence == longest
    if says is None:
        model.logits(pack.tokens, pack.cu_seqlens)
    else:
        with pytest.raises(UserError, match=f"at most 8 tokens.*{says}.*: 11"):
            model.logits(pack.tokens, pack.cu_seqlens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model.model_type: not one of llama, mistral, qwen2, qwen3: gpt2"),
        ({"num_attention_heads": 5, "head_dim": None}, "does not divide hidden_size 32: 5"),
        ({"num_attention_heads": 6, "head_dim": 8}, "does not divide hidden_size 32: 6"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: does not divide 4 heads: 3"),
        ({"head_dim": 7}, "head_dim: must be even: 7"),
        ({"vocab_size": 0}, "vocab_size: must be > 0: 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: must be at most 10000: 1000000000"),
        ({"hidden_size": 10**11}, "hidden_size: must be at most 16777216: 100000000000"),
        ({"model_type": "qwen2", "attention_bias": True}, "qwen2 has no such setting"),
        ({"model_type": "mistral", "mlp_bias": True}, "mistral has no such setting"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is not one of linear, llama3: yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear lacks factor"),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            "rope_scaling.low_freq_factor: must be below high_freq_factor 4.0: 4.0",
        ),
    ],
)
def test_each_impossible_config_is_refused_in_words(change, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)


def test_a_llama_that_transformers_would_not_open_is_refused_and_others_are_not():
    """Else a whole run would end with a model that cannot be exported."""
    heads = {"num_attention_heads": 6, "head_dim": 8}
    theirs = {"hidden_size": 32, **heads}
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        transformers.LlamaConfig(**theirs)
    for family in ("mistral", "qwen2", "qwen3"):
        transformers.AutoConfig.for_model(family, **theirs)
        replace(TINY, model_type=family, **heads)
