"""Models of PyTorch that several tests quantize and compare. Exporting one takes seconds, so a session does it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.graph.torch_export import export_torch


def resnet18() -> Any:
    return _randomized("resnet18")


def mobilenet_v3_small() -> Any:
    return _randomized("mobilenet_v3_small")


def mobilenet_v2() -> Any:
    return _randomized("mobilenet_v2")


def encoder() -> Any:
    """Return a small language model's encoder: embedding, attention with LayerNorm, a head."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = torch.nn.TransformerEncoderLayer(
                64, nhead=4, dim_feedforward=128, batch_first=True, activation="gelu"
            )
            self.embedding = torch.nn.Embedding(100, 64)
            self.encoder = torch.nn.TransformerEncoder(layer, num_layers=2)
            self.head = torch.nn.Linear(64, 10)

        def forward(self, tokens: Any) -> Any:
            return self.head(self.encoder(self.embedding(tokens)).mean(dim=1))

    torch.manual_seed(0)
    return Encoder()


def _randomized(name: str) -> Any:
    """Give every BatchNorm statistics that are not those of a new one, which would fold into nothing."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean = 0.1 * torch.randn(size, generator=generator)
            module.running_var = 0.5 + torch.rand(size, generator=generator)
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = 0.1 * torch.randn(size, generator=generator)
    return model


def inputs_of(name: str, side: int, batch: int = 2) -> dict[str, NDArray[Any]]:
    """Return noise for a model of this file: images, (batch, 3, side, side), or tokens."""
    rng = np.random.default_rng(0)
    if name == "encoder":
        return {"tokens": rng.integers(0, 100, (batch, 16))}
    return {"x": rng.standard_normal((batch, 3, side, side)).astype(np.float32)}


def export(name: str, side: int, path: Path) -> None:
    """Write a model of this file, for any batch."""
    export_torch(f"{__file__}:{name}", inputs_of(name, side), path)
