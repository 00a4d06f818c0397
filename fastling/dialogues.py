"""`fastling dialogues`: build interactive-translation dialogues from parallel text.

By rules, or with a model behind an OpenAI-compatible server that writes the turns after the first.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastling.command_line import Parser, check_positive, option_of, refuse_options
from fastling.errors import UserError, needing, run_program
from fastling.files import check_can_be_made
from fastling.interactive.build import Recipe, Tally, even_mix, write_dialogues
from fastling.interactive.exclusion import read_exclusion
from fastling.interactive.knowledge import learn
from fastling.interactive.languages import LANGUAGES, OTHER_LANGUAGES, check_user_language, user_languages
from fastling.interactive.pairs import Corpus, Pair, make_corpus, out_of_step, share_in_another_language
from fastling.interactive.phrasings import load_phrasings
from fastling.interactive.rules import BUILDERS
from fastling.terminal import make_console, make_progress, print_result
from fastling.workers import own_cores

MIX = {
    "translate": 24.0,
    "include_words": 16.0,
    "keep": 8.0,
    "correct_draft": 16.0,
    "no_change": 4.0,
    "which_better": 8.0,
    "continue_text": 9.0,
    "switch_direction": 8.0,
    "which_words": 7.0,
}
SWITCH_TARGET = "switch_target"
MIX_WITH_THIRD = MIX | {SWITCH_TARGET: 7.0}
"""Default shares of the types, without and with text in a third language."""
RIGHT_DRAFTS = (0.1, 0.2)
"""Bounds of the share of drafts that are right: with fewer a model always edits, with more it never does."""
ENOUGH_DRAFTS = 100
FEW_OUT_OF_STEP, MOST_OUT_OF_STEP = 0.02, 0.5
"""Shares of a sample whose lines do not translate each other: above the first one there is a note, and from
the second one on the files are refused."""
ENOUGH_TO_REFUSE = 3
"""Fewest runs of lines out of step for which files are refused: a short file may be odd but right."""
MOST_FOREIGN = 0.5
"""Largest share of a sample that may be in another language; in real files of news it is below 0.001."""


def parse_mix(text: str | None, has_third: bool) -> dict[str, float]:
    """ "translate=3,keep=1" -> type -> weight, without types that are not named; None is the default mix.

    Raises UserError for unknown types, for weights that are not numbers >= 0, and for a mix without any type.
    """
    if text is None:
        return dict(MIX_WITH_THIRD if has_third else MIX)
    mix = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        name = name.strip()
        if name not in BUILDERS:
            raise UserError("--mix", f"no such type: {name}", f"There are: {', '.join(BUILDERS)}.")
        try:
            mix[name] = float(weight)
        except ValueError:
            raise UserError("--mix", f"expected TYPE=NUMBER: {part}") from None
        if not 0 <= mix[name] < float("inf"):
            raise UserError("--mix", f"must be >= 0: {part}")
    mix = {name: weight for name, weight in mix.items() if weight}
    if not mix:
        raise UserError("--mix", f"leaves nothing to build: {text}")
    if SWITCH_TARGET in mix and not has_third:
        fix = "Give text in a third language with --third and --third-lang."
        raise UserError("--mix", f"{SWITCH_TARGET} needs --third", fix)
    if has_third and SWITCH_TARGET not in mix:
        raise UserError("--third", f"has no effect without {SWITCH_TARGET} in --mix")
    return mix


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    usage = "fastling dialogues --source F --target F --source-lang L --target-lang L --out F [options]"
    description = "Build interactive-translation dialogues from parallel text."
    parser = Parser("fastling dialogues", description, usage)
    add = parser.add_argument
    known, others = ", ".join(LANGUAGES), ", ".join(OTHER_LANGUAGES)
    add("--source", type=Path, required=True, metavar="F", help="text, one sentence per line; may be .gz")
    add("--target", type=Path, required=True, metavar="F", help="its translation, line by line")
    add("--source-lang", required=True, metavar="L", help=f"language of the source: {known}, {others}")
    add("--target-lang", required=True, metavar="L", help="language of the target")
    add("--third", type=Path, metavar="F", help="the same in a third language, line by line")
    add("--third-lang", metavar="L", help="language of the third file")
    add("--out", type=Path, required=True, metavar="F.jsonl", help="file of dialogues to write")
    add("--count", type=int, metavar="N", help="dialogues wanted (default: as many as the lines allow)")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    add(
        "--user-lang",
        default="both",
        metavar="L",
        help=f"language the user writes in: {known}, or both: those of the pair among these, else en "
        "(default: both)",
    )
    shares = ",".join(f"{name}={weight:g}" for name, weight in MIX.items())
    third = f"with --third also {SWITCH_TARGET}={MIX_WITH_THIRD[SWITCH_TARGET]:g}"
    add("--mix", metavar="T=W,...", help=f"share of each type (default: {shares}; {third})")
    add(
        "--exclude",
        type=Path,
        nargs="+",
        default=[],
        metavar="F",
        help="evaluation sets, as text or JSON lines, whose sentences are not used",
    )
    add(
        "--workers", type=int, metavar="N", help="processes (default: one per core); do not change the result"
    )
    add("--json", action="store_true", help="print one JSON object with all counts on stdout")
    _add_generator_options(parser.add_argument)
    return parser.parse_args(arguments)


def _add_generator_options(add: Callable) -> None:
    add("--generator-url", metavar="U", help="OpenAI-compatible server, up to /v1, whose model writes turns")
    add("--generator-model", metavar="M", help="name of the model")
    add(
        "--generator-prompts",
        type=Path,
        metavar="DIR",
        help="your own prompts, named as those in fastling/interactive/prompts",
    )
    add(
        "--generator-cache",
        type=Path,
        metavar="F",
        help="where the answers of this address and model are kept, so that none is paid for twice "
        "(default: OUT.answers.sqlite)",
    )
    add("--generator-budget-tokens", type=int, metavar="N", help="for all kept answers, prompts included")
    add("--generator-requests", type=int, metavar="N", help="requests in flight at a time (default: 16)")
    add("--generator-timeout", type=float, metavar="S", help="seconds to wait for an answer (default: 120)")


def _check_generator_options(options: argparse.Namespace) -> None:
    """Raise UserError for options of the generator that have no effect, and for missing ones."""
    given = {name for name, value in vars(options).items() if name.startswith("generator") and value}
    if not options.generator_url:
        if given:
            raise UserError(option_of(min(given)), "has no effect without --generator-url")
        return
    if not options.generator_model:
        raise UserError("--generator-model", "is not set", "Name a model of the server.")
    refuse_options(options, ("mix", "workers", "third"), "has no effect with --generator-url")
    folder = options.generator_prompts
    if folder and not folder.is_dir():
        raise UserError("--generator-prompts", f"no such folder: {folder}")


def check_options(options: argparse.Namespace) -> Corpus:
    """The corpus that the options name. Raises UserError for the first option that is wrong."""
    paths, languages = [options.source, options.target], [options.source_lang, options.target_lang]
    if options.third:
        if not options.third_lang:
            raise UserError("--third-lang", "is not set", "Name the language of the third file.")
        paths, languages = [*paths, options.third], [*languages, options.third_lang]
    elif options.third_lang:
        raise UserError("--third-lang", "has no effect without --third")
    if options.user_lang != "both":
        check_user_language("--user-lang", options.user_lang)
    _check_generator_options(options)
    numbers = ("generator_budget_tokens", "generator_requests", "generator_timeout")
    check_positive(options, ("count", "workers", *numbers))
    corpus = make_corpus(paths, languages)
    for path in options.exclude:
        if not path.is_file():
            raise UserError("--exclude", f"no such file: {path}")
    check_can_be_made("--out", options.out, ".jsonl")
    return corpus


def make_recipe(corpus: Corpus, options: argparse.Namespace, console: Console) -> tuple[Recipe, int]:
    """(recipe, number of lines): learns from the corpus what the rules need, and counts its lines."""
    mix = parse_mix(options.mix, has_third=corpus.third is not None)
    languages = user_languages(corpus.languages) if options.user_lang == "both" else (options.user_lang,)
    phrasings = {language: load_phrasings(language) for language in languages}
    exclusion = read_exclusion(options.exclude)
    with console.status(f"learning words and links of {corpus.name}"):
        total = sum(1 for _ in corpus.lines())
        if not total:
            raise UserError(str(corpus.first), "is empty")
        sample = corpus.sample(total)
        check_languages(corpus, sample)
        check_in_step(corpus, sample, console)
        knowledge = learn(corpus, sample)
        if not knowledge.running_text and mix.pop("continue_text", None) and not options.generator_url:
            console.print(
                "continue_text is left out: neighbouring lines of these files have little in common",
                soft_wrap=True,
            )
        if not mix:
            raise UserError("--mix", "leaves nothing to build: these lines are no running text")
        recipe = Recipe(knowledge, exclusion, phrasings, mix, options.seed)
        return dataclasses.replace(recipe, mix=even_mix(recipe, sample)), total


def check_languages(corpus: Corpus, sample: Sequence[Sequence[Pair]]) -> None:
    """Raise UserError for a file in another language than its option says: requests name that language."""
    first, second = corpus.languages
    for option, side, language, other in (
        ("source", "first", first, second),
        ("target", "second", second, first),
        ("third", "third", corpus.third_language, first),
    ):
        share = share_in_another_language(sample, side, language, other) if language else 0.0
        if share > MOST_FOREIGN:
            what = f"is {language}, but {100 * share:.0f} % of a sample of {getattr(corpus, side)} is not"
            raise UserError(f"--{option}-lang", what, "Name the language that the file is in.")


def check_in_step(corpus: Corpus, sample: Sequence[Sequence[Pair]], console: Console) -> None:
    """Raise UserError for files that do not translate each other; print a note if only some parts do not.

    If a single line is missing in one file, everything after it would be built on wrong translations.
    """
    for side in ("second", "third"):
        path: Path | None = getattr(corpus, side)
        bad, told = out_of_step(sample, side) if path else ([], 0)
        if not bad or len(bad) <= FEW_OUT_OF_STEP * told:
            continue
        where, what = f"{path}:{bad[0]}", f"lines do not translate those of {corpus.first}"
        if len(bad) >= max(MOST_OUT_OF_STEP * told, ENOUGH_TO_REFUSE):
            fix = "Give files in which the same line is the same sentence."
            raise UserError(where, f"from here on, {what}", fix)
        share = f"{100 * len(bad) / told:.0f} %"
        console.print(f"{where}: here and elsewhere, in {share} of a sample, {what}", soft_wrap=True)


def summary(tally: Tally, corpus: Corpus, out: Path) -> dict:
    """All counts, as plain values for JSON."""
    return {
        "dialogues": tally.dialogues,
        "turns": tally.steps.total(),
        "types": dict(tally.kinds.most_common()),
        "steps": dict(tally.steps.most_common()),
        "pairs": {corpus.name: tally.pairs},
        "directions": dict(sorted(tally.directions.items())),
        "user_languages": dict(sorted(tally.user_languages.items())),
        "rejects": dict(tally.rejects.most_common()),
        "right_drafts": tally.right_drafts,
        "distinct_3": {kind: round(share, 3) for kind, share in tally.diversity.shares.items()},
        "out": str(out),
    }


def print_tables(tally: Tally, console: Console) -> None:
    table = Table(title=f"{tally.dialogues:,} dialogues of {tally.pairs:,} pairs", title_justify="left")
    distinct = tally.diversity.shares
    for name in ("type", "dialogues", "share", "turns of the kind", "distinct-3"):
        table.add_column(name, justify="left" if name == "type" else "right")
    for kind, number in tally.kinds.most_common():
        share = f"{100 * number / tally.dialogues:.1f} %"
        varied = f"{distinct[kind]:.2f}" if kind in distinct else "-"
        table.add_row(kind, f"{number:,}", share, f"{tally.steps[kind]:,}", varied)
    console.print(table)
    _print_rejects(tally.rejects, console)


def _print_rejects(rejects: Counter, console: Console) -> None:
    if rejects:
        table = Table(title="what was not used", title_justify="left")
        table.add_column("gate")
        table.add_column("pairs or dialogues", justify="right")
        for reason, number in rejects.most_common():
            table.add_row(reason, f"{number:,}")
        console.print(table)


def print_notes(tally: Tally, count: int | None, console: Console) -> None:
    """Print notes if there are fewer dialogues than wanted, or too few or too many good drafts."""
    least, most = RIGHT_DRAFTS
    if count is not None and tally.dialogues < count:
        console.print(
            f"these lines are enough for only {tally.dialogues:,} of {count:,} dialogues", soft_wrap=True
        )
    if tally.drafts >= ENOUGH_DRAFTS and not least <= tally.right_drafts <= most:
        console.print(
            f"{100 * tally.right_drafts:.0f} % of the drafts need no change; with {100 * least:.0f} to "
            f"{100 * most:.0f} % a model learns both to correct and to leave alone (--mix no_change=...)",
            soft_wrap=True,
        )


def main(arguments: Sequence[str]) -> None:
    options = parse_options(arguments)
    corpus = check_options(options)
    console = make_console()
    recipe, total = make_recipe(corpus, options, console)
    if options.generator_url:
        found = _generate(recipe, options, total, console)
    else:
        found = _build(recipe, options, total, console)
    if options.json:
        print_result(found)


def _build(recipe: Recipe, options: argparse.Namespace, total: int, console: Console) -> dict:
    with make_progress(console) as progress:
        task = progress.add_task("building dialogues, by line", total=total)
        tally = write_dialogues(
            recipe,
            options.out,
            total=total,
            count=options.count,
            workers=options.workers or own_cores(),
            progress=lambda lines: progress.update(task, completed=lines),
        )
    print_tables(tally, console)
    print_notes(tally, options.count, console)
    return summary(tally, recipe.knowledge.corpus, options.out)


def _generate(recipe: Recipe, options: argparse.Namespace, total: int, console: Console) -> dict:
    with needing("dialogues", "--generator-url"):
        from fastling.interactive.generate import MOST_USELESS, write_generated
        from fastling.remote import Server
    cache = options.generator_cache or options.out.with_name(options.out.name + ".answers.sqlite")
    with make_progress(console) as progress:
        task = progress.add_task("asking for turns, by line", total=total)
        tally, counts, tokens = write_generated(
            recipe,
            options.out,
            total=total,
            count=options.count,
            open_server=lambda: Server(
                options.generator_url,
                options.generator_model,
                cache,
                option="--generator",
                budget_tokens=options.generator_budget_tokens,
                requests_in_flight=options.generator_requests or 16,
                timeout_seconds=options.generator_timeout or 120.0,
            ),
            prompts_folder=options.generator_prompts,
            progress=lambda lines, tokens: progress.update(
                task, completed=lines, description=f"asking for turns, {tokens:,} tokens, by line"
            ),
        )
    # By name where counts are equal, not by which answer came first.
    kept, rejects = (Counter(dict(sorted(c.items()))) for c in (counts.kept, tally.rejects + counts.rejected))
    table = Table("kind", "dialogues", title=f"{kept.total():,} dialogues, {tokens:,} tokens")
    for kind, number in kept.most_common():
        table.add_row(kind, f"{number:,}")
    console.print(table)
    _print_rejects(rejects, console)
    if counts.unasked:
        console.print(f"the budget left {counts.unasked:,} pairs unasked", soft_wrap=True)
    elif options.count and kept.total() < options.count:
        why = (
            f"of the last {counts.useless:,} pairs the model made none"
            if counts.useless >= MOST_USELESS
            else "no more pairs are left"
        )
        console.print(f"{kept.total():,} of {options.count:,} dialogues: {why}", soft_wrap=True)
    return {
        "dialogues": kept.total(),
        "types": dict(kept.most_common()),
        "pairs": {recipe.knowledge.corpus.name: tally.pairs},
        "rejects": dict(rejects.most_common()),
        "unasked": counts.unasked,
        "tokens": tokens,
        "out": str(options.out),
    }


if __name__ == "__main__":
    sys.exit(run_program(main))
