"""One page of everything that was measured: tables and plots, which stand alone and ask for nothing.

A section for each bench, in it the newest run of each subject, and older runs folded up below. Every run
names its machine, versions, commit, date and command. All text of rows is escaped.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from benchmarks import kernel_report, plots
from benchmarks.commands import KERNELS, TRAINING
from benchmarks.kernel_report import Section
from benchmarks.page_parts import (
    circumstances,
    figure,
    heading,
    in_words,
    notes,
    parts_of_time,
    settings_in_words,
    shown,
    table_html,
)
from benchmarks.plots import Bar, Mark
from benchmarks.providers import OURS, PRODUCTS
from benchmarks.rows import MACHINE, Run, is_number, is_of_kernels, newest_and_older, runs_of
from benchmarks.training_page import training_part
from fastling.evaluation.report_page import escaped, page_html
from fastling.evaluation.result import TableData

TITLES = {
    "data": "Data", "generation": "Generation", "interactive": "Interactive dialogues against single turns",
    "startup": "Start-up", "growth": "How cost grows", "ranks": "Ranks", "simulation": "Simulation",
}  # fmt: skip
CLAIM = (
    "What is claimed here are ratios between rows of one run, which were measured on the same machine within "
    "minutes. An absolute number belongs to the machine that is named beside it."
)
MORE_STYLE = (
    "td.words,th.words{text-align:left}code{overflow-wrap:anywhere}summary{cursor:pointer;padding:.4rem 0}"
    "td,th{vertical-align:top}td:not(.long){white-space:nowrap}.long{min-width:20rem}h3{margin:2rem 0 .5rem}"
    "figure{margin:1rem 0;max-width:46rem}figcaption{font-weight:600;margin-bottom:.4rem}"
    ".notes{overflow-wrap:anywhere}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Fields of a row that are told in the words below a table, and not in the table.
CIRCUMSTANCES = {"bench", "date", "commit", "dirty", "command", "copy_gb_s", "matrix_tflops", *MACHINE}
NAMES = ("case", "provider", "value", "ranks", "shard", "replicate", "sequence_length", "gpus")
"""Fields that name a row where it is plotted, if they differ among the rows."""
PEERS = ("trl", "transformers")
TOLD_APART = ("parts", "versions")
"""Fields with objects that are shown separately."""
BASES = {"data": "all cores"}
"""Bench -> the provider whose ratio is 1, if it is not the first row's; TRL takes all cores, too."""


def page_of(rows: Sequence[dict]) -> str:
    """The page, as HTML."""
    runs = runs_of(row for row in rows if not is_of_kernels(row))
    names = [name for name in TITLES if any(run.bench == name for run in runs)]
    names += sorted({run.bench for run in runs} - {"train", *TITLES})
    parts = [
        *_bench("Training", [run for run in runs if run.bench == "train"], training_part, TRAINING),
        *_kernels([row for row in rows if is_of_kernels(row)]),
    ]
    for name in names:
        parts += _bench(TITLES.get(name, name), [run for run in runs if run.bench == name], other_part)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return page_html("Measured", [f"<p>{CLAIM}</p>", *parts], head=policy, style=MORE_STYLE)


def _bench(title: str, runs: list[Run], part: Callable[[Run], str], unmeasured: str = "") -> Iterator[str]:
    yield f"<h2>{escaped(title)}</h2>"
    if not runs:
        yield f"<p>Unmeasured: <code>{escaped(unmeasured)}</code> measures it.</p>"
    newest, older = newest_and_older(runs)
    yield from map(part, newest)
    if older:
        yield f"<details><summary>{len(older)} older {'runs' if older[1:] else 'run'}</summary>"
        yield from map(part, older)
        yield "</details>"


# Kernels --------------------------------------------------------------------------------------------


