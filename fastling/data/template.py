"""How a conversation is rendered for the model: as segments to train on, and as Jinja.

A template is a few patterns. In a pattern, control tokens stand for themselves and become one id
each; `{content}` is the message; `{bos}` and `{eos}` are the tokenizer's own. Nothing in a message
is ever a control token. Both forms come from the same patterns, so they cannot diverge.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastling import yaml_file
from fastling.data.conversation import Conversation
from fastling.errors import UserError

PLACEHOLDERS = ("{bos}", "{eos}", "{content}", "{system}")


class Segment(NamedTuple):
    """A stretch of a rendered conversation."""

    text: str
    control: bool
    """One control token, inserted by id; otherwise plain text."""
    turn: int
    """Number of the answer, from 0, whose text or end token this is; -1 if it is not supervised."""


@dataclass(frozen=True)
class Template:
    """The patterns of a template. A YAML file with fields of these names makes another one."""

    name: str
    user: str
    """A user turn. `{system}` in it is where the first turn takes the system block."""
    assistant: str
    """An assistant turn; a control token must follow `{content}`: it ends the answer."""
    begin: str = "{bos}"
    """Once, at the start."""
    system: str = ""
    """The system block, left out when there is no system text."""
    default_system: str = ""
    """System text of a conversation without one."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens written out in the patterns, beside `{bos}` and `{eos}`."""
    stop: tuple[str, ...] = ()
    """Further tokens that end an answer when generating, where the tokenizer has them."""

    def __post_init__(self):
        for field in ("begin", "system", "user", "assistant"):
            self._check_spelling(field)
        for field in ("user", "assistant"):
            if self._split(getattr(self, field)).count("{content}") != 1:
                raise UserError(f"template {self.name}", f"{field} needs {{content}} exactly once")
        for field, placeholder in (
            ("begin", "{content}"),
            *((field, "{system}") for field in ("begin", "system", "assistant")),
        ):
            if placeholder in self._split(getattr(self, field)):
                raise UserError(f"template {self.name}", f"{field} has no place for {placeholder}")
        if self.system and "{content}" not in self.system:
            raise UserError(f"template {self.name}", "system needs {content}")
        if self.default_system and not self.system:
            raise UserError(f"template {self.name}", "default_system has no effect without system")
        parts = self._split(self.assistant)
        after = parts[parts.index("{content}") + 1 :]
        if not after or not self._is_control(after[0]):
            raise UserError(
                f"template {self.name}",
                "a control token must follow {content} in assistant: it is how an answer ends",
                "Write {eos} there, or list the token under control_tokens.",
            )

    def _check_spelling(self, field: str) -> None:
        """Raise UserError for a misspelled placeholder, which would be written out as text."""
        for part in self._split(getattr(self, field)):
            for found in re.finditer(r"\{ *(\w+?)(_token)? *\}", part):
                meant = f"{{{found[1].lower()}}}"
                if meant in PLACEHOLDERS and part != meant:
                    fix = f"Write {meant}."
                    raise UserError(f"template {self.name}", f"{field} has no placeholder {found[0]}", fix)

    def _split(self, pattern: str) -> tuple[str, ...]:
        """A pattern -> its control tokens, placeholders and stretches of text."""
        return _split(pattern, self.control_tokens)

    def _is_control(self, part: str) -> bool:
        return part in ("{bos}", "{eos}") or part in self.control_tokens

    def as_yaml(self) -> str:
        """The file that `load_template` reads back as the same template."""
        return yaml_file.as_yaml(dataclasses.asdict(self))

    def bind(self, bos: str | None, eos: str | None) -> "BoundTemplate":
        """The template with a tokenizer's own begin and end tokens; without a bos, `{bos}` is left out.

        Raises UserError if the template needs an end token and the tokenizer names none.
        """
        if eos is None and "{eos}" in self.assistant + self.user + self.system + self.begin:
            raise UserError(
                f"template {self.name}",
                "ends answers with {eos}, and the tokenizer names no end token",
                'Put {"eos_token": "..."} in tokenizer_config.json beside the tokenizer.',
            )
        return BoundTemplate(self, bos, eos)


@functools.cache
def _split(pattern: str, control_tokens: tuple[str, ...]) -> tuple[str, ...]:
    names = sorted([*PLACEHOLDERS, *control_tokens], key=len, reverse=True)
    split = re.split(f"({'|'.join(map(re.escape, names))})", pattern)
    return tuple(part for part in split if part)


