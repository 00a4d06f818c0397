"""Dialogues that a model writes, against a real HTTP server on loopback that misbehaves."""

import asyncio
import contextlib
import json
import re
import threading
import time

import pytest

pytest.importorskip("openai")

from misbehaving_server import Misbehaving, completion, serving, together

from fastling import remote
from fastling.errors import RunError, UserError
from fastling.interactive import refinements
from fastling.interactive.refinements import (
    Counts,
    Rejected,
    Seed,
    Writer,
    check_turn,
    load_prompts,
    parse_turn,
)
from fastling.remote import Server

pytestmark = pytest.mark.slow  # servers, processes or compilers: many seconds in all

NAMES = {"en": "English", "de": "German", "zh": "Chinese"}
GOOD = {
    "request": "Please make the answer a little more formal than it is.",
    "answer": "The ice was on all of the roads this {number}.",
}


def good(number: int, body: dict) -> tuple[int, str]:
    return 200, completion(json.dumps(GOOD).replace("{number}", f"morning of day {number % 9}"))


@pytest.fixture
def serve():
    """Start a server with a behaviour; it stops with the test."""
    with contextlib.ExitStack() as running:
        yield lambda behave=good: running.enter_context(serving(behave))


def seeds(count: int) -> list[Seed]:
    return [
        Seed(
            number,
            f"Heute war der Weg Nummer {number} am Morgen voller Eis.",
            f"There was ice on the road number {number} this morning.",
            "de", "en", "en", f"Translate this into English: number {number}.", {"lines": [number]},
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Dialogues from a server: (rows, counts, tokens paid)."""
    monkeypatch.setattr(refinements, "KINDS", ("style",))

    def run(server: Misbehaving, count: int = 6, *, turns=(1, 1), seed=0, **options):
        counts = Counts()

        async def collect():
            asked = Server(
                server.url,
                "m",
                tmp_path / "cache.sqlite",
                **{"option": "--generator", "retries": 0, **options},
            )
            try:
                writer = Writer(asked, load_prompts(None), NAMES, counts, seed, turns, window=8)
                found = [row async for row in writer.dialogues(seeds(count))]
            finally:
                tokens = asked.tokens
                await asked.close()
            return found, tokens

        rows, tokens = asyncio.run(collect())
        return rows, counts, tokens

    return run


# A server that behaves ------------------------------------------------------------------------------


def test_each_seed_becomes_a_dialogue_in_the_order_of_the_seeds(serve, ask):
    rows, counts, tokens = ask(serve(), 20)
    assert [row["lines"] for row in rows] == [[number] for number in range(20)]
    assert counts.kept == {"style": 20} and not counts.rejected and tokens == 2000
    first = rows[0]
    assert [message["role"] for message in first["messages"]] == ["user", "assistant"] * 2
    assert first["messages"][1]["content"] == seeds(1)[0].translation
    assert first["messages"][2]["content"] == GOOD["request"]
    assert (first["type"], first["pair"], first["user_lang"], first["generator"]) == (
        "style",
        "de-en",
        "en",
        "m",
    )


def test_the_prompt_holds_the_text_the_dialogue_and_the_languages(serve, ask):
    server = serve()
    ask(server, 1)
    (message,) = server.bodies[0]["messages"]
    for part in (seeds(1)[0].source, seeds(1)[0].translation, seeds(1)[0].request, "German", "English"):
        assert part in message["content"]
    assert "$" not in message["content"]


def test_many_requests_are_in_flight_and_no_more_than_allowed(serve, ask):
    server = serve(together(4, good))
    ask(server, 16, requests_in_flight=4)
    assert server.most_at_work == 4


def test_cached_answers_are_neither_requested_nor_paid_again(serve, ask):
    server = serve()
    first, _, paid = ask(server, 6)
    again, _, still_paid = ask(server, 6)
    assert again == first and still_paid == paid and len(server.bodies) == 6
    more, _, _ = ask(server, 8)
    assert more[:6] == first and len(server.bodies) == 8


def test_a_run_that_dies_keeps_what_it_paid_for(serve, ask):
    def dies(number, body):
        return good(number, body) if number < 4 else (401, "{}")

    server = serve(dies)
    with pytest.raises(RunError, match="refuses m: 401"):
        ask(server, 6, requests_in_flight=1)
    server.behave = good
    rows, _, tokens = ask(server, 6)
    assert len(rows) == 6 and tokens == 600
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert all(asked.count(prompt) == 1 for prompt in asked[:4])  # those that were answered


def test_the_budget_is_kept_over_runs(serve, ask):
    server = serve()
    rows, counts, tokens = ask(server, 6, budget_tokens=300, requests_in_flight=1)
    assert len(rows) == 3 and counts.unasked == 3 and tokens == 300
    rows, counts, tokens = ask(server, 6, budget_tokens=300)
    assert len(rows) == 3 and counts.unasked == 3 and len(server.bodies) == 3


def test_without_usage_tokens_are_estimated_by_length(serve, ask):
    server = serve(lambda number, body: (200, completion(json.dumps(GOOD), tokens=None)))
    _, _, tokens = ask(server, 1)
    sent = server.bodies[0]["messages"][0]["content"]
    assert tokens == (len(sent.encode()) + len(json.dumps(GOOD))) // 3


# A server that does not -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_retried(serve, ask, status):
    def at_first(number, body):
        return good(number, body) if number else (status, '{"error": {"message": "later"}}')

    server = serve(at_first)
    rows, counts, _ = ask(server, 1, retries=2)
    assert len(rows) == 1 and not counts.rejected and len(server.bodies) == 2


def failing_at_third(failure):
    return lambda number, body: failure if number == 2 else good(number, body)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ((400, '{"error": {"message": "no"}}'), "status 400"),
        ((500, "oops"), "status 500"),
        ((200, completion('{"request": "Make it')), "no whole JSON object"),
        ((200, completion("I would rather not.")), "no whole JSON object"),
        ((200, completion('{"request": "More formal, please."}')), "no request and answer in it"),
        ((200, completion('["request"]')), "no whole JSON object"),
        ((200, completion(json.dumps(GOOD), finish="length")), "empty or cut off"),
        ((200, completion("")), "empty or cut off"),
        ((200, '{"choices": []}'), "broken answer"),
        ((200, '{"choices": [{"mess'), "broken answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value[1])[:40],
)  # fmt: skip
def test_one_bad_answer_costs_one_dialogue_and_is_counted(serve, ask, failure, reason):
    rows, counts, _ = ask(serve(failing_at_third(failure)), 6, requests_in_flight=1)
    assert len(rows) == 5 and counts.rejected == {reason: 1}


def test_slow_answers_time_out(serve, ask):
    over = threading.Event()

    def hangs(number, body):
        if number == 2:
            over.wait(120)
        return good(number, body)

    began = time.monotonic()
    rows, counts, _ = ask(serve(hangs), 6, requests_in_flight=1, timeout_seconds=3)
    over.set()
    assert len(rows) == 5 and counts.rejected == {"too slow": 1} and time.monotonic() - began < 60


def test_a_server_that_never_answers_ends_the_run_in_words(serve, ask):
    server = serve(lambda number, body: (500, "oops"))
    with pytest.raises(RunError, match="3 requests in a row got no answer from http://127.*: status 500"):
        ask(server, 50, requests_in_flight=2)
    assert len(server.bodies) < 10


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "status 400, maximum context length is 10 tokens"),
        (404, "refuses m: 404, maximum context length is 10 tokens"),
        (401, "refuses m: 401$"),  # the words may be about the key, and repeat it
    ],
)
def test_a_servers_own_words_of_refusal_are_shown(serve, ask, status, said):
    error = {"error": {"message": "maximum context length\n is 10 tokens", "code": "x"}}
    server = serve(lambda number, body: (status, json.dumps(error)))
    with pytest.raises(RunError) as refusal:
        ask(server, 50, requests_in_flight=2)
    assert re.search(said, refusal.value.what)


def test_a_server_that_has_answered_is_given_more_time(serve, ask):
    heard = threading.Event()

    def at_first(number, body):
        if number == 4:  # the fifth, which has the place of the first
            heard.set()
        if number:
            assert heard.wait(60)
        return (500, "oops") if number else good(number, body)

    server = serve(at_first)
    with pytest.raises(RunError, match="8 requests in a row got no answer from http://127.*: status 500"):
        ask(server, 50, requests_in_flight=4)


def test_a_request_is_not_tried_for_ever(serve, ask, monkeypatch):
    """Six retries after half a second each, with the client's own pauses between them, take 20 seconds."""
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.1)
    over = threading.Event()
    server = serve(lambda number, body: over.wait(60) and good(number, body))
    began = time.monotonic()
    with pytest.raises(RunError, match="in a row got no answer from .*: too slow"):
        ask(server, 3, requests_in_flight=3, timeout_seconds=0.5, retries=6)
    assert time.monotonic() - began < 12
    over.set()


def test_an_unreachable_server_ends_the_run_in_words(serve, ask):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(RunError, match="in a row got no answer from .*: no connection"):
        ask(server, 20, requests_in_flight=2)


def test_a_later_turn_that_fails_leaves_the_earlier_ones(serve, ask):
    rows, counts, _ = ask(
        serve(lambda number, body: good(number, body) if number == 0 else (400, "{}")), 1, turns=(3, 3)
    )
    assert len(rows[0]["messages"]) == 4 and counts.rejected == {"status 400": 1}


def test_a_cache_that_is_no_database_is_named(tmp_path):
    (tmp_path / "cache.sqlite").write_text("rows of something else, long enough to be no header at all")
    with pytest.raises(UserError, match="cannot be used: .*cache.sqlite"):
        Server("http://127.0.0.1:1/v1", "m", tmp_path / "cache.sqlite", option="--generator")


# Checks ---------------------------------------------------------------------------------------------

START = seeds(1)[0]
MESSAGES = [
    {"role": "user", "content": START.request},
    {"role": "assistant", "content": START.translation},
]


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        ("style", {"request": "请让译文更正式一些。"}, "request in another language"),
        ("style", {"request": "\u200b ..."}, "request without words"),
        ("style", {"answer": "Heute war auf der Straße und auf dem Weg sehr viel Eis."}, "answer in another language"),
        ("style", {"answer": "there was ICE on the road, number 0, this morning"}, "answer is a copy"),
        ("style", {"request": "Say: The road had ice on it.", "answer": "The road had ice on it."}, "request holds the answer"),
        ("style", {"answer": "Ice."}, "answer far shorter or longer"),
        ("style", {"answer": "There was ice. " * 20}, "answer far shorter or longer"),
        ("style", {"request": "User: could you make it formal?"}, "request begins with a role"),
        ("style", {"answer": "I'm sorry, but I cannot say how icy the road was."}, "answer is no translation alone"),
        ("style", {"answer": "Sure! The road was icy this morning."}, "answer is no translation alone"),
        ("style", {"answer": "Translation: The road was icy."}, "answer is no translation alone"),
        ("style", {"answer": "**The road was icy this morning.**"}, "answer is no translation alone"),
        ("style", {"answer": "“The road was icy this morning.”"}, "answer is no translation alone"),
        ("style", {"answer": "The road was icy as can be this morning (冰)."}, "answer is no translation alone"),
        ("style", {"answer": "The road number 17 was icy this morning."}, "answer has a number of its own"),
        ("style", {"answer": "A committee of the town painted all of its boats."}, "answer speaks of something else"),
        ("length", {"request": "Say it in at least 60 words."}, "no one bound of length in the request"),
        ("style", {"request": "Please make it 50 % shorter."}, "no one bound of length in the request"),
        ("style", {"request": "Say it in fewer than 6 words."}, "bound of length not met"),
        ("length", {"request": "In at most 20 characters, please."}, "bound of length not met"),
        ("length", {"request": "Make it shorter."}, "no one bound of length in the request"),
        ("length", {"request": "In 5 to 7 words."}, "no one bound of length in the request"),
        ("length", {"request": f"In {'1' * 5000} words."}, "no one bound of length in the request"),
        ("length", {"request": "Say it in at most 4 words.", "answer": "The road was icy today."}, "bound of length not met"),
    ],
)  # fmt: skip
def test_a_turn_that_does_not_fulfil_its_request_is_rejected(kind, changed, reason):
    good_turn = {"request": "Say it in at most 6 words.", "answer": "The road was icy this morning."}
    check_turn(good_turn, kind, START, MESSAGES)
    with pytest.raises(Rejected, match=re.escape(reason)):
        check_turn(good_turn | changed, kind, START, MESSAGES)


