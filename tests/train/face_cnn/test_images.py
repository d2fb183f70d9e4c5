from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.errors import ManifestError
from train.face_cnn.pictures.files import list_folder_pictures, read_face_images
from train.face_cnn.pictures.labels import canonical_emotion

VOTE_NAMES = ["neutral", "happiness", "unknown", "NF"]


def write_votes(path: Path, votes: list[list[int]], **changed: object) -> Path:
    n = len(votes)
    arrays = {
        "images": np.zeros((n, 4, 4), dtype=np.uint8),
        "votes": np.array(votes),
        "vote_names": np.array(VOTE_NAMES),
        "split": np.array(["train"] * n),
    }
    np.savez(path, **(arrays | changed))
    return path


@pytest.mark.parametrize(
    ("votes", "target", "label"),
    [
        pytest.param([4, 6, 0, 0], [0.4, 0.6], 1, id="shares of the votes"),
        pytest.param([1, 9, 0, 0], [0, 1], 1, id="a vote nobody shares is an outlier"),
        pytest.param([1, 0, 0, 0], [1, 0], 0, id="unless there is no other"),
        pytest.param([5, 5, 0, 0], [0.5, 0.5], -1, id="a tie has no label"),
        pytest.param([2, 3, 5, 0], [0, 0], -1, id="most found it unclear"),
        pytest.param([2, 4, 3, 1], [1 / 3, 2 / 3], -1, id="less than half agree"),
        pytest.param([0, 0, 0, 10], [0, 0], -1, id="no face"),
        pytest.param([0, 0, 0, 0], [0, 0], -1, id="no votes"),
    ],
)
def test_votes_become_targets_and_majority_labels(
    tmp_path: Path, votes: list[int], target: list[float], label: int
) -> None:
    images = read_face_images(write_votes(tmp_path / "faces.npz", [votes]))
    assert images.classes == ("neutral", "happiness")
    np.testing.assert_allclose(images.target[0], target)
    assert images.label[0] == label


def test_twins_of_held_out_pictures_are_not_trained_on(tmp_path: Path) -> None:
    path = write_votes(
        tmp_path / "faces.npz",
        [[9, 1, 0, 0]] * 5 + [[0, 0, 10, 0]],
        split=np.array(["train", "train", "val", "test", "test", "train"]),
        dup_group=np.array([7, 8, 7, 8, 9, 10]),
    )
    images = read_face_images(path)
    assert images.train_rows().tolist() == []
    assert images.scored_rows("val").tolist() == [2]
    assert images.scored_rows("test").tolist() == [3, 4]
    assert images.scored_rows("test", twins=False).tolist() == [4]


def test_csv_of_colour_pictures_is_read_as_luminance(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "red.png")
    table = tmp_path / "faces.csv"
    table.write_text("path,label,split\nred.png,Happy,train\nred.png,,test\nred.png,angry,val\n")
    images = read_face_images(table)
    assert images.classes == ("anger", "happiness")
    assert images.pixels.shape == (3, 1, 128, 128)
    assert images.pixels[0, 0, 64, 64] == round(0.299 * 250)
    assert images.label.tolist() == [1, -1, 0]
    assert images.target.tolist() == [[0, 1], [0, 0], [1, 0]]


def write_faces(folder: Path, *names: str) -> Path:
    """Small pictures whose grey level is their number, counted from 10."""
    for number, name in enumerate(names, start=10):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / name)
    return folder


def test_folder_per_class_is_read(tmp_path: Path) -> None:
    write_faces(tmp_path, "Happy/a.png", "Happy/b.JPG", "sadness/a.jpeg", ".hidden/c.png")
    (tmp_path / "Happy" / "notes.txt").write_text("no picture")
    images = read_face_images(tmp_path)
    assert images.classes == ("happiness", "sadness")
    assert images.label.tolist() == [0, 0, 1]
    assert images.pixels[:, 0, 64, 64].tolist() == [10, 11, 12]
    assert not images.split_given


def test_folder_of_splits_keeps_them(tmp_path: Path) -> None:
    names = ["train/happy/a.png", "validation/happy/b.png", "test/sad/c.png", "Test/happy/d.png"]
    images = read_face_images(write_faces(tmp_path, *names))
    found = dict(zip(images.pixels[:, 0, 0, 0].tolist(), images.split.tolist(), strict=True))
    assert found == {10: "train", 11: "val", 12: "test", 13: "test"}
    assert images.split_given


def test_folders_of_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="folders of splits beside others"):
        read_face_images(write_faces(tmp_path, "train/happy/a.png", "happy/b.png"))
    with pytest.raises(ManifestError, match="no picture"):
        read_face_images(write_faces(tmp_path / "flat", "a.png"))


