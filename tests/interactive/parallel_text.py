"""Parallel text for tests: sentences that are put together from parts with the same meaning."""

import functools
import itertools
import random
from pathlib import Path

from fastling.interactive.build import Recipe
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.knowledge import Knowledge, learn
from fastling.interactive.pairs import Corpus, Pair
from fastling.interactive.phrasings import load_phrasings
from fastling.interactive.rules import BUILDERS

WHO = {
    "en": (
        "the mayor",
        "the teacher",
        "the doctor",
        "the farmer",
        "the lawyer",
        "the painter",
        "the singer",
        "the driver",
    ),
    "de": (
        "der Bürgermeister",
        "der Lehrer",
        "der Arzt",
        "der Bauer",
        "der Anwalt",
        "der Maler",
        "der Sänger",
        "der Fahrer",
    ),
    "zh": ("市长", "老师", "医生", "农民", "律师", "画家", "歌手", "司机"),
    "fr": (
        "le maire",
        "l’enseignant",
        "le médecin",
        "l’agriculteur",
        "l’avocat",
        "le peintre",
        "le chanteur",
        "le conducteur",
    ),
}
DID = {
    "en": ("visited", "painted", "described", "cleaned", "opened", "bought"),
    "de": ("besuchte", "malte", "beschrieb", "reinigte", "eröffnete", "kaufte"),
    "fr": ("a visité", "a peint", "a décrit", "a nettoyé", "a ouvert", "a acheté"),
    "zh": ("参观了", "画了", "描述了", "打扫了", "开放了", "购买了"),
}
WHAT = {
    "en": ("museum", "garden", "library", "bridge", "bakery", "theatre", "school", "market"),
    "de": ("Museum", "Garten", "Bibliothek", "Brücke", "Bäckerei", "Theater", "Schule", "Markt"),
    "fr": (
        "le musée",
        "le jardin",
        "la bibliothèque",
        "le pont",
        "la boulangerie",
        "le théâtre",
        "l’école",
        "le marché",
    ),
    "zh": ("博物馆", "花园", "图书馆", "大桥", "面包店", "剧院", "学校", "市场"),
}
WHEN = {
    "en": ("yesterday", "today", "recently", "eventually", "formerly", "once"),
    "de": ("gestern", "heute", "neulich", "schließlich", "früher", "einst"),
    "fr": ("hier", "aujourd’hui", "récemment", "finalement", "auparavant", "jadis"),
    "zh": ("昨天", "今日", "最近", "最终", "以前", "曾经"),
}
WHICH = {
    "en": ("big", "small", "new", "old", "red", "green"),
    "de": ("große", "kleine", "neue", "alte", "rote", "grüne"),
    "fr": ("immense", "minuscule", "moderne", "antique", "rouge", "verdâtre"),
    "zh": ("大", "小", "新", "旧", "红", "绿"),
}
PARTS = (WHO, DID, WHAT, WHEN, WHICH)
SHAPES = {
    "en": "In {town}, {0} {1} the {4} {2} {3} with {name} for {number} days.",
    "de": "In {town} {1} {0} die {4} {2} {3} mit {name} für {number} Tage.",
    "fr": "À {town}\u00a0: {3}, {0} {1} {2} {4} qu’on aime, avec {name}, pendant {number} jours.",
    "zh": "在{town}，{3}{0}{1}{4}{2}{end}{name}，用了{number}天。",
}
ENDS = ("，同行者是", "，陪同者有", "里有", "旁边是", "并看望", "时遇见")
NAMES = ("Anna Keller", "Peter Lund", "Maria Costa", "Tom Baker")
SYLLABLES = ("kel", "bru", "mor", "tan", "vil", "sen", "dor", "lak", "fin", "gra", "hol", "per")


@functools.cache
def sentences(count: int = 600) -> dict[str, list[str]]:
    """Language -> sentences, which mean the same line by line; every four in turn are about one town."""
    choose, found = random.Random(7), {language: [] for language in SHAPES}
    towns = ["".join(each).capitalize() for each in itertools.product(SYLLABLES, SYLLABLES, SYLLABLES)]
    choose.shuffle(towns)
    for line in range(count):
        picked = [choose.randrange(len(part["en"])) for part in PARTS]
        values = {"town": towns[line // 4], "name": choose.choice(NAMES), "number": choose.randint(10, 99)}
        for language, shape in SHAPES.items():
            parts = [part[language][at] for part, at in zip(PARTS, picked, strict=True)]
            # In Chinese, words are recognised by what stands beside them.
            lead = parts[3] if language == "zh" and choose.random() < 0.5 else ""
            text = shape.format(*parts, **values, end=choose.choice(ENDS))
            found[language].append(text.replace("，" + lead, "，", 1) if lead else text)
    return found


def write_corpus(
    folder: Path, source: str = "de", target: str = "en", count: int = 600, third: str = ""
) -> Corpus:
    corpus = corpus_of(source, target, third, folder)
    paths = (corpus.first, corpus.second, corpus.third) if third else (corpus.first, corpus.second)
    for path, language in zip(paths, (source, target, third), strict=False):
        path.write_text("\n".join(sentences(count)[language]) + "\n", encoding="utf-8")
    return corpus


def corpus_of(source: str, target: str, third: str = "", folder: Path = Path()) -> Corpus:
    corpus = Corpus(folder / f"text.{source}", folder / f"text.{target}", source, target)
    return corpus._replace(third=folder / f"text.{third}", third_language=third) if third else corpus


@functools.cache
def knowledge_of(source: str = "de", target: str = "en", third: str = "") -> Knowledge:
    """What is learned from the sentences of two languages, with the lengths of those of a third."""
    return learn(corpus_of(source, target, third), [pairs_of(source, target, third)])


@functools.cache
def pairs_of(source: str = "de", target: str = "en", third: str = "") -> list[Pair]:
    sides = [sentences()[language] for language in (source, target, third) if language]
    return [Pair(number, *texts) for number, texts in enumerate(zip(*sides, strict=True), 1)]


def recipe_of(knowledge: Knowledge, seed: int = 0, excluded=(), **mix: float) -> Recipe:
    phrasings = {language: load_phrasings(language) for language in knowledge.corpus.languages}
    return Recipe(knowledge, Exclusion(excluded), phrasings, mix or dict.fromkeys(BUILDERS, 1.0), seed)
