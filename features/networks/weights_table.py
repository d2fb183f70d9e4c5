"""Which pretrained weights are in use: from where, which file, its hash, its licence."""

from __future__ import annotations

from dataclasses import dataclass

from features.fingerprint import hash_file
from features.networks.weights import MTCNN_FILES, SHIPPED_FACE_WEIGHTS, SQUEEZENET_NDF


@dataclass(frozen=True, kw_only=True)
class WeightsRow:
    """One network's weights."""

    network: str
    origin: str
    file: str
    sha256: str
    licence: str


def describe_weights() -> list[WeightsRow]:
    """A row for each network of stage one, its file checked.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """
    rows = []
    for pinned in (*MTCNN_FILES.values(), SQUEEZENET_NDF):
        pinned.read()  # checks the hash
        rows.append(
            WeightsRow(
                network=pinned.network,
                origin=f"package {pinned.package}: {pinned.origin}",
                file=str(pinned.find()),
                sha256=pinned.sha256,
                licence=pinned.licence,
            )
        )
    rows.append(
        WeightsRow(
            network="face CNN",
            origin="this project: trained by fit-face on FER+, see face_cnn.md beside the file",
            file=str(SHIPPED_FACE_WEIGHTS),
            sha256=hash_file(SHIPPED_FACE_WEIGHTS),
            licence="MIT; trained on FER2013 pictures (research use)",
        )
    )
    return rows
