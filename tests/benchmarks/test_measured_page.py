"""The page of all results: its numbers are the rows', its ratios are right, and nothing in rows is markup."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from benchmarks.page_rows import HOSTILE, compared, machine, rung, timed_kernel, trained
from conftest import ROOT

from benchmarks import report
from benchmarks.commands import command_of
from benchmarks.page import page_of
from benchmarks.providers import PRODUCTS
from benchmarks.rows import runs_of
from benchmarks.train import parse
from benchmarks.training_page import picture_of_training
from fastling.errors import run_command

pytestmark = pytest.mark.slow  # seconds in all; `make check` does without

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LADDER = [
    rung("packed", milliseconds=2000.0, memory_gib=100.0),
    rung("+ kernels", milliseconds=1500.0, memory_gib=50.0),
    rung("+ compile", milliseconds=500.0, memory_gib=25.0),
]


class Reader(HTMLParser):
    """Tags, addresses, text, and the cells of every line of every table."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.texts, self.lines = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_data(self, data):
        self.texts.append(data)
        if self.lines and self.lines[-1] and self.get_starttag_text().startswith(("<td", "<th")):
            self.lines[-1][-1] += data.strip()

    def line(self, first: str) -> list[str]:
        return next(line for line in self.lines if line[0] == first)


def widths(drawing: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect x="0" y="\d+" width="([\d.]+)%"', drawing)]


# Training -------------------------------------------------------------------------------------------


def test_the_table_of_training_has_the_numbers_of_the_rows():
    found = Reader(page_of(compared()))
    assert found.line("fastling")[1:] == ["740", "1,937", "4,172 ± 289", "6.22", "1.00", "1.1047"]
    assert found.line("trl")[1:3] == ["121", "1,937"] and found.line("trl")[5] == "6.17"
    assert "plain loop, padded: other work: its loss is 5.2" in found.texts
    assert "MFU, exact work" not in found.texts


def test_bars_are_as_long_as_their_numbers_with_the_ratio_of_the_same_run():
    page = page_of(compared())
    ours, trl = widths(page)
    assert trl / ours == pytest.approx(120.6 / 740.4, rel=1e-3)
    assert "740, 1.00 ×" in page and "121, 0.16 ×" in page


def test_a_ladder_has_a_bar_of_time_and_one_of_memory_for_each_rung():
    page = page_of(LADDER)
    first, *_, last_time, last_memory = widths(page)
    assert (last_time / first, last_memory / first) == (0.25, 0.25)
    assert "500 ms, 0.25 ×" in page and "25.0 GiB" in page
    assert "one thing more at a time" in page


def test_parts_of_a_step_are_told_with_their_share():
    parts = {"forward": 1043.0, "backward": 3129.0}
    found = Reader(page_of([trained(parts=parts), trained("trl")]))
    assert ["fastling", "1,043.0 (25.0%)", "3,129.0 (75.0%)"] in found.lines


def test_mfu_is_of_the_machines_own_products():
    rows = [trained(device="NVIDIA H200", tflop_per_s=390.0, matrix_tflops=780.0)]
    assert Reader(page_of(rows)).line("fastling")[-1] == "50.0%"


def test_a_newer_run_stands_above_an_older_one_which_is_folded_up():
    rows = [*compared(), trained(supervised=999.0, date="2026-11-22"), trained(case="1b", date="2026-11-19")]
    shown, folded = page_of(rows).split("<details>")
    assert shown.index("999, 1.00 ×") < shown.index("1b on cpu")
    assert "740, 1.00 ×" in folded and "740, 1.00 ×" not in shown.split("1b on cpu")[0]
    assert "1 older run<" in folded and folded.index("</details>") < folded.index("Kernels")


def test_a_run_names_its_machine_versions_commit_date_and_command():
    rows = [trained(dirty=True), trained("trl", versions={"trl": "1.16.0"})]
    text = " ".join(Reader(page_of(rows)).texts)
    said = "cpu; torch 2.13.0+cpu, triton 3.7.1, trl 1.16.0; commit 0123456789ab with changes; 2026-11-21 02:00 UTC"
    assert said in text
    assert "python -m benchmarks.train --data own.json --tokenizer own.model --trainers trl" in text


def test_the_command_measures_what_the_rows_say():
    run = {
        "size": "1b",
        "sequence_length": 4096,
        "batch_tokens": 16384,
        "micro_batch_tokens": 4096,
        "steps": 12,
    }
    first = trained("packed", run=trained()["run"] | run | {"data": "train.jsonl", "peers": False})
    (found,) = runs_of([first, first | {"provider": "+ kernels"}])
    options = vars(parse(shlex.split(command_of(found))[3:]))
    assert run.items() <= options.items()
    assert options["ladder"] and options["trainers"] == "+ kernels"
    assert options["data"] == "fastling:demo/train.jsonl"


def test_only_failures_make_no_plot():
    page = page_of([compared()[2] | {"status": "ended early: killed"}])
    assert "ended early: killed" in page and "<svg" not in page


# Kernels --------------------------------------------------------------------------------------------


def test_kernels_stand_below_the_roof_that_their_machine_has():
    rows = [timed_kernel(), timed_kernel("a peer", 2.0), timed_kernel(PRODUCTS, 0.1)]
    rows += [timed_kernel(op="linear_cross_entropy", flops=4e11, milliseconds=1.0)]
    page = page_of(rows)
    assert page.count("<circle") == 3  # the products are a roof themselves
    assert "a copy here: 4,000 GB/s" in page and "a matrix product here: 800 TFLOP/s" in page
    assert "fastling, some tokens: 2,000 GB/s, 50%" in page and "a peer, some tokens: 1,000 GB/s, 25%" in page
    assert "fastling, some tokens: 400 TFLOP/s, 50%" in page
    ours, half = (float(x) for x in re.findall(r'cx="([\d.]+)%"', page)[:2])
    roof = float(re.search(r'x1="([\d.]+)%"', page)[1])
    assert ours / roof == pytest.approx(0.5, abs=1e-3) and half / roof == pytest.approx(0.25, abs=1e-3)
    assert Reader(page).line("some tokens")[3] == "1 (1.00x)"
    assert "H200: unmeasured" in page


def test_the_page_says_what_is_unmeasured_and_how_to_measure_it():
    page = page_of([])
    assert "Unmeasured: <code>python -m benchmarks.train" in page
    assert "Unmeasured: <code>make gpu-kernels</code>" in page


# Others ---------------------------------------------------------------------------------------------


def test_tokens_a_second_of_a_case_are_compared_with_its_first():
    rows = [
        {"bench": "generation", "case": case, "provider": name, "tokens_per_s": speed, **machine()}
        for case, name, speed in (
            ("one", "fastling", 100.0), ("one", "transformers", 50.0), ("many", "fastling", 400.0),
            ("many", "transformers", 100.0),
        )
    ]  # fmt: skip
    page = page_of(rows)
    assert re.findall(r"(\d+), ([\d.]+) ×", page) == [
        ("100", "1.00"),
        ("50", "0.50"),
        ("400", "1.00"),
        ("100", "0.25"),
    ]


def test_data_is_compared_with_all_cores_as_trl_takes_all():
    rows = [
        {
            "bench": "data",
            "case": "prepare",
            "provider": name,
            "tokens_per_s": speed,
            "rows": 40000,
            "command": "python -m benchmarks.data --rows 40000",
            **machine(),
        }
        for name, speed in (("one process", 100.0), ("all cores", 200.0), ("trl", 50.0))
    ]
    page = page_of(rows)
    assert re.findall(r"\d+, ([\d.]+) ×", page) == ["0.50", "1.00", "0.25"]
    assert "python -m benchmarks.data --rows 40000" in page


def test_a_bench_that_nobody_knows_has_a_table_of_its_fields():
    rows = [
        {"bench": "odd", "value": 512, "share": 0.123456, "same": "all", **machine()},
        {"bench": "odd", "value": 32768, "share": None, "same": "all", **machine()},
        {"bench": "odd", "trained_on": "tokens", "is_equal": True, **machine()},
    ]
    found = Reader(page_of(rows))
    assert (
        ["value", "share"] in found.lines
        and ["512", "0.1235"] in found.lines
        and ["32,768", ""] in found.lines
    )
    assert ["trained on", "is equal"] in found.lines and ["tokens", "yes"] in found.lines
    assert "same all" in found.texts and "odd" in found.texts


def test_objects_in_rows_are_fields_or_stand_below_where_all_rows_share_them():
    rows = [
        {
            "bench": "simulation",
            "gpus": gpus,
            "bytes": {"gathered": 10 * gpus},
            "links": {"rate": 400},
            "said": ["a", "b"],
        }
        | {"commit": "0123456789abcdef", "date": "2026-11-21"}
        for gpus in (8, 16)
    ]
    found = Reader(page_of(rows))
    assert ["gpus", "bytes gathered"] in found.lines and ["16", "160"] in found.lines
    assert "links: rate 400" in found.texts and "said: a; b" in found.texts
    assert "commit 0123456789ab; 2026-11-21 00:00 UTC" in found.texts  # of no machine


def test_a_line_that_grows_has_a_table_and_bars_of_its_own():
    rows = [
        {"bench": "growth", "case": "demo", "line": line, "value": value, "tokens_per_s": speed, **machine()}
        for line, value, speed in (("length", 512, 80.0), ("length", 1024, 60.0), ("vocabulary", 64000, 9.0))
    ]
    page = page_of(rows)
    assert page.count("<table") == 2
    assert "value 1,024" in page and "60, 0.75 ×" in page


def test_kernels_are_shown_where_nothing_of_training_is_installed(tmp_path):
    write(tmp_path / "rows.jsonl", [timed_kernel()])
    code = (
        "import sys; sys.modules |= dict.fromkeys(('pydantic', 'pyarrow', 'sentencepiece', 'tokenizers', 'yaml'))\n"
        f"from benchmarks import report; report.main([{str(tmp_path / 'rows.jsonl')!r}, '--out', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "NVIDIA A100" in (tmp_path / "report.html").read_text(encoding="utf-8")


# Safety ---------------------------------------------------------------------------------------------


def hostile_rows() -> list[dict]:
    nasty = {"device": HOSTILE, "commit": HOSTILE, "torch": HOSTILE}
    rows = [trained(HOSTILE, case=HOSTILE, settings={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}, **nasty)]
    rows += [trained("b" + HOSTILE, **nasty, parts={HOSTILE: 1.0}), trained("c", **nasty, status=HOSTILE)]
    rows += [timed_kernel(HOSTILE, op=HOSTILE, case=HOSTILE, why=HOSTILE, command=HOSTILE, **nasty)]
    rows += [timed_kernel(HOSTILE, None, **{"pass": "case"}, verdict=HOSTILE, **nasty)]
    rows += [{"bench": HOSTILE, "case": HOSTILE, HOSTILE: HOSTILE, "tokens_per_s": 1.0, **machine(**nasty)}]
    rows += [
        {"bench": "x", "provider": name, "tokens_per_s": 2, "b": 10**400, **machine()}
        for name in (HOSTILE, "y")
    ]
    return [*rows, {"bench": "empty", "list": [1], "command": HOSTILE, **machine()}]


def test_the_page_asks_for_nothing_and_escapes_everything():
    page = page_of(hostile_rows())
    found = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert found.addresses == [] and not re.search(r"@import|url\(|\bon\w+=\"", page)
    assert "\x00" not in page and sum("alert('中文')" in text for text in found.texts) > 20


def test_the_picture_is_whole_xml_whatever_the_rows_hold():
    rows = [trained(HOSTILE, case=HOSTILE), trained("b", 100.0, case=HOSTILE)]
    drawn = ElementTree.fromstring(picture_of_training(rows))
    words = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert (
        any("alert('中文')" in text for text in words) and "740, 1.00 ×" in words and "100, 0.14 ×" in words
    )


# The command ----------------------------------------------------------------------------------------


def test_the_picture_is_of_the_newest_of_the_broadest_comparisons_on_a_cpu():
    rows = [*compared(), *compared(device="NVIDIA H200", date="2026-11-23"), *LADDER]
    rows += [trained(supervised=800.0, date="2026-11-22"), trained("trl", 80.0, date="2026-11-22")]
    picture = picture_of_training([*rows, trained(date="2026-11-24")])
    assert "800, 1.00 ×" in picture and "80, 0.10 ×" in picture
    assert "commit 0123456789ab" in picture and "2026-11-22" in picture
    broader = [trained(supervised=900.0), trained("trl", 90.0), trained("plain loop", 300.0)]
    assert "900, 1.00 ×" in picture_of_training([*rows, *broader])
    assert picture_of_training(LADDER) is None and picture_of_training([]) is None


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_command_joins_files_of_several_devices(tmp_path, capsys):
    write(tmp_path / "a.jsonl", compared())
    write(tmp_path / "b.jsonl", [trained(device="NVIDIA H200", case="8b"), timed_kernel()])
    (tmp_path / "empty.jsonl").write_text("")
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "empty.jsonl")]
    assert run_command(report.main, [*files, "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.html", "training.svg", "rms_norm.svg", "rms_norm.png"}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "8b on NVIDIA H200" in page and "41m on cpu" in page and "NVIDIA A100" in page
    assert "rms_norm" in capsys.readouterr().out


def test_without_files_the_kept_results_are_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert run_command(report.main, []) == 2
    assert "holds no results" in capsys.readouterr().err
    write(tmp_path / "train.jsonl", compared())
    assert run_command(report.main, ["--out", str(tmp_path)]) == 0
    assert "kernels: unmeasured; make gpu-kernels" in capsys.readouterr().out
    assert "740, 1.00 ×" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(trained()) + "\n{broken\n")
    assert run_command(report.main, [str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"{path}:2: no JSON" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_a_telephone_and_a_screen(tmp_path, width):
    """In a real browser: nothing is asked for, and only tables are wider than the window, in frames that scroll."""
    sync_api = pytest.importorskip("playwright.sync_api")
    rows = [*compared(), *LADDER, timed_kernel("a peer of a long name", 2.0)]
    (tmp_path / "report.html").write_text(page_of(rows), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options, timeout=120_000)
        page, asked, said = browser.new_page(viewport={"width": width, "height": 800}), [], []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for text in page.locator("svg text").all():
            box = text.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 12
        browser.close()
    assert len(asked) == 1 and said == []
