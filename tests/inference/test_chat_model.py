"""A folder as something to talk to: the ids of training (P1), which folders, and how an answer ends."""

import shutil

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from inference.conftest import write_export

from fastling.data.conversation import Conversation, Turn
from fastling.data.encoding import Encoded, Encoder
from fastling.data.template import BAYLING, VICUNA, load_template
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError
from fastling.inference.chat_model import ChatModel, StreamedAnswer, load_chat_model
from fastling.model.decoding import Completion, Decoding
from fastling.model.generation import generate
from fastling.model.llama import Llama, LlamaConfig

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

FRAGMENTS = [
    "Hello, world", " ", "  ", "\n", "\t", "请把这句话翻译成英语：", "龘", "，", "😀", "👩‍👩‍👧", "e\u0301",
    "</s>", "<s>", "<|im_end|>", "<|eot_id|>", "### Response:\n", "ASSISTANT: ", "a" * 30, "1,234.5",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=4).map("".join)
PAIRS = [
    ("sentencepiece", "bayling"), ("sentencepiece", "llama3"), ("demo", "vicuna"), ("demo", "llama2"),
    ("llama-json", "alpaca"), ("llama-first", "bayling"), ("byte-level", "llama3"), ("qwen", "chatml"),
    ("byte-level", "own"),
]  # fmt: skip


@pytest.fixture(params=PAIRS, ids=str, scope="module")
def talker(request, kinds, own_template) -> ChatModel:
    kind, template = request.param
    template = load_template(own_template if template == "own" else template)
    tokenizer = load_tokenizer(kinds[kind].path)
    shape = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Llama(shape).eval()
    return ChatModel(model, Encoder(template, tokenizer, 2048), "test")


@settings(max_examples=60)
@given(system=TEXTS, texts=st.lists(TEXTS, min_size=2, max_size=6), data=st.data())
def test_every_answer_is_asked_for_with_the_ids_that_training_saw_before_it(talker, system, texts, data):
    """P1, turn by turn, also for what was answered before."""
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    turns = turns[: len(turns) // 2 * 2]
    [encoded] = talker.encoder.encode([Conversation(tuple(turns), system)])
    if not isinstance(encoded, Encoded):
        return  # refused: no training saw it
    for number, (start, _) in enumerate(encoded.spans):
        asked = Conversation(tuple(turns[: 2 * number + 1]), system)
        assert talker.prompt_ids(asked) == encoded.tokens[:start].tolist()


def test_earlier_answers_are_fed_back_with_the_ids_of_training(talker):
    """Not the generated ids: here they spell the answer letter by letter, which no tokenizer does."""
    tokenizer, answer = talker.encoder.tokenizer, "today the weather is nice"
    [before] = tokenizer.encode(["x"])
    spelled = tokenizer.decode([before + [each] for each in range(tokenizer.vocab_size)])
    letters = [spelled.index(f"x{letter}") for letter in answer]
    said = talker.encoder.answer(letters)
    assert said == answer
    turns = (Turn("user", "x"), Turn("assistant", said), Turn("user", "y"), Turn("assistant", "z"))
    [encoded] = talker.encoder.encode([Conversation(turns)])
    prompt = talker.prompt_ids(Conversation(turns[:3]))
    assert prompt == encoded.tokens[: encoded.spans[1][0]].tolist()
    start = len(talker.prompt_ids(Conversation(turns[:1])))
    assert prompt[start : start + len(letters)] != letters


def test_control_tokens_that_a_user_spells_stay_text(talker):
    for token in talker.encoder.template.stop_tokens + talker.encoder.template.control_tokens:
        control = talker.encoder.control_ids
        plain = talker.prompt_ids(Conversation((Turn("user", "x"),)))
        spelled = talker.prompt_ids(Conversation((Turn("user", f"x {token} y"),)))
        assert [each for each in spelled if each in control] == [each for each in plain if each in control]


def test_text_that_the_tokenizer_reads_as_a_control_token_is_refused(tmp_path, sentencepiece_model):
    """SentencePiece's user-defined pieces match wherever they stand; training refuses such rows."""
    path = sentencepiece_model(tmp_path, user_defined_symbols="<|im_start|>,<|im_end|>")
    tokenizer = load_tokenizer(path)
    chat = ChatModel(None, Encoder(load_template("chatml"), tokenizer, 99), "test")
    assert chat.prompt_ids(Conversation((Turn("user", "fine"),)))
    with pytest.raises(UserError, match="spells a control token"):
        chat.prompt_ids(Conversation((Turn("user", "x<|im_end|>y"),)))


@pytest.mark.parametrize("turns", [(), (Turn("user", "x"), Turn("assistant", "y"))], ids=["none", "answered"])
def test_there_must_be_a_question(export, turns):
    chat = load_chat_model(export)
    with pytest.raises(UserError, match="must end with a message of the user"):
        chat.prompt_ids(Conversation(turns))


def test_system_text_needs_a_place(export, tmp_path):
    fields = {"user": "Q: {content}\n", "assistant": "A: {content}{eos}\n"}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(fields))
    chat = load_chat_model(export, template=str(tmp_path / "plain.yaml"))
    assert chat.prompt_ids(Conversation((Turn("user", "x"),)))
    with pytest.raises(UserError, match="the template plain has no place for it"):
        chat.prompt_ids(Conversation((Turn("user", "x"),), "be kind"))


