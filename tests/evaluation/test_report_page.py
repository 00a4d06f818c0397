"""The page: it stands alone, escapes what it is given, and says whose figures are whose."""

import json
import re
from html.parser import HTMLParser

import pytest

from fastling.errors import UserError
from fastling.evaluation.report_page import PAPER_FIGURES, page_of, read_result
from fastling.evaluation.result import Result, TableData

NASTY = "<script>alert('中文')</script> $x_1$ & \"🙂\""


def result(kind="translation", **scores) -> dict:
    found = Result(kind, scores, (TableData(NASTY, ("a", NASTY), ((NASTY, "1"),)),), (NASTY,))
    return json.loads(json.dumps(found.as_json()))


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.texts.append(data)


def read(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    return checker


def test_the_page_asks_for_nothing_and_escapes_everything():
    page = page_of([(NASTY, result(bleu=12.5, chrf=40.0)), ("other", result(bleu=1.0))])
    found = read(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert all(address.startswith("#") for address in found.addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    assert sum(NASTY in text for text in found.texts) == 1 + 2 * 4  # a heading; title, column, cell, note


def test_numbers_are_plotted_for_each_result():
    found = read(page_of([("one", result(bleu=12.5)), ("two", result(bleu=87.5))]))
    assert found.tags.count("svg") == 1
    page = page_of([("one", result(bleu=12.5)), ("two", result(bleu=87.5))])
    assert "12.5" in page and "87.5" in page and "measured here" in page


def test_only_percentages_are_plotted_and_what_a_result_lacks_is_no_zero():
    judged = result("dialogue", score=7.5, baseline_score=6.0, score_ratio=125.0, position_bias=None)
    beside = result("dialogue", score=7.5, baseline_score=8.0, score_ratio=93.8, position_bias=10.0)
    for results in ([judged, beside], [beside, judged]):
        shown = read(page_of([("x", each) for each in results])).texts
        assert {"125.0", "93.8", "10.0"} < set(shown) and not {"7.5", "6.0", "8.0", "0.0", "nan"} & set(shown)
        assert "120" in shown  # on the axis, which goes as far as the bars
    edited = result("refinement", fix_rate=0.0, gain=1.5, over_edit_ratio=1.2, no_op_accuracy=None)
    assert {"0.0", "errors fixed"} < set(read(page_of([("x", edited)])).texts)
    assert not {"1.5", "1.2", "right drafts unchanged"} & set(read(page_of([("x", edited)])).texts)


def test_the_papers_figures_are_the_three_it_publishes_and_are_marked_as_its_own():
    assert [figure.percent for figure in PAPER_FIGURES] == [95, 96, 89]
    for kind, percent in (("translation", 95), ("constrained", 96), ("refinement", 96), ("dialogue", 89)):
        page = page_of([("x", result(kind, bleu=1.0))])
        shown = re.findall(r'<p class="paper"><b>(\d+) %</b>[^<]*paper[^<]*Not measured here', page)
        assert shown == [str(percent)]
    assert "paper" not in page_of([("x", result("exam", accuracy=1.0))]).split("</style>")[1]


def test_a_result_without_numbers_has_no_plot_and_still_a_page():
    assert "<svg" not in page_of([("x", result("instructions", note="none"))])


def test_results_of_one_kind_stand_together_and_no_result_twice():
    given = [("one", result(bleu=1.0)), ("two", result("exam", accuracy=2.0)), ("three", result(bleu=3.0))]
    texts = read(page_of(given)).texts
    headings = [text for text in texts if text in ("Translation", "Exam") or re.match(r"\d\. ", text)]
    assert headings == ["Translation", "1. one", "2. three", "Exam", "1. two"]


def test_a_page_is_the_same_every_time():
    assert page_of([("x", result(bleu=3.0))]) == page_of([("x", result(bleu=3.0))])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"[]", b"3", b"{}", b'{"kind": 3}', b"[" * 10**5, b'{"kind": "exam", "tables": 3}',
        b'{"kind": "exam", "tables": [{"title": "x"}]}', b'{"kind": "exam", "notes": [3]}',
        b'{"kind": "exam", "tables": [{"title": "x", "columns": ["a"], "rows": [[1]]}]}',
        b'{"kind": "exam", "tables": [{"title": "x", "columns": ["a", "b"], "rows": [["1", "2"], ["1"]]}]}',
    ],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"r\.json: "):
        read_result(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_result(tmp_path / "r.json")