class BoundTemplate:
    """A template with the control tokens of one tokenizer."""

    def __init__(self, template: Template, bos: str | None, eos: str | None):
        self.name = template.name
        self.template = template
        self._names = {"{bos}": bos or "", "{eos}": eos or ""}
        parts = template._split(template.assistant)
        split = parts.index("{content}")
        before = self._segments(parts[:split])
        # A space before the answer belongs to its first token ("ASSISTANT:" + " Hello"): servers
        # stop the prompt before it, and so do we.
        self.joint = ""
        if before and not before[-1].control:
            text = before[-1].text
            self.joint = text[len(text.rstrip(" ")) :]
            before[-1] = before[-1]._replace(text=text.rstrip(" "))
        self.answer_prefix = [segment for segment in before if segment.text]
        self.end_token = self._names.get(parts[split + 1], parts[split + 1])
        self.answer_suffix = self._segments(parts[split + 2 :])
        self.stop_tokens = [self.end_token, *([eos] if eos else []), *template.stop]

    def _segments(self, parts: Sequence[str], **placeholders: list[Segment]) -> list[Segment]:
        segments = []
        for part in parts:
            if part in placeholders:
                segments += placeholders[part]
            elif self.template._is_control(part):
                segments.append(Segment(self._names.get(part, part), True, -1))
            else:
                segments.append(Segment(part, False, -1))
        return [segment for segment in segments if segment.text]

    def _fill(self, pattern: str, content: str, system: list[Segment] | None = None) -> list[Segment]:
        parts = self.template._split(pattern)
        fillings = {"{content}": [Segment(content, False, -1)], "{system}": system or []}
        return self._segments(parts, **fillings)

    @functools.cached_property
    def control_tokens(self) -> list[str]:
        """Every control token that rendering can produce, each once."""
        patterns = (self.template.begin, self.template.system, self.template.user, self.template.assistant)
        parts = [part for pattern in patterns for part in self.template._split(pattern)]
        tokens = [self._names.get(part, part) for part in parts if self.template._is_control(part)]
        return list(dict.fromkeys(token for token in tokens if token))

    def render(self, conversation: Conversation, *, for_answer: bool = False) -> list[Segment]:
        """Segments of the whole conversation; `for_answer` adds the prefix of the next answer."""
        segments = self._segments(self.template._split(self.template.begin))
        if conversation.turns and conversation.turns[0].role == "text":
            text = conversation.turns[0].content
            if not segments and self._names["{bos}"] in self.control_tokens:  # elsewhere, as in llama2
                segments = self._segments(["{bos}"])
            return [*segments, Segment(text, False, 0), Segment(self.end_token, True, 0)]
        system = conversation.system or self.template.default_system
        block = self._fill(self.template.system, system) if system and self.template.system else []
        takes_system = "{system}" in self.template.user
        if not takes_system:
            segments += block
        turn = 0
        for position, (role, content) in enumerate(conversation.turns):
            if role == "assistant":
                supervised = -1 if position in conversation.read_only else turn
                segments += self.answer_prefix
                segments.append(Segment(self.joint + content, False, supervised))
                segments.append(Segment(self.end_token, True, supervised))
                segments += self.answer_suffix
                turn += 1
            else:
                inner = block if takes_system and position == 0 else None
                segments += self._fill(self.template.user, content, inner)
        return segments + (self.answer_prefix if for_answer else [])

    def jinja(self) -> str:
        """The same rendering as a chat template for Hugging Face, vLLM, SGLang and llama.cpp."""

        def literal(segments: list[Segment]) -> str:
            return _quote("".join(segment.text for segment in segments))

        def pattern(pattern: str, content: str) -> str:
            """Jinja expression of a pattern around the variable `content`."""
            parts = []
            for part in self.template._split(pattern):
                if part == "{content}":
                    parts.append(content)
                elif part == "{system}":
                    parts.append("(system_block if loop.first else '')")
                elif text := self._names.get(part, part):
                    parts.append(_quote(text))
            return " + ".join(parts) or "''"

        system = pattern(self.template.system, "system") if self.template.system else "''"
        takes_system = "{system}" in self.template.user
        user = pattern(self.template.user, "message['content']")
        answer = f"{literal(self.answer_prefix)} + {_quote(self.joint)}"
        answer += f" + message['content'] + {_quote(self.end_token)} + {literal(self.answer_suffix)}"
        lines = [
            "{%- set turns = messages -%}",
            f"{{%- set system = {_quote(self.template.default_system)} -%}}",
            "{%- if messages and messages[0]['role'] == 'system' -%}",
            "{%- set turns = messages[1:] -%}",
            "{%- if messages[0]['content'] | trim -%}"
            "{%- set system = messages[0]['content'] -%}{%- endif -%}",
            "{%- endif -%}",
            f"{{%- set system_block = ({system}) if system else '' -%}}",
            ""
            if self.template.system
            else "{%- if system -%}{{- raise_exception("
            + _quote(f"the template {self.name} has no place for system text")
            + ") -}}{%- endif -%}",
            f"{{{{- {pattern(self.template.begin, '')} -}}}}",
            "" if takes_system else "{{- system_block -}}",
            "{%- for message in turns -%}",
            "{%- if message['role'] == 'user' -%}",
            f"{{{{- {user} -}}}}",
            "{%- elif message['role'] == 'assistant' -%}",
            f"{{{{- {answer} -}}}}",
            "{%- else -%}",
            "{{- raise_exception('the template ' + " + _quote(self.name) + " + "
            "' has no role ' + message['role']) -}}",
            "{%- endif -%}",
            "{%- endfor -%}",
            f"{{%- if add_generation_prompt -%}}{{{{- {literal(self.answer_prefix)} -}}}}{{%- endif -%}}",
        ]
        return "\n".join(line for line in lines if line)