@pytest.mark.parametrize(
    ("language", "answer", "first"),
    [
        ("zh", "抱歉，我不能翻译路上有冰。", "路上有冰。"),
        ("zh", "好的，以下是修改后的译文：路上有冰。", "路上有冰。"),
        ("de", "Es tut mir leid, auf der Straße war Eis.", "Auf der Straße war Eis."),
        ("fr", "Voici la traduction : il y avait de la glace.", "Il y avait de la glace."),
    ],
)
def test_what_a_model_says_to_its_user_is_no_translation(language, answer, first):
    start = Seed(0, "The road was icy.", first, "en", language, "en", "Translate.", {})
    messages = [{"role": "user", "content": "Translate."}, {"role": "assistant", "content": first}]
    turn = {"request": "Please make it more formal.", "answer": answer}
    with pytest.raises(Rejected, match="answer is no translation alone"):
        check_turn(turn, "style", start, messages)


def test_text_that_addresses_its_reader_is_kept():
    start = Seed(
        0,
        "“Es tut mir leid, 2015 war Eis.”",
        "“I'm sorry, there was ice in 2015.”",
        "de",
        "en",
        "en",
        "?",
        {},
    )
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": start.translation}]
    turn = {"request": "No more than 12 words, please.", "answer": "“I am sorry, in 2015 there was ice.”"}
    check_turn(turn, "style", start, messages)


