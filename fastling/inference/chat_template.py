"""Finds the built-in template that a folder's chat template is equal to, by rendering both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastling.data.conversation import Conversation, Turn
from fastling.data.template import TEMPLATES, Template
from fastling.data.tokenizer import Tokenizer
from fastling.errors import UserError
from fastling.inference.sandbox import render, render_bounded

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
    if found := _find_equal(_render_samples(chat_template, tokenizer), tokenizer):
        return FoundTemplate(found, file)
    raise UserError(
        "--template",
        f"is needed: no built-in template renders the same as {folder / file}",
        f"Give one of {', '.join(TEMPLATES)}, or a YAML file with the model's own template.",
    )


def other_form(folder: Path, tokenizer: Tokenizer, template: Template) -> str | None:
    """A description of the folder's chat template if it renders other text than `template`; else None.

    A folder without a chat template, such as a base model's, gives None.
    """
    try:
        chat_template, file = _read_chat_template(folder)
    except UserError:
        return None
    rendered = _render_samples(chat_template, tokenizer)
    if _agrees(template, tokenizer, rendered):
        return None
    known = _find_equal(rendered, tokenizer)
    return f"{file} ({known.name})" if known else file


def _find_equal(rendered: Sequence[str | None], tokenizer: Tokenizer) -> Template | None:
    return next((each for each in TEMPLATES.values() if _agrees(each, tokenizer, rendered)), None)


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
        f"is needed: {folder} has no chat template",
        f"Give one of {', '.join(TEMPLATES)}, or a YAML file.",
    )


def _is_default(named: object) -> bool:
    return isinstance(named, dict) and named.get("name") == "default"


def _render_samples(chat_template: str, tokenizer: Tokenizer) -> list[str | None]:
    special = {"bos_token": tokenizer.bos or "", "eos_token": tokenizer.eos or ""}
    return render_bounded(
        chat_template,
        [special | _variables(sample, for_answer=_ends_with_question(sample)) for sample in SAMPLES],
    )


def _agrees(template: Template, tokenizer: Tokenizer, rendered: Sequence[str | None]) -> bool:
    """Whether a built-in template renders all samples so."""
    try:
        bound = template.bind(tokenizer.bos, tokenizer.eos)
    except UserError:
        return False
    if any(tokenizer.control_id(token) is None for token in bound.control_tokens):
        return False
    return all(
        text
        == "".join(segment.text for segment in bound.render(sample, for_answer=_ends_with_question(sample)))
        for sample, text in zip(SAMPLES, rendered, strict=True)
    )


def _ends_with_question(sample: Conversation) -> bool:
    return sample.turns[-1].role == "user"


def render_conversation(chat_template: str, conversation: Conversation, *, for_answer: bool) -> str:
    """Render a conversation with a chat template of our own, which spells its control tokens out."""
    return render(chat_template, _variables(conversation, for_answer=for_answer))


def _variables(conversation: Conversation, *, for_answer: bool) -> dict:
    messages = [{"role": role, "content": content} for role, content in conversation.turns]
    if conversation.system:
        messages.insert(0, {"role": "system", "content": conversation.system})
    return {"messages": messages, "add_generation_prompt": for_answer}
