"""Somebody else's chat template is one of ours if it renders the same; else the user must say."""

import itertools
import json

import pytest

from fastling.data.template import TEMPLATES
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError
from fastling.inference.chat_template import find_template, other_form

# As they lie beside published models: nobody's here.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = 'A chat between a curious user and an "
    "artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
    "user\\'s questions.' %}{% endif %}{{ bos_token + system + ' ' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("name", "chat_template"), [("llama3", LLAMA3), ("chatml", CHATML), ("vicuna", VICUNA)], ids=str
)
@pytest.mark.parametrize("place", ["file", "field", "list"])
def test_published_templates_are_recognised(kinds, tmp_path, name, chat_template, place):
    tokenizer = load_tokenizer(kinds["byte-level"].path)
    if place == "file":
        (tmp_path / "chat_template.jinja").write_text(chat_template)
    else:
        several = [{"name": "tools", "template": "x"}, {"name": "default", "template": chat_template}]
        field = chat_template if place == "field" else several
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": field}))
    found = find_template(tmp_path, tokenizer)
    assert found.template is TEMPLATES[name]
    assert found.file == ("chat_template.jinja" if place == "file" else "tokenizer_config.json")


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_own_are_recognised(kinds, tmp_path, name):
    tokenizer = load_tokenizer(kinds["byte-level"].path)
    bound = TEMPLATES[name].bind(tokenizer.bos, tokenizer.eos)
    (tmp_path / "chat_template.jinja").write_text(bound.jinja(), encoding="utf-8")
    assert find_template(tmp_path, tokenizer).template.name == name


def test_a_model_that_knows_conversations_in_another_form_is_told_apart(kinds, tmp_path):
    tokenizer = load_tokenizer(kinds["byte-level"].path)
    assert other_form(tmp_path, tokenizer, TEMPLATES["bayling"]) is None  # a base model has no form yet
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert other_form(tmp_path, tokenizer, TEMPLATES["chatml"]) is None
    assert other_form(tmp_path, tokenizer, TEMPLATES["bayling"]) == "chat_template.jinja (chatml)"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert other_form(tmp_path, tokenizer, TEMPLATES["bayling"]) == "chat_template.jinja"


@pytest.mark.parametrize(
    "chat_template",
    [
        CHATML.replace("assistant\n", "assistant:\n"),  # differs in what asks for an answer
        CHATML.replace("'<|im_end|>' + '\n'", "'<|im_end|>'"),  # differs in what follows an answer
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
        "{{ ",
        "{{ messages.__class__.__mro__ }}",
        "{{ range(999999999) | list }}",
        "{{ cycler.__init__.__globals__.os.popen('touch pwned') }}",
        "",
        # Without end: in a loop, in one operation, in memory, in itself.
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'x' * 10 ** 11 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "\ud800",
    ],
    ids=itertools.count(),
)
def test_an_unrecognised_template_needs_the_users_choice(kinds, tmp_path, chat_template, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": chat_template}))
    with pytest.raises(UserError, match="no built-in template renders the same as"):
        find_template(tmp_path, load_tokenizer(kinds["byte-level"].path))
    assert not (tmp_path / "pwned").exists()


def test_a_template_whose_tokens_the_tokenizer_lacks_is_not_taken(kinds, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(UserError, match="no built-in template"):
        find_template(tmp_path, load_tokenizer(kinds["demo"].path))


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 9999, b"[]", b'{"chat_template": 7}'], ids=repr)
def test_a_broken_tokenizer_config_is_named(kinds, tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read|is needed"):
        find_template(tmp_path, load_tokenizer(kinds["demo"].path))