def test_what_an_answer_speaks_of_is_told_by_the_answers_before_it():
    """Not by what the user said; of Chinese by its pairs of characters; not at all of function words alone."""
    elsewhere = {"request": "Is it right?", "answer": "A committee of the town painted all of its boats."}
    said = [{"role": "user", "content": "The committee painted boats, the town said."}, *MESSAGES]
    with pytest.raises(Rejected, match="answer speaks of something else"):
        check_turn(elsewhere, "style", START, said)
    check_turn({"request": "Is it right?", "answer": "It was on that, too."}, "style", START, MESSAGES)
    start = Seed(0, "The road was icy.", "今天早上路上有冰。", "en", "zh", "en", "Translate.", {})
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": start.translation}]
    check_turn({"request": "More formal, please.", "answer": "今晨路上有冰雪。"}, "style", start, said)
    with pytest.raises(Rejected, match="answer speaks of something else"):
        check_turn(
            {"request": "More formal, please.", "answer": "委员会把船都漆好了。"}, "style", start, said
        )


def test_chinese_is_measured_in_characters():
    start = Seed(0, "The road was icy.", "路上有冰。", "en", "zh", "en", "Translate.", {})
    messages = [
        {"role": "user", "content": "Translate."},
        {"role": "assistant", "content": "今天早上的路上有很多的冰。"},
    ]
    turn = {"request": "At most 5 characters, please.", "answer": "路上有冰了。"}
    check_turn(turn, "length", start, messages)
    with pytest.raises(Rejected, match="bound of length not met"):
        check_turn(turn | {"answer": "今天路上有冰。"}, "length", start, messages)