@pytest.mark.parametrize("tokens", [3, 40], ids=["three", "forty"])
def test_a_streamed_answer_is_the_generated_one(export, tokens):
    chat = load_chat_model(export)
    prompt = chat.prompt_ids(Conversation((Turn("user", "早上好 Good morning"),)))
    decoding = Decoding(max_new_tokens=tokens)
    [completion] = generate(chat.model, [prompt], decoding, stop_ids=chat.stop_ids)
    answer = StreamedAnswer(chat, prompt, decoding)
    assert "".join(answer) == answer.text == chat.text(completion)
    assert answer.finish_reason == completion.finish_reason == "length"
    assert answer.num_tokens == len(completion.ids) == tokens


def test_the_finish_reason_tells_a_stop_token_from_a_full_context(export):
    chat = load_chat_model(export)
    prompt = chat.prompt_ids(Conversation((Turn("user", "x"),)))
    [free] = generate(chat.model, [prompt], Decoding(max_new_tokens=20), stop_ids=set())
    chat.encoder.stop_ids = [free.ids[6]]
    expected = free.ids[: free.ids.index(free.ids[6])]
    for most in (20, len(expected) + 1, len(expected)):
        answer = StreamedAnswer(chat, prompt, Decoding(max_new_tokens=most))
        assert "".join(answer) == chat.encoder.answer(expected)
        assert answer.finish_reason == ("stop" if most > len(expected) else "length")
    long = (prompt * 99)[: chat.longest_sequence - 2]
    answer = StreamedAnswer(chat, long, Decoding(max_new_tokens=20))
    assert (list(answer), answer.num_tokens, answer.finish_reason)[1:] == (2, "length")


def test_abandoning_a_stream_keeps_the_text_and_ends_generation(export):
    chat = load_chat_model(export)
    ended = []

    def ids(prompt, decoding):
        try:
            yield from chat.encoder.tokenizer.encode(["one two three four five"])[0]
        finally:
            ended.append(True)

    chat.stream_ids = ids
    answer = StreamedAnswer(chat, [1], Decoding())
    pieces = iter(answer)
    first = next(pieces) + next(pieces)
    pieces.close()
    assert ended and answer.finish_reason is None
    assert answer.text == first.strip() and "one two three".startswith(answer.text)


def test_ids_without_a_token_are_left_out(export):
    """An embedding may be larger than the vocabulary, to be divisible."""
    chat = load_chat_model(export)
    known = chat.encoder.tokenizer.encode(["good morning"])[0]
    assert chat.text(Completion(known[:1] + [10**6] + known[1:], "stop")) == "good morning"


# Folders --------------------------------------------------------------------------------------------


def test_an_export_says_its_template(export, tmp_path):
    chat = load_chat_model(export)
    assert chat.encoder.template.template == BAYLING
    assert "template.yaml" in chat.template_origin
    run = tmp_path / "run"
    shutil.copytree(export, run / "export")
    assert load_chat_model(run).name == "run"


def test_a_template_that_is_named_goes_first(export):
    chat = load_chat_model(export, template="vicuna")
    assert chat.encoder.template.template == VICUNA
    assert "--template" in chat.template_origin


def test_a_foreign_folder_is_recognised_by_its_rendered_template(export, tmp_path):
    folder = shutil.copytree(export, tmp_path / "model")
    (folder / "template.yaml").unlink()
    chat = load_chat_model(folder)
    assert chat.encoder.template.name == "bayling"
    assert "chat_template.jinja" in chat.template_origin


def break_nothing_but(folder, what):
    if what == "no folder":
        return {"folder": folder / "absent"}
    if what == "delta":
        (folder / "delta.json").touch()
        return break_nothing_but(folder, "no template")
    if what == "run":
        (folder / "config.json").unlink()
        (folder / "checkpoints").mkdir()
        return break_nothing_but(folder, "no template")
    if what == "no template":
        for name in ("template.yaml", "chat_template.jinja", "tokenizer_config.json"):
            (folder / name).unlink()
        return {}
    if what == "template.yaml":
        (folder / "template.yaml").write_text("[")
        return {}
    if what == "tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").unlink()
        return {}
    return what


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no folder", "absent: holds no model"),
        ("delta", "holds differences from a base, not a model"),
        ("run", "fastling export --run"),
        ("no template", "--template: is needed"),
        ("template.yaml", "is not valid YAML"),
        ("tokenizer", "holds neither tokenizer.json nor tokenizer.model"),
        ({"template": "bayleaf"}, "--template: no such template: bayleaf"),
        ({"template": "chatml"}, "--template: chatml: needs the token <|im_start|>"),
        ({"device": "gpu"}, "--device: cannot be used: gpu"),
        ({"device": "cuda:99"}, "--device: cannot be used: cuda:99"),
        ({"device": "meta"}, "--device: cannot be used: meta"),
    ],
    ids=str,
)
def test_an_unloadable_folder_is_explained(export, tmp_path, what, message):
    folder = shutil.copytree(export, tmp_path / "model")
    changes = break_nothing_but(folder, what)
    with pytest.raises(UserError, match=message):
        load_chat_model(**{"folder": folder, **changes})


def test_the_context_is_the_models(tmp_path):
    folder = write_export(tmp_path / "model", max_position_embeddings=96)
    assert load_chat_model(folder).longest_sequence == 96
