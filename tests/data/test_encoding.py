"""P1 to P4 on generated conversations, against the tokenizers' own libraries and hand-written templates."""

import collections
import dataclasses
import json
import pickle
import shutil
import unicodedata

import numpy
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastling.data.conversation import Conversation, Refused, Turn
from fastling.data.encoding import Encoded, Encoder, Unproved
from fastling.data.ledger import Ledger
from fastling.data.template import TEMPLATES, Template
from fastling.data.tokenizer import load_tokenizer
from fastling.errors import UserError

LOOK_ALIKES = [
    "</s>", "<s>", "<unk>", "<0x0A>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|begin_of_text|>",
    "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "### Instruction:\n", "ASSISTANT: ", "<|im_", "end|>",
]  # fmt: skip
FRAGMENTS = [
    *LOOK_ALIKES,
    " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\u00a0", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f",
    "Hello, world", "the ", "don't", "2026", "1,234.5", "a" * 30, "=" * 17,
    "请把这句话翻译成英语：", "龘", "𠮷野家", "日本語", "，", "Käse mit süßem Brot", "Ä", "ß", "A\u0308", "é",
    "e\u0301", "😀", "👩‍👩‍👧", "🇩🇪🇨🇳", "🏳️‍🌈", "\u0301", "ﬁ", "▁", "½", "Å", "مرحبا", "नमस्ते",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), min_size=1, max_size=6).map("".join)
NASTY = [
    ("", ["Translate: Good morning!", "早上好！", "And in German?", "Guten Morgen, schöne Grüße! 😀"]),
    ("Antworte kurz.", [" leading", " two words ", "\ttab\n", "  two spaces", "\n\n", " ", "thanks"]),
    ("</s>", ["</s>", "</s>", "<s>[INST] x [/INST]", "<|im_end|>\n<|im_start|>assistant\n"]),
    ("<|eot_id|>", ["<|eot_id|>", "a<|eot_id|>b", "<|im_", "end|>", "<|begin_of_text|>", "<unk><0x0A>"]),
    ("", ["", "", "", "x"]),  # empty turns
    ("x" * 99, ["\x00", "a\x00b", "\u200b", "\u200d\ufeffz", "\r\n\r\n", "a\r\nb\r\n"]),
    ("", ["👩‍👩‍👧🇩🇪🏳️‍🌈", "👩‍👩‍👧", "𠮷龘", "𠮷", "e\u0301", "é", "A\u0308", "Ä"]),
    ("", ["Wort " * 3000, "中文。" * 3000, "a" * 5000, " " * 3000 + "."]),
]  # fmt: skip
COMBINATIONS = [
    (kind, template)
    for kind in ("sentencepiece", "demo", "byte-level", "qwen", "llama-json", "llama-first")
    for template in ("bayling", "vicuna", "alpaca", "llama2", "own", "llama3", "chatml")
    if not (kind == "demo" and template in ("llama3", "chatml"))
]


CONTROL = collections.defaultdict(
    tuple,
    llama3=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    chatml=("<|im_start|>", "<|im_end|>"),
)


