"""BLEU and chrF by sacrebleu, with the tokenizer that the target language needs.

BLEU (Papineni et al. 2002): brevity penalty times the geometric mean of the precisions of 1- to 4-grams
of tokens. chrF2 (Popović 2015): F-score, recall counting double, of 1- to 6-grams of characters; chrF2++
(Popović 2017) adds 1- and 2-grams of words. All in percent.
"""

import difflib
import re
from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF

from fastling.errors import UserError
from fastling.evaluation.result import TableData

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""Language -> sacrebleu's tokenizer. Others use 13a, which splits at spaces and punctuation."""
DECIMALS = 6
"""Decimals of a score. More would show rounding errors, by which a perfect BLEU exceeds 100."""


class Language(NamedTuple):
    """The names of a language in requests for a translation."""

    english: str
    chinese: str


LANGUAGES = {
    "ar": Language("Arabic", "阿拉伯语"),
    "bg": Language("Bulgarian", "保加利亚语"),
    "bn": Language("Bengali", "孟加拉语"),
    "ca": Language("Catalan", "加泰罗尼亚语"),
    "cs": Language("Czech", "捷克语"),
    "da": Language("Danish", "丹麦语"),
    "de": Language("German", "德语"),
    "el": Language("Greek", "希腊语"),
    "en": Language("English", "英语"),
    "es": Language("Spanish", "西班牙语"),
    "et": Language("Estonian", "爱沙尼亚语"),
    "fa": Language("Persian", "波斯语"),
    "fi": Language("Finnish", "芬兰语"),
    "fr": Language("French", "法语"),
    "he": Language("Hebrew", "希伯来语"),
    "hi": Language("Hindi", "印地语"),
    "hr": Language("Croatian", "克罗地亚语"),
    "hu": Language("Hungarian", "匈牙利语"),
    "id": Language("Indonesian", "印尼语"),
    "is": Language("Icelandic", "冰岛语"),
    "it": Language("Italian", "意大利语"),
    "ja": Language("Japanese", "日语"),
    "kk": Language("Kazakh", "哈萨克语"),
    "ko": Language("Korean", "韩语"),
    "liv": Language("Livonian", "利沃尼亚语"),
    "lt": Language("Lithuanian", "立陶宛语"),
    "lv": Language("Latvian", "拉脱维亚语"),
    "mn": Language("Mongolian", "蒙古语"),
    "ms": Language("Malay", "马来语"),
    "nl": Language("Dutch", "荷兰语"),
    "no": Language("Norwegian", "挪威语"),
    "pl": Language("Polish", "波兰语"),
    "pt": Language("Portuguese", "葡萄牙语"),
    "ro": Language("Romanian", "罗马尼亚语"),
    "ru": Language("Russian", "俄语"),
    "sah": Language("Yakut", "雅库特语"),
    "sk": Language("Slovak", "斯洛伐克语"),
    "sl": Language("Slovenian", "斯洛文尼亚语"),
    "sr": Language("Serbian", "塞尔维亚语"),
    "sv": Language("Swedish", "瑞典语"),
    "sw": Language("Swahili", "斯瓦希里语"),
    "ta": Language("Tamil", "泰米尔语"),
    "tr": Language("Turkish", "土耳其语"),
    "uk": Language("Ukrainian", "乌克兰语"),
    "ur": Language("Urdu", "乌尔都语"),
    "vi": Language("Vietnamese", "越南语"),
    "zh": Language("Chinese", "中文"),
}
"""Languages that a model can be asked to translate into. Text in any other can still be scored."""
_OTHER_CODES = {"zho": "zh", "chi": "zh", "cmn": "zh", "jpn": "ja", "kor": "ko"}
_COUNTRIES = {"cn": "zh", "jp": "ja"}
"""Country codes that are often given instead of language codes."""
_UNSPACED = ("bo", "km", "lo", "my", "th", "yue")
"""Languages that are written without spaces, like Chinese, and have no tokenizer of their own."""


