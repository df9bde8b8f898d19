"""Run by torchrun in the test: trains a few updates, and process 0 writes the weights."""

import sys

import numpy as np
import torch.distributed as dist
from safetensors.numpy import save_file
from training_small import mlp, samples

from ttsnn import models
from ttsnn.passes.training import SGD
from ttsnn.runtime.training.trainer import Trainer


def run(batch, folder=None):
    """Three updates with frozen batch norms."""
    x, y = samples(24)
    model = models.calibrate(mlp(), x)
    trainer = Trainer(
        model,
        (x, y),
        batch=batch,
        epochs=1,
        lr=0.05,
        optimizer=SGD(momentum=0.9),
        clip_norm=0.5,
        frozen_bn=True,
        folder=folder,
        threads=1,
        progress=False,
    )
    assert trainer.total_steps >= 3
    losses = [trainer.train_step().loss for _ in range(3)]
    state = {k: v.numpy() for k, v in trainer.state_dict().items()}
    return trainer.exchange, {**state, "losses": np.array(losses)}


if __name__ == "__main__":
    exchange, result = run(4)
    save_file(result, f"{sys.argv[1]}/rank{exchange.rank}.safetensors")
    assert dist.get_world_size() == 2
    exchange.close()