def _quote(text: str) -> str:
    """A string of Jinja. As it is: of an emoji's two \\u escapes Jinja would make two halves."""
    return json.dumps(text, ensure_ascii=False)


BAYLING = Template(
    name="bayling",
    default_system="I am an intelligent language assistant developed by the NLP Group of ICT/CAS.\n"
    "Below is a dialog consisting of instructions and responses. "
    "Write a response that completes the request.",
    system="{content}\n\n",
    user="### Instruction:\n{content}\n",
    assistant="### Response:\n{content}{eos}\n",
)
VICUNA = Template(
    name="vicuna",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system="{content} ",
    user="USER: {content} ",
    assistant="ASSISTANT: {content}{eos}",
)
ALPACA = Template(
    name="alpaca",
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    system="{content}\n\n",
    user="### Instruction:\n{content}\n\n",
    assistant="### Response:\n{content}{eos}",
)
LLAMA2 = Template(
    name="llama2",
    begin="",
    system="<<SYS>>\n{content}\n<</SYS>>\n\n",
    user="{bos}[INST] {system}{content} [/INST]",
    assistant=" {content}{eos}",
)
LLAMA3 = Template(
    name="llama3",
    control_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{content}<|eot_id|>",
    stop=("<|end_of_text|>", "<|eom_id|>"),
)
CHATML = Template(
    name="chatml",
    begin="",
    control_tokens=("<|im_start|>", "<|im_end|>"),
    system="<|im_start|>system\n{content}<|im_end|>\n",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{content}<|im_end|>\n",
    stop=("<|endoftext|>",),
)
TEMPLATES = {each.name: each for each in (BAYLING, VICUNA, ALPACA, LLAMA2, LLAMA3, CHATML)}


def load_template(name: str) -> Template:
    """A template by its name, or from a YAML file with the fields of `Template`."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(os.path.expanduser(name))
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            "data.template", f"no such template: {name}", f"Use {', '.join(TEMPLATES)}, or a .yaml file."
        )
    if not path.is_file():
        raise UserError("data.template", f"no such file: {name}")
    valid = [field.name for field in dataclasses.fields(Template)]
    fix = f"A template has: {', '.join(valid)}."
    fields, _ = yaml_file.read(path, fix)
    return _from_fields(name, fields, valid, fix)


def _from_fields(where: str, fields: object, valid: Sequence[str], fix: str) -> Template:
    for name in fields if isinstance(fields, dict) else ():
        if name not in valid:  # first, since a misspelled pattern is missing as well
            raise UserError(where, f"unknown setting: {name}", fix)
    if not isinstance(fields, dict) or not {"user", "assistant"} <= set(fields):
        raise UserError(where, "a template needs at least the patterns user and assistant", fix)
    for name, value in fields.items():
        listed = name in ("control_tokens", "stop")
        if not isinstance(value, list if listed else str):
            raise UserError(where, f"{name} must be {'a list' if listed else 'text'}: {value!r:.60}")
        if listed and not all(isinstance(token, str) and token for token in value):
            raise UserError(where, f"{name} must be a list of tokens: {value!r:.60}")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Template(**{"name": Path(where).stem, **fields})
