"""Which held-out questions are answered during training."""

import json

from conftest import DEMO

from fastling.config import Config, Data, Source
from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.training.evaluation import _choose_questions


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
