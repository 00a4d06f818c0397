"""The functions that the YAML files here name: rows of your files, and scores of a corpus by sacrebleu.

They run inside lm-eval, where fastling need not be installed. Paths come from lm_eval's --metadata.
"""

import json
import re

import datasets
import sacrebleu

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
NAMES = {"en": "English", "zh": "Chinese", "de": "German", "fr": "French", "ja": "Japanese", "ko": "Korean"}
MARK = re.compile(r"^\s*[(（][A-Z][)）]")


def exam(questions: str, **_) -> dict[str, datasets.Dataset]:
    """Single-choice rows of AGIEval's JSON lines; rows with several right letters, or none, are left out."""
    rows = []
    with open(questions, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            label = row.get("label")
            if row.get("options") and isinstance(label, str) and re.fullmatch("[A-Z]", label.strip()):
                rows.append(_exam_row(row, label.strip()))
    return {"test": datasets.Dataset.from_list(rows)}


def _exam_row(row: dict, label: str) -> dict:
    letters = [chr(ord("A") + number) for number in range(len(row["options"]))]
    lines = [row.get("passage") or "", row["question"]]
    lines += [
        f"({letter}) {MARK.sub('', option)}" for letter, option in zip(letters, row["options"], strict=True)
    ]
    is_chinese = re.search("[\u4e00-\u9fff]", "".join(lines[1:]))
    lines.append("答案：" if is_chinese else "Answer:")
    text = "\n".join(line.strip() for line in lines if line.strip())
    return {"text": text, "choices": letters, "gold": letters.index(label)}


def translation(
    sources: str, references: str, target_lang: str, target_name: str | None = None, **_
) -> dict[str, datasets.Dataset]:
    """Rows from the lines of two files; `target_name` of --metadata is for a language that NAMES lacks."""
    with open(sources, encoding="utf-8", newline="\n") as first:
        with open(references, encoding="utf-8", newline="\n") as second:
            pairs = list(zip(first, second, strict=True))
    name = target_name or NAMES[target_lang]
    rows = [
        {
            "text": f"Provide the {name} translation for this sentence: {source.strip()}\n",
            "reference": reference.strip(),
            "target_lang": target_lang,
        }
        for source, reference in pairs
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(row: dict, results: list[str]) -> dict:
    """What each corpus score needs of one sentence: (language, reference, hypothesis)."""
    share = (row["target_lang"], row["reference"], " ".join(results[0].split()))
    return {"bleu": share, "chrf": share}


def bleu(shares: list[tuple[str, str, str]]) -> float:
    """Corpus BLEU in percent."""
    languages, references, hypotheses = zip(*shares, strict=True)
    tokenizer = TOKENIZERS.get(languages[0], "13a")
    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=tokenizer).score


def chrf(shares: list[tuple[str, str, str]]) -> float:
    """Corpus chrF2 in percent."""
    _, references, hypotheses = zip(*shares, strict=True)
    return sacrebleu.corpus_chrf(list(hypotheses), [list(references)]).score
