"""Tables and plots of what benchmarks.kernels has written; `python -m benchmarks.report` shows them.

Each op has a table: a line for each case and pass, a column for each provider with its median in
milliseconds and how many times the floor that is. For an H200, which the targets are set for, the last
column says of each target whether it is "met" or "missed", and "unmeasured" where nobody has measured it.
We are slower than a peer if our median is, by more than either spread (first to third quartile).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks import workloads
from benchmarks.providers import ALL_ROWS, OURS, PRODUCTS
from benchmarks.workloads import Workload
from fastling.evaluation.result import TableData

TARGET_DEVICE = "H200"
Key = tuple[str, str, str]  # op, case, pass
Rows = dict[tuple[str, str, str, str], dict]  # by op, case, pass and provider


@dataclass(frozen=True)
class Target:
    """A target for workloads that it `applies` to: at most `most` times the floor, or `beside`'s time."""

    op: str
    passed: str
    most: float
    applies: Callable[[Workload], bool] = lambda workload: True
    beside: str | None = None

    def measured(self, rows: Rows, key: Key) -> float | None:
        """How many times the floor, or the time of `beside`, our time is; None if that was not measured."""
        ours = rows.get((*key, OURS), {})
        if ours.get("verdict") != "ok":  # the speed of what is inexact meets nothing
            return None
        if self.beside is None:
            return ours.get("ratio_to_floor")
        times = (ours.get("milliseconds"), rows.get((*key, self.beside), {}).get("milliseconds"))
        return None if None in times else times[0] / times[1]

    def __str__(self) -> str:
        return f"<= {self.most:.2f} x {'floor' if self.beside is None else self.beside}:"


HEAD = ("linear_cross_entropy", "forward+backward")
TARGETS = (
    Target("rms_norm", "forward", 1.12),
    Target("rms_norm", "backward", 1.20),
    Target("add_rms_norm", "forward", 1.10),
    Target("add_rms_norm", "backward", 1.20),
    Target("rotary", "forward", 1.15),
    Target("rotary", "backward", 1.15),
    Target("rotary_qkv", "forward", 1.15),
    Target("rotary_qkv", "backward", 1.15),
    Target("swiglu", "forward", 1.08),
    Target("swiglu", "backward", 1.10),
    Target("cross_entropy", "forward+backward", 1.25, lambda workload: workload.shape.vocab >= 100_000),
    Target(*HEAD, 1.10, lambda workload: workload.num_rows >= 4096),
    Target(*HEAD, 0.50, lambda workload: workload.supervised == 45, beside=ALL_ROWS),
)


def by_device(rows: Iterable[dict]) -> dict[str, Rows]:
    """Device -> its rows; of what was measured twice, the later row."""
    found: dict[str, Rows] = defaultdict(dict)
    for row in rows:
        found[row["device"]][row["op"], row["case"], row["pass"], row["provider"]] = row
    return found


# Judging --------------------------------------------------------------------------------------------


class Judgement(NamedTuple):
    """One verdict on a line of a table."""

    what: str
    verdict: str  # met, missed, unmeasured
    detail: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


EXACT = Judgement("exact:", "met")


def judge(rows: Rows, key: Key, workload: Workload | None) -> list[Judgement]:
    """The verdicts on a line: on each of its targets, on its exactness, and on its time beside its peers."""
    judged = []
    for target in TARGETS:
        if workload and (target.op, target.passed) == (key[0], key[2]) and target.applies(workload):
            measured = target.measured(rows, key)
            if measured is None:
                judged.append(Judgement(str(target), "unmeasured"))
            else:
                verdict = "met" if measured <= target.most else "missed"
                judged.append(Judgement(str(target), verdict, f"{measured:.3f}"))
    ours = rows.get((*key, OURS))
    if ours is None:
        return judged or [Judgement("", "unmeasured")]
    if ours["verdict"] != "ok":
        return [*judged, Judgement("exact:", "missed", f"{ours['verdict']}: {ours['why']}")]
    return [*judged, EXACT, *_beside_peers(rows, key, ours)]