THOUGHT = '<think>{"request": "Hm?", "answer": "Hm."} is too short.</think>'


@pytest.mark.parametrize("around", ["{}", "Sure!\n```json\n{}\n```", "{} Anything else?", f"{THOUGHT}\n{{}}"])
def test_words_around_the_object_do_not_matter(around):
    assert parse_turn(around.replace("{}", json.dumps(GOOD))) == GOOD


def test_reasoning_blocks_are_not_turns():
    with pytest.raises(Rejected, match="empty or cut off"):
        parse_turn(THOUGHT)


@pytest.mark.parametrize("said", [
    '{"request": ' + "[" * 3000,
    '{"request": ' + "1" * 5000 + "}",
    json.dumps(GOOD).replace("{number}", "morning \\ud83d"),
])  # fmt: skip
def test_an_incomplete_json_answer_costs_one_dialogue(serve, ask, said):
    rows, counts, _ = ask(serve(lambda number, body: (200, completion(said))), 3, turns=(2, 2))
    assert not rows and counts.rejected == {"no whole JSON object": 3}


# Prompts --------------------------------------------------------------------------------------------


def test_a_prompt_of_ones_own_takes_the_place_of_the_built_in_one(tmp_path):
    (tmp_path / "style.txt").write_text("Rewrite $translation for $$5.")
    prompts = load_prompts(tmp_path)
    assert prompts["style"].substitute(translation="this") == "Rewrite this for $5."
    assert set(prompts) == set(refinements.KINDS) and "JSON" in prompts["length"].template


@pytest.mark.parametrize(
    ("text", "what"),
    [("Rewrite $text.", r"unknown placeholder: \$text"), ("Costs $ 5.", "a \\$ that names no placeholder"), (b"\xff", "cannot be read")],
)  # fmt: skip
def test_a_prompt_that_cannot_be_filled_is_refused(tmp_path, text, what):
    path = tmp_path / "grammar.txt"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(UserError, match=what):
        load_prompts(tmp_path)
