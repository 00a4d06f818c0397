"""Oracles for data: tokenizers of every kind, and every template written down a second time by hand."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from fastling.data.encoding import Encoder
from fastling.data.template import load_template
from fastling.data.tokenizer import load_tokenizer

DEMO = Path(__file__).parents[2] / "fastling" / "demo"

# Tokenizers ---------------------------------------------------------------------------------------

CORPUS = [
    "The weather is nice today, and we are going to the market to buy apples, bread and cheese.",
    "Please translate this sentence into Chinese. Make it shorter and more polite, thank you!",
    "Instruction: write a response that completes the request. ### Response: Hello, world!",
    "A chat between a curious user and an artificial intelligence assistant. USER: Hi ASSISTANT: Hello.",
    "I am an intelligent language assistant. Below is a dialog of instructions and responses.",
    "In 2026 there were 1,234 people and 3.14 % of them don't know it's true; they've asked why.",
    "def main(x): return [i for i in range(x)]  # four    spaces  and\ttabs",
    "请把这句话翻译成英语：今天下午可能会下雨。我们明天去北京看朋友，你想一起去吗？",
    "这碗面太辣了，我吃不了。把下午改成晚上，再译一遍。谢谢你的帮助！",
    "Wir gehen morgen früh über die Brücke und essen später Käse mit süßem Brot in München.",
    "Übersetze den Satz ins Deutsche: Die Größe der Straße ändert sich täglich. Schönen Gruß!",
] * 4
CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CONTROL += ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_sentencepiece(folder: Path, **settings) -> Path:
    """Train a SentencePiece model in LLaMA's style, except for `settings`; return its path."""
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    llama = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "character_coverage": 0.995,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    prefix = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(prefix), **{**llama, **settings}
    )
    return prefix.with_suffix(".model")


def _byte_level(regex: str, special: bool, normalizer=None) -> tokenizers.Tokenizer:
    built = tokenizers.Tokenizer(models.BPE())
    built.normalizer = normalizer
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        [*CORPUS, *10 * ["a\n\nb\n", "Response:\nHello", "x:\n\n\ny\r\n\r\n"]],
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    built.add_tokens([AddedToken(token, special=special, normalized=False) for token in CONTROL])
    return built