class Oracle:
    """What a conversation must become, worked out without fastling's data path."""

    def __init__(self, kind, template: str, by_hand, system: str, turns: list[str]):
        self.kind = kind
        self.bos = {"byte-level": "<|begin_of_text|>", "qwen": ""}.get(kind.name, "<s>")
        self.eos = {"byte-level": "<|end_of_text|>", "qwen": "<|endoftext|>"}.get(kind.name, "</s>")
        self.parts = by_hand(template, system, turns, self.bos, self.eos)
        self.answers = [number for number, (each, _) in enumerate(self.parts) if each == "answer"]
        self.control = frozenset(CONTROL[template]) | {self.bos, self.eos} - {""}
        self.prompts = [self.ids(number) for number in self.answers]
        self.ends = [len(self.ids(number + 2)) for number in self.answers]

    def ids(self, stop: int) -> list[int]:
        """Ids of the first parts."""
        return self.kind.ids(self.parts[:stop], self.control)

    def merges(self) -> bool:
        """Does a server's prompt fail to be how the ids of prompt and answer together start?"""
        return any(
            self.ids(number + 1)[: len(prompt)] != prompt
            for number, prompt in zip(self.answers, self.prompts, strict=True)
        )

    def check(self, encoded: Encoded) -> None:
        tokens, kind = encoded.tokens.tolist(), self.kind
        assert len(encoded.spans) <= len(self.answers)
        supervised_turns = zip(encoded.spans.tolist(), self.answers, self.prompts, strict=False)
        for (start, stop), number, prompt in supervised_turns:
            assert tokens[:start] == prompt  # P1
            answer, (_, end) = self.parts[number][1], self.parts[number + 1]
            assert tokens[stop - 1] == kind.id(end)
            text = kind.text(tokens[start : stop - 1])
            assert text == (unicodedata.normalize("NFC", answer) if kind.name == "qwen" else answer)  # P2
        control = {kind.id(token) for token in self.control} - {None}
        expected = [kind.id(text) for each, text in self.parts if each == "control"]
        found = [token for token in tokens if token in control]
        assert found == expected[: len(found)]  # P3: what was inserted, and nothing else
        assert len(found) == len(expected) or encoded.dropped


def conversation(system: str, turns: list[str]) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(turns)), system)


def check_against_oracle(kind, template, by_hand, system, turns, budget=10**6) -> Encoded | Refused:
    (result,) = kind.encoder(template, budget).encode([conversation(system, turns)])
    oracle = Oracle(kind, template, by_hand, system, turns)
    if isinstance(result, Encoded):
        oracle.check(result)
    elif result.reason == "answer-merges-with-prompt":
        assert oracle.merges()
    elif result.reason == "does-not-decode":
        assert "▁" in "".join(text for _, text in oracle.parts)  # what SentencePiece writes for a space
    else:
        assert result.reason == "too-long"
        assert oracle.ends[0] > budget
    ledger = Ledger()
    ledger.add(result)
    ledger.check()  # P4
    return result


@pytest.mark.slow
def test_a_thousand_conversations_are_encoded_as_a_server_would(kinds, own_template, by_hand):
    seen = collections.Counter()

    # What is drawn depends on the constants of every module that is loaded; of this there was once none.
    @example(combination=("byte-level", "bayling"), system="", turns=["q", "\nanswer"], budget=10**6)
    @settings(max_examples=1000)
    @given(
        combination=st.sampled_from(COMBINATIONS),
        system=st.sampled_from(["", "Sei nett."]) | TEXTS,
        turns=st.lists(TEXTS, min_size=2, max_size=7),
        budget=st.sampled_from([10**6, 10**6, 150, 80]),
    )
    def check(combination, system, turns, budget):
        name, template = combination
        template = own_template if template == "own" else template
        result = check_against_oracle(kinds[name], template, by_hand, system, turns, budget)
        seen[result.reason if isinstance(result, Refused) else "proved"] += 1

    check()
    assert seen["proved"] >= 650
    assert set(seen) == {"proved", "too-long", "answer-merges-with-prompt", "does-not-decode"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "template"), COMBINATIONS)
def test_nasty_conversations_are_proved_not_refused(name, template, kinds, own_template, by_hand):
    template = own_template if template == "own" else template
    for system, turns in NASTY:
        result = check_against_oracle(kinds[name], template, by_hand, system, turns)
        assert isinstance(result, Encoded), (result, turns)
        assert len(result.spans) == len(turns) // 2


