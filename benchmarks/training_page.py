"""Training on the page: trainers beside each other, ladders, and the picture of the broadest comparison."""

from collections.abc import Sequence
from textwrap import wrap

from benchmarks import plots
from benchmarks.page_parts import (
    circumstances,
    figure,
    heading,
    machine,
    notes,
    parts_of_time,
    settings_in_words,
    table_html,
)
from benchmarks.plots import Bar
from benchmarks.providers import OURS
from benchmarks.rows import Run, is_number, is_of_kernels, runs_of
from fastling.evaluation.report_page import escaped
from fastling.evaluation.result import TableData


def measured_rows(run: Run) -> list[dict]:
    """The rows of trainers that did the same work as the first one."""
    return [row for row in run.rows if row["status"] == "measured"]


def training_part(run: Run) -> str:
    """One comparison, or one ladder."""
    measured = measured_rows(run)
    kind = "one thing more at a time" if run.is_ladder else "beside its peers"
    parts = [heading(run, f"{run.rows[0]['case']} on {run.device}, {kind}")]
    if measured:
        parts.append(table_html(training_table(measured)))
        title, bars = "Supervised tokens a second, and times the first's", training_bars(measured)
        if run.is_ladder:
            title, bars = "Time of a step, and times the first's; memory below", ladder_bars(measured)
        parts.append(figure(plots.bars(bars, title), title))
        parts += parts_of_time(measured)
    parts += [
        f"<p>{escaped(row['provider'])}: {escaped(row['status'])}</p>"
        for row in run.rows
        if row["status"] != "measured"
    ]
    settings = {"all": asked_of(run)} | {row["provider"]: row["settings"] for row in measured}
    parts.append(notes([f"{name}: {settings_in_words(each)}" for name, each in settings.items() if each]))
    return "\n".join([*parts, circumstances(run)])


def training_table(rows: Sequence[dict]) -> TableData:
    """The table of measured rows; times are compared with the first one's."""
    columns = ["trainer", "supervised tokens/s", "tokens/s", "ms a step", "GiB", "time / first", "loss"]
    has_rate = any(is_number(row.get("matrix_tflops")) for row in rows)
    lines = []
    for row in rows:
        line = [
            row["provider"],
            f"{row['supervised_tokens_per_s']:,.0f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['milliseconds']:,.0f} ± {row['spread'] / 2:,.0f}",
            f"{row['memory_gib']:.2f}",
            f"{row['milliseconds'] / rows[0]['milliseconds']:.2f}",
            f"{row['loss']:.4f}",
        ]
        lines.append((*line, *[_share_of_rate(row)] * has_rate))
    columns += ["MFU, exact work"] * has_rate
    return TableData("The same weights, the same packs", tuple(columns), tuple(lines))


def _share_of_rate(row: dict) -> str:
    """The rate of exact causal work, as a share of the machine's own matrix products."""
    rate = row.get("matrix_tflops")
    return f"{row['tflop_per_s'] / rate:.1%}" if is_number(rate) and rate > 0 else ""


def training_bars(rows: Sequence[dict]) -> list[Bar]:
    """Supervised tokens a second, with the ratio to the first's."""
    first = rows[0]["supervised_tokens_per_s"]
    speeds = [(row["provider"], row["supervised_tokens_per_s"]) for row in rows]
    return [Bar(name, speed, f"{speed:,.0f}, {speed / first:.2f} ×", name == OURS) for name, speed in speeds]


def ladder_bars(rows: Sequence[dict]) -> list[Bar]:
    """A bar of each rung's time for a step, and below it one of its memory."""
    first = rows[0]["milliseconds"]
    return [
        Bar(
            row["provider"],
            row["milliseconds"],
            f"{row['milliseconds']:,.0f} ms, {row['milliseconds'] / first:.2f} ×",
            True,
            (row["memory_gib"], f"{row['memory_gib']:.1f} GiB"),
        )
        for row in rows
    ]


def picture_of_training(rows: Sequence[dict]) -> str | None:
    """The broadest comparison of trainers on a CPU, of several the newest, as an SVG file; None if none."""
    runs = runs_of(row for row in rows if not is_of_kernels(row) and row["bench"] == "train")
    compared = [run for run in runs if run.device == "cpu" and not run.is_ladder and measured_rows(run)[1:]]
    if not compared:
        return None
    run = max(compared, key=lambda run: len(measured_rows(run)))  # of equals the first, which is the newest
    title = f"Supervised tokens a second, and times the first's: {run.rows[0]['case']} on {run.device}"
    drawing = plots.bars(training_bars(measured_rows(run)), title)
    captions = [settings_in_words(asked_of(run)), f"In turns in one run on {machine(run)}"]
    lines = [line for words in captions for line in wrap(words, 118, break_on_hyphens=False)]
    return plots.picture(drawing, title, lines)


def asked_of(run: Run) -> dict:
    """The settings that all trainers were given."""
    return {name: value for name, value in run.rows[0]["run"].items() if name != "peers"}