def _beside_peers(rows: Rows, key: Key, ours: dict) -> list[Judgement]:
    peers = [
        row
        for (*place, name), row in rows.items()
        if tuple(place) == key and is_peer(name) and row["milliseconds"] is not None
    ]
    if not peers or ours["milliseconds"] is None:
        return []
    best = min(peers, key=lambda row: row["milliseconds"])
    is_slower = ours["milliseconds"] - best["milliseconds"] > max(ours["spread"], best["spread"])
    times = f"{ours['milliseconds'] / best['milliseconds']:.2f} x {best['provider']}"
    return [Judgement("peers:", "missed" if is_slower else "met", times)]


def is_peer(provider: str) -> bool:
    """Whether a provider is neither ours nor the floor."""
    return not provider.startswith(OURS) and provider != PRODUCTS


# Tables ---------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """What the page and the terminal show of one device."""

    device: str
    circumstances: str
    tables: list[TableData]
    verdicts: str
    """How many lines met what is asked of them; empty where nothing is."""
    remarks: list[str]
    """What was absent or failed."""


def sections(rows: Iterable[dict]) -> Iterator[Section]:
    """The sections of all devices, including the one that targets are set for, even if it has no rows."""
    devices = by_device(rows)
    if not any(TARGET_DEVICE in device for device in devices):
        devices[TARGET_DEVICE] = {}
    return (_section(device, found) for device, found in devices.items())


def render(rows: Iterable[dict]) -> Group:
    """All sections, for a terminal."""
    parts = []
    for section in sections(rows):
        parts.append(Text(f"\n{section.device}: {section.circumstances}", style="bold"))
        parts += [_as_rich(table) for table in section.tables]
        if section.verdicts:
            parts.append(Text(f"\n{section.verdicts}", style="bold"))
        parts += [Text(line) for line in section.remarks]
    return Group(*parts)


def _as_rich(data: TableData) -> Table:
    table = Table(
        title=f"\n{data.title}", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for heading in data.columns:
        table.add_column(heading, no_wrap=heading != "targets")
    for row in data.rows:
        table.add_row(*row)
    return table


def _section(device: str, found: Rows) -> Section:
    planned = {
        (workload.op_name, workload.case, passed): workload
        for workload in workloads.plan(workloads.SHAPES)
        for passed in workload.passes
        if TARGET_DEVICE in device
    }
    keys = dict.fromkeys([*planned, *(key[:3] for key, row in found.items() if is_timed(row))])
    judged = {key: judge(found, key, planned.get(key)) if planned else [] for key in keys}
    tables = [
        _op_table(op, {key: judged[key] for key in keys if key[0] == op}, found)
        for op in dict.fromkeys(key[0] for key in keys)
    ]
    verdicts = ""
    if planned:
        counts = Counter(each.verdict for line in judged.values() for each in line)
        said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("met", "missed", "unmeasured"))
        verdicts = f"targets, exactness and peers, line by line: {said}"
    return Section(device, _circumstances(found), tables, verdicts, _remarks(found))


def is_timed(row: dict) -> bool:
    """Whether the row is of a pass, and not a remark on a case as a whole."""
    return row["pass"] not in ("case", "absent", "far offsets")


def _circumstances(found: Rows) -> str:
    row = next(reversed(found.values()), None)
    if row is None:
        return "nothing was measured"
    commit = row["commit"][:12] + (" with changes" if row.get("dirty") else "")
    rates = f"copy {row['copy_gb_s']:.0f} GB/s, products {row['matrix_tflops']:.0f} TFLOP/s"
    versions = f"driver {row['driver']}, torch {row['torch']}, triton {row['triton']}"
    return f"{rates}; {versions}; commit {commit}, {row['date']}"


