"""Models that have learned a few conversations by heart, as `fastling train` exports them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DEMO, run_python
from readers import vocabularies
from readers.servers import LONGEST

from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer

TAUGHT = [
    Conversation((Turn("user", " 你好, world! 😀 "), Turn("assistant", "早上好！ 😀"))),
    Conversation(
        (
            Turn("user", "Translate to German: Good morning!"),
            Turn("assistant", "Guten Morgen!\nSchönen Tag noch."),
            Turn("user", "Shorter\n\n"),
            Turn("assistant", "Morgen!"),
        )
    ),
    # Words that a tokenizer would split differently without Llama 3's rule about merges.
    Conversation(
        (Turn("user", "Nói: nhiều việc, điều hợp"), Turn("assistant", "Tôi có nhiều việc và điều hợp lý.")),
        system="Trả lời ngắn gọn.",
    ),
]


def prompts_and_answers() -> Iterator[tuple[Conversation, str]]:
    """Yield every conversation up to each of its questions, and the answer that was taught for it."""
    for conversation in TAUGHT:
        for number in range(0, len(conversation.turns), 2):
            asked = Conversation(conversation.turns[: number + 1], conversation.system)
            yield asked, conversation.turns[number + 1].content


SHAPES = {
    "bayling": {"num_key_value_heads": 2},
    "llama2": {"model_type": "mistral", "num_key_value_heads": 2},
    "llama3": {"num_key_value_heads": 4, "rope_theta": 500000.0},
    "chatml": {"model_type": "qwen3", "tie_word_embeddings": True, "num_key_value_heads": 2},
}


@dataclass(frozen=True)
class Export:
    template: str
    folder: Path
    encoder: Encoder


@pytest.fixture(scope="session", params=SHAPES)
def learned(request, tmp_path_factory) -> Export:
    """An export of each family, template and kind of tokenizer, trained until it knows its answers by heart."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = _tokenizer(request.param, folder / "tokenizer")
    rows = [{"messages": _messages(conversation)} for conversation in TAUGHT]
    (folder / "taught.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "run_dir": str(folder / "run"),
        "model": shape | {"head_dim": 32} | SHAPES[request.param],
        "data": {
            "tokenizer": str(tokenizer),
            "template": request.param,
            "sequence_length": LONGEST,
            "sources": [{"name": "taught", "path": str(folder / "taught.jsonl")}],
        },
        "train": {"steps": 60, "global_batch_tokens": LONGEST, "micro_batch_tokens": LONGEST}
        | {"precision": "fp32"},
        "optimizer": {"lr": 0.005},
        "checkpoint": {"every_steps": 1000},
    }
    (folder / "config.json").write_text(json.dumps(config))
    result = run_python("fastling.train", "--config", folder / "config.json", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["loss_last"] < 0.05
    encoder = Encoder(load_template(request.param), load_tokenizer(tokenizer), LONGEST)
    return Export(request.param, folder / "run" / "export", encoder)


def _tokenizer(template: str, folder: Path) -> Path:
    """The demo's SentencePiece model for the older families, their own tokenizer.json for the newer ones."""
    name = {"llama3": "llama-bpe", "chatml": "qwen2"}.get(template)
    if name is None:
        return DEMO / "tokenizer.model"
    if not vocabularies.file_of(name).is_file():
        pytest.skip("llama.cpp's vocabularies are not there: `make readers` brings them")
    return (vocabularies.llama3 if template == "llama3" else vocabularies.qwen2)(folder)


def _messages(conversation: Conversation) -> list[dict]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return system + [turn._asdict() for turn in conversation.turns]


@pytest.fixture
def messages():
    return _messages
