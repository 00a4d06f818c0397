"""What a run says of its held-out data: the losses, when they are given up, and which questions are answered."""

import json
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from conftest import DEMO, config_of

from fastling.model.llama import Llama
from fastling.prepare import prepare_data
from fastling.training.build import model_config
from fastling.training.evaluation import HeldOut, _choose_questions
from fastling.training.parallel import World


def test_untrained_or_unasked_answers_are_no_references(tiny_run, tmp_path):
    rows = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said, "weight": weight}] * 2
        for said, weight in (("bad", 0), ("good", 1))
    ]
    rows[0][3] = {"role": "assistant", "content": "better"}
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "asked by nobody"}, {"refused": True}, *({"messages": row} for row in rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of("--config", tiny_run(data={"validation": [{"name": "held-out", "path": str(path)}]}))
    prepared = prepare_data(config)
    questions = _choose_questions(config, prepared.validation, prepared.encoder)
    assert [reference for _, reference in questions] == ["good"]


def test_questions_come_from_the_held_out_share_of_the_data(tiny_run):
    changes = {"validation": [], "held_out_share": 0.02}
    config = config_of("--config", tiny_run(data=changes, evaluate={"samples": 100}))
    prepared = prepare_data(config)
    questions = _choose_questions(config, prepared.validation, prepared.encoder)
    rows = [json.loads(line)["messages"] for line in (DEMO / "train.jsonl").read_text("utf-8").splitlines()]
    held_out = [rows[number] for number in prepared.validation.rows.tolist()]
    said = [(row[0]["content"], row[1]["content"]) for row in held_out]
    assert [(question.turns[0].content, reference) for question, reference in questions] == said
    assert 0 < len(said) < 30


def test_held_out_losses_end_as_soon_as_the_run_is_stopped(tiny_run):
    config = config_of("--config", tiny_run(train={"micro_batch_tokens": 256}))
    prepared = prepare_data(config)
    world = World(0, 1, torch.device("cpu"), mesh=None)
    held_out = HeldOut(config, world, prepared.validation, prepared.encoder)
    model, forwards = Llama(model_config(config, prepared.encoder)), []
    model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    assert held_out.losses(model, lambda: 0)["eval_loss"] > 0
    of_all = len(forwards)
    assert held_out.losses(model, lambda: len(forwards) - of_all) is None  # told in the first of them
    assert len(forwards) == of_all + 1 < 2 * of_all


def test_held_out_losses_are_means_over_all_supervised_tokens(tiny_run, tmp_path):
    """Of each source and pair, against one conversation at a time; a row without a pair counts in the others."""
    lines = (DEMO / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [json.dumps({"messages": json.loads(line)["messages"]}) for line in lines]
    (tmp_path / "paired.jsonl").write_text("\n".join(messages[:3]))
    (tmp_path / "other.jsonl").write_text("\n".join(messages[3:5]))
    validation = [
        {"name": "other", "path": str(tmp_path / "other.jsonl")},
        {"name": "paired", "path": str(tmp_path / "paired.jsonl"), "pair": "zh-en"},
    ]
    config = config_of("--config", tiny_run(data={"validation": validation}))
    prepared = prepare_data(config)
    torch.manual_seed(0)
    model = Llama(model_config(config, prepared.encoder))
    model.reset_parameters()
    world = World(0, 1, torch.device("cpu"), mesh=None)
    found = HeldOut(config, world, prepared.validation, prepared.encoder).losses(model, lambda: 0)
    losses = {"other": [], "paired": []}
    for number, source in enumerate(prepared.validation.sources):
        tokens, spans = prepared.validation.document(number)
        ids = torch.tensor(tokens.astype("int64"))
        with torch.no_grad():
            logits = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
        each = F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none").tolist()
        for start, stop in spans.tolist():
            losses[prepared.validation.source_names[source]] += each[start - 1 : stop - 1]
    other, paired = losses.values()
    expected = {
        "eval_loss": fmean(paired + other), "eval_loss_paired": fmean(paired),
        "eval_loss_other": fmean(other), "eval_loss_zh-en": fmean(paired),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-5)
