"""Links between words."""

import numpy
import pytest
from interactive.parallel_text import DID, WHAT, WHO, knowledge_of, pairs_of

from fastling.interactive import alignment
from fastling.interactive.alignment import Links, learn_links


def by_hand(pairs, rounds=alignment.ROUNDS):
    """IBM model 1 as the textbook has it: p(target | source)."""
    probability = {}
    for source, target in pairs:
        for one in set(source):
            for other in set(target):
                probability[one, other] = 1.0
    for _ in range(rounds):
        expected = dict.fromkeys(probability, 0.0)
        for source, target in pairs:
            for other in set(target):
                total = sum(probability[one, other] for one in set(source))
                for one in set(source):
                    expected[one, other] += probability[one, other] / total
        sums = {}
        for (one, _), value in expected.items():
            sums[one] = sums.get(one, 0.0) + value
        probability = {key: value / sums[key[0]] for key, value in expected.items()}
    return probability


def test_links_are_those_of_model_1_by_hand():
    choose = numpy.random.default_rng(0)
    pairs = []
    for _ in range(60):
        source = [f"s{number}" for number in choose.choice(12, choose.integers(2, 6), replace=False)]
        pairs.append((source, [word.replace("s", "t") for word in source if choose.random() < 0.9] or ["t0"]))
    links = learn_links(pairs)
    forward = by_hand(pairs)
    backward = {(one, two): p for (two, one), p in by_hand([(t, s) for s, t in pairs]).items()}
    together = {key: sum(key[0] in s and key[1] in t for s, t in pairs) for key in forward}
    expected = {
        key
        for key in forward
        if min(forward[key], backward[key]) >= alignment.CONFIDENT and together[key] >= alignment.FEWEST
    }
    assert {(one, two) for one, others in links.forward.items() for two in others} == expected
    assert expected >= {(f"s{number}", f"t{number}") for number in range(1, 12)}
    maybe = {key for key in forward if max(forward[key], backward[key]) >= alignment.POSSIBLE}
    assert links.possible == maybe


@pytest.mark.parametrize(("source", "target"), [("de", "en"), ("zh", "en")])
def test_words_of_real_sentences_find_their_translations(source, target):
    knowledge = knowledge_of(source, target)
    right = {}
    for parts in (WHO, DID, WHAT):
        for one, other in zip(parts[source], parts[target], strict=True):
            right[one.split()[-1].removesuffix("了")] = other.split()[-1]
    found = wrong = 0
    for pair in pairs_of(source, target)[:100]:
        for one, other in knowledge.links_of(knowledge.corpus.directed(pair, source)):
            if one.text in right:
                found += 1
                wrong += right[one.text] != other.text
    assert found > 100 and wrong == 0


def test_only_one_to_one_links_are_given():
    links = Links({"a": {"x", "y"}, "b": {"y"}}, set())
    assert links.between(["a"], ["x"]) == [(0, 0)]
    assert links.between(["a"], ["x", "y"]) == []
    assert links.between(["a", "b"], ["y"]) == []
    assert links.between(["a", "a"], ["x"]) == []
    assert links.between(["a"], ["x", "x"]) == []
    assert links.reversed().between(["X"], ["A"]) == [(0, 0)]


def test_an_empty_corpus_gives_no_links():
    assert learn_links([]).forward == {} and learn_links([([], [])]).forward == {}


def test_memory_is_bounded_by_leaving_sentences_out(monkeypatch):
    monkeypatch.setattr(alignment, "MOST_EVENTS", 100)
    assert len(alignment._affordable([(["a"] * 5, ["b"] * 5)] * 10)) == 4
