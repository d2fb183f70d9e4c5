"""What the face CNN starts its training from: ImageNet's weights, or those of a face CNN."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from features.networks.context_cnn import read_squeezenet_state
from features.networks.face_cnn import FaceCNN, read_face_cnn

_FIRE_INDEX = (3, 4, 6, 7, 9, 10, 11, 12)
"""Where torchvision's squeezenet1_1 keeps fire modules 2 to 9 in its ``features``."""


def init_from_weights(net: FaceCNN, path: Path) -> None:
    """Give the network what a file of weights holds of it: the trunk at least.

    The embedding follows where the file has one, and with it each classifier whose classes are
    those of the network. Raises WeightsError.
    """
    source = read_face_cnn(path)
    known = ["stem", "fires"]
    if source.embedding is not None:
        known.append("embedding")
        if source.classes == net.classes:
            known.append("classifier")
        known += [
            f"source_classifiers.{name}"
            for name, classes in net.sources.items()
            if source.sources.get(name) == classes
        ]
    state = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if any(name.startswith((f"{part}.", f"{part}_")) for part in known)
    }
    net.load_state_dict(state, strict=False)


def init_from_imagenet(net: FaceCNN, faces: Tensor) -> None:
    """Give the trunk the ImageNet weights of SqueezeNet 1.1, and make it work like that network.

    The normalisation layers, which SqueezeNet lacks, start as the identity on ``faces``
    ([B, 1, 128, 128], normalised training pictures): factor and offset are the spread and mean met
    there.
    The kernels of the first layer are summed over the colours, since all three are the same here.

    Raises:
        WeightsError: the ``ndf`` package or its weights are missing.
    """
    state = read_squeezenet_state()
    with torch.no_grad():
        net.stem.weight.copy_(state["features.0.weight"].sum(1, keepdim=True))
        net.stem.bias.copy_(state["features.0.bias"])  # type: ignore[union-attr]
    for fire, index in zip(net.fires, _FIRE_INDEX, strict=True):
        prefix = f"features.{index}."
        part = {
            name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)
        }
        fire.load_state_dict(part, strict=False)

    def start_as_identity(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        fresh = {"running_mean": mean, "running_var": variance, "bias": mean}
        fresh["weight"] = (variance + 1e-5).sqrt()
        norm.load_state_dict(fresh, strict=False)

    trunk = [net.stem_norm, *net.fires.modules()]
    norms = [module for module in trunk if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(start_as_identity) for norm in norms]
    net.eval()
    with torch.no_grad():
        net.embed_normalised(faces)
    for hook in hooks:
        hook.remove()
