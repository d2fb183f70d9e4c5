"""The face vector after training: equal spread within classes, more between them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from features.networks.face_cnn import FaceCNN


def balance_vector(
    net: FaceCNN,
    vectors: NDArray[np.float32],
    groups: NDArray[np.intp],
    labels: NDArray[np.intp],
    *,
    shrinkage: float,
    gain: float,
) -> None:
    """Change the vector's basis, and the classifiers with it, so that all logits stay as they are.

    A few values of a trained vector vary far more than the rest, most by who is seen and how. Small
    models on top learn first what varies most. So the vector is scaled to equal spread within a
    class (within-class covariance normalisation, Hatch et al. 2006), and the directions in which
    the means of classes differ are stretched. Nothing is lost: the change can be undone.

    Args:
        net: With an embedding; changed in place.
        vectors: [N, 512] Of some training pictures.
        groups: [N] Pictures of one set and class have one number: the spread is within these.
        labels: [N] Classes: the means that differ are of these.
        shrinkage: Share of the mean variance that is added to all variances before they are
            made equal: 0 would blow up noise, much more leaves the vector as it is.
        gain: By which the directions between classes are stretched.

    Raises:
        ValueError: the network has no embedding.
    """
    if net.embedding is None:
        raise ValueError("the vector of a network without an embedding cannot be changed")
    x = vectors.astype(np.float64)
    mean = x.mean(0)
    within = np.zeros((x.shape[1], x.shape[1]))
    for group in np.unique(groups):
        part = x[groups == group]
        within += (part - part.mean(0)).T @ (part - part.mean(0))
    variance, directions = np.linalg.eigh(within / len(x))
    added = shrinkage * variance.mean()
    change = (directions / np.sqrt(variance.clip(0) + added)) @ directions.T
    centred = (x - mean) @ change
    between = np.zeros_like(within)
    for label in np.unique(labels):
        part = centred[labels == label]
        between += len(part) / len(x) * np.outer(part.mean(0), part.mean(0))
    n_directions = len(np.unique(labels)) - 1
    apart = np.linalg.eigh(between)[1][:, x.shape[1] - n_directions :]
    change = change @ (np.eye(len(change)) + (gain - 1) * apart @ apart.T)
    change /= np.sqrt(((x - mean) @ change).var(0).mean())
    _fold(net, torch.from_numpy(mean), torch.from_numpy(change))


@torch.no_grad()
def _fold(net: FaceCNN, mean: torch.Tensor, change: torch.Tensor) -> None:
    """Make the vector (vector - mean) @ change, by the layers that are there."""
    assert net.embedding is not None
    linear, norm = net.embedding.linear, net.embedding.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    weight = change.T @ (linear.weight.double() / deviation[:, None])
    norm.running_mean.copy_(change.T @ (norm.running_mean.double() / deviation + mean))
    norm.running_var.fill_(1 - norm.eps)
    linear.weight.copy_(weight)
    undone = torch.linalg.inv(change)
    classifiers = [net.classifier, *net.source_classifiers.values()]
    for classifier in classifiers:
        assert isinstance(classifier, nn.Linear)
        old = classifier.weight.double()
        classifier.bias.add_(old @ mean)
        classifier.weight.copy_(old @ undone.T)