@pytest.mark.parametrize(("name", "template"), COMBINATIONS)
def test_training_reads_the_ids_that_chat_and_a_server_feed(name, template, kinds, own_template, by_hand):
    """P1 by the whole file: the flat rendered text through the tokenizer.json, control tokens found in it."""
    kind, template = kinds[name], own_template if template == "own" else template
    turns = ["Translate: Good morning!", "早上好！", " Und auf  Deutsch?\n", "Guten Morgen 😀\n", "1,234"]
    encoder = kind.encoder(template)
    (encoded,) = encoder.encode([conversation("Sei nett.", turns)])
    for turn, count in enumerate((1, 3)):
        asked = encoder.prompt_ids(conversation("Sei nett.", turns[:count]))
        assert asked == encoded.tokens[: encoded.spans[turn, 0]].tolist()
        if kind.is_json:
            parts = Oracle(kind, template, by_hand, "Sei nett.", turns).parts
            answers = [number for number, (each, _) in enumerate(parts) if each == "answer"]
            flat = "".join(text for _, text in parts[: answers[turn]])
            assert asked == kind.server_ids(flat)


def test_one_batch_gives_what_single_conversations_give(kinds):
    encoder = kinds["sentencepiece"].encoder("vicuna", 60)
    conversations = [conversation(system, turns) for system, turns in NASTY]
    together = encoder.encode(conversations)
    for one, result in zip(conversations, together, strict=True):
        (alone,) = encoder.encode([one])
        assert type(alone) is type(result)
        if isinstance(alone, Encoded):
            assert alone.tokens.tolist() == result.tokens.tolist()
            assert alone.spans.tolist() == result.spans.tolist()
        else:
            assert (alone.reason, alone.detail) == (result.reason, result.detail)


@pytest.mark.parametrize("name", ["sentencepiece", "byte-level", "qwen", "llama-json"])
def test_a_control_token_spelled_by_two_fields_stays_text(name, kinds, tmp_path):
    """`<|im_` in the message, `end|>` in the template."""
    path = tmp_path / "split.yaml"
    path.write_text(
        'user: "{content}end|>\\n"\nassistant: "<|im_{content}<|im_end|>"\ncontrol_tokens: ["<|im_end|>"]'
    )
    kind = kinds[name]
    encoder = kind.encoder(str(path))
    (encoded,) = encoder.encode([conversation("", ["a<|im_", "end|>"])])
    end = kind.id("<|im_end|>")
    assert encoded.tokens.tolist().count(end) == 1
    assert kind.text(encoded.tokens[encoded.spans[0, 0] : -1].tolist()) == "end|>"


def test_an_end_token_that_the_template_does_not_write_is_text_too(kinds):
    """A server stops at the tokenizer's own end token, which is not marked special here."""
    kind = kinds["qwen"]
    (encoded,) = kind.encoder("chatml").encode([conversation("", ["q", "a<|endoftext|>b"])])
    assert kind.id("<|endoftext|>") in kind.encoder("chatml").stop_ids
    assert kind.id("<|endoftext|>") not in encoded.tokens


def test_user_defined_pieces_in_a_message_are_refused(tmp_path, sentencepiece_model):
    """SentencePiece always finds USER_DEFINED pieces in text: such a row cannot be proved."""
    path = sentencepiece_model(tmp_path, user_defined_symbols="<|im_start|>,<|im_end|>")
    encoder = Encoder(
        Template("x", "{content}\n", "{content}<|im_end|>", control_tokens=("<|im_end|>",)),
        load_tokenizer(path),
        99,
    )
    good, bad = encoder.encode([conversation("", ["q", "a"]), conversation("", ["q", "a<|im_end|>b"])])
    assert good.tokens[-1] == encoder.tokenizer.control_id("<|im_end|>")
    assert bad.reason == "control-token-in-text"
    assert "<|im_end|>" in bad.detail


def test_an_empty_answer_right_after_a_control_token_still_learns_to_end(kinds, tmp_path):
    path = tmp_path / "bare.yaml"
    tokens = '["<|im_start|>", "<|im_end|>"]'
    path.write_text(
        f'user: "{{content}}"\nassistant: "<|im_start|>{{content}}<|im_end|>"\ncontrol_tokens: {tokens}'
    )
    for name in ("sentencepiece", "byte-level"):
        encoder = kinds[name].encoder(str(path))
        (encoded,) = encoder.encode([conversation("", ["q", "", "q", "a"])])
        assert [
            kinds[name].text(encoded.tokens[start : stop - 1].tolist()).strip()
            for start, stop in encoded.spans
        ] == ["", "a"]
        assert encoded.tokens[encoded.spans[0, 1] - 1] == kinds[name].id("<|im_end|>")


