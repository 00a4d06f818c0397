"""The kinds of dialogue, each a small function that asks only what it knows the right answer to.

A builder adds the turns that make a dialogue its kind, and returns whether its pairs allowed that. Afterwards
`follow_up` goes on with the remaining lines. Faulty drafts are only in turns of the user, so that no model
learns to write them.
"""

from collections.abc import Callable, Sequence

from fastling.interactive.constraints import items_to_keep, renderings, words_to_include
from fastling.interactive.dialogue import Dialogue
from fastling.interactive.drafts import Draft, make_draft
from fastling.interactive.pairs import Corpus, Direction, Pair

MOST_TURNS = 4
WHICH_WORDS_AGAIN, WISH_AGAIN, DRAFT_AGAIN, POINTING = 0.25, 0.3, 0.25, 0.5
"""Probabilities that a dialogue asks about words of its last answer, that a later sentence comes with a wish
again, that a draft is sent of a sentence with a wish, and that the user says where a draft is wrong."""

SAY_ANEW = ("correct_draft", "no_change", "which_better", "switch_target")
"""Steps after which a request such as "and this one?" would be unclear."""

Builder = Callable[[Dialogue, Sequence[Direction]], bool]


def translate(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    _ask(dialogue, "translate", pairs[0])
    return True


def include_words(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    if not _ask(dialogue, "translate", pairs[0], words=True):
        return False
    if dialogue.choose.random() < DRAFT_AGAIN:  # the wish binds the next version, too
        draft = make_draft(pairs[0], dialogue.knowledge, dialogue.choose)
        if draft:
            _send_draft(dialogue, pairs[0], draft)
    return True


def keep(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    return _ask(dialogue, "translate", pairs[0], item=True)


def correct_draft(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    draft = make_draft(pairs[0], dialogue.knowledge, dialogue.choose)
    if draft:
        _send_draft(dialogue, pairs[0], draft)
    return draft is not None


def no_change(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    pair = pairs[0]
    if not (dialogue.knowledge.links_of(pair) or items_to_keep(pair)):
        return False  # the two may not say the same
    request = dialogue.say("correct_draft", target=pair.target, text=pair.text, draft=pair.reference)
    dialogue.add_version("no_change", [request], pair, lead=dialogue.say("no_change"))
    return True


def which_better(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    pair = pairs[0]
    draft = make_draft(pair, dialogue.knowledge, dialogue.choose)
    if not draft:
        return False
    first_is_good = dialogue.choose.random() < 0.5
    first, second = (pair.reference, draft.text) if first_is_good else (draft.text, pair.reference)
    request = dialogue.say("which_better", target=pair.target, text=pair.text, first=first, second=second)
    verdict = "first_better" if first_is_good else "second_better"
    dialogue.drafts.append(draft)
    dialogue.pairs.append(pair)
    dialogue.add("which_better", [request], dialogue.say(f"{verdict}.{draft.kind}", span=draft.span))
    return True


def continue_text(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    """Neighbouring lines, one after another, as long as they share a topic."""
    knowledge, last = dialogue.knowledge, pairs[0]
    _ask(dialogue, "translate", last)
    if not knowledge.running_text:
        return False
    for pair in pairs[1:]:
        if pair.line != last.line + 1 or not knowledge.belong_together(last, pair):
            break
        _ask(dialogue, "continue_text", pair)
        last = pair
    return len(dialogue.turns) > 1


def switch_direction(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    if len(pairs) < 2:
        return False
    _ask(dialogue, "translate", pairs[0])
    _ask(dialogue, "switch_direction", opposite(pairs[1]))
    return True


def switch_target(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    """The same sentence in the two other languages, one after the other."""
    pair = pairs[0]
    if not pair.third:
        return False
    languages = [(pair.target, pair.reference), (dialogue.knowledge.corpus.third_language, pair.third)]
    dialogue.choose.shuffle(languages)
    first, second = (pair._replace(target=language, reference=text) for language, text in languages)
    _ask(dialogue, "translate", first)
    dialogue.add_version("switch_target", [dialogue.say("switch_target", target=second.target)], second)
    return True


def which_words(dialogue: Dialogue, pairs: Sequence[Direction]) -> bool:
    _ask(dialogue, "translate", pairs[0])
    return _ask_which_words(dialogue, 1 if dialogue.choose.random() < 0.6 else 2)


BUILDERS: dict[str, Builder] = {
    "translate": translate,
    "include_words": include_words,
    "keep": keep,
    "correct_draft": correct_draft,
    "no_change": no_change,
    "which_better": which_better,
    "continue_text": continue_text,
    "switch_direction": switch_direction,
    "switch_target": switch_target,
    "which_words": which_words,
}
NEEDS_TWO = frozenset({"continue_text", "switch_direction"})
"""Kinds that need a second line."""


def opposite(pair: Direction) -> Direction:
    """The same pair, translated in the other direction."""
    return Direction(pair.line, pair.target, pair.origin, pair.reference, pair.text)


def follow_up(dialogue: Dialogue, pairs: Sequence[Direction]) -> None:
    """Go on, perhaps with a question about words of the last answer, then with the remaining lines."""
    choose = dialogue.choose
    # It would be unclear which of two drafts is meant, and words of a third language are not linked.
    no_words = dialogue.steps[-1] in ("which_better", "switch_target")
    if not no_words and "which_words" not in dialogue.steps and choose.random() < WHICH_WORDS_AGAIN:
        _ask_which_words(dialogue, 1)
    for pair in pairs:
        if len(dialogue.turns) >= MOST_TURNS or pair.line in dialogue.lines:
            continue
        last = dialogue.pairs[-1]
        pair = pair if pair.origin == last.origin else opposite(pair)
        # After drafts or another target language the user has to repeat the request in full, even if a
        # question about words came in between.
        last_step = next(step for step in reversed(dialogue.steps) if step != "which_words")
        translated = last_step not in SAY_ANEW
        how = "next_sentence" if translated else "translate"
        again = choose.random() < WISH_AGAIN
        words = choose.random() < 0.7
        if not again or not _ask(dialogue, how, pair, words=words, item=not words):
            _ask(dialogue, how, pair)


def _ask(dialogue: Dialogue, how: str, pair: Direction, *, words: bool = False, item: bool = False) -> bool:
    """Ask for a translation, perhaps with `words` or an `item`. Adds nothing, returns False if none fits."""
    choose = dialogue.choose
    named = {"target": pair.target} if how in ("translate", "switch_direction") else {}
    requests, wishes = [dialogue.say(how, text=pair.text, **named)], []
    if words:
        wishes = words_to_include(pair, dialogue.knowledge, choose)
        if not wishes:
            return False
        requests.append(dialogue.say("include_words", words=wishes))
    if item:
        items = items_to_keep(pair)
        if not items:
            return False
        wishes = [choose.choice(items)]
        key = "keep_number" if wishes[0][0].isdigit() else "keep"
        requests.append(dialogue.say(key, item=wishes[0]))
    dialogue.wish(pair, wishes)
    step = "include_words" if words else "keep" if item else how
    dialogue.add_version(step, requests, pair)
    return True


def _send_draft(dialogue: Dialogue, pair: Direction, draft: Draft) -> None:
    """Send a faulty draft to be corrected, and in half of the cases say where it is wrong."""
    choose = dialogue.choose
    requests = [dialogue.say("correct_draft", target=pair.target, text=pair.text, draft=draft.text)]
    wrong, right = draft.wrong.strip(), draft.right.strip()
    if wrong and draft.kind != "punctuation" and choose.random() < POINTING:
        if draft.kind in ("number", "replacement", "case", "order") and choose.random() < 0.5:
            requests.append(dialogue.say("replace_span", wrong=wrong, right=right))
            dialogue.pointed.append((draft, wrong, right))
        else:
            requests.append(dialogue.say("wrong_span", wrong=wrong))
            dialogue.pointed.append((draft, wrong, ""))
    dialogue.drafts.append(draft)
    dialogue.add_version("correct_draft", requests, pair)


def _ask_which_words(dialogue: Dialogue, count: int) -> bool:
    """Ask how up to `count` words of the last sentence were rendered; return whether there were any."""
    able = renderings(dialogue.pairs[-1], dialogue.knowledge)
    for span, rendering in dialogue.choose.sample(able, min(count, len(able))):
        if len(dialogue.turns) < MOST_TURNS:
            request = dialogue.say("which_words", span=span)
            dialogue.add(
                "which_words", [request], dialogue.say("rendered_by", span=span, rendering=rendering)
            )
    return bool(able)


def directed(corpus: Corpus, pairs: Sequence[Pair], origin: str) -> list[Direction]:
    """The pairs as translations from one of the corpus's two languages."""
    return [corpus.directed(pair, origin) for pair in pairs]