def _kernels(rows: Sequence[dict]) -> Iterator[str]:
    yield "<h2>Kernels</h2>"
    if not rows:
        yield f"<p>Unmeasured: <code>{KERNELS}</code> measures them, on a machine with a GPU.</p>"
        return
    devices = kernel_report.by_device(rows)
    for section in kernel_report.sections(rows):
        found = list(devices.get(section.device, {}).values())
        if not found:
            yield f"<p>{escaped(section.device)}: unmeasured; <code>{KERNELS}</code> there measures it.</p>"
            continue
        yield _kernel_section(section, found)


def _kernel_section(section: Section, rows: Sequence[dict]) -> str:
    command = rows[-1].get("command")
    parts = [
        f"<h3>{escaped(section.device)}</h3>",
        *_rooflines(rows),
        *(table_html(table) for table in section.tables),
        f"<p>{escaped(section.verdicts)}</p>" if section.verdicts else "",
        *(f"<p>{escaped(remark)}</p>" for remark in section.remarks),
        f'<p class="notes">{escaped(section.device)}: {escaped(section.circumstances)}<br>Again: '
        f"<code>{escaped(command if isinstance(command, str) else KERNELS)}</code></p>",
    ]
    return "\n".join(part for part in parts if part)


class Roof(NamedTuple):
    """A rate of the machine that no op can pass, and which work it limits."""

    work: str
    """Field with an op's bytes or FLOP."""
    rate: str
    """Field with the machine's own rate."""
    unit: str
    unit_per_millisecond: float
    measured_by: str


ROOFS = (
    Roof("bytes", "copy_gb_s", "GB/s", 1e6, "a copy"),
    Roof("flops", "matrix_tflops", "TFLOP/s", 1e9, "a matrix product"),
)


def _rooflines(rows: Sequence[dict]) -> Iterator[str]:
    """Plots of rates below the machine's own: of FLOP for ops with matrix products, of bytes for others."""
    timed = [row for row in rows if row.get("milliseconds") is not None and row["provider"] != PRODUCTS]
    names = dict.fromkeys([OURS, *(row["provider"] for row in timed)])
    # where there are more providers than colours, the last share one
    colours = dict(zip_longest(names, plots.COLOURS[: len(names)], fillvalue=plots.COLOURS[-1]))
    legend = " ".join(f'<span style="color:{colours[name]}">●</span> {escaped(name)}' for name in names)
    # Ops with matrix products spend their time on these, and not on moving bytes.
    limited = [[row for row in timed if not row.get("flops")], [row for row in timed if row.get("flops")]]
    for roof, below in zip(ROOFS, limited, strict=True):
        strips: dict[str, list[Mark]] = {}
        for row in below:
            if is_number(row.get(roof.work)):
                mark = _mark(row, roof, colours[row["provider"]])
                strips.setdefault(f"{row['op']}, {row['pass']}", []).append(mark)
        if strips:
            highest = max(row[roof.rate] for row in below)
            title = f"Roofline: {roof.work} of each op over its time, {roof.unit}"
            words = f"{roof.measured_by} here: {shown(highest)} {roof.unit}"
            yield figure(plots.strips(list(strips.items()), highest, words, title), title, legend)


def _mark(row: dict, roof: Roof, colour: str) -> Mark:
    rate = row[roof.work] / row["milliseconds"] / roof.unit_per_millisecond
    share = f"{rate:,.0f} {roof.unit}, {rate / row[roof.rate]:.0%}"
    return Mark(rate, colour, f"{row['provider']}, {row['case']}: {share}")


# Other benches --------------------------------------------------------------------------------------


