"""A trained head from its run folder: the network with the weights that were kept."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load_file

from features.errors import RunError
from train.heads.build import shape_head
from train.heads.layers import Head
from train.runs.folder import DamagedRunError, Run
from train.streams import NETWORKS


def read_head(run: Run) -> Head:
    """The head of a run, on the CPU: its weights, and the scales of its streams where it has them.

    Args:
        run: As ``train.runs.folder.read_run`` gives it.

    Raises:
        RunError: It is an ensemble, or of a head that this code does not know; its weights cannot
            be read, or are of other streams and classes than it says.
    """
    name = run.summary.head
    if name not in NETWORKS:
        raise RunError(f"{run.path}: head {name} is no network. Known: {', '.join(NETWORKS)}.")
    head = shape_head(
        name,
        {stream: tuple(told["shape"]) for stream, told in run.config["streams"].items()},
        len(run.config["store"]["classes"]),
        standardise=run.config["settings"].get("standardise") == "on",
    )
    try:
        head.load_state_dict(load_file(run.weights_path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DamagedRunError(
            f"{run.weights_path}: not the weights that config.json tells of ({error}). Copy the "
            "folder again, or move it away and run fit again."
        ) from error
    return head.eval()
