"""Finds the built-in template that a folder's chat template is equal to, by rendering both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastling.data.conversation import Conversation, Turn
from fastling.data.template import TEMPLATES, Template
from fastling.data.tokenizer import Tokenizer
from fastling.errors import UserError

# The messages have no white space around them, since many chat templates trim it.
SAMPLES = (
    Conversation((Turn("user", "Good morning!"),)),
    Conversation((Turn("user", "翻译：早上好"), Turn("assistant", "Good morning 😀"))),
    Conversation(
        (
            Turn("user", "Say it in German."),
            Turn("assistant", "Guten Morgen!"),
            Turn("user", "Shorter\nplease"),
        ),
        system="Answer briefly.",
    ),
)


class FoundTemplate(NamedTuple):
    """A built-in template, and the file whose chat template renders the same."""

    template: Template
    file: str


def find_template(folder: Path, tokenizer: Tokenizer) -> FoundTemplate:
    """The built-in template that renders every sample as the folder's own chat template does.

    Raises UserError if the folder has no chat template, or if no built-in template agrees with it.
    """
    chat_template, file = _read_chat_template(folder)
    for template in TEMPLATES.values():
        if _agrees(template, tokenizer, chat_template):
            return FoundTemplate(template, file)
    raise UserError(
        "--template",
        f"is needed: {folder / file} says what none of the built-in templates says",
        f"Give one of {', '.join(TEMPLATES)}, or a YAML file that is like the one the model learned.",
    )


def other_form(folder: Path, tokenizer: Tokenizer, template: Template) -> str | None:
    """The folder's chat template, in words, if it renders another text than `template`; else None.

    A folder without a chat template, such as a base model's, has no other form.
    """
    try:
        chat_template, file = _read_chat_template(folder)
    except UserError:
        return None
    if _agrees(template, tokenizer, chat_template):
        return None
    try:
        return f"{file} ({find_template(folder, tokenizer).template.name})"
    except UserError:
        return file


def _read_chat_template(folder: Path) -> tuple[str, str]:
    """(chat template, name of its file): chat_template.jinja before tokenizer_config.json, as in servers."""
    try:
        path = folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8"), path.name
        path = folder / "tokenizer_config.json"
        if path.is_file():
            fields = json.loads(path.read_text(encoding="utf-8"))
            named = fields.get("chat_template") if isinstance(fields, dict) else None
            if isinstance(named, list):  # several with names
                named = next((each.get("template") for each in named if _is_default(each)), None)
            if isinstance(named, str):
                return named, path.name
    except (ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read: {error}") from None
    raise UserError(
        "--template",
        f"is needed: {folder} does not say how its model was trained",
        f"Give one of {', '.join(TEMPLATES)}, or a YAML file.",
    )


def _is_default(named: object) -> bool:
    return isinstance(named, dict) and named.get("name") == "default"


def _agrees(template: Template, tokenizer: Tokenizer, chat_template: str) -> bool:
    special = {"bos_token": tokenizer.bos or "", "eos_token": tokenizer.eos or ""}
    try:
        bound = template.bind(tokenizer.bos, tokenizer.eos)
    except UserError:
        return False
    if any(tokenizer.control_id(token) is None for token in bound.control_tokens):
        return False
    for conversation in SAMPLES:
        for_answer = conversation.turns[-1].role == "user"
        expected = "".join(segment.text for segment in bound.render(conversation, for_answer=for_answer))
        try:
            rendered = render(chat_template, conversation, special, for_answer=for_answer)
        except Exception:  # any failure of somebody's template means that it does not render this
            return False
        if rendered != expected:
            return False
    return True


def render(
    chat_template: str,
    conversation: Conversation,
    special: Mapping[str, str] | None = None,
    *,
    for_answer: bool,
) -> str:
    """Render a conversation with a chat template, in Jinja's sandbox, with transformers' settings.

    `special` are variables that the template may use for tokens, such as bos_token; our own templates spell
    the tokens out and need none.
    """
    messages = [{"role": role, "content": content} for role, content in conversation.turns]
    if conversation.system:
        messages.insert(0, {"role": "system", "content": conversation.system})
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(chat_template)
    return template.render(messages=messages, add_generation_prompt=for_answer, **(special or {}))


def _raise(message: str) -> None:
    raise ValueError(message)
