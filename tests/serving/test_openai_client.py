"""The endpoint with the real `openai` client, over a real server on loopback."""

import asyncio
import gc
import json
import threading
import urllib.request
import weakref

import openai
import pytest
from serving.talkers import Parrot, serving, wait_until

from fastling.data.conversation import Conversation, Turn
from fastling.inference.chat_model import load_chat_model
from fastling.inference.context import default_max_new_tokens
from fastling.model.decoding import Decoding
from fastling.model.generation import generate

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all


@pytest.fixture(scope="module")
def running():
    with serving(Parrot()) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def ask(client, *messages, **options):
    return client.chat.completions.create(model="parrot", messages=list(messages), **options)


def test_the_list_of_models(client, running):
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("parrot", "model", "fastling")
    assert model.max_model_len == running.chat.longest_sequence
    assert client.models.retrieve("parrot").id == "parrot"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("cockatoo")
    assert error.value.code == "model_not_found"


def test_a_whole_answer(client, running):
    found = ask(client, user("早上好 😀"))
    assert found.object == "chat.completion" and found.id.startswith("chatcmpl-")
    [choice] = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "You said: 早上好 😀")
    assert choice.finish_reason == "stop"
    prompt = running.chat.prompt_ids(Conversation((Turn("user", "早上好 😀"),)))
    said = running.chat.encoder.tokenizer.encode(["You said: 早上好 😀"])[0]
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), len(said))
    assert usage.total_tokens == len(prompt) + len(said)


def test_a_streamed_answer(client):
    stream = ask(client, user("早上好 😀"), stream=True, stream_options={"include_usage": True})
    first, *middle, last, usage = list(stream)
    assert first.choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in middle]
    assert "".join(pieces) == "You said: 早上好 😀" and len(pieces) > 3
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in middle)
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("stop", None)
    assert usage.choices == [] and usage.usage.completion_tokens > 3
    assert len({chunk.id for chunk in (first, *middle, last, usage)}) == 1


def test_a_streamed_line_is_one_to_every_reader():
    """httpx, for one, breaks lines at U+2028, as str.splitlines does."""
    body = {"model": "parrot", "messages": [user("x")], "stream": True}
    with serving(Parrot(lambda question: "a\u2028b\u2029c\x85d")) as running:
        request = urllib.request.Request(f"{running.url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request) as response:
            lines = response.read().decode().splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == "a\u2028b\u2029c\x85d"


def test_without_asking_for_it_no_usage_is_streamed(client):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(client, user("x"), stream=True))


def test_the_model_is_fed_the_whole_conversation_as_training_was(client, running):
    messages = [
        {"role": "system", "content": "Sei kurz."}, user("早上好"), {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "</s> b"}]},
    ]  # fmt: skip
    ask(client, *messages)
    turns = (Turn("user", "早上好"), Turn("assistant", "Hi"), Turn("user", "a </s> b"))
    assert running.chat.fed[-1] == running.chat.prompt_ids(Conversation(turns, "Sei kurz."))


def test_an_answer_of_the_client_s_own_library_can_be_sent_back(client):
    first = ask(client, user("one"))
    second = ask(client, user("one"), first.choices[0].message.model_dump(exclude_none=True), user("two"))
    assert second.choices[0].message.content == "You said: two"
    assert ask(client, user("one"), first.choices[0].message, user("two")).choices


def test_how_to_decode_is_as_asked_for(client, running):
    options = {"temperature": 0.5, "top_p": 0.9, "seed": -7, "max_completion_tokens": 5}
    assert ask(client, user("x"), **options).choices[0].finish_reason == "length"
    found = running.chat.decodings[-1]
    assert (found.temperature, found.top_p, found.max_new_tokens) == (0.5, 0.9, 5)
    first = found.seed
    ask(client, user("x"), **options, extra_body={"top_k": 3, "repetition_penalty": 1.2})
    found = running.chat.decodings[-1]
    assert (found.top_k, found.repetition_penalty, found.seed) == (3, 1.2, first)
    ask(client, user("x"), temperature=0.5)
    another = running.chat.decodings[-1].seed
    ask(client, user("x"), temperature=0.5)
    assert running.chat.decodings[-1].seed != another
    ask(client, user("x"), temperature=0, top_p=0.5, seed=4, max_tokens=9)
    assert running.chat.decodings[-1] == Decoding(max_new_tokens=9)
    ask(client, user("x"))
    assert running.chat.decodings[-1] == Decoding(max_new_tokens=64)


@pytest.mark.parametrize("stop", [" b", ["zzz", " b"]], ids=str)
@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings(client, stop, streamed):
    found = ask(client, user("a b c"), stop=stop, stream=streamed)
    if streamed:
        chunks = list(found)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = found.choices[0].message.content, found.choices[0].finish_reason
    assert (text, reason) == ("You said: a", "stop")


@pytest.mark.parametrize("stop", ["", [""], list("abcde"), ["x" * 201]], ids=str)
def test_stop_strings_that_are_too_many_or_none_are_refused_as_such(client, stop):
    with pytest.raises(
        openai.BadRequestError, match="stop must be a text of 1 to 200 characters, or up to 4"
    ):
        ask(client, user("x"), stop=stop)


def test_a_class_of_users_is_answered(client):
    """One at a time; none is sent away."""
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda n=n: found.append(ask(client, user(str(n))).choices[0].message.content)
        )
        for n in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"You said: {n}" for n in range(30))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"n": True}}, "n"),
        ({"extra_body": {"repetition_penalty": 1e-40}}, "repetition_penalty"),
    ],
    ids=str,
)
def test_unsupported_options_are_refused_by_name(client, running, options, param):
    before = len(running.chat.fed)
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, user("x"), **options)
    assert error.value.param == param and error.value.type == "invalid_request_error"
    assert len(running.chat.fed) == before