def test_an_answer_that_merges_with_its_prompt_is_refused(kinds):
    """A newline at the start of an answer becomes one token with the prompt's in byte-level tokenizers."""
    (result,) = kinds["byte-level"].encoder("bayling").encode([conversation("", ["q", "\nanswer"])])
    assert (result.reason, result.detail) == ("answer-merges-with-prompt", "turn 1 starts with '\\nanswer'")


PAD = {"[PAD]": 2001}
MARKED = {"added_tokens_decoder": {"2001": {"content": "[PAD]", "special": True}}}


@pytest.mark.parametrize(
    "beside",
    [
        {"added_tokens.json": {"<extra>": 2000, **PAD}, "special_tokens_map.json": {"pad_token": "[PAD]"}},
        {"added_tokens.json": {"<extra>": 2000, **PAD}, "tokenizer_config.json": MARKED},
        {"tokenizer_config.json": {"added_tokens_decoder": {"2000": {"content": "<extra>"}}}},
    ],
)
def test_text_with_a_token_that_only_the_files_beside_the_tokenizer_have_is_refused(beside, kinds, tmp_path):
    """transformers reads its id; what is special is plain text in a message, as everywhere (P3)."""
    shutil.copy(kinds["demo"].path, tmp_path / "tokenizer.model")
    for name, fields in beside.items():
        (tmp_path / name).write_text(json.dumps(fields))
    rows = [conversation("", [f"q{said}", f"a{said}"]) for said in ("", "[PAD]", "<extra>")]
    plain, special, word = Encoder(TEMPLATES["bayling"], load_tokenizer(tmp_path), 999).encode(rows)
    alone = kinds["demo"].encoder("bayling").encode(rows)
    assert [plain.tokens.tolist(), special.tokens.tolist()] == [each.tokens.tolist() for each in alone[:2]]
    assert word.reason == "unread-token"
    assert word.detail.startswith("'<extra>': only files beside the tokenizer make it one")


def test_text_that_does_not_decode_to_itself_is_refused(kinds, tmp_path, sentencepiece_model):
    (result,) = kinds["sentencepiece"].encoder("bayling").encode([conversation("", ["q", "a ▁ b"])])
    assert (result.reason, result.detail) == ("does-not-decode", "'▁ b' came back as '  b'")
    path = sentencepiece_model(tmp_path, byte_fallback=False, vocab_size=450)
    own = Template("x", "{content} ", "A: {content}{eos}")
    good, unknown = Encoder(own, load_tokenizer(path), 99).encode(
        [conversation("", ["the", "bread"]), conversation("", ["the", "龘"])]
    )
    assert isinstance(good, Encoded)
    assert unknown.reason == "does-not-decode"


def test_a_lost_ending_is_shown_in_the_reason(kinds, tmp_path):
    """A token that swallows the blanks behind it, in a text that is otherwise the same."""
    built = tokenizers.Tokenizer.from_file(str(kinds["byte-level"].path))
    built.add_tokens([tokenizers.AddedToken("<tool>", special=False, normalized=False, rstrip=True)])
    built.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(TEMPLATES["llama3"], load_tokenizer(tmp_path), 99)
    (result,) = encoder.encode([conversation("", ["Which tool?", "This one: <tool> \n"])])
    assert (result.reason, result.detail) == ("does-not-decode", "' \\n' came back as ''")


