"""Settings that must stand before torch is loaded, and what tests on a GPU need."""

import os

import pytest

# Tests share few cores with each other: threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip without a CUDA device, and fail there where REQUIRE_GPU=1."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or os.environ.get("REQUIRE_GPU") == "1":
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
