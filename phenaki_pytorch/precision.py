"""The precision that autocast, where it is on, asks of a device."""

import torch
from torch import Tensor


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes in on a kind of device; None where it is off, or where the device has none."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def as_autocast(x: Tensor) -> Tensor:
    """In autocast's precision, where it is on."""
    return x.to(autocast_dtype(x.device.type) or x.dtype)