def _op_table(op: str, lines: dict[Key, list[Judgement]], found: Rows) -> TableData:
    names = dict.fromkeys(name for (*place, name), row in found.items() if place[0] == op and is_timed(row))
    names = [name for name in names if name != PRODUCTS] or [OURS]
    table = []
    for key, judged in lines.items():
        rows = [found.get((*key, name)) for name in names]
        first = next(filter(None, rows), {"floor_milliseconds": None, "max_error": None})
        floor, error = _number(first["floor_milliseconds"], ".4g"), _number(first["max_error"], ".1e")
        words = "; ".join(str(each) for each in judged if each != EXACT)  # that goes without saying
        table.append((*key[1:], floor, *map(_cell, rows), error, words))
    return TableData(op, ("case", "pass", "floor ms", *names, "error", "targets"), tuple(table))


def _number(value: float | str | None, form: str) -> str:
    """A number as text; one that is not finite is kept as a word already."""
    return "" if value is None else value if isinstance(value, str) else format(value, form)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    if row["milliseconds"] is None:
        return row["verdict"]
    mark = "" if row["verdict"] == "ok" else f" {row['verdict']}"
    return f"{row['milliseconds']:.4g} ({row['ratio_to_floor']:.2f}x){mark}"


def _remarks(found: Rows) -> list[str]:
    headings = {"far offsets": "rows beyond 2^31 values", "absent": "absent", "case": "failed"}
    lines = []
    for (op, case, passed, provider), row in found.items():
        if not is_timed(row):
            lines.append(f"{headings[passed]}: {op}, {case}, {provider}: {row['verdict']} {row['why']}")
    return lines


# Plots ----------------------------------------------------------------------------------------------


def plot(rows: Rows, out: Path) -> list[Path]:
    """One picture an op, as SVG and PNG: bars of time, and the floor across them. Returns the files."""
    timed = {key: row for key, row in rows.items() if row["milliseconds"] is not None}
    written = []
    for op in dict.fromkeys(key[0] for key in timed):
        of_op = {key[1:]: row for key, row in timed.items() if key[0] == op}
        passes = list(dict.fromkeys(passed for _, passed, _ in of_op))
        width = 3 + len({case for case, _, _ in of_op})
        figure = Figure(figsize=(width, 3.4 * len(passes)), layout="constrained")
        for axes, passed in zip(figure.subplots(len(passes), squeeze=False)[:, 0], passes, strict=True):
            _bars(axes, {(case, name): row for (case, of, name), row in of_op.items() if of == passed})
            axes.set_title(f"{op}, {passed}", loc="left")
        device = next(iter(of_op.values()))["device"]
        figure.supxlabel(f"{device}; the line is the floor", fontsize="small")
        for suffix in (".svg", ".png"):
            written.append(out / f"{op.replace(' ', '_')}{suffix}")
            figure.savefig(written[-1], dpi=120)
    return written


def _bars(axes, rows: dict[tuple[str, str], dict]) -> None:
    cases = list(dict.fromkeys(case for case, _ in rows))
    names = list(dict.fromkeys(name for _, name in rows if name != PRODUCTS))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        here = [(place, rows[case, name]) for place, case in enumerate(cases) if (case, name) in rows]
        axes.bar(
            [place + (number - (len(names) - 1) / 2) * width for place, _ in here],
            [row["milliseconds"] for _, row in here],
            width,
            label=name,
            alpha=0.75,
        )
    floors = [next(row["floor_milliseconds"] for (c, _), row in rows.items() if c == case) for case in cases]
    places = range(len(cases))
    axes.hlines(floors, [x - 0.45 for x in places], [x + 0.45 for x in places], color="black", label="floor")
    labels = [case.replace(" tokens", "").replace(", ", " ").replace(" %", "%").split() for case in cases]
    axes.set_xticks(list(places), ["\n".join(words) for words in labels], fontsize="small")
    axes.set_ylabel("milliseconds")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
