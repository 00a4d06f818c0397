"""Which held-out questions are answered during training, and when held-out losses are given up."""

import json

import torch
from conftest import DEMO

from fastling.config import Config, Data, Source, build_parser, parse
from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.model.llama import Llama
from fastling.prepare import prepare_data
from fastling.training.build import model_config
from fastling.training.evaluation import HeldOut, _choose_questions
from fastling.training.parallel import World


def test_an_answer_that_is_not_to_be_learned_is_no_reference(tmp_path):
    rows = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": said, "weight": weight}] * 2
        for said, weight in (("bad", 0), ("good", 1))
    ]
    rows[0][3] = {"role": "assistant", "content": "better"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    config = Config(data=Data(validation=[Source(name="held-out", path=str(path))]))
    encoder = Encoder(load_template("bayling"), load_tokenizer(DEMO / "tokenizer.model"), 256)
    assert [reference for _, reference in _choose_questions(config, encoder)] == ["good"]


def test_held_out_losses_end_as_soon_as_the_run_is_told_to_stop(tiny_run):
    config, _ = parse(
        build_parser("test", ""), ["--config", str(tiny_run(train={"micro_batch_tokens": 256}))]
    )
    prepared = prepare_data(config)
    world = World(0, 1, torch.device("cpu"), mesh=None)
    held_out = HeldOut(config, world, prepared.validation, prepared.encoder)
    model, forwards = Llama(model_config(config, prepared.encoder)), []
    model.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    assert held_out.losses(model, lambda: 0)["eval_loss"] > 0
    of_all = len(forwards)
    assert held_out.losses(model, lambda: len(forwards) - of_all) is None  # told in the first of them
    assert len(forwards) == of_all + 1 < 2 * of_all
