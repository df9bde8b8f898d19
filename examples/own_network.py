"""A spiking network of your own: compile it, check it, compare it with PyTorch.

    python examples/own_network.py [--plan RULE] [--out FILE]

The same network by its factory, on the command line:

    ttsnn compare examples.own_network:build --plan rank=4 --mode stt --against eager --repeats 3
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import ttsnn
from ttsnn.models import LIF, calibrate


class OwnNetwork(nn.Module):
    """Two spiking convolutions and a classifier, for images [N, 1, 16, 16].

    ``T`` and ``input_shape`` tell ttsnn how many timesteps there are and which input to try the
    network with. Layers without state see time folded into the batch; the neurons see [T, N, …].
    """

    def __init__(self, T: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.T, self.input_shape, self.static_input = T, (1, 16, 16), True
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.lif1 = LIF(tau=2.0)  # SpikingJelly's LIFNode
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.lif2 = LIF(beta=0.9)  # snnTorch's Leaky
        self.head = nn.Linear(32, num_classes)

    def _neuron(self, lif: LIF, x: Tensor) -> Tensor:
        """[T·N, …] → spikes [T·N, …]."""
        return lif(x.reshape(self.T, -1, *x.shape[1:])).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 16, 16] → logits [N, classes]."""
        x = x.unsqueeze(0).expand(self.T, *x.shape).flatten(0, 1)
        x = self._neuron(self.lif1, self.bn1(self.conv1(x)))
        x = self._neuron(self.lif2, self.bn2(self.conv2(x)))
        logits = self.head(x.mean((2, 3)))
        return logits.reshape(self.T, -1, logits.shape[1]).mean(0)


def build(T: int = 4, num_classes: int = 10) -> OwnNetwork:
    """The network with random weights and sane batch-norm statistics, in eval mode."""
    network = OwnNetwork(T, num_classes)
    noise = torch.randn(16, *network.input_shape, generator=torch.Generator().manual_seed(0))
    return calibrate(network, noise).eval()


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", default="rank=4", help="plan of the tensor trains")
    parser.add_argument("--out", type=Path, help="keep the compiled network there")
    args = parser.parse_args()
    torch.manual_seed(0)
    network = build()
    x = torch.randn(3, *network.input_shape)

    # dense: the compiled network computes what PyTorch computes
    dense = ttsnn.compile(network, x)
    with torch.no_grad():
        error = (dense(x) - network(x)).abs().max().item()
    print(f"dense: largest difference to PyTorch {error:.1e}")

    # tensor trains: choose ranks, look at the plan, compile, save, load, run
    plan = ttsnn.plan(network, args.plan, mode="stt", example=x)
    for name, layer in plan.layers.items():
        print(f"{name}: {layer.mode} with ranks {layer.ranks}")
    with tempfile.TemporaryDirectory() as folder:
        path = args.out or Path(folder) / "own.ttsnn"
        ttsnn.compile(network, x, plan=plan, dynamic_batch=True, out=path)
        net = ttsnn.load(path)
        print(f"{net} from {path.stat().st_size} bytes")
        print(f"classes of one image: {net(x[:1]).argmax(1).tolist()}")

    # the checks of `ttsnn compare`: every spike and the logits against the PyTorch twin
    result = ttsnn.compare(
        network, plan=plan, x=x.double(), dtype="float64", against="none", threads=1
    )
    print(f"twin: {result['flipped_spikes']} of {result['total_spikes']} spikes differ")
    if not result["ok"]:
        raise SystemExit("the compiled network and its PyTorch twin do not agree")


if __name__ == "__main__":
    main()
