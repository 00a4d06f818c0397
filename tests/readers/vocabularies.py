"""Llama 3's and Qwen 2's own tokenizer.json, put together from the vocabularies that llama.cpp keeps."""

import json
import sys
from pathlib import Path

import tokenizers
from readers.servers import LLAMA_CPP
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

# As the two models' publishers have them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, CONTROL = 1, 3  # two of llama.cpp's kinds of tokens


def file_of(name: str) -> Path:
    return LLAMA_CPP / "models" / f"ggml-vocab-{name}.gguf"


def llama3(folder: Path) -> Path:
    built = _build("llama-bpe", WORDS % "{1,3}", ignore_merges=True)
    begin = "<|begin_of_text|>"
    built.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, built.token_to_id(begin))],
    )
    return _save(built, folder, begin, "<|end_of_text|>")


def qwen2(folder: Path) -> Path:
    built = _build("qwen2", WORDS % "", ignore_merges=False)
    built.normalizer = normalizers.NFC()
    return _save(built, folder, None, "<|endoftext|>")


def _build(name: str, words: str, *, ignore_merges: bool) -> tokenizers.Tokenizer:
    tokens, merges, kinds = _read(file_of(name))
    vocab = {token: number for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    built = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=ignore_merges))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    control = [token for number, token in enumerate(tokens) if kinds[number] == CONTROL]
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return built


def _read(path: Path) -> tuple[list[str], list[str], list[int]]:
    """(tokens, merges, kinds of tokens)."""
    sys.path.insert(0, str(LLAMA_CPP / "gguf-py"))
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    texts = [
        [bytes(field.parts[place]).decode() for place in field.data]
        for field in (fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"])
    ]
    kinds = fields["tokenizer.ggml.token_type"]
    return texts[0], texts[1], [int(kinds.parts[place][0]) for place in kinds.data]


def _save(built: tokenizers.Tokenizer, folder: Path, bos: str | None, eos: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos, "eos_token": eos}))
    return folder / "tokenizer.json"