def language_code(text: str) -> str:
    """The code of a language here: zh for "zh-CN", "ZH" and "zho_Hans". Raises UserError for no code."""
    code = re.split("[-_]", text.strip().casefold())[0]
    names = {language.english.casefold(): known for known, language in LANGUAGES.items()}
    if not re.fullmatch("[a-z]{2,3}", code) or code in _COUNTRIES:
        near = _COUNTRIES.get(code) or names.get((difflib.get_close_matches(code, names, n=1) or [""])[0])
        fix = f"Did you mean {near}?" if near else "Give a code of two or three letters, such as zh."
        raise UserError("--target-lang", f"is not a language code: {text}", fix)
    return _OTHER_CODES.get(code, code)


def check_target_language(code: str, *, asks_model: bool) -> None:
    """Raise UserError if a language's tokenizer is missing, or if a model cannot be asked for it."""
    if asks_model and code not in LANGUAGES:
        words = f"is no language that a model can be asked for: {code}"
        fix = "Existing translations can be scored in any language: --hypotheses, --predictions."
        raise UserError("--target-lang", words, fix)
    try:
        BLEU(tokenize=TOKENIZERS.get(code, "13a"))
    except (ImportError, RuntimeError):  # which one depends on sacrebleu's version
        words = f"the tokenizer {TOKENIZERS[code]} of {LANGUAGES[code].english} is not installed"
        raise UserError("--target-lang", words, f"pip install 'sacrebleu[{code}]'") from None


def notes_of_language(code: str) -> tuple[str, ...]:
    """A note for a language without spaces or without a name here: BLEU may suit it badly."""
    if code in _UNSPACED:
        return (f"BLEU splits {code} at spaces (13a), of which there are few: compare systems by chrF",)
    return () if code in LANGUAGES else (f"BLEU splits {code} at spaces and punctuation (13a)",)


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], language: str, *, bootstrap: int = 0
) -> dict:
    """BLEU, chrF2 and chrF2++ of a corpus, in percent, each with sacrebleu's signature.

    Empty hypotheses are scored too. With `bootstrap` resamplings (Koehn 2004; at least 2) each score also has
    a 95 % interval: [low, high].
    """
    metrics = {
        # force: sacrebleu would warn that text with " ." looks tokenized, but it is scored as it was written
        "bleu": BLEU(tokenize=TOKENIZERS.get(language, "13a"), force=True),
        "chrf": CHRF(),
        "chrf_plus_plus": CHRF(word_order=2),
    }
    scores: dict = {"sentences": len(references)}
    scores["empty_hypotheses"] = sum(not hypothesis.strip() for hypothesis in hypotheses)
    for name, metric in metrics.items():
        found = metric.corpus_score(hypotheses, [references], n_bootstrap=bootstrap or 1)
        scores[name] = round(found.score, DECIMALS)
        scores[f"{name}_signature"] = str(metric.get_signature())
        if bootstrap:
            mean, half = float(found._mean), float(found._ci)  # sacrebleu returns numpy's types
            scores[f"{name}_interval"] = [round(each, DECIMALS) for each in (mean - half, mean + half)]
    return scores


def table_of_scores(scores: dict, title: str) -> TableData:
    """The scores of `score_translations` as a table."""
    names = {"bleu": "BLEU", "chrf": "chrF2", "chrf_plus_plus": "chrF2++"}
    rows = []
    for name, shown in names.items():
        interval = scores.get(f"{name}_interval")
        between = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
        rows.append((shown, f"{scores[name]:.2f}", between, scores[f"{name}_signature"]))
    columns = ("metric", "score", "95 % interval", "signature")
    if not scores.get("bleu_interval"):
        columns, rows = (*columns[:2], columns[3]), [(*row[:2], row[3]) for row in rows]
    return TableData(title, columns, tuple(rows))


def notes_of_scores(scores: dict) -> tuple[str, ...]:
    empty = scores["empty_hypotheses"]
    return (f"{empty:,} of {scores['sentences']:,} translations are empty, and scored so",) if empty else ()


def one_line(answer: str) -> str:
    """A model's answer as a translation: its non-empty lines, joined by spaces."""
    parts = (part.strip() for part in answer.replace("\r", "\n").split("\n"))
    return " ".join(part for part in parts if part)
