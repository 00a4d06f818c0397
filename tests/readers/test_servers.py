"""What vLLM, SGLang and llama.cpp make of an export: the very prompt of training, and the answer taught.

They are not installed for the other tests; `make readers` does that (17 GB), and runs these.
"""

import pytest
import torch
from readers.conftest import prompts_and_answers
from readers.servers import SERVERS, convert, running

from fastling import load_pretrained
from fastling.data.conversation import Conversation, Turn

pytestmark = pytest.mark.slow
TOLERANCE = 1e-2  # llama.cpp rounds some factors of a product to half precision
UNSEEN = Conversation((Turn("user", "Wie heißt die Hauptstadt von Việt Nam? 河内"),))


def needs(name: str) -> pytest.MarkDecorator:
    """Skipped before anything is trained for it."""
    return pytest.mark.skipif(
        not SERVERS[name].program.exists(), reason=f"no {name}; `make readers` installs it"
    )


@pytest.fixture(scope="session", params=[pytest.param(name, marks=needs(name)) for name in SERVERS])
def served(request, learned, tmp_path_factory):
    with running(SERVERS[request.param], learned.folder, tmp_path_factory.mktemp("server")) as connection:
        yield connection


@torch.no_grad()
def our_logprobs(model, prompt_ids: list[int], ids: list[int]) -> torch.Tensor:
    """(answer, V): of every token in the place of each of the answer."""
    tokens = torch.tensor(prompt_ids + ids)
    logits = model.logits(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32))
    return logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]


def test_it_says_what_it_was_taught_and_stops(served, learned, messages):
    for asked, answer in prompts_and_answers():
        reply = served.ask(messages(asked), max_tokens=60)
        assert reply.prompt_ids == learned.encoder.prompt_ids(asked)
        assert reply.text.strip() == answer.strip()
        assert reply.has_stopped


def test_its_probabilities_are_ours(served, learned, messages):
    """Where nothing was learned, so that they are of all sizes; each step also takes the likeliest token."""
    reply = served.ask(messages(UNSEEN), max_tokens=12)
    assert reply.prompt_ids == learned.encoder.prompt_ids(UNSEEN)
    ours = our_logprobs(load_pretrained(learned.folder), reply.prompt_ids, reply.ids)
    chosen = ours.gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
    told = [each for each in zip(reply.logprobs, chosen.tolist(), strict=True) if each[0] is not None]
    assert told
    for theirs, our in told:
        assert theirs == pytest.approx(our, abs=TOLERANCE)
    torch.testing.assert_close(chosen, ours.amax(1), atol=TOLERANCE, rtol=0)


@needs("llama.cpp")
def test_llama_cpp_knows_the_tokenizer(learned, tmp_path):
    """By name; under another one it would read some words differently, without a word about it."""
    gguf = convert(learned.folder, tmp_path)
    from gguf import GGUFReader  # llama.cpp's, whose folder `vocabularies` has put on the path

    fields = GGUFReader(gguf).fields
    expected = {"llama3": "llama-bpe", "chatml": "qwen2"}.get(learned.template, "default")
    assert bytes(fields["tokenizer.ggml.pre"].parts[-1]).decode() == expected
    stops = learned.encoder.stop_ids
    assert int(fields["tokenizer.ggml.eos_token_id"].parts[-1][0]) == stops[0]
