from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.errors import ManifestError
from train.face_images import canonical_emotion, read_face_images

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


def test_csv_of_colour_pictures_is_read_beside_its_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "red.png")
    table = tmp_path / "faces.csv"
    table.write_text("path,label,split\nred.png,Happy,train\nred.png,,test\nred.png,angry,val\n")
    images = read_face_images(table)
    assert images.classes == ("anger", "happiness")
    assert images.pixels.shape == (3, 3, 128, 128)
    assert images.pixels[0, :, 64, 64].tolist() == [250, 0, 0]
    assert images.label.tolist() == [1, -1, 0]
    assert images.target.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_all_unreadable_pictures_are_named_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    table = tmp_path / "faces.csv"
    table.write_text("path,label,split\nmissing.png,happy,train\ntext.png,happy,train\n")
    with pytest.raises(ManifestError, match=r"(?s)line 2: missing\.png.*line 3: text\.png"):
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
    assert canonical_emotion("contempt") == "contempt"
