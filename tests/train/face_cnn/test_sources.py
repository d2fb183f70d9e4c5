import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from features.errors import ManifestError, WeightsError
from features.networks.face_cnn import FaceCNN, read_face_cnn, write_face_cnn
from features.networks.weights import FERPLUS_FACE_WEIGHTS
from tests.train.face_cnn.test_fit import TINY
from train.face_cnn.augment import augment_faces
from train.face_cnn.balance import balance_vector
from train.face_cnn.config import FaceAugmentation
from train.face_cnn.fit import run_fit_face
from train.face_cnn.pictures.draws import PictureDraws
from train.face_cnn.pictures.sources import join_classes, read_face_sets, read_face_sources
from train.face_cnn.start import init_from_weights


def blotches(n: int, seed: int, side: int = 48) -> np.ndarray:
    """[n, side, side] Pictures of which no two look alike."""
    draw = np.random.default_rng(seed)
    large = draw.integers(0, 255, (n, 8, 8), dtype=np.uint8)
    return large.repeat(side // 8, axis=1).repeat(side // 8, axis=2)


def write_npz(path: Path, images: np.ndarray, labels: list[str], splits: list[str]) -> Path:
    np.savez(path, images=images, label=np.array(labels), split=np.array(splits))
    return path


def test_near_copy_of_another_sets_test_picture_is_not_trained_on(tmp_path: Path) -> None:
    ones, others = blotches(4, seed=1), blotches(4, seed=2)
    larger = Image.fromarray(others[3]).resize((64, 64), Image.Resampling.BILINEAR)
    mirrored = np.asarray(larger.resize((48, 48)))[:, ::-1]
    noise = np.random.default_rng(3).integers(-8, 8, (48, 48))
    ones[1] = np.clip(mirrored.astype(int) * 0.8 + 20 + noise, 0, 255)
    splits = ["train", "train", "train", "val"]
    paths = [
        write_npz(tmp_path / "ones.npz", ones, ["happy", "sad"] * 2, splits),
        write_npz(tmp_path / "others.npz", others, ["happy", "sad"] * 2, ["train"] * 3 + ["test"]),
    ]
    first, second = read_face_sources(paths)
    assert (first.name, first.rows.tolist()) == ("ones", [0, 2])
    assert (second.name, second.rows.tolist()) == ("others", [0, 1, 2])


def test_archive_with_a_source_column_is_several_sets(tmp_path: Path) -> None:
    rows = ["path,label,split,source"]
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for i, picture in enumerate(blotches(6, seed=4)):
            Image.fromarray(picture).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", f"images/{i}.png")
            label = ["happy", "fear", "sad"][i % 3] if i < 3 else ["happy", "sad"][i % 2]
            rows.append(f"images/{i}.png,{label},train,{'Posed-Set' if i < 3 else 'web'}")
        archive.writestr("faces.csv", "\n".join(rows))
    posed, web = read_face_sources([tmp_path / "faces.zip"])
    assert (posed.name, posed.images.classes) == ("posed_set", ("fear", "happiness", "sadness"))
    assert (web.name, web.images.classes) == ("web", ("happiness", "sadness"))
    assert join_classes([posed, web]) == ("happiness", "sadness", "fear")
    found = web.images.pixels[0, 0, 8::16, 8::16].astype(int)  # the middles of the 8 x 8 blotches
    assert abs(found - blotches(6, seed=4)[3, 3::6, 3::6]).max() <= 2


def test_broken_pictures_are_counted_once_whatever_sets_share_their_file(tmp_path: Path) -> None:
    for i, picture in enumerate(blotches(2, seed=9)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    for name in ("one", "two"):
        rows = "0.png,happy,train,{0}a\n1.png,sad,train,{0}b\ngone.png,sad,train,{0}a\n"
        (tmp_path / f"{name}.csv").write_text("path,label,split,source\n" + rows.format(name))
    sets = read_face_sets([tmp_path / "one.csv", tmp_path / "two.csv"])
    assert len(sets) == 4
    assert sum(images.n_broken for images in sets.values()) == 2


def test_table_without_a_row_says_so(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("path,label,split\n")
    with pytest.raises(ManifestError, match="names no picture"):
        read_face_sets([tmp_path / "faces.csv"])


def test_archive_without_one_csv_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("readme.txt", "no table")
    with pytest.raises(ManifestError, match="expected one CSV"):
        read_face_sources([tmp_path / "faces.zip"])


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [
        write_npz(folder / "faces.npz", blotches(2, seed), ["happy", "sad"], ["train", "val"])
        for seed, folder in enumerate((tmp_path, tmp_path / "a"))
    ]
    with pytest.raises(ManifestError, match="second set of images named faces"):
        read_face_sources(paths)


def test_draws_are_balanced_half_way_over_sets_and_classes(tmp_path: Path) -> None:
    labels = ["happy"] * 90 + ["sad"] * 10
    sources = read_face_sources(
        [
            write_npz(tmp_path / "many.npz", blotches(100, seed=5), labels, ["train"] * 100),
            write_npz(
                tmp_path / "few.npz", blotches(4, seed=6), ["sad", "fear"] * 2, ["train"] * 4
            ),
        ]
    )
    draws = PictureDraws(sources, join_classes(sources), balance=0.5)
    draw = torch.Generator().manual_seed(0)
    many, few = draws.take(12_000, draw)
    assert len(many) / 12_000 == pytest.approx(10 / 12, abs=0.02)  # roots of 100 and 4
    assert len(few) + len(many) == 12_000
    assert (many < 90).mean() == pytest.approx(3 / 4, abs=0.02)  # roots of 90 and 10
    prior = draws.priors["many"]
    torch.testing.assert_close(prior.natural, torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(prior.drawn, torch.tensor([0.75, 0.25]))
    assert prior.joined.tolist() == pytest.approx([0.75, 0.25, 0])  # happiness, sadness, no fear


def test_the_trunk_starts_as_the_shipped_ferplus_network() -> None:
    net = FaceCNN(("a", "b"), {"web": ("a", "b")})
    init_from_weights(net, FERPLUS_FACE_WEIGHTS)
    faces = torch.randint(0, 255, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = net.eval().embed(faces.float()).map
    torch.testing.assert_close(found, read_face_cnn(FERPLUS_FACE_WEIGHTS).embed(faces).map)


def test_training_goes_on_from_all_that_a_file_has_of_the_same_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    known = FaceCNN(("a", "b"), {"web": ("a", "b"), "posed": ("b", "a")}).eval()
    write_face_cnn(known, tmp_path / "known.safetensors", {})
    net = FaceCNN(("a", "b"), {"web": ("a", "b"), "posed": ("a", "b"), "new": ("a", "b")}).eval()
    init_from_weights(net, tmp_path / "known.safetensors")
    faces = torch.randint(0, 255, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(faces), known(faces))
        vector = known.embed(faces).vector
        for name, is_same in (("web", True), ("posed", False)):
            found, before = (n.source_classifiers[name](vector) for n in (net, known))
            assert torch.allclose(found, before) is is_same


def test_a_start_that_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "web.npz", blotches(4, 7), ["happy", "sad"] * 2, ["train"] * 2 + ["val"] * 2
    )
    start = str(tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match=r"gone\.safetensors: no such file"):
        run_fit_face([path], tmp_path / "face.safetensors", replace(TINY, start=start))


def test_two_sets_with_other_classes_train_together(tmp_path: Path) -> None:
    splits = ["train"] * 6 + ["val"] * 2
    paths = [
        write_npz(tmp_path / "web.npz", blotches(8, 7), ["happy", "sad"] * 4, splits),
        write_npz(tmp_path / "posed.npz", blotches(8, 8), ["sad", "fear"] * 4, splits),
    ]
    run_fit_face(paths, tmp_path / "face.safetensors", TINY)
    net = read_face_cnn(tmp_path / "face.safetensors")
    assert net.classes == ("happiness", "sadness", "fear")
    assert net.sources == {"web": ("happiness", "sadness"), "posed": ("fear", "sadness")}


def test_compression_keeps_flat_and_coarse_pictures_and_rounds_fine_ones() -> None:
    fine = torch.randint(100, 156, (4, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    flat = torch.full((4, 1, 64, 64), 80)
    nothing = dict.fromkeys(("gamma", "light", "sharpness", "noise", "shrunk", "erased"), 0)
    still = FaceAugmentation(
        flip=False, view=(1, 1), shift=0, aspect=0, rotation_deg=0, compressed=1, moved=0, **nothing
    )
    for pixels, least, most in ((flat, 0, 8), (fine, 12, 80)):
        draw = torch.Generator().manual_seed(1)
        found = augment_faces(pixels.to(torch.uint8), still, draw, side=64)
        change = float((found - pixels).abs().max())
        assert least <= change <= most


def test_motion_blur_spreads_a_point_along_one_line_and_keeps_its_light() -> None:
    pixels = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    pixels[:, 0, 32, 32] = 255
    nothing = dict.fromkeys(("gamma", "light", "sharpness", "noise", "shrunk", "erased"), 0)
    moving = FaceAugmentation(
        flip=False, view=(1, 1), shift=0, aspect=0, rotation_deg=0, compressed=0, moved=1, **nothing
    )
    found = augment_faces(pixels, moving, torch.Generator().manual_seed(3), side=64)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.full((2,), 255.0), rtol=1e-5, atol=0)
    lit = (found[0, 0] > 1).nonzero().double()
    assert 2 < len(lit) <= 64 / 8 + 1
    across = torch.linalg.svdvals(lit - lit.mean(0))[1] / len(lit) ** 0.5
    assert across < 0.5  # pixels: thinner than one


def test_balanced_vector_has_equal_spread_within_classes_and_the_same_logits() -> None:
    torch.manual_seed(0)
    net = FaceCNN(("a", "b", "c"), {"web": ("a", "b")}).eval()
    faces = torch.randint(0, 255, (600, 1, 64, 64), generator=torch.Generator().manual_seed(0))
    assert net.embedding is not None
    with torch.no_grad():
        net.embedding.norm.train().momentum = 1.0  # vectors of unit spread, as after training
        net.embed_normalised(net.normalise(faces.float()))
        before = net.eval().embed_normalised(net.normalise(faces.float())).vector
        labels = (before[:, 0] > before[:, 0].median()).long().numpy()
        logits = [net.classifier(before), net.source_classifiers["web"](before)]
        balance_vector(net, before.numpy(), labels, labels, shrinkage=1e-3, gain=2.0)
        after = net.embed_normalised(net.normalise(faces.float())).vector
        found = [net.classifier(after), net.source_classifiers["web"](after)]
    for one, other in zip(found, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-2)
    spread = [
        np.linalg.svd(x - x.mean(0), compute_uv=False)[:100]
        for x in (before.numpy(), after.numpy())
    ]
    assert spread[0][0] / spread[0][-1] > 3 * spread[1][0] / spread[1][-1]
    assert abs(after.mean(0)).max() < 0.2