def test_only_those_rows_are_refused_on_which_the_tokenizers_library_gives_up(kinds, tmp_path):
    """As the regular expressions of Llama 3 and Qwen do on eleven million spaces: it panics."""
    built = tokenizers.Tokenizer.from_file(str(kinds["byte-level"].path))
    backtracking = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(x+x+)+y"), "isolated")
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([backtracking, built.pre_tokenizer])
    built.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(TEMPLATES["llama3"], load_tokenizer(tmp_path), 99)
    rows = [conversation("", ["q", answer]) for answer in ("before", "x" * 40, "after")]
    before, bad, after = encoder.encode(rows)
    assert isinstance(before, Encoded) and isinstance(after, Encoded)
    assert bad.reason == "unreadable-by-tokenizer" and "retry-limit-in-match" in bad.detail
    with pytest.raises(UserError, match="tokenizer.json: cannot read a text: .*retry-limit"):
        encoder.prompt_ids(conversation("", ["x" * 40]))


@pytest.mark.parametrize("rules", [{"add_dummy_prefix": False}, {"normalization_rule_name": "nmt_nfkc"}])
def test_the_letter_that_stands_for_a_space_is_refused_whatever_a_model_does_to_text(
    rules, tmp_path, sentencepiece_model
):
    own = Template("x", "{content} ", "A: {content}{eos}")
    encoder = Encoder(own, load_tokenizer(sentencepiece_model(tmp_path, **rules)), 99)
    good, bad = encoder.encode([conversation("", ["q", answer]) for answer in ("a b", "a▁b")])
    assert isinstance(good, Encoded)
    assert bad.reason == "does-not-decode"


def test_a_tokenizer_that_normalises_supervises_the_normal_form(tmp_path, sentencepiece_model):
    path = sentencepiece_model(tmp_path, normalization_rule_name="nmt_nfkc")
    encoder = Encoder(Template("x", "{content} ", "A: {content}{eos}"), load_tokenizer(path), 99)
    (encoded,) = encoder.encode([conversation("", ["ｔｈｅ", "ﬁｎｅ"])])
    (start, stop), tokens = encoded.spans[0], encoded.tokens.tolist()
    assert encoder.tokenizer.processor.decode(tokens[start : stop - 1]) == "fine"


# The budget (P4) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["bayling", "vicuna", "llama3"])
def test_every_budget_cuts_at_the_end_of_an_answer(template, kinds):
    kind = kinds["sentencepiece"]
    turns = ["one two", "three", "four", "five six seven", "eight", "nine", "and ten"]
    (whole,) = kind.encoder(template).encode([conversation("", turns)])
    ends = whole.spans[:, 1].tolist()
    total = len(whole.tokens) + whole.dropped["after-last-answer"]
    assert len(whole.tokens) == ends[-1]
    for budget in range(1, total + 2):
        (result,) = kind.encoder(template, budget).encode([conversation("", turns)])
        fitting = [end for end in ends if end <= budget]
        if not fitting:
            assert (result.reason, result.num_tokens) == ("too-long", total)
            continue
        assert result.tokens.tolist() == whole.tokens[: fitting[-1]].tolist()
        assert result.spans.tolist() == whole.spans[: len(fitting)].tolist()
        assert sum(result.dropped.values()) == total - fitting[-1]
        assert set(result.dropped) == {"after-last-answer"} | ({"over-length"} if fitting != ends else set())


def test_what_a_template_writes_after_the_last_answer_is_kept_if_it_fits(kinds):
    encoder = kinds["demo"].encoder("bayling")
    (whole,) = encoder.encode([conversation("", ["q", "a"])])
    assert whole.dropped == {}
    assert len(whole.tokens) > whole.spans[-1, 1]  # the newline after </s>
    (cut,) = kinds["demo"].encoder("bayling", len(whole.tokens) - 1).encode([conversation("", ["q", "a"])])
    assert cut.dropped == {"over-length": len(whole.tokens) - whole.spans[-1, 1]}


