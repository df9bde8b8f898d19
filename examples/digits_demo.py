"""The main job on real images: train, decompose, compile, run, compare.

A spiking MS-ResNet18 (half width, T = 4) learns scikit-learn's digits in an ordinary PyTorch loop
whose forward and backward are compiled; its 3×3 convolutions become parallel tensor trains (PTT)
by a plan, which are trained some more; ttsnn compiles the result for this CPU, runs it on the test
images, and compares it with the PyTorch twin and with the dense network.

    python examples/digits_demo.py [--epochs N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

import ttsnn
from ttsnn import models
from ttsnn.cli.compare import show_comparison

IMAGE_SIZE, WIDTH, T, BATCH = 16, 32, 4, 32


def train(network: torch.nn.Module, data: models.SpikingDataset, epochs: int, rate: float) -> None:
    """A plain PyTorch loop around compiled gradients, which train the network's own parameters."""
    compiled = ttsnn.compile(network, data.images[:BATCH], training=True)
    steps = epochs * (len(data) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    batches = (
        batch
        for epoch in range(epochs)
        for batch in data.batches(BATCH, shuffle=True, seed=epoch)
        if len(batch[0]) == BATCH  # each batch size is compiled anew
    )
    compiled.train()
    for images, labels in track(batches, "  training", total=steps, transient=True):
        loss = F.cross_entropy(compiled(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


def accuracy(network, data: models.SpikingDataset) -> float:
    """Share of right answers; ``network`` is a PyTorch module or a compiled network."""
    with torch.no_grad():
        hits = sum(int((network(x).argmax(1) == y).sum()) for x, y in data.batches(BATCH))
    return hits / len(data)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=2, help="of training, dense and PTT each")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.manual_seed(0)

    train_data = models.load_dataset("digits", image_size=IMAGE_SIZE)
    test_data = models.load_dataset("digits", split="test", image_size=IMAGE_SIZE)
    console.print(f"[bold]1. Train[/bold] with compiled gradients on {len(train_data)} digits")
    dense = models.create("ms_resnet18", "digits", T=T, image_size=IMAGE_SIZE, width=WIDTH)
    train(dense, train_data, args.epochs, 0.1)
    console.print(f"  dense: {accuracy(dense, test_data):.1%} of {len(test_data)} test digits")

    console.print("[bold]2. Tensor trains[/bold]: plan, fit the cores, train on")
    plan = ttsnn.plan(dense, "ratio=8", mode="ptt")
    twin = models.apply_plan(dense, plan)
    train(twin, train_data, args.epochs, 0.05)
    console.print(f"  PTT: {accuracy(twin, test_data):.1%}, {len(plan)} layers decomposed")

    console.print("[bold]3. Compile[/bold] for the CPU, save, load, run")
    artifact = args.out / "digits.ttsnn"
    start = time.perf_counter()
    ttsnn.compile(twin, test_data.images[:1], dynamic_batch=True, out=artifact)
    console.print(f"  {artifact} in {time.perf_counter() - start:.1f} s")
    net = ttsnn.load(artifact)
    console.print(f"  compiled: {accuracy(net, test_data):.1%} of the test digits")

    console.print("[bold]4. Compare[/bold] with PyTorch, on test digits")
    result = ttsnn.compare(
        twin,
        dense=dense,
        x=test_data.images[:BATCH],
        against="eager,eager_loop,onnxruntime,dense_eager,dense_loop,dense_onnxruntime",
    )
    show_comparison(console, result)
    if not result["ok"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
