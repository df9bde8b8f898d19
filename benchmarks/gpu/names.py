"""Names of the contenders."""

from __future__ import annotations

PEERS = {
    "eager_loop": "layer by layer in a loop over time, as published code runs",
    "eager_folded": "time in the batch",
    "inductor": "that by torch.compile",
    "inductor_graph": "that with CUDA graphs (mode reduce-overhead); inference at batch 1",
    "spikingjelly": "time in the batch, SpikingJelly's neurons (Triton's on a GPU)",
    "dense_loop": "the network without tensor trains, as eager_loop",
    "dense_folded": "the same, as eager_folded",
    "dense_inductor": "the same, as inductor",
}
OURS = "ttsnn"
ORDER = (
    OURS,
    "dense_folded",
    "inductor",
    "eager_folded",
    "inductor_graph",
    "dense_inductor",
    "dense_loop",
    "eager_loop",
    "spikingjelly",
)
"""The most telling first: time may be over before the last."""
