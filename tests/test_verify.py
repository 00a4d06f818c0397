"""`fastling verify` passes what is right, and each promise, broken on purpose, is named."""

import json

import pytest
import torch
from conftest import run_python

from fastling import ops, verify
from fastling.data.batches import Normaliser
from fastling.errors import UserError
from fastling.training import plain_gradient


def broken(capsys, config, *options: str) -> tuple[int, set[str]]:
    """Exit status, and the promises that do not hold."""
    status = verify.main(["--config", str(config), "--json", *options])
    text = capsys.readouterr().out
    found = json.loads(text)
    assert "Infinity" not in text and "NaN" not in text  # no JSON
    assert found["passed"] == (status == 0)
    return status, {check["promise"] for check in found["checks"] if not check["passed"]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("loss", ["token", "turn", "sample"])
def test_all_promises_hold(capsys, tiny_run, loss, precision):
    assert broken(capsys, tiny_run(train={"loss": loss, "precision": precision})) == (0, set())


def test_it_tells_what_it_checked(capsys, tiny_run):
    assert verify.main(["--config", str(tiny_run(model={"model_type": "qwen3"})), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [(check["promise"], check["subject"]) for check in checks] == [
        ("P5", "attention: tiled"),
        ("P7", "loss of a step"),
        ("P7", "gradient of a step"),
        ("P8", "rms_norm"),
        ("P8", "add_rms_norm"),
        ("P8", "rotary"),
        ("P8", "swiglu"),
        ("P8", "linear_cross_entropy"),
        ("P8", "rms_norm of heads"),
    ]


def test_attention_that_ignores_borders_breaks_isolation_and_the_gradient(capsys, tiny_run, monkeypatch):
    right = ops.attention

    def everything_is_one_document(q, k, v, cu_seqlens, max_seqlen, *, lengths):
        whole = torch.tensor([0, len(q)], dtype=torch.int32)
        return right(q, k, v, whole, len(q), lengths=[len(q)])

    monkeypatch.setattr(ops, "attention", everything_is_one_document)
    assert broken(capsys, tiny_run()) == (1, {"P5", "P7"})


def test_heads_that_a_backend_does_not_take_are_told_in_words(capsys, tiny_run, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("head_dim should be a multiple of 8")

    monkeypatch.setattr(ops, "attention", refuse)
    with pytest.raises(UserError, match="model.attention: fails on .*: head_dim should be a multiple"):
        verify.main(["--config", str(tiny_run())])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_documents_that_weigh_too_much_break_the_gradient(capsys, tiny_run, monkeypatch, precision):
    weights = Normaliser.weights

    def off(self, spans, total):
        return weights(self, spans, total) * (1.05 if len(spans) % 2 else 0.95)

    monkeypatch.setattr(Normaliser, "weights", off)
    assert broken(capsys, tiny_run(train={"precision": precision})) == (1, {"P7"})


def test_a_nan_gradient_breaks_the_promise(capsys, tiny_run, monkeypatch):
    """NaN is larger than nothing: a maximum would pass over it."""
    right = plain_gradient.plain_gradient

    def with_a_hole(*arguments):
        found = right(*arguments)
        found["model.norm.weight"][0] = torch.nan
        return found

    monkeypatch.setattr(plain_gradient, "plain_gradient", with_a_hole)
    assert broken(capsys, tiny_run()) == (1, {"P7"})


def test_a_rough_kernel_breaks_exactness(capsys, tiny_run, monkeypatch):
    def rough(gate_up_T2F):
        gate, up = gate_up_T2F.chunk(2, dim=-1)
        return gate * torch.sigmoid(1.0001 * gate) * up

    monkeypatch.setattr(ops, "swiglu", rough)
    assert broken(capsys, tiny_run()) == (1, {"P8"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_a_compiled_layer_is_one_graph_which_serves_packs_of_any_documents(
    capsys, tiny_run, monkeypatch, recomputed
):
    made, run, compile_module = [], [], torch.nn.Module.compile

    def compiler(graph, _):
        made.append(graph)
        return lambda *inputs: run.append(graph) or graph(*inputs)

    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda layer, **how: compile_module(layer, backend=compiler, **how)
    )
    monkeypatch.setattr(plain_gradient, "LAYERS", 3)
    monkeypatch.setattr(plain_gradient, "PACKS", 5)
    torch._dynamo.reset()
    # The first pack has as many tokens as the rotary table has rows, and as many borders as half a head.
    changes = {"compile": True, "activation_checkpointing": recomputed}
    config = tiny_run(model={"num_hidden_layers": 3}, train=changes)
    with torch.fx.experimental._config.patch(use_duck_shape=True):  # as a run finds it
        assert broken(capsys, config) == (0, set())
    torch._dynamo.reset()
    assert len(run) == 3 * 5  # every layer of every pack
    assert len(made) <= 3  # recomputed or not; and the last layer, on trained rows only


@pytest.mark.slow
def test_compiled_layers_hold_them_too(tiny_run):
    """Recomputed ones among them; in a process of its own, whose compiler nobody else waits for.

    Of one layer: those before it would be compiled to as much again, but for the choice of rows.
    """
    train = {"compile": True, "activation_checkpointing": "selective", "precision": "bf16"}
    config = tiny_run(model={"num_hidden_layers": 1}, train=train)
    done = run_python("fastling.verify", "--config", config, "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_processes_are_checked_together(tiny_run):
    config = tiny_run(train={"activation_checkpointing": "selective"}, parallel={"replicate": 2})
    done = run_python("fastling.verify", "--config", config, "--json", ranks=4)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"]
    assert "all hold: 4 process(es) on cpu, fp32" in done.stderr
