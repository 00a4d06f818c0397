"""What every section of the page is made of: tables, figures, and the words about a run."""

import re
from collections.abc import Iterator, Sequence

from benchmarks.commands import command_of
from benchmarks.rows import MACHINE, Run, is_number
from fastling.evaluation import report_page
from fastling.evaluation.report_page import escaped
from fastling.evaluation.result import TableData

LONG = 60
"""Characters from which a cell is long."""


def table_html(table: TableData) -> str:
    """Words to the left, numbers to the right; only long words go over several lines."""
    columns = range(len(table.columns))
    return report_page.table_html(table, [_look([row[place] for row in table.rows]) for place in columns])


def _look(cells: Sequence[str]) -> str:
    if not any(cell[:1].isalpha() for cell in cells):
        return ""
    return ' class="words long"' if max(map(len, cells)) > LONG else ' class="words"'


def figure(drawing: str, caption: str, legend: str = "") -> str:
    """A drawing with its caption, and perhaps a legend in HTML."""
    return f"<figure><figcaption>{escaped(caption)}</figcaption>{legend}{drawing}</figure>"


def parts_of_time(rows: Sequence[dict]) -> Iterator[str]:
    """A table of the parts of the time, if any row has them."""
    with_parts = [row for row in rows if isinstance(row.get("parts"), dict) and row["parts"]]
    names = list(dict.fromkeys(name for row in with_parts for name in row["parts"]))
    lines = []
    for row in with_parts:
        parts = {name: value for name, value in row["parts"].items() if is_number(value)}
        whole = row["milliseconds"] if is_number(row.get("milliseconds")) else sum(parts.values())
        shares = {name: f"{value:,.1f} ({value / whole:.1%})" for name, value in parts.items() if whole}
        label = row.get("case") if row["bench"] != "train" else row["provider"]
        lines.append((shown(label), *(shares.get(name, "") for name in names)))
    if lines:
        yield table_html(TableData("Where the time goes, ms", ("", *names), tuple(lines)))


def notes(lines: Sequence[str]) -> str:
    """Small print."""
    return f'<p class="notes">{"<br>".join(map(escaped, lines))}</p>'


def heading(run: Run, words: str) -> str:
    """The heading of a run, with its date."""
    return f"<h3>{escaped(words)}, {run.date:%Y-%m-%d %H:%M}</h3>"


def machine(run: Run) -> str:
    """A run's device, machine, versions, commit and date, in words."""
    first = run.rows[0]
    found = {name: first[name] for name in MACHINE if name in first and name != "device"}
    for row in run.rows:
        found |= row["versions"] if isinstance(row.get("versions"), dict) else {}
    nothing = (None, "none", "absent")
    said = [f"{name} {shown(value)}" for name, value in found.items() if value not in nothing]
    changes = " with changes" if any(row.get("dirty") for row in run.rows) else ""
    commit = f"commit {first['commit'][:12]}{changes}"
    words = filter(None, [run.device, ", ".join(said), commit, f"{run.date:%Y-%m-%d %H:%M %Z}"])
    return "; ".join(words)


def circumstances(run: Run) -> str:
    """The small print of a run: its machine, and the command that measures it again."""
    command = command_of(run)
    again = f"<br>Again: <code>{escaped(command)}</code>" if command else ""
    return f'<p class="notes">{escaped(machine(run))}{again}</p>'


def in_words(name: str) -> str:
    """The name of a field in words: tokens_per_s -> tokens/s, peak_mib -> peak MiB."""
    words = name.replace("_per_s", "/s").replace("_gb_s", " GB/s").replace("_", " ")
    for unit in ("MiB", "GiB", "TFLOP"):
        words = re.sub(rf"\b{unit}\b", unit, words, flags=re.IGNORECASE)
    return words.replace("milliseconds", "ms")


def settings_in_words(settings: dict) -> str:
    """name value, name value"""
    return ", ".join(f"{in_words(name)} {shown(value)}" for name, value in settings.items())


def shown(value: object) -> str:
    """A JSON value as text; numbers have four digits, or all those before the point."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if 1e3 <= abs(value) < 1e15:
            return f"{value:,.0f}"
        short = f"{value:.4g}"
        return short if float(short) == value else f"{value:#.4g}"  # with the zeros that were measured
    return str(value)
