"""Event frames [T, N, C, H, W]: a network of the zoo at once, and one with state frame by frame.

    python examples/event_frames.py

The events are made from moving digits, so that nothing has to be downloaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ttsnn
from ttsnn import models

T, CLASSES, SIZE = 6, 10, 16


class Streaming(nn.Module):
    """One spiking convolution whose membrane outlives the call: state is a buffer.

    [T, N, 2, 16, 16] → membrane of the classes' integrators [N, 10] after the last frame.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.lif = models.LIF(return_state=True)
        self.head = nn.Linear(8, CLASSES)
        self.register_buffer("v", torch.zeros(batch, 8, SIZE // 2, SIZE // 2))
        self.register_buffer("total", torch.zeros(batch, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """One chunk of frames; ``v`` and ``total`` go on from the chunk before."""
        steps, batch = x.shape[:2]
        y = self.conv(x.flatten(0, 1)).reshape(steps, batch, *self.v.shape[1:])
        spikes, v = self.lif(y, self.v)
        self.v.copy_(v)
        self.total.add_(self.head(spikes.mean((3, 4))).sum(0))
        return self.total.clone()


def main() -> None:
    """Run the example."""
    digits = models.load_dataset("digits", split="test", image_size=SIZE, normalize=False)
    images, labels = digits.batch(range(4))
    frames = models.event_frames_from_images(images, T)
    print(f"frames {list(frames.shape)}, {frames.mean():.2f} events a pixel")

    # all T frames in one call; the zoo's event networks take [T, N, C, H, W]
    network = models.create(
        "spiking_mlp", "ncaltech101", T=T, image_size=SIZE, num_classes=CLASSES, seed=0
    )
    models.calibrate(network, frames)
    net = ttsnn.compile(network, frames, plan="rank=8", record_spikes=True)
    logits, *spikes = net(frames)
    print(f"{net}")
    print(f"classes {logits.argmax(1).tolist()} (random weights), labels {labels.tolist()}")
    for name, fired in zip(net.manifest.spikes, spikes, strict=True):
        print(f"{name}: {fired.mean():.1%} fire")

    # frame by frame: buffers that the network updates are state that the compiled net carries
    torch.manual_seed(0)
    stream = Streaming(len(labels)).eval()
    compiled = ttsnn.compile(stream, frames[:1])
    for frame in frames:
        total = compiled(frame.unsqueeze(0))
    with torch.no_grad():
        expected = stream(frames)
    print(f"state: {', '.join(f'{k} {list(v.shape)}' for k, v in compiled.state.items())}")
    error = (total - expected).abs().max().item()
    print(f"{T} calls with one frame against one call with {T}: difference {error:.1e}")
    if error > 1e-4 * expected.abs().max().item():
        raise SystemExit("the stream and the whole do not agree")
    compiled.reset()


if __name__ == "__main__":
    main()
