"""Settings that must stand before torch is loaded, what tests on a GPU need, shared fixtures."""

import os
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks take one thread each, heads are trained one after the other; so do workers."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Extract in this process, without a worker, whose start takes seconds."""
    import torch

    from tests.pipeline.workers.local_pool import LocalPool, load_once

    n_threads = torch.get_num_threads()
    monkeypatch.setattr("pipeline.extract.WorkerPool", LocalPool)
    monkeypatch.setattr("pipeline.second_pass.WorkerPool", LocalPool)
    monkeypatch.setattr("pipeline.workers.extractor.FrameEncoder", load_once)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that is hard to learn, for sweeps."""
    from tests.train.sweep.sweeps import hard_store

    return hard_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def small_batches() -> Iterator[None]:
    """Sweeps try three trials at once, on one thread."""
    from tests.train.sweep.sweeps import batches_of_three

    with batches_of_three():
        yield
