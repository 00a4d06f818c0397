"""Conversations -> token ids, with a proof that they are correct.

A rendered conversation is a chain of control tokens and runs of plain text between them. All
tokenizers in use encode a run as a whole, so it is done the same way here, and the last part of a
run may be an answer. Three properties are checked on every row, and a row that lacks one is refused:

P1  the ids of the run up to the answer are the ids of that text alone: what a server that stops
    there would feed the model;
P2  the run and the part before the answer decode to their texts, so the supervised ids decode to
    the answer and nothing else;
P3  no run holds a control token.

The template's own text is the same in every row, so it is checked once, when an encoder is made: a
server that finds a control token spelled in it would feed the model other ids (P1).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy

from fastling.data.conversation import Conversation, Refused, Turn
from fastling.data.template import BoundTemplate, Template
from fastling.data.tokenizer import Tokenizer, words_beside
from fastling.errors import UserError


@dataclass(frozen=True, slots=True)
class Encoded:
    """A proved conversation."""

    tokens: numpy.ndarray
    """(n,) uint32: what the model reads."""
    spans: numpy.ndarray
    """(turns, 2) int32: [start, stop) of every answer with its end token."""
    turns: tuple[int, ...]
    """(turns,): which answer of the conversation each span is, from 0; answers not trained on count, too."""
    dropped: dict[str, int]
    """Tokens left out, by reason."""

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())


class Unproved(Refused):
    """A row that was refused after it was encoded, so that the number of its tokens is known."""

    def __init__(self, reason: str, detail: str, num_tokens: int):
        super().__init__(reason, detail)
        self.num_tokens = num_tokens

    def __reduce__(self):  # so that it can be pickled by a worker process
        return type(self), (self.reason, self.detail, self.num_tokens)


class _Run(NamedTuple):
    """Plain text between control tokens; `prompt` is its part before the answer of `turn`."""

    text: str
    prompt: str
    turn: int


class Encoder:
    """Encodes conversations with one template and one tokenizer.

    Raises UserError when the template needs a token that the tokenizer does not have, or writes one as text.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, sequence_length: int):
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.template: BoundTemplate = template.bind(tokenizer.bos, tokenizer.eos)
        self._ids = {token: self._control_id(token) for token in self.template.control_tokens}
        known = {token: tokenizer.control_id(token) for token in self.template.stop_tokens}
        stops = {token: token_id for token, token_id in known.items() if token_id is not None}
        self._words_beside = words_beside(tokenizer)
        tokenizer.reserve([*self._ids, *stops])
        self.control_ids = frozenset([*self._ids.values(), *stops.values()])
        self.stop_ids = list(dict.fromkeys(stops.values()))
        self._check_own_text()

    def _control_id(self, token: str) -> int:
        token_id = self.tokenizer.control_id(token)
        if token_id is None:
            raise UserError(
                f"data.template: {self.template.name}",
                f"needs the token {token}, which {self.tokenizer.path} does not have",
                "Choose a template that was made for this tokenizer, or add the token by fastling extend.",
            )
        return token_id

    def _check_own_text(self) -> None:
        """Raise UserError if the template's own text, outside the messages, spells a control token.

        Two questions and answers, with system text and without, put every pattern beside every other one.
        Their messages are a NUL, which is part of no token.
        """
        special = {*self.tokenizer.special_tokens(), *self._ids} - {""}
        turns = (Turn("user", "\0"), Turn("assistant", "\0")) * 2
        for system in ("", "\0"):
            for part in self._chain(Conversation(turns, system)):
                found = [] if isinstance(part, str) else [token for token in special if token in part.text]
                if found:
                    raise UserError(
                        f"data.template: {self.template.name}",
                        f"writes as plain text what {self.tokenizer.path} has as a control token, "
                        f"so servers would read other tokens: {max(sorted(found), key=len)}",
                        "In a .yaml template of your own, list it under control_tokens, or write other text.",
                    )

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Ids that chat feeds the model for the next answer to this conversation."""
        ids: list[int] = []
        for part in self._chain(conversation, for_answer=True):
            ids += [self._ids[part]] if isinstance(part, str) else self.tokenizer.encode([part.text])[0]
        return ids

    def answer(self, ids: Sequence[int]) -> str:
        """Generated ids -> text, without stop tokens and without ids that the tokenizer does not have."""
        known = self.tokenizer.vocab_size
        kept = [token_id for token_id in ids if token_id < known and token_id not in self.stop_ids]
        return self.tokenizer.decode([kept])[0].strip()

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | Refused]:
        """Encode and prove many conversations at once. Returns one result for each, in order."""
        chains = [self._chain(conversation) for conversation in conversations]
        texts = {}
        for chain in chains:
            for part in chain:
                if not isinstance(part, str):
                    texts[part.text] = texts[part.prompt] = None
        try:
            ids = dict(zip(texts, self.tokenizer.encode(list(texts)), strict=True))
        except UserError as error:  # caused by one text; the others are still encoded
            if len(conversations) == 1:
                return [Refused("unreadable-by-tokenizer", error.what)]
            return [result for each in conversations for result in self.encode([each])]
        decoded = dict(zip(texts, self.tokenizer.decode(list(ids.values())), strict=True))
        results: list[Encoded | Refused] = []
        for conversation, chain in zip(conversations, chains, strict=True):
            try:
                results.append(self._assemble(conversation, chain, ids, decoded))
            except Refused as refusal:
                results.append(refusal)
        return results

    def _chain(self, conversation: Conversation, *, for_answer: bool = False) -> list[str | _Run]:
        """A conversation -> its control tokens (as str) and runs; an answer is always the end of a run."""
        chain: list[str | _Run] = []
        text, prompt, turn = "", "", -1
        for segment in self.template.render(conversation, for_answer=for_answer):
            if segment.control:
                if text or turn >= 0:
                    chain.append(_Run(text, prompt, turn))
                chain.append(segment.text)
                text, prompt, turn = "", "", -1
            else:
                if segment.turn >= 0:
                    prompt, turn = text, segment.turn
                text += segment.text
        return chain + ([_Run(text, prompt, turn)] if text else [])

    def _assemble(
        self,
        conversation: Conversation,
        chain: list[str | _Run],
        ids: dict[str, list[int]],
        decoded: dict[str, str],
    ) -> Encoded:
        tokens: list[int] = []
        spans: list[tuple[int, int]] = []
        turns: list[int] = []
        failure: tuple[str, str] | None = None
        if conversation.system and not self.template.template.system:
            failure = ("no-place-for-system-text", f"the template {self.template.name} has no system block")
        answer_start = None
        for part in chain:
            if isinstance(part, str):
                tokens.append(self._ids[part])
                if answer_start is not None:
                    spans.append((answer_start, len(tokens)))
                    answer_start = None
            else:
                failure = failure or self._disproof(part, ids, decoded)
                if part.turn >= 0:
                    # The very first token has no context, so it cannot be predicted.
                    answer_start = max(1, len(tokens) + len(ids[part.prompt]))
                    turns.append(part.turn)
                tokens += ids[part.text]
        if failure:
            raise Unproved(*failure, num_tokens=len(tokens))
        return self._cut(conversation, tokens, spans, turns)

    def _disproof(
        self, run: _Run, ids: dict[str, list[int]], decoded: dict[str, str]
    ) -> tuple[str, str] | None:
        """Why P1, P2 or P3 does not hold for a run, as (reason, detail); None if all hold."""
        run_ids, prompt_ids = ids[run.text], ids[run.prompt]
        if not self.control_ids.isdisjoint(run_ids):
            return "control-token-in-text", f"in {run.text[-60:]!r}"
        for word in self._words_beside:
            if word in run.text:  # the base model has an id for it, which is not looked up here
                said = "only files beside the tokenizer make it one: give a tokenizer.json that has it"
                return "unread-token", f"{word!r:.40}: {said}"
        if run_ids[: len(prompt_ids)] != prompt_ids:
            start = run.text[len(run.prompt) :][:20]
            return "answer-merges-with-prompt", f"turn {run.turn + 1} starts with {start!r}"
        for text in (run.text, run.prompt):
            if decoded[text] != text and decoded[text] != self.tokenizer.normalize(text):
                return "does-not-decode", _first_difference(text, decoded[text])
        return None

    def _cut(
        self, conversation: Conversation, tokens: list[int], spans: list[tuple[int, int]], turns: list[int]
    ) -> Encoded:
        """Cut turns after the last trained answer, then what does not fit, at the end of a trained answer."""
        stop, dropped = len(tokens), {}
        last = len(conversation.turns) - 1
        if conversation.turns[last].role == "user" or last in conversation.read_only:
            stop = spans[-1][1]
            dropped["after-last-answer"] = len(tokens) - stop
        if stop > self.sequence_length:
            kept = [span for span in spans if span[1] <= self.sequence_length]
            if not kept:
                raise Unproved(
                    "too-long",
                    f"its first answer ends at token {spans[0][1]}, beyond {self.sequence_length}",
                    len(tokens),
                )
            dropped["over-length"] = stop - kept[-1][1]
            stop, spans = kept[-1][1], kept
        return Encoded(
            numpy.array(tokens[:stop], dtype=numpy.uint32),
            numpy.array(spans, dtype=numpy.int32).reshape(-1, 2),
            tuple(turns[: len(spans)]),
            dropped,
        )


def _first_difference(text: str, decoded: str) -> str:
    same = len(os.path.commonprefix([text, decoded]))
    return f"{text[same : same + 20]!r} came back as {decoded[same : same + 20]!r}"