def _llama_style(metaspace: bool) -> tokenizers.Tokenizer:
    """LLaMA's tokenizer.json: with Prepend and Replace, or as newer conversions, Metaspace "first"."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    fields = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *fields["vocab"]]
    built = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[tuple(pair) for pair in fields["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if metaspace:
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    built.add_special_tokens(["<unk>", "<s>", "</s>", *CONTROL])
    return built


@dataclass
class Kind:
    """A tokenizer of one kind, which is also read without fastling, by its own library."""

    name: str
    path: Path
    templates: tuple[str, ...]
    loaded: dict = field(default_factory=dict)
    without: dict = field(default_factory=dict)

    def encoder(self, template: str, sequence_length: int = 10**6) -> Encoder:
        """An encoder of fastling; the tokenizer file is read once for each template."""
        if template not in self.loaded:
            self.loaded[template] = Encoder(load_template(template), load_tokenizer(self.path), 0)
        self.loaded[template].sequence_length = sequence_length
        return self.loaded[template]

    @cached_property
    def processor(self):
        return sentencepiece.SentencePieceProcessor(model_file=str(self.path))

    def plain(self, control: frozenset[str]) -> tokenizers.Tokenizer:
        """The same tokenizer.json, with special tokens and those of `control` renamed to what no text holds."""
        if control not in self.without:
            fields = json.loads(self.path.read_text())
            for token in fields["added_tokens"]:
                if token["special"] or token["content"] in control:
                    token["content"] = f"\U0010fffd{token['id']}"
            if self.name == "llama-first":  # after a control token there is no first space
                fields["pre_tokenizer"]["prepend_scheme"] = "never"
            self.without[control] = tokenizers.Tokenizer.from_str(json.dumps(fields))
        return self.without[control]

    @cached_property
    def server(self) -> tokenizers.Tokenizer:
        """The tokenizer.json as it is on the disk, as a server reads it."""
        return tokenizers.Tokenizer.from_file(str(self.path))

    @property
    def is_json(self) -> bool:
        return self.path.suffix == ".json"

    def id(self, token: str) -> int:
        return self.server.token_to_id(token) if self.is_json else self.processor.piece_to_id(token)

    def ids(self, parts: list[tuple[str, str]], control: frozenset[str] = frozenset()) -> list[int]:
        """(kind, text) parts -> ids: control parts by their ids, the parts between two of them as one text."""
        ids, run = [], ""
        for kind, text in [*parts, ("control", "")]:
            if kind != "control":
                run += text
                continue
            if run:
                if self.is_json:
                    ids += self.plain(control).encode(run, add_special_tokens=False).ids
                else:
                    ids += self.processor.encode(run)
                run = ""
            if text:
                ids.append(self.id(text))
        return ids

    def server_ids(self, text: str) -> list[int]:
        """The ids that a server gives the model for a rendered text."""
        return self.server.encode(text, add_special_tokens=False).ids

    def text(self, ids: list[int]) -> str:
        """Ids -> text, byte by byte, without any library's decoder."""
        if self.name in ("byte-level", "qwen"):
            pieces = [self.server.id_to_token(each) for each in ids]
            return bytes(BYTES[char] for piece in pieces for char in piece).decode("utf-8")
        if self.is_json:
            is_byte, piece = (lambda each: 3 <= each < 259), self.server.id_to_token
        else:
            is_byte, piece = self.processor.is_byte, self.processor.id_to_piece
        return b"".join(
            bytes([int(piece(each)[3:5], 16)]) if is_byte(each) else piece(each).replace("▁", " ").encode()
            for each in ids
        ).decode("utf-8")


def _bytes_to_unicode() -> dict[str, int]:
    """GPT-2's table from visible characters to the bytes they stand for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + number): byte for number, byte in enumerate(hidden)}


BYTES = _bytes_to_unicode()


def _save(built: tokenizers.Tokenizer, folder: Path, bos: str | None, eos: str) -> Path:
    folder.mkdir(parents=True)
    if bos:  # what Llama's files do: a server that encodes a bare text gets the begin token
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, built.token_to_id(bos))]
        )
    built.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos, "eos_token": {"content": eos, "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def own_template(tmp_path_factory) -> str:
    """A user's template in YAML, with emoji, Chinese, quotes, braces, and the system text in the question."""
    path = tmp_path_factory.mktemp("template") / "own.yaml"
    path.write_text(OWN_TEMPLATE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory, own_template) -> dict[str, Kind]:
    """Tokenizers by kind, each with the templates whose control tokens it has."""
    folder = tmp_path_factory.mktemp("tokenizers")
    text_only = ("bayling", "vicuna", "alpaca", "llama2", own_template)
    every = (*text_only, "llama3", "chatml")
    sp = train_sentencepiece(folder, control_symbols=",".join(CONTROL))
    nfc = normalizers.NFC()
    byte_level = _byte_level(LLAMA3_REGEX, special=True)
    qwen = _byte_level(LLAMA3_REGEX.replace("{1,3}", ""), special=False, normalizer=nfc)
    found = [
        Kind("sentencepiece", sp, every),
        Kind("demo", DEMO / "tokenizer.model", text_only),
        Kind("byte-level", _save(byte_level, folder / "byte", "<|begin_of_text|>", "<|end_of_text|>"), every),
        # As Qwen's: no begin token, NFC. And control tokens that are not marked special, as some have them.
        Kind("qwen", _save(qwen, folder / "qwen", None, "<|endoftext|>"), every),
        Kind("llama-json", _save(_llama_style(False), folder / "llama", "<s>", "</s>"), every),
        Kind("llama-first", _save(_llama_style(True), folder / "first", "<s>", "</s>"), every),
    ]
    return {kind.name: kind for kind in found}


# Templates ----------------------------------------------------------------------------------------