def other_part(run: Run) -> str:
    """A run of any other bench: tables of all fields of its rows, and bars of their tokens a second."""
    cases = list(dict.fromkeys(str(row["case"]) for row in run.rows if "case" in row))
    parts = [heading(run, ", ".join([*cases, *[f"on {run.device}"] * bool(run.device)]))]
    flat, same = unfolded(run.rows)
    for columns, rows in alike(flat):
        parts.append(table_html(generic_table(columns, rows)))
        bars = generic_bars(rows, BASES.get(run.bench))
        if bars[1:]:
            title = "Tokens a second, and times the one at 1.00"
            parts.append(figure(plots.bars(bars, title), title))
        parts += parts_of_time(rows)
    if same:
        parts.append(notes([f"{in_words(name)}: {in_few_words(value)}" for name, value in same.items()]))
    return "\n".join([*parts, circumstances(run)])


def unfolded(rows: Sequence[dict]) -> tuple[list[dict], dict]:
    """(rows in which the entries of objects are fields, objects and lists that are the same in all rows)."""
    folded = {
        name: value
        for row in rows
        for name, value in row.items()
        if isinstance(value, dict | list) and name not in TOLD_APART
    }
    same = {name: value for name, value in folded.items() if all(row.get(name) == value for row in rows)}
    flat = []
    for row in rows:
        inner = {
            f"{name}_{key}": value
            for name in folded
            if name not in same and isinstance(row.get(name), dict)
            for key, value in row[name].items()
        }
        flat.append({name: value for name, value in row.items() if name not in folded} | inner)
    return flat, same


def in_few_words(value: dict | list) -> str:
    """An object or a list as text."""
    return (
        settings_in_words(value)
        if isinstance(value, dict)
        else "; ".join(shown(each).removesuffix(".") for each in value)
    )


def alike(rows: Sequence[dict]) -> list[tuple[list[str], list[dict]]]:
    """(names of fields, rows) for each table: rows of the same line that have the same fields, or fewer."""
    found: list[tuple[object, list[str], list[dict]]] = []
    for row in rows:
        names = [name for name in row if _is_shown(name, row[name])]
        for place, (line, columns, together) in enumerate(found):
            if line == row.get("line") and (set(names) <= set(columns) or set(columns) <= set(names)):
                found[place] = (line, max(columns, names, key=len), [*together, row])
                break
        else:
            found.append((row.get("line"), names, [row]))
    return [(columns, together) for _, columns, together in found]


def _is_shown(name: str, value: object) -> bool:
    return name not in CIRCUMSTANCES and not isinstance(value, dict | list)


def generic_table(columns: Sequence[str], rows: Sequence[dict]) -> TableData:
    """A table of all fields; those that are the same in all rows, if there are several, are in its title."""
    same = [name for name in columns if rows[1:] and all(row.get(name) == rows[0].get(name) for row in rows)]
    title = ", ".join(f"{in_words(name)} {shown(rows[0].get(name))}" for name in same)
    kept = [name for name in columns if name not in same]
    lines = tuple(tuple(shown(row.get(name)) for name in kept) for row in rows)
    return TableData(title, tuple(map(in_words, kept)), lines)


def generic_bars(rows: Sequence[dict], base: str | None) -> list[Bar]:
    """Tokens a second, with the ratio to the case's first, or to its `base`."""
    plotted = [row for row in rows if is_number(row.get("tokens_per_s")) and row["tokens_per_s"] > 0]
    differing = [name for name in NAMES if len({str(row.get(name)) for row in plotted}) > 1]
    bars = []
    for row in plotted:
        of_case = [each for each in plotted if each.get("case") == row.get("case")]
        first = next((each for each in of_case if base and each.get("provider") == base), of_case[0])
        speed, ratio = row["tokens_per_s"], row["tokens_per_s"] / first["tokens_per_s"]
        label = ", ".join(_named(name, row.get(name)) for name in differing)
        is_peer = str(row.get("provider")).startswith(PEERS)
        bars.append(Bar(label, speed, f"{speed:,.0f}, {ratio:.2f} ×", not is_peer))
    return bars


def _named(name: str, value: object) -> str:
    """A value as a label; a number needs the name of its field, a word does not."""
    return shown(value) if isinstance(value, str) else f"{in_words(name)} {shown(value)}"