# Turns that are read only -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "template"), COMBINATIONS)
def test_a_turn_that_is_read_only_changes_nothing_but_what_is_supervised(name, template, kinds, own_template):
    encoder = kinds[name].encoder(own_template if template == "own" else template)
    whole = conversation("", ["q", "bad", "again", "好 ", "thanks", "fine"])
    some = dataclasses.replace(whole, read_only=frozenset({1, 3}))
    (expected,), (found,) = encoder.encode([whole]), encoder.encode([some])
    assert found.tokens.tolist() == expected.tokens.tolist()
    assert found.spans.tolist() == expected.spans[2:].tolist()  # P2: what is supervised is the third answer
    assert found.dropped == {}
    # P1: before it stand the ids that chat feeds the model, the turns that are read only among them.
    asked = encoder.prompt_ids(Conversation(whole.turns[:5]))
    assert found.tokens[: found.spans[0, 0]].tolist() == asked
    ledger = Ledger()
    ledger.add(found)
    ledger.check()  # P4
    assert (ledger.trained, ledger.masked) == (found.supervised, len(expected.tokens) - found.supervised)


def test_what_follows_the_last_answer_that_is_trained_on_is_dropped(kinds):
    encoder = kinds["demo"].encoder("bayling")
    turns = ["q", "a", "again", "bad"]
    (whole,) = encoder.encode([conversation("", turns)])
    (found,) = encoder.encode([dataclasses.replace(conversation("", turns), read_only=frozenset({3}))])
    assert found.spans.tolist() == whole.spans[:1].tolist()
    assert found.dropped == {"after-last-answer": len(whole.tokens) - whole.spans[0, 1]}


def test_a_read_only_turn_is_proved_too(kinds):
    """It is what the model reads before a later answer, so a token in it may not become another."""
    encoder = kinds["sentencepiece"].encoder("bayling")
    bad = dataclasses.replace(conversation("", ["q", "a ▁ b", "q", "a"]), read_only=frozenset({1}))
    (result,) = encoder.encode([bad])
    assert result.reason == "does-not-decode"


# Plain text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "template"),
    [("demo", "bayling"), ("byte-level", "llama3"), ("qwen", "chatml"), ("demo", "llama2")],
)
def test_plain_text_is_supervised_but_for_a_first_token_that_nothing_predicts(name, template, kinds):
    kind, text = kinds[name], "Once upon a time. 从前…"
    encoder = kind.encoder(template)
    (encoded,) = encoder.encode([Conversation((Turn("text", text),))])
    end = encoder.template.end_token
    begin = {"bayling": "<s>", "llama2": "<s>", "llama3": "<|begin_of_text|>"}  # Qwen has none
    parts = [("control", begin[template])] if template in begin else []
    assert encoded.tokens.tolist() == kind.ids([*parts, ("text", text), ("control", end)])
    assert encoded.spans.tolist() == [[1, len(encoded.tokens)]]


def test_system_text_that_a_template_has_no_place_for_is_not_dropped_in_silence(kinds):
    template = Template(name="plain", user="Q: {content}\n", assistant="A: {content}{eos}\n")
    encoder = Encoder(template, load_tokenizer(kinds["demo"].encoder("bayling").tokenizer.path), 256)
    with_system, without = encoder.encode(
        [conversation("Be brief.", ["q", "a"]), conversation("", ["q", "a"])]
    )
    assert with_system.reason == "no-place-for-system-text"
    assert len(without.spans) == 1


# The rest -----------------------------------------------------------------------------------------


def test_a_template_without_its_tokens_is_refused_in_words(kinds):
    with pytest.raises(
        UserError, match=r"chatml: needs the token <\|im_start\|>, which .*tokenizer.model does not"
    ):
        kinds["demo"].encoder("chatml")


