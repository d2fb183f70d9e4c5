"""How figures write the names of classes, which may be any text: no box ever stands for a letter.

A name is drawn where DejaVu Sans, which ships with matplotlib, and the fonts of this machine have
all of its letters. Where one name cannot be drawn, classes are numbered, and the pages, whose fonts
are the reader's, tell which number is which.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"
_PREFERRED = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "PingFang SC",
    "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans CJK JP", "Noto Sans JP",
    "Noto Sans CJK KR", "Noto Sans KR", "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari",
    "Arial Unicode MS",
)  # fmt: skip
"""Families that are tried first; others follow by name."""
_MOST_COLUMNS = 24
"""Of a name; a Chinese character takes two."""
_TURNING = ("R", "AL", "AN", "RLE", "RLO", "RLI")
"""Bidirectional classes of letters and marks that turn the order of a line."""
_SHAPING_VERSION = (3, 11)
"""The matplotlib that joins Arabic letters and places accents."""


@dataclass(frozen=True, kw_only=True)
class TickLabels:
    """What figures write for each class, and in which fonts."""

    texts: tuple[str, ...]
    families: tuple[str, ...]
    """A letter is drawn in the first that has it."""
    legend: tuple[str, ...] = ()
    """Where the texts are numbers: each with its class."""

    @property
    def n_columns(self) -> int:
        """Of the longest text."""
        return max(map(_count_columns, self.texts), default=0)


def choose_tick_labels(names: Sequence[str]) -> TickLabels:
    """How to write the names of classes in a figure."""
    texts = [unicodedata.normalize("NFC", " ".join(name.split())) for name in names]
    families = _find_families(set("".join(texts)))
    if families and all(map(_is_drawn, texts)) and len(set(texts)) == len(texts):
        return TickLabels(texts=tuple(texts), families=families)
    return TickLabels(
        texts=tuple(str(number) for number in range(1, len(names) + 1)),
        families=(FAMILY,),
        legend=tuple(f"{number} {isolate(text)}" for number, text in enumerate(texts, 1)),
    )


def isolate(name: str) -> str:
    """A name for running text. What is written from right to left turns round no more than itself:
    else, of ``9 NAME, 10``, the 10 would stand beside the 9."""
    if any(unicodedata.bidirectional(letter) in _TURNING for letter in name):
        return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
    return name


def _find_families(letters: set[str]) -> tuple[str, ...]:
    """Fonts that together have all letters, DejaVu Sans first; none where some are in no font."""
    families: list[str] = []
    left = {ord(letter) for letter in letters}
    for entry in _iter_fonts():
        if families and not left:
            break
        found = left & _read_letters(entry)
        if found or not families:
            families.append(entry.name)
            left -= found
    return () if left else tuple(families)


def _iter_fonts() -> Iterator[FontEntry]:
    """The upright fonts of normal weight on this machine, one a family, in the order of trying."""
    fonts = {
        entry.name: entry
        for entry in sorted(fontManager.ttflist, key=lambda entry: entry.fname, reverse=True)
        if entry.style == "normal" and entry.weight in (400, "normal", "regular")
    }
    for name in dict.fromkeys((FAMILY, *_PREFERRED, *sorted(fonts))):
        if name in fonts:
            yield fonts[name]


def _read_letters(entry: FontEntry) -> set[int]:
    """Code points of which a font has outlines, each its own: not a box for all."""
    try:
        font = FT2Font(entry.fname)
    except (OSError, RuntimeError):  # gone since matplotlib listed it, or damaged
        return set()
    glyphs = font.get_charmap()
    is_of_boxes = len(set(glyphs.values())) < len(glyphs) / 2
    return set(glyphs) if font.scalable and not is_of_boxes else set()


def _is_drawn(text: str) -> bool:
    """Whether matplotlib writes a text as a reader knows it, given its letters; it must fit too."""
    kinds = {unicodedata.category(letter) for letter in text}
    shaped = any(
        unicodedata.bidirectional(letter) in ("R", "AL") or unicodedata.category(letter)[0] == "M"
        for letter in text
    )
    return (
        _count_columns(text) <= _MOST_COLUMNS
        and any(kind[0] in "LNPS" for kind in kinds)
        and not any(kind[0] == "C" for kind in kinds)
        and (not shaped or tuple(mpl.__version_info__[:2]) >= _SHAPING_VERSION)
    )


def _count_columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