def test_a_file_name_alone_decides_its_split(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(300)]
    for name in ("one/happy", "other/sad"):
        (tmp_path / name).mkdir(parents=True)
        for file in names:
            (tmp_path / name / file).touch()
    (one, _), (other, _) = (list_folder_pictures(tmp_path / name) for name in ("one", "other"))
    assert [f.split for f in one] == [f.split for f in other]
    counts = {split: sum(f.split == split for f in one) for split in ("train", "val", "test")}
    assert counts == {"train": 244, "val": 23, "test": 33}


def test_a_tenth_of_train_becomes_val_where_there_is_none(tmp_path: Path) -> None:
    names = [f"train/happy/{i}.png" for i in range(100)] + ["test/happy/x.png"]
    files, _ = list_folder_pictures(write_faces(tmp_path, *names))
    assert sum(f.split == "val" for f in files) in range(5, 16)
    assert sum(f.split == "test" for f in files) == 1


def test_train_pictures_of_a_held_out_subject_are_not_trained_on(tmp_path: Path) -> None:
    write_faces(tmp_path, "a.png")
    (tmp_path / "faces.csv").write_text(
        "path,label,split,subject\na.png,happy,train,ann\na.png,happy,train,bob\n"
        "a.png,happy,train,\na.png,sad,val,ann\na.png,sad,test,\n"
    )
    images = read_face_images(tmp_path / "faces.csv")
    assert images.train_rows().tolist() == [1, 2]
    assert images.scored_rows("val", twins=False).tolist() == []


def test_broken_pictures_are_named_counted_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_faces(tmp_path, "happy/a.png", "happy/b.png", "sad/c.png")
    whole = (tmp_path / "happy/b.png").read_bytes()
    (tmp_path / "happy/b.png").write_bytes(whole[:40])
    (tmp_path / "sad/d.jpg").write_text("no picture")
    images = read_face_images(tmp_path)
    assert (len(images.label), images.n_broken) == (2, 2)
    assert f"left out: {tmp_path / 'happy/b.png'}: " in caplog.text
    assert f"left out: {tmp_path / 'sad/d.jpg'}: " in caplog.text
    assert "2 of 4 pictures cannot be read" in caplog.text


def test_tall_picture_becomes_square_by_replicated_edges(tmp_path: Path) -> None:
    tall = np.zeros((40, 20), dtype=np.uint8)
    tall[:, 0] = 200
    (tmp_path / "happy").mkdir()
    Image.fromarray(tall).save(tmp_path / "happy" / "tall.png")
    pixels = read_face_images(tmp_path).pixels[0, 0, 64]
    assert (pixels[:30] == 200).all()
    assert (pixels[40:] == 0).all()


def test_wrong_split_in_a_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("path,label,split\na.png,happy,dev\n")
    with pytest.raises(ManifestError, match=r"splits \['dev'\]"):
        read_face_images(tmp_path / "faces.csv")


def test_all_unreadable_pictures_are_named_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    table = tmp_path / "faces.csv"
    table.write_text("path,label,split\nmissing.png,happy,train\ntext.png,happy,train\n")
    with pytest.raises(
        ManifestError, match=r"(?s)line 2: .*missing\.png: no such file.*line 3: .*text\.png"
    ):
        read_face_images(table)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"images": np.zeros((1, 4, 4))}, "expected uint8", id="float images"),
        pytest.param({"split": np.array(["train"] * 2)}, "has not 1 rows", id="lengths differ"),
    ],
)
def test_archive_that_contradicts_itself_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        read_face_images(write_votes(tmp_path / "faces.npz", [[9, 1, 0, 0]], **changed))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "faces.npz"
    with pytest.raises(ManifestError, match="no such file"):
        read_face_images(path)
    np.savez(path, images=np.zeros((1, 4, 4), dtype=np.uint8))
    with pytest.raises(ManifestError, match="lacks split, votes with vote_names, or label"):
        read_face_images(path)
    path.write_text("no archive")
    with pytest.raises(ManifestError, match="not a readable"):
        read_face_images(path)
    table = tmp_path / "faces.csv"
    table.write_text("picture,label\n")
    with pytest.raises(ManifestError, match="lacks the columns"):
        read_face_images(table)


def test_synonyms_are_one_emotion() -> None:
    assert canonical_emotion(" Happy") == canonical_emotion("happiness") == "happiness"
    assert canonical_emotion("Angry") == "anger"
    assert canonical_emotion("worried") == "worried"
    assert canonical_emotion("contempt") == "contempt"
