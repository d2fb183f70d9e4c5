"""Loads programs of torch: what ``torch.export.save`` writes, and TorchScript.

Loading one can run code that its author put there: only files that the user trusts come here.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from features.errors import WeightsError

FAILED = (RuntimeError, AssertionError, TypeError, ValueError, KeyError)
"""What torch raises about a program that it cannot load or run."""


def load_program(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    """Load a program onto a device.

    Raises:
        WeightsError: another kind of file, damaged, or of another version of torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name.partition("/")[2] for name in archive.namelist()}
        if "archive_format" in parts:
            exported = torch.export.load(io.BytesIO(path.read_bytes()))  # a name must end in .pt2
            if device.type != "cpu":
                exported = move_to_device_pass(exported, str(device))
            return exported.module()
        if "constants.pkl" in parts:
            with warnings.catch_warnings():
                # Deprecated in favour of torch.export, yet what many published networks come as.
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                script: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(path), map_location=device
                )
            return script.eval()
    except (*FAILED, OSError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: this program cannot be loaded here ({first_line(error)}). Export it with "
            f"the installed torch {torch.__version__}."
        ) from error
    raise WeightsError(
        f"{path}: neither weights of fit-face nor an exported program nor TorchScript. "
        "Save a program with torch.export.save; torch.save writes no program."
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
