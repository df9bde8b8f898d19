"""Who is timed: the compiled program, and PyTorch in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu.cases import LR, MOMENTUM, Case, batch_of, dense_network, twin
from gpu.names import OURS
from gpu.store import Store, loaded

Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """One case on one device, and what its contenders share.

    Attributes:
        case: the case.
        about: its entry in the index.
        folder: where its files are.
        device: PyTorch's.
        x, labels: there.
    """

    case: Case
    about: dict[str, Any]
    folder: Path
    device: str
    x: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, about: dict[str, Any], folder: Path, device: str) -> Setting:
        """With the inputs on the device."""
        case = Case.of(about)
        x, labels = batch_of(case, dense_network(case, calibrated=False))
        return cls(case, about, folder, device, x.to(device), labels.to(device))

    def twin(self) -> torch.nn.Module:
        """The PyTorch network that was compiled, on the device."""
        weights = Store(self.folder).get(self.about["weights"])
        return twin(self.case, self.about["plan"], weights).to(self.device)

    def compiled(self, kind: str = "ttsnn") -> Any:
        """The compiled network or step; ``"spikes.ttsnn"``: that which returns spikes."""
        names = self.about["artifacts"][kind]
        return loaded(self.case.file(self.folder, kind), names, Store(self.folder))


def make(name: str, setting: Setting) -> Call:
    """A contender's call: inference, or one update; returns logits, or the loss."""
    if name == OURS:
        return ours(setting)
    torch.backends.cuda.matmul.allow_tf32 = setting.case.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = setting.case.precision == "tf32"
    return peer(name, setting)


def ours(setting: Setting) -> Call:
    """The compiled program."""
    program = setting.compiled()
    if setting.case.phase == "inference":
        return lambda: program(setting.x)
    return lambda: program(setting.x, setting.labels, LR)[0]


def peer(name: str, setting: Setting) -> Call:
    """PyTorch."""
    from ttsnn.models import set_time_execution

    case = setting.case
    dense, plain = name.startswith("dense_"), name.removeprefix("dense_")
    model = dense_network(case).to(setting.device) if dense else setting.twin()
    set_time_execution(model, "loop" if plain.endswith("loop") else "folded")
    call: Callable[[torch.Tensor], Any] = model
    if plain == "spikingjelly":
        call = with_spikingjelly(model)
    elif plain == "inductor":
        call = torch.compile(model)
    elif plain == "inductor_graph":
        call = torch.compile(model, mode="reduce-overhead")
    return train(model, call, setting) if case.phase == "train" else infer(model, call, setting)


def autocast(setting: Setting) -> torch.autocast:
    """For the precisions that PyTorch has so."""
    precision = setting.case.precision
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(setting.device, dtype, enabled=precision in ("bf16", "fp16"))


def infer(model: torch.nn.Module, call: Callable, setting: Setting) -> Call:
    """A call of a network in eval mode."""
    model.eval()

    def run() -> Any:
        with torch.inference_mode(), autocast(setting):
            return call(setting.x)

    return run


def train(model: torch.nn.Module, call: Callable, setting: Setting) -> Call:
    """An update by SGD with momentum."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with autocast(setting):
            loss = torch.nn.functional.cross_entropy(call(setting.x), setting.labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def with_spikingjelly(model: torch.nn.Module) -> Callable[[torch.Tensor], Any]:
    """Put SpikingJelly's neurons, over all timesteps, in place of ours; what calls the network.

    They fire at the threshold too, where ours fire above it, and have the arctan surrogate: for
    our rectangle SpikingJelly has no Triton kernel. So gradients differ; what is measured is time.
    """
    from spikingjelly.activation_based import functional, neuron, surrogate

    from ttsnn.models import LIF

    def node(lif: LIF) -> torch.nn.Module:
        a = lif.attrs
        if (a.form, a.reset, a.reset_timing) != ("multiply", "hard", "after_fire"):
            raise ValueError(f"no SpikingJelly neuron for {lif}")
        settings: dict[str, Any] = {"v_threshold": a.v_threshold, "v_reset": a.v_reset}
        settings |= {"tau": 1 / (1 - a.decay), "decay_input": False, "step_mode": "m"}
        settings["surrogate_function"] = surrogate.ATan()
        return neuron.LIFNode(detach_reset=a.detach_reset, **settings)

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LIF):
                setattr(parent, name, node(child))

    def call(x: torch.Tensor) -> Any:
        functional.reset_net(model)
        return model(x)

    return call
