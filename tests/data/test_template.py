"""Templates: what a model reads, twice the same: as segments to train on and as Jinja for a server."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastling.data.conversation import Conversation, Turn
from fastling.data.template import TEMPLATES, Template, load_template
from fastling.errors import UserError

GOLDEN = {
    "bayling": "<s>Be brief.\n\n### Instruction:\nHi\n### Response:\n你好</s>\n"
    "### Instruction:\nBye\n### Response:\n",
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: 你好</s>USER: Bye ASSISTANT:",
    "alpaca": "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n你好</s>"
    "### Instruction:\nBye\n\n### Response:\n",
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] 你好</s><s>[INST] Bye [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n你好<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n你好<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
}
NAMES = [*TEMPLATES, "own"]


def conversation(system: str, *turns: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(turns)), system)


def jinja_text(bound, asked: Conversation, *, for_answer: bool) -> str:
    """What a server renders: Jinja as transformers sets it up."""
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages += [turn._asdict() for turn in asked.turns]
    return compiled(bound.jinja()).render(messages=messages, add_generation_prompt=for_answer)


@functools.cache
def compiled(chat_template: str):
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_template_renders_its_models_published_form(name):
    bound = TEMPLATES[name].bind("<s>", "</s>")
    segments = bound.render(conversation("Be brief.", "Hi", "你好", "Bye"), for_answer=True)
    assert "".join(segment.text for segment in segments) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_answer_and_its_end_token_are_supervised(name, own_template):
    bound = load_template(own_template if name == "own" else name).bind("<s>", "</s>")
    segments = bound.render(conversation("", "Hi", "one", "Again", "two"))
    supervised = [
        (segment.text.strip(), segment.control, segment.turn) for segment in segments if segment.turn >= 0
    ]
    end = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>"}.get(name, "</s>")
    assert supervised == [("one", False, 0), (end, True, 0), ("two", False, 1), (end, True, 1)]
    assert bound.stop_tokens[0] == end


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bos", ["<s>", None])
@settings(max_examples=60)
@given(
    system=st.sampled_from(["", "Sei nett.\n", "你好{{ 1 }}", " 😀 "]),
    turns=st.lists(
        st.text(max_size=12) | st.sampled_from(["</s>", "{{ 7 * 7 }}", " \r\n", "'\"\\n"]),
        min_size=1,
        max_size=6,
    ),
)
def test_segments_jinja_and_the_hand_agree_for_every_number_of_turns(
    name, bos, own_template, by_hand, system, turns
):
    full = own_template if name == "own" else name
    bound = load_template(full).bind(bos, "</s>")
    for count in range(1, len(turns) + 1):
        asked = conversation(system, *turns[:count])
        expected = "".join(text for _, text in by_hand(full, system, turns[:count], bos or "", "</s>"))
        assert "".join(segment.text for segment in bound.render(asked)) == expected
        assert jinja_text(bound, asked, for_answer=False) == expected
        if count % 2:  # after a question: what a server stops at
            segments = bound.render(asked, for_answer=True)
            assert jinja_text(bound, asked, for_answer=True) == "".join(segment.text for segment in segments)


def test_a_system_message_of_blanks_is_none():
    bound = TEMPLATES["vicuna"].bind("<s>", "</s>")
    messages = [{"role": "system", "content": " \n"}, {"role": "user", "content": "Hi"}]
    text = ImmutableSandboxedEnvironment().from_string(bound.jinja()).render(messages=messages)
    assert text == "".join(segment.text for segment in bound.render(conversation("", "Hi")))


def test_jinja_refuses_a_role_it_would_have_to_drop():
    bound = TEMPLATES["chatml"].bind(None, "</s>")
    environment = ImmutableSandboxedEnvironment()

    def raise_exception(message):
        raise ValueError(message)

    environment.globals["raise_exception"] = raise_exception
    with pytest.raises(ValueError, match="chatml has no role tool"):
        environment.from_string(bound.jinja()).render(messages=[{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [("bayling", ["<s>"], "</s>"), ("llama2", ["<s>"], "</s>"), ("chatml", [], "<|im_end|>")],
)
def test_plain_text_is_all_supervised_and_begins_as_the_template_has_it(name, begin, end):
    bound = TEMPLATES[name].bind("<s>", "</s>")
    segments = bound.render(Conversation((Turn("text", "Once upon a time."),)))
    assert segments == [
        *((each, True, -1) for each in begin),
        ("Once upon a time.", False, 0),
        (end, True, 0),
    ]


GOOD = {"user": "{content}\n", "assistant": "A: {content}{eos}"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"user": "no place"}, "user needs {content} exactly once"),
        ({"user": "{content}{content}"}, "user needs {content} exactly once"),
        ({"assistant": "{content}"}, "a control token must follow {content} in assistant"),
        ({"assistant": "{content} {eos}"}, "a control token must follow {content} in assistant"),
        ({"assistant": "{content}###"}, "a control token must follow {content} in assistant"),
        ({"system": "nothing"}, "system needs {content}"),
        ({"default_system": "x"}, "default_system has no effect without system"),
        ({"begin": "{bos}{content}"}, "begin has no place for {content}"),
        ({"begin": "{system}"}, "begin has no place for {system}"),
        ({"assistant": "{system}{content}{eos}"}, "assistant has no place for {system}"),
        ({"begin": "{bos_token}"}, "begin has no placeholder {bos_token}\n  Write {bos}."),
        ({"begin": "{BOS}\n"}, "begin has no placeholder {BOS}"),
        ({"user": "{{ content }}\n"}, "user has no placeholder { content }"),
        ({"assistant": "{content}{eos_token}"}, "assistant has no placeholder {eos_token}"),
        ({"colour": "red"}, "unknown setting: colour"),
        ({"user": 7}, "user must be text: 7"),
        ({"stop": "</s>"}, "stop must be a list"),
        ({"control_tokens": [7]}, "control_tokens must be a list of tokens"),
        ({"control_tokens": [""]}, "control_tokens must be a list of tokens"),
    ],
)
def test_a_template_that_cannot_work_is_refused_in_words(changes, what, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**GOOD, **changes}))
    with pytest.raises(UserError) as refused:
        load_template(str(path))
    assert what in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("shakespeare", None, "no such template: shakespeare"),
        ("missing.yaml", None, "no such file"),
        ("broken.yaml", b"a: [", "is not valid YAML"),
        ("latin.yaml", "user: über".encode("latin-1"), "is not UTF-8: byte 6"),
        ("list.yaml", b"- user", "needs at least the patterns user and assistant"),
        ("empty.yaml", b"\n", "needs at least the patterns user and assistant"),
        (
            "half.yaml",
            b"user: a",
            "needs at least the patterns user and assistant\n  A template has: name, user",
        ),
        ("usr.yaml", b"usr: a", "unknown setting: usr\n  A template has: name, user"),
    ],
)
def test_files_that_are_no_templates_are_refused(name, content, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        load_template(name)


@pytest.mark.parametrize("text", ["1e-4", "null", "yes", "2026-01-01", "<<", " x: #", "你好\n", '"'])
def test_a_template_that_is_written_to_a_file_is_read_back_the_same(text, tmp_path):
    template = Template(
        "mine", f"{text}{{content}}", "{content}{eos}", text, "{content}", text, (text,), (text,)
    )
    (tmp_path / "mine.yaml").write_text(template.as_yaml(), encoding="utf-8")
    assert load_template(str(tmp_path / "mine.yaml")) == template


def test_the_longer_of_two_overlapping_control_tokens_wins():
    own = Template("x", "{content}\n", "<end>{content}<end>2", control_tokens=("<end>", "<end>2"))
    bound = own.bind(None, None)
    assert (bound.answer_prefix, bound.end_token) == ([("<end>", True, -1)], "<end>2")


def test_a_template_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(Template("mine", **GOOD).as_yaml())
    assert load_template("~/mine.yaml") == Template("mine", **GOOD)


def test_a_tokenizer_without_end_token_cannot_end_answers():
    with pytest.raises(UserError, match="names no end token"):
        Template("x", **GOOD).bind("<s>", None)
    assert TEMPLATES["chatml"].bind(None, None).end_token == "<|im_end|>"  # brings its own