def test_options_without_effect_are_accepted(client):
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logprobs": False,
        "tools": [],
        "user": "u",
    }
    assert ask(
        client, user("x"), **neutral, response_format={"type": "text"}, extra_body={"top_k": 0}
    ).choices
    unset = {"logit_bias": None, "reasoning_effort": None, "audio": None}  # as some clients send them
    assert ask(client, user("x"), extra_body=unset).choices


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([], "messages", "last message"),
        ([{"role": "assistant", "content": "x"}], "messages[0].role", "take turns"),
        ([user("x"), user("y")], "messages[1].role", "take turns"),
        ([user("x"), {"role": "assistant", "content": "y"}], "messages", "last message"),
        ([user("x"), {"role": "system", "content": "y"}, user("z")], "messages[1].role", "first"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role", "unknown role: 'tool'"),
        ([{"role": "user", "content": None}], "messages[0].content", "needs content"),
        ([user(" \n")], "messages[0].content", "empty"),
        ([user([{"type": "image_url", "image_url": {"url": "x"}}])], "messages[0].content", "type text"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "messages[0].tool_calls",
            "not supported",
        ),
        ([{"role": "user", "content": 7}], "messages[0].content", "string"),
    ],
    ids=str,
)
def test_messages_that_form_no_conversation_are_refused(client, messages, param, words):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, *messages)
    assert error.value.param == param and words in error.value.body["message"]


def test_a_conversation_longer_than_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, user("wort " * 3000))
    assert error.value.code == "context_length_exceeded" and error.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, user("x"), max_tokens=2048)
    assert error.value.code == "context_length_exceeded"


def test_another_models_name_is_refused(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4", messages=[user("x")])
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_a_model_that_fails_is_an_error_of_the_server_and_the_next_answer_works(caplog):
    def says(question):
        if question == "break":
            raise RuntimeError("/home/someone/secret")
        return "fine"

    with serving(Parrot(says)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        with pytest.raises(openai.InternalServerError) as error:
            ask(client, user("break"))
        assert error.value.body["message"] == "the model failed: RuntimeError"
        with pytest.raises(openai.APIError, match="the model failed: RuntimeError"):
            list(ask(client, user("break"), stream=True))
        assert ask(client, user("x")).choices[0].message.content == "fine"
        client.close()
    # For who serves the model, and nobody else.
    assert caplog.messages == ["an answer failed: RuntimeError: /home/someone/secret"] * 2


def test_an_answer_that_fails_lets_go_of_its_memory_before_the_next_one_is_generated():
    """A cache that filled the memory would else be there until Python looks for garbage."""
    caches, held = [], []

    def says(question):
        held.append(sum(cache() is not None for cache in caches))
        cache = threading.Event()  # in place of one: something of the answer's own
        caches.append(weakref.ref(cache))
        raise RuntimeError("out of memory")

    gc.disable()
    try:
        with serving(Parrot(says)) as running:
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
            for stream in (False, True, False):
                with pytest.raises(openai.APIError, match="the model failed"):
                    list(ask(client, user("x"), stream=stream))
            client.close()
    finally:
        gc.enable()
    assert held == [0, 0, 0]


def test_requests_beyond_the_queue_get_a_retry_after():
    chat = Parrot(held_after=0)
    with serving(chat, most_waiting=1) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        answers = []
        threads = []
        for has_come in (lambda: chat.fed, lambda: running.worker._waiting):
            thread = threading.Thread(target=lambda: answers.append(ask(client, user("x"))))
            thread.start()
            threads.append(thread)
            wait_until(has_come)
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, user("x"))
        assert error.value.code == "server_busy"
        assert int(error.value.response.headers["retry-after"]) > 0
        chat.may_go_on.set()
        for thread in threads:
            thread.join()
        assert [len(answer.choices) for answer in answers] == [1, 1]
        patient = client.with_options(max_retries=4)
        assert ask(patient, user("x")).choices
        client.close()


def test_a_client_that_leaves_ends_the_generation():
    chat = Parrot(lambda question: "word " * 3000, pause_s=0.01, context=8192)
    with serving(chat, defaults=Decoding(max_new_tokens=4000)) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        stream = ask(client, user("x"), stream=True)
        next(stream), next(stream)  # its role comes before anything is generated
        stream.close()
        wait_until(lambda: running.worker.is_idle)
        assert chat.ended == 1 and chat.tokens < 2500
        client.close()
        asyncio.run(leave_once(f"{running.url}/v1", lambda: len(chat.fed) == 2))
        wait_until(lambda: running.worker.is_idle)
        assert chat.ended == 2 and chat.tokens < 2500


async def leave_once(url: str, begun) -> None:
    """Ask for a whole answer, and give it up when it has begun."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asking = asyncio.ensure_future(ask(client, user("x")))
        await asyncio.to_thread(wait_until, begun)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


def test_a_real_model_answers_as_without_a_server(export):
    chat = load_chat_model(export)
    decoding = Decoding(max_new_tokens=default_max_new_tokens(chat))
    with serving(chat, defaults=decoding) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        found = client.chat.completions.create(model="export", messages=[user("你好")], max_tokens=20)
        prompt = chat.prompt_ids(Conversation((Turn("user", "你好"),)))
        [alone] = generate(chat.model, [prompt], Decoding(max_new_tokens=20), stop_ids=chat.stop_ids)
        assert found.choices[0].message.content == chat.text(alone)
        client.close()
