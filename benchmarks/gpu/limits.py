"""Data sheets of GPUs, and what share of them a time is."""

from __future__ import annotations

LIMITS = {
    # name in torch.cuda.get_device_name: (float32, tf32, bf16 and fp16: FLOP/s; bytes/s), dense
    "H200": (67e12, 495e12, 989e12, 4.8e12),
    "H100": (67e12, 495e12, 989e12, 3.35e12),
    "A100": (19.5e12, 156e12, 312e12, 2.0e12),
}
RATE_OF = {"fp32": 0, "tf32": 1}
LAUNCH = 2e-6  # seconds of the smallest kernel


def shares(precision: str, macs: float, size: float, ms: float, device: str) -> dict[str, float]:
    """Of the data sheet's arithmetic and bandwidth; empty for a device that is not listed."""
    limit = next((v for k, v in LIMITS.items() if k in device), None)
    if limit is None:
        return {}
    seconds = ms / 1e3
    return {
        "of_flops": 2 * macs / seconds / limit[RATE_OF.get(precision, 2)],
        "of_bandwidth": size / seconds / limit[3],
    }