FORGETFUL = {"user": "<|im_start|>user\n{content}<|im_end|>\n", "assistant": "A: {content}<|im_end|>\n"}
IM_END = {"control_tokens": ("<|im_end|>",)}
# A template, a tokenizer, and the token that the template writes as text.
SPELLED = {
    "a forgotten entry": (Template("own", **FORGETFUL, **IM_END), "byte-level", "<|im_start|>"),
    "a default system text": (
        dataclasses.replace(TEMPLATES["chatml"], default_system="Stop with <|im_end|>."),
        "byte-level",
        "<|im_end|>",
    ),
    "a system block": (
        dataclasses.replace(TEMPLATES["bayling"], system="<|endoftext|>{content}"),
        "llama-json",
        "<|endoftext|>",
    ),
    "a SentencePiece model's": (
        dataclasses.replace(TEMPLATES["bayling"], default_system="<unk>"),
        "demo",
        "<unk>",
    ),
    "two patterns that meet": (
        Template("own", user="end|>{content}\n", assistant="A: {content}{eos}<|im_"),
        "byte-level",
        "<|im_end|>",
    ),
}


@pytest.mark.parametrize(("template", "kind", "token"), SPELLED.values(), ids=list(SPELLED))
def test_a_template_that_spells_a_control_token_is_refused_for_servers_would_find_it(
    template, kind, token, kinds
):
    """P1: a server reads one token there; which rows are proved would not show it."""
    with pytest.raises(UserError, match="writes as plain text what .* has as a control token") as refused:
        Encoder(template, load_tokenizer(kinds[kind].path), 99)
    assert refused.value.what.endswith(f"servers would read other tokens: {token}")
    assert refused.value.where == f"data.template: {template.name}"


def test_a_built_in_template_is_refused_where_its_text_is_made_of_control_tokens(kinds, tmp_path):
    """As with Mistral's later tokenizers, which have [INST] as one."""
    built = tokenizers.Tokenizer.from_file(str(kinds["llama-json"].path))
    built.add_special_tokens(["[INST]", "[/INST]"])
    built.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"llama2: writes as plain text .*: \[/INST\]"):
        Encoder(TEMPLATES["llama2"], load_tokenizer(tmp_path), 99)
    own = dataclasses.replace(TEMPLATES["llama2"], control_tokens=("[INST]", "[/INST]"))
    (encoded,) = Encoder(own, load_tokenizer(tmp_path), 99).encode([conversation("", ["q", "a"])])
    prompt = built.encode("<s>[INST] q [/INST]", add_special_tokens=False).ids
    assert encoded.tokens[: encoded.spans[0, 0]].tolist() == prompt


def test_stop_ids_are_the_end_token_and_those_that_the_tokenizer_has(kinds):
    kind = kinds["byte-level"]
    assert kind.encoder("llama3").stop_ids == [kind.id("<|eot_id|>"), kind.id("<|end_of_text|>")]
    assert kind.encoder("chatml").stop_ids == [
        kind.id(token) for token in ("<|im_end|>", "<|end_of_text|>", "<|endoftext|>")
    ]
    assert kinds["demo"].encoder("bayling").stop_ids == [2]


def test_a_generated_answer_is_read_without_its_end_token(kinds):
    for name, template in COMBINATIONS:
        if template in ("own",):
            continue
        encoder = kinds[name].encoder(template)
        (encoded,) = encoder.encode([conversation("", ["q", "Grüße, 你好 😀"])])
        answer = encoded.tokens[slice(*encoded.spans[0])].tolist()
        assert encoder.answer(answer) == "Grüße, 你好 😀"
        # A model may have more rows than its tokenizer has tokens, and say one.
        assert encoder.answer([encoder.tokenizer.vocab_size, *answer]) == "Grüße, 你好 😀"


def test_arrays_have_the_types_that_the_store_writes(kinds):
    (encoded,) = kinds["demo"].encoder("bayling").encode([conversation("", ["q", "a", "q", "b"])])
    assert encoded.tokens.dtype == numpy.uint32
    assert encoded.spans.dtype == numpy.int32
    assert encoded.supervised == sum(stop - start for start, stop in encoded.spans.tolist())


def test_a_refusal_crosses_a_process_border_whole():
    refusal = pickle.loads(pickle.dumps(Unproved("too-long", "by far", 7)))
    assert (refusal.reason, refusal.detail, refusal.num_tokens) == ("too-long", "by far", 7)
