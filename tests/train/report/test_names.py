"""Whatever classes are called: figures without boxes, tables without broken rows, no warnings."""

from __future__ import annotations

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from tests.train.report.test_report import write_fake_run
from train.report.report import run_report
from train.report.tick_labels import FAMILY, choose_tick_labels

NAMES = {
    "Chinese": ["高兴", "悲伤"],
    "Hindi": ["ख़ुश", "दुखी"],
    "Arabic": ["سعيد", "حزين"],
    "emoji": ["😀", "😢"],
    "joined emoji": ["👨‍👩‍👧", "b"],
    "accents of their own": ["q\u0301\u0323x", "e\u0301te\u0301"],
    "formulas": ["$x$", r"$\frac{1}"],
    "pipes and tags": ["a|b", "<b>&amp;"],
    "Markdown": ["*a* _b_ `c`", "[x](http://x) ~~y~~"],
    "lines": ["one\ntwo", "three\r\nfour"],
    "titles of columns": ["Model", "Split"],
    "quotes": ['"a",', "'b';"],
    "nothing to see": ["\u200b", "\u2060"],
    "not a character": ["\ue000", "\uffff"],
    "long": ["a" * 400, "b"],
    "as long as is drawn": ["a" * 24, "W" * 24],
    "alike": ["a b", "a  b"],
}


def report_on(names: list[str], folder: Path) -> Path:
    path = write_fake_run(folder / "runs", "face", 0, 5)
    config = json.loads((path / "config.json").read_text())
    config["store"]["classes"] = names
    for split in config["store"]["splits"].values():
        split["labels"] = dict(zip(names, (4, 2), strict=True))
    (path / "config.json").write_text(json.dumps(config))
    return run_report(folder / "runs", folder / "out").parent


class Cells(HTMLParser):
    """The texts of a page's cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag in ("td", "th")
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1] += data


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_a_report_of_any_names_is_whole(
    names: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = report_on(names, tmp_path)  # a warning, as of a missing glyph, is an error in tests
    assert capfd.readouterr().err == ""
    cells = Cells((out / "report.html").read_text()).found
    with (out / "tables/classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Model", "Split", "Figure", *names]
    assert {len(row) for row in rows} == {5}
    for name in names:
        assert name.replace("\r\n", "\n") in [cell.replace("\r\n", "\n") for cell in cells]
    text = (out / "report.md").read_text()
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_predictions_of_such_classes_are_read_as_written(tmp_path: Path) -> None:
    names = list(dict.fromkeys(name for pair in NAMES.values() for name in pair))
    table = pd.DataFrame([range(len(names))], columns=[f"p_{name}" for name in names])
    table.to_csv(tmp_path / "p.csv", index=False, lineterminator="\n")
    assert list(pd.read_csv(tmp_path / "p.csv").columns) == list(table.columns)


@pytest.mark.parametrize("kind", ["Hindi", "joined emoji", "nothing to see", "long", "alike"])
def test_names_that_cannot_be_drawn_are_numbered_and_told_on_the_pages(
    kind: str, tmp_path: Path
) -> None:
    names = NAMES[kind]
    labels = choose_tick_labels(names)
    assert labels.texts == ("1", "2")
    assert labels.families == (FAMILY,)
    out = report_on(names, tmp_path)
    for page in ("report.md", "report.html"):
        told = html.unescape((out / page).read_text())
        assert f"Classes by number: 1 {' '.join(names[0].split())}, 2 " in told


@pytest.mark.parametrize("kind", ["formulas", "pipes and tags", "Markdown", "emoji"])
def test_names_that_can_be_drawn_are(kind: str) -> None:
    labels = choose_tick_labels(NAMES[kind])
    assert list(labels.texts) == NAMES[kind]
    assert labels.legend == ()


def test_names_from_right_to_left_leave_the_numbers_in_order(tmp_path: Path) -> None:
    names = [*NAMES["Arabic"][:1], "a" * 400]
    out = report_on(names, tmp_path)
    for page in ("report.md", "report.html"):
        told = (out / page).read_text()
        assert f"Classes by number: 1 \u2068{names[0]}\u2069, 2 a" in told
        assert f"Classes: \u2068{names[0]}\u2069, a" in told


def test_scripts_that_need_shaping_wait_for_a_matplotlib_that_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, texts in ((3, 10), ("1", "2")), ((3, 11), tuple(NAMES["Arabic"])):
        monkeypatch.setattr(mpl, "__version_info__", version)
        assert choose_tick_labels(NAMES["Arabic"]).texts == texts


def add_font(path: Path, letters: str, *, one_glyph: bool = False) -> None:
    """Install a font that draws some letters as filled squares."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(point)
    pen.closePath()
    names = [".notdef", *(f"g{i}" for i in range(1 if one_glyph else len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(
        {ord(letter): "g0" if one_glyph else f"g{i}" for i, letter in enumerate(letters)}
    )
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    fontManager.addfont(path)


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what matplotlib ships is installed; what a test adds is gone after it."""
    shipped = [e for e in fontManager.ttflist if e.fname.startswith(mpl.get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", shipped)


@pytest.mark.usefixtures("fonts")
def test_an_installed_font_that_has_the_letters_draws_them(tmp_path: Path) -> None:
    names = NAMES["Chinese"]
    assert choose_tick_labels(names).texts == ("1", "2")
    add_font(tmp_path / "Half.ttf", "高兴")
    assert choose_tick_labels(names).texts == ("1", "2")
    add_font(tmp_path / "Noto Sans SC.ttf", "高兴悲伤")
    labels = choose_tick_labels(names)
    assert (list(labels.texts), labels.legend) == (names, ())
    assert labels.families == (FAMILY, "Noto Sans SC")
    report_on(names, tmp_path)


@pytest.mark.usefixtures("fonts")
def test_a_font_that_has_a_box_for_every_letter_does_not_count(tmp_path: Path) -> None:
    add_font(tmp_path / "Noto Sans SC.ttf", "高兴悲伤", one_glyph=True)
    assert choose_tick_labels(NAMES["Chinese"]).texts == ("1", "2")


def test_the_confusion_is_on_test_and_on_val_where_test_has_labels(tmp_path: Path) -> None:
    for name, has_test in (("both", True), ("val", False)):
        write_fake_run(tmp_path / name, "face", 0, 5, test=has_test)
        run_report(tmp_path / name, tmp_path / f"{name}-out")
    both, val = (
        read_size(tmp_path / f"{name}-out/figures/confusion-face.png") for name in ("both", "val")
    )
    assert both == (2 * val[0], val[1])


def read_size(png: Path) -> tuple[int, int]:
    width, height = np.frombuffer(png.read_bytes()[16:24], ">u4")
    return int(width), int(height)


def test_a_source_of_any_name_that_is_missing_breaks_no_page(tmp_path: Path) -> None:
    path = write_fake_run(tmp_path / "runs", "face", 0, 5)
    config = json.loads((path / "config.json").read_text())
    config["store"]["sources"] = {"b": 3, "film|`a": 2}
    config["fold"] = {"protocol": "source", "number": 1, "n_folds": 2, "name": "b", "key": "k"}
    (path / "config.json").write_text(json.dumps(config))
    out = run_report(tmp_path / "runs", tmp_path / "out").parent
    assert r"seed 0: fold film\|\`a" in (out / "report.md").read_text()
