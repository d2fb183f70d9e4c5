"""A manifest is read as it stands, or everything that is wrong with it is said at once."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest

from features.contracts import MEC_CLASSES
from features.errors import ConfigError, ManifestError
from pipeline.manifest.labels import parse_mapping
from pipeline.manifest.reader import Manifest, ManifestOptions, find_missing_files, read_manifest

HEADER = "clip_id,path,label,split,subject,start_s,end_s"
GOOD = "a,a.mp4,happy,train,anna,,"


def write_csv(folder: Path, *rows: str, header: str = HEADER, newline: str = "\n") -> Path:
    path = folder / "clips.csv"
    path.write_bytes((newline.join([header, *rows]) + newline).encode())
    return path


def read_problem(path: Path, classes: list[str] | None = None) -> str:
    with pytest.raises(ManifestError) as error:
        read_manifest(path, ManifestOptions(classes=classes))
    return str(error.value)


def test_a_row_becomes_a_clip_with_its_path_beside_the_manifest(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a, films/a.mp4 ,happy,train,anna,1.5,2", "b,/far/b.mp4,,test,,,")
    a, b = read_manifest(path).clips
    assert (a.clip_id, a.path, a.label, a.split) == (
        "a",
        tmp_path / "films/a.mp4",
        "happy",
        "train",
    )
    assert (a.subject, a.start_s, a.end_s, a.line) == ("anna", 1.5, 2.0, 2)
    assert (b.path, b.label, b.start_s, b.end_s) == (Path("/far/b.mp4"), "", None, None)


BAD_ROWS = {
    "a label that is no class": ("b,b.mp4,hapy,train,,,", "label 'hapy' is not one of happy, sad"),
    "an id that stands already": ("a,b.mp4,sad,train,,,", "clip_id 'a' stands already on line 2"),
    "an id with a blank": ("b c,b.mp4,sad,train,,,", "clip_id 'b c': expected letters"),
    "no id": (",b.mp4,sad,train,,,", "clip_id '': expected letters"),
    "no path": ("b,,sad,train,,,", "path is empty"),
    "an unknown split": ("b,b.mp4,sad,dev,,,", "split 'dev' is not one of train, val, test"),
    "no split": ("b,b.mp4,sad,,,,", "split '' is not one of"),
    "a subject in two splits": (
        "b,b.mp4,sad,val,anna,,",
        "subject 'anna' stands in val, but in train on line 2",
    ),
    "a start at the end": ("b,b.mp4,sad,train,,2,2", "start_s 2 is not before end_s 2"),
    "a start after the end": ("b,b.mp4,sad,train,,3,2", "start_s 3 is not before end_s 2"),
    "an end at the file's start": ("b,b.mp4,sad,train,,,0", "start_s 0 is not before end_s 0"),
    "a start that is no number": (
        "b,b.mp4,sad,train,,1:20,",
        "start_s '1:20' is not a number of seconds",
    ),
    "a start below 0": (
        "b,b.mp4,sad,train,,-1,",
        "start_s '-1' is not a number of seconds, 0 or more",
    ),
    "an end that is nan": ("b,b.mp4,sad,train,,,nan", "end_s 'nan' is not a number"),
    "an end that is infinite": ("b,b.mp4,sad,train,,,inf", "end_s 'inf' is not a number"),
    "a row too short": ("b,b.mp4,sad,train", "4 cells, but the header has 7"),
    "a path with a NUL": ("b,b\0.mp4,sad,train,,,", r"path 'b\x00.mp4' holds a NUL character"),
    "a row too long": ("b,b.mp4,sad,train,,,,,", "9 cells, but the header has 7"),
}


@pytest.mark.parametrize(("row", "expected"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_one_bad_row_is_named_by_its_line(tmp_path: Path, row: str, expected: str) -> None:
    message = read_problem(write_csv(tmp_path, GOOD, row, "z,z.mp4,sad,train,,,"))
    assert f"line 3: {expected}" in message
    assert "1 problem\n" in message


def test_every_problem_of_every_row_is_said_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    message = read_problem(
        write_csv(
            tmp_path, GOOD, "a,,hapy,dev,,x,-2", "c,c.mp4,sad,train", "d,d.mp4,sad,val,anna,9,x"
        )
    )
    lines = [line.split(":")[0].strip() for line in message.splitlines()[1:]]
    assert lines == ["line 3"] * 6 + ["line 4"] + ["line 5"] * 2
    assert "9 problems" in message


def test_a_subject_may_stand_in_two_splits_when_that_is_allowed(tmp_path: Path) -> None:
    path = write_csv(tmp_path, GOOD, "b,b.mp4,sad,val,anna,,", "c,c.mp4,sad,test,,,")
    assert len(read_manifest(path, ManifestOptions(allow_subject_overlap=True)).clips) == 3


def test_rows_without_a_subject_may_stand_in_any_split(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a,a.mp4,sad,train,,,", "b,b.mp4,sad,val,,,")
    assert len(read_manifest(path).clips) == 2


BAD_FILES = {
    "an empty file": (b"", "lacks clip_id, path, label, split; found nothing"),
    "a column missing": (b"clip_id,path,label\n", "line 1: the header lacks split"),
    "semicolons": (b"clip_id;path;label;split\n", "found semicolons. Save the CSV with commas."),
    "tabs": (b"\xef\xbb\xbfclip_id\tpath\tlabel\tsplit\tnote\n", "found tabs. Save the CSV"),
    "a column twice": (b"clip_id,path,label,split,label\n", "repeats label"),
    "nameless columns": (b"clip_id,path,label,split,,\n", "repeats the empty name"),
    "a header alone": (b"clip_id,path,label,split\n", "no clip follows the header"),
    "empty rows alone": (b"clip_id,path,label,split\n\n,,,\n", "no clip follows"),
    "Latin-1": (b"clip_id,path,label,split\na,a.mp4,\xe9,val\n", "line 2: not UTF-8"),
    "UTF-16": ("clip_id,path".encode("utf-16"), "line 1: not UTF-8"),
    "a quotation mark left open at the end": (
        b'clip_id,path,label,split\na,a.mp4,sad,train\nb,b.mp4,sad,"val\nc,c.mp4,sad,val\n',
        "line 3: not CSV from here on",
    ),
    "text behind a quoted cell": (
        b'clip_id,path,label,split\na,"a" b.mp4,sad,train\n',
        "line 2: not CSV from here on",
    ),
    "an open quotation mark": (
        b'clip_id,path,label,split\n"a' + b"a,b\n" * 50_000,
        "quotation mark left open",
    ),
}


@pytest.mark.parametrize(("content", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_manifest_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    assert expected in read_problem(path)


@pytest.mark.parametrize(("name", "expected"), [("none.csv", "no such file"), (".", "cannot be")])
def test_a_manifest_that_cannot_be_read_is_said(tmp_path: Path, name: str, expected: str) -> None:
    assert expected in read_problem(tmp_path / name)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_make_no_difference(
    tmp_path: Path, newline: str, bom: bytes
) -> None:
    path = write_csv(tmp_path, GOOD, "", "b,b.mp4,sad,val,,,", newline=newline)
    path.write_bytes(bom + path.read_bytes())
    assert [(clip.clip_id, clip.line) for clip in read_manifest(path).clips] == [("a", 2), ("b", 4)]


def test_lines_are_counted_through_quoted_newlines(tmp_path: Path) -> None:
    path = write_csv(tmp_path, '"a","a.mp4","happy","train","an\nna",,', "b,b.mp4,sad,dev,,,")
    assert "line 4: split 'dev'" in read_problem(path)


def test_unknown_columns_are_kept(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        'a,a.mp4,,val,"say ""hi"", 你好",film1',
        header="clip_id,path,label,split,note,source",
    )
    clip = read_manifest(path).clips[0]
    assert clip.extra == {"note": 'say "hi", 你好'}
    assert clip.source == "film1"


def read_labels(folder: Path, labels: list[str], classes: list[str] | None = None) -> Manifest:
    rows = [f"c{i},c.mp4,{label},train,,," for i, label in enumerate(labels)]
    return read_manifest(write_csv(folder, *rows), ManifestOptions(classes=classes))


CLASSES = {
    "MEC's eight where one label is among them": (["sad"], None, MEC_CLASSES, False),
    "MEC's eight where no clip is labelled": (["", ""], None, MEC_CLASSES, False),
    "all labels sorted where none is MEC's": (["joy", "awe", ""], None, ("awe", "joy"), True),
    "those given, in their order": (["joy"], ["joy", "awe"], ("joy", "awe"), False),
}


@pytest.mark.parametrize(("labels", "given", "classes", "assumed"), CLASSES.values(), ids=CLASSES)
def test_classes_are(
    tmp_path: Path,
    labels: list[str],
    given: list[str] | None,
    classes: tuple[str, ...],
    assumed: bool,
) -> None:
    manifest = read_labels(tmp_path, labels, given)
    assert (manifest.classes, manifest.classes_assumed) == (classes, assumed)


def test_given_classes_make_other_labels_wrong(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="'happy' is not one of joy, awe"):
        read_labels(tmp_path, ["joy", "happy"], ["joy", "awe"])


def test_missing_files_are_found_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    long = "x" * 300
    path = write_csv(
        tmp_path,
        GOOD,
        "b,b.mp4,,val,,,",
        "c,folder,,val,,,",
        f"d,{long},,val,,,",
        "e,a.mp4,,val,,,",
    )
    problems = find_missing_files(read_manifest(path).clips)
    assert [problem.line for problem in problems] == [3, 4, 5]
    assert str(problems[0]) == f"line 3: clip 'b': no file: {tmp_path / 'b.mp4'}"
    assert "cannot be read (File name too long)" in problems[2].message


def test_a_long_cell_is_cut_in_messages(tmp_path: Path) -> None:
    message = read_problem(write_csv(tmp_path, f"a,a.mp4,sad,{'x' * 5000},,,"))
    assert f"split '{'x' * 60}...' is not one of" in message


SPELLINGS = {
    "case": ("Happy", "happy"),
    "white space inside": ("Very  Good", "very good"),
    "a no-break space": ("very\u00a0good", "very good"),
    "a noun": ("anger", "angry"),
    "a noun in another case": ("Sadness", "sad"),
    "a participle": ("surprised", "surprise"),
    "a class that is the noun": ("angry", "anger"),
}


@pytest.mark.parametrize(("label", "name"), SPELLINGS.values(), ids=SPELLINGS)
def test_a_label_that_spells_a_class_otherwise_is_offered_a_mapping_that_works(
    tmp_path: Path, label: str, name: str
) -> None:
    rows = [f"c{i},c.mp4,{text},train,,," for i, text in enumerate([name, label, label])]
    path = write_csv(tmp_path, *rows)
    classes = [name, "other"]

    message = read_problem(path, classes)

    assert f"is not one of {name}, other (so line 4); it spells {name} otherwise" in message
    option = message.splitlines()[-1].partition("--map-label ")[2].strip("'")
    options = ManifestOptions(classes=classes, label_mapping=parse_mapping([option]))
    listed = read_manifest(path, options)
    assert [clip.label for clip in listed.clips] == [name] * 3


def test_all_labels_are_mapped_by_one_advice(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        read_labels(tmp_path, ["Happy", "anger", "Happy", "fear", "sad"])
    *_, fear, advice = str(error.value).splitlines()
    assert "3 problems" in str(error.value)
    assert advice.endswith("add: --map-label Happy=happy --map-label anger=angry")
    assert fear.startswith("  line 5: label 'fear' is not one of happy, sad")  # not MEC's anxious
    assert "spells" not in fear


def test_labels_that_differ_in_case_are_not_two_classes(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as error:
        read_labels(tmp_path, ["joy", "awe", "awe", "AWE"])
    assert "1 problem\n" in str(error.value)
    assert "line 5: label 'AWE' is not one of awe, joy" in str(error.value)
    assert str(error.value).endswith("--map-label AWE=awe")


@pytest.mark.parametrize("pair", ["anger", "=angry", "anger="])
def test_a_mapping_without_two_sides_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError, match="expected LABEL=CLASS"):
        parse_mapping([pair])


def test_a_label_goes_to_one_class() -> None:
    with pytest.raises(ConfigError, match="a goes to b already"):
        parse_mapping(["a=b", "a=c"])


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
OTHER_NAMES = {
    "backslashes": ("clips\\a.mp4", "clips/a.mp4"),
    "backslashes up": ("..\\far\\a.mp4", "../far/a.mp4"),
    "NFC for NFD": (f"{COMPOSED}.mp4", f"{DECOMPOSED}.mp4"),
    "NFD for NFC": (f"{DECOMPOSED}.mp4", f"{COMPOSED}.mp4"),
    "a folder in NFD": (f"{COMPOSED}/a.mp4", f"{DECOMPOSED}/a.mp4"),
    "backslashes and NFC for NFD": (f"clips\\{COMPOSED}.mp4", f"clips/{DECOMPOSED}.mp4"),
}


@pytest.mark.parametrize(("cell", "name"), OTHER_NAMES.values(), ids=OTHER_NAMES)
def test_a_file_is_found_under_another_spelling_of_its_name(
    cell: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "list"
    folder.mkdir()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")

    (clip,) = read_manifest(
        write_csv(folder, f"a,{cell},sad,train,,,"), files_must_exist=True
    ).clips

    assert clip.path == folder / name
    assert "1 paths have" in caplog.text


@pytest.mark.parametrize("name", ["a\\b.mp4", f"{COMPOSED}.mp4"])
def test_a_file_that_is_there_as_named_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    for other in (name, "a/b.mp4", f"{DECOMPOSED}.mp4"):
        (tmp_path / other).write_bytes(b"x")
    assert read_manifest(write_csv(tmp_path, f"a,{name},,val,,,")).clips[0].path == tmp_path / name


def test_of_two_names_that_read_the_same_none_is_guessed(tmp_path: Path) -> None:
    # e with acute and cedilla: two orders of the accents, and the composed form, are three names.
    orders = "e\u0301\u0327", "e\u0327\u0301"
    for name in orders:
        (tmp_path / name).write_bytes(b"x")
    path = write_csv(tmp_path, "a,\u0229\u0301,,val,,,")
    with pytest.raises(ManifestError, match="no file"):
        read_manifest(path, files_must_exist=True)


SHARED = {
    "the whole file": ("train,,,", "val,,,", True),
    "a part of the whole": ("train,,,", "val,,5,6", True),
    "parts that overlap": ("train,,0,5", "test,,4.5,6", True),
    "parts that follow each other": ("train,,0,5", "test,,5,6", False),
    "one split": ("train,,,", "train,,,", False),
}


@pytest.mark.parametrize(("one", "other", "warned"), SHARED.values(), ids=SHARED)
def test_a_file_in_two_splits_is_a_warning(
    tmp_path: Path, one: str, other: str, warned: bool
) -> None:
    listed = read_manifest(write_csv(tmp_path, f"a,f.mp4,sad,{one}", f"b,f.mp4,sad,{other}"))
    assert [warning.line for warning in listed.warnings] == [3] * warned
    assert not warned or "'a' (train, line 2) shows" in listed.warnings[0].message