OWN_TEMPLATE = """
begin: "{bos}"
system: "«{content}»\\n"
default_system: "Sei \\"nett\\" 😀 {{ x }} {% y %} \\\\"
user: "{system}问👩‍👩‍👧: {content}\\n"
assistant: "答😀:  {content}{eos}\\n\\n"
"""
BAYLING_SYSTEM = (
    "I am an intelligent language assistant developed by the NLP Group of ICT/CAS.\nBelow is a dialog "
    "consisting of instructions and responses. Write a response that completes the request."
)
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
OWN_SYSTEM = 'Sei "nett" 😀 {{ x }} {% y %} \\'


def write_by_hand(template: str, system: str, turns: list[str], bos: str, eos: str) -> list[tuple[str, str]]:
    """A conversation (question, answer, question, ...) as parts: (control | text | answer, text).

    An answer's part starts with the space that a server leaves to the model. A missing bos is "".
    """
    parts = []

    def put(*new: tuple[str, str]) -> None:
        parts.extend((kind, text) for kind, text in new if kind != "control" or text)

    questions = [*zip(turns[::2], [*turns[1::2], None], strict=False)]
    if template == "bayling":
        put(("control", bos), ("text", f"{system or BAYLING_SYSTEM}\n\n"))
        for question, answer in questions:
            put(("text", f"### Instruction:\n{question}\n"))
            if answer is not None:
                put(("text", "### Response:\n"), ("answer", answer), ("control", eos), ("text", "\n"))
    elif template == "vicuna":
        put(("control", bos), ("text", f"{system or VICUNA_SYSTEM} "))
        for question, answer in questions:
            put(("text", f"USER: {question} "))
            if answer is not None:
                put(("text", "ASSISTANT:"), ("answer", f" {answer}"), ("control", eos))
    elif template == "alpaca":
        put(("control", bos), ("text", f"{system or ALPACA_SYSTEM}\n\n"))
        for question, answer in questions:
            put(("text", f"### Instruction:\n{question}\n\n"))
            if answer is not None:
                put(("text", "### Response:\n"), ("answer", answer), ("control", eos))
    elif template == "llama2":
        block = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
        for question, answer in questions:
            put(("control", bos), ("text", f"[INST] {block}{question} [/INST]"))
            block = ""
            if answer is not None:
                put(("answer", f" {answer}"), ("control", eos))
    elif template == "llama3":

        def say(role: str, kind: str, text: str) -> None:
            put(("control", "<|start_header_id|>"), ("text", role), ("control", "<|end_header_id|>"))
            put(("text", "\n\n"), (kind, text), ("control", "<|eot_id|>"))

        put(("control", bos))
        if system:
            say("system", "text", system)
        for question, answer in questions:
            say("user", "text", question)
            if answer is not None:
                say("assistant", "answer", answer)
    elif template == "chatml":
        if system:
            put(("control", "<|im_start|>"), ("text", f"system\n{system}"), ("control", "<|im_end|>"))
            put(("text", "\n"))
        for question, answer in questions:
            put(("control", "<|im_start|>"), ("text", f"user\n{question}"), ("control", "<|im_end|>"))
            put(("text", "\n"))
            if answer is not None:
                put(("control", "<|im_start|>"), ("text", "assistant\n"), ("answer", answer))
                put(("control", "<|im_end|>"), ("text", "\n"))
    else:
        assert template.endswith("own.yaml")
        put(("control", bos))
        block = f"«{system or OWN_SYSTEM}»\n"
        for question, answer in questions:
            put(("text", f"{block}问👩‍👩‍👧: {question}\n"))
            block = ""
            if answer is not None:
                put(("text", "答😀:"), ("answer", f"  {answer}"), ("control", eos), ("text", "\n\n"))
    return parts


@pytest.fixture(scope="session")
def by_hand():
    """The templates written down a second time."""
    return write_by_hand


@pytest.fixture(scope="session")
def sentencepiece_model():
    """Train a SentencePiece model: (folder, **settings) -> its path."""
    return train_sentencepiece
