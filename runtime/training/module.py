"""``ttsnn.compile(…, training=True)``: a network whose forward and backward are compiled code."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttsnn.errors import DataError, ModelImportError
from ttsnn.passes.training import Slot, build_autograd
from ttsnn.runtime.tensors import kind_of
from ttsnn.runtime.training.code import TrainingCode, build_training, share, to_torch
from ttsnn.runtime.training.inference import InferenceBuild
from ttsnn.runtime.training.network import Network, arrays_of, frozen_norms, trained_names

__all__ = ["TrainableModule"]


class TrainableModule(nn.Module):
    """A PyTorch network whose forward and backward run compiled code.

    Parameters, buffers and their names are those of the network itself, which it shares (no
    copies): ``state_dict``, optimizers, schedulers, gradient clipping, ``requires_grad_`` and
    ``DistributedDataParallel`` see an ordinary module.

    - ``train()``: batch norms use and update statistics as PyTorch's do, ``num_batches_tracked``
      too; a batch norm in ``eval()`` keeps its statistics. The code is for one batch size: the
      first call with another one compiles again, and both are kept. Give ``drop_last=True`` to
      the ``DataLoader`` to avoid that for its last batch.
    - ``eval()``: runs the inference build, for any batch size; its results have no gradient.
      Changed weights are noticed at the next call (values are compared) and prepared again.

    Attributes:
        network: the PyTorch network that owns the weights.
        plan: its tensor-train plan, None where it is dense.
        activation_checkpointing: whether backward computes activations again.
        threads: CPU threads of each call; None: the process's default.
    """

    def __init__(
        self, network: Network, *, target: str = "cpu", activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self._adopt(network.module)
        # not registered: its parts are, under their own names
        self.__dict__["_source"] = network
        self.plan = network.plan
        self.target = target
        self.threads: int | None = None
        self._codes: dict[tuple, TrainingCode] = {}
        self._inference: dict[str, InferenceBuild] = {}
        self.training = network.module.training

    def _adopt(self, module: nn.Module) -> None:
        for name, parameter in module._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in module._buffers.items():
            persistent = name not in module._non_persistent_buffers_set
            self.register_buffer(name, buffer, persistent=persistent)
        for name, child in module.named_children():
            self.add_module(name, child)

    @property
    def network(self) -> nn.Module:
        """The PyTorch network, in the same mode, sharing all weights."""
        module = self.__dict__["_source"].module
        module.training = self.training
        return module

    def compile_for(self, x: Tensor) -> TrainingCode:
        """Compile the training code for inputs like this one now, rather than at the first call.

        Raises:
            DataError: shape or dtype do not fit the network.
        """
        return self._code(x, False)

    def forward(self, x: Tensor) -> Any:
        """Run the network: x [N, C, H, W] or [T, N, C, H, W], in the dtype of the weights."""
        self._check(x)
        if not self.training:
            return self._evaluate(x)
        code = self._code(x, x.requires_grad and torch.is_grad_enabled())
        named = dict(self.named_parameters())
        wanted = [s.name for s in code.manifest.functions["backward"].results if s.role == "grad"]
        outputs = _Call.apply(self, code, tuple(wanted), x, *(named[n] for n in wanted))
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, x: Any) -> None:
        if not isinstance(x, Tensor):
            raise DataError(f"the input must be a PyTorch tensor, got {type(x).__name__}")
        gpu = str(self.target).partition(":")[0] == "cuda"
        if x.device.type != "cpu" and not gpu:
            raise DataError(f"the input is on {x.device}; this network runs on the CPU: x.cpu()")
        for name, p in self.named_parameters():
            if p.device.type != "cpu" and not gpu:
                raise DataError(
                    f"parameter {name} is on {p.device}; this network runs on the CPU: net.cpu()"
                )
            if p.device != x.device:
                raise DataError(
                    f"the input is on {x.device}, parameter {name} on {p.device}: move one of them"
                )
            if p.is_floating_point() and x.dtype != p.dtype:
                raise DataError(
                    f"the input is {x.dtype}, parameter {name} is {p.dtype}; convert one of them"
                )
        spec = self.__dict__["_source"].input
        axis = spec.batch_axis
        n = int(x.shape[axis]) if x.dim() == len(spec.shape) else 0
        if n == 0 or tuple(x.shape) != spec.sized(n):
            sizes: list[Any] = list(spec.shape)
            sizes[axis] = "N"
            raise DataError(
                f"the input must be [{', '.join(map(str, sizes))}] with N of at least 1, got "
                f"{list(x.shape)}"
            )

    def _code(self, x: Tensor, input_grad: bool) -> TrainingCode:
        self._check(x)
        frozen, wanted = frozen_norms(self), trained_names(self)
        if not wanted:
            raise ModelImportError("the network has no parameter that requires a gradient")
        key = (tuple(x.shape), x.dtype, frozen, wanted, input_grad)
        if key not in self._codes:
            program = self.__dict__["_source"].program(x.detach())
            name = str(program["main"].params[0].name)
            mod = build_autograd(
                program,
                params=trained_names(self, program),
                inputs=[name] if input_grad else [],
                frozen_bn=frozen,
                activation_checkpointing=self.activation_checkpointing,
            )
            if any(s.role == "state" for s in mod_arguments(mod)):
                raise ModelImportError(
                    "the network carries state from call to call, which training does not "
                    "support; start each call from the same state in forward"
                )
            self._codes[key] = build_training(mod, self.target)
        return self._codes[key]

    def _run(self, code: TrainingCode, x: Tensor) -> dict[tuple[str, str], Any]:
        """Forward; batch norms' buffers are updated."""
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}

        def value(slot: Slot) -> Any:
            return share(x if slot.role == "input" else state[slot.name], slot)

        results = code.call("forward", value, self.threads, keep=("saved",), kind=kind_of(x))
        with torch.no_grad():
            for (role, name), new in results.items():
                if role == "buffer":
                    state[name].copy_(to_torch(new))
            for entry in code.manifest.batch_norm:
                count = state.get(f"{entry['name']}.num_batches_tracked")
                if count is not None:
                    count += int(entry["calls"])
        return results

    def _evaluate(self, x: Tensor) -> Any:
        dtype = str(x.dtype)
        if dtype not in self._inference:
            source: Network = self.__dict__["_source"]
            program = source.program(x.detach(), dynamic_batch=True)
            self._inference[dtype] = InferenceBuild(program, self.target, source.name)
        return self._inference[dtype].net(arrays_of(self))(x, threads=self.threads)

    def __deepcopy__(self, memo: dict) -> TrainableModule:
        """A copy with weights of its own; compiled code is shared where it does not matter."""
        from dataclasses import replace

        source: Network = self.__dict__["_source"]
        module = copy.deepcopy(source.module, memo)
        out = TrainableModule(
            replace(source, module=module),
            target=self.target,
            activation_checkpointing=self.activation_checkpointing,
        )
        out.threads = self.threads
        out._codes = dict(self._codes)
        out.training = self.training
        return out

    def __getstate__(self) -> Any:
        raise TypeError(
            "compiled networks are not pickled; save net.state_dict(), and compile again"
        )

    def extra_repr(self) -> str:
        return f"compiled for {self.target}"


def mod_arguments(mod: Any) -> list[Slot]:
    """Slots of all arguments of a training program."""
    from ttsnn.passes.training import Manifest

    return [s for f in Manifest.of(mod).functions.values() for s in f.arguments]


class _Call(torch.autograd.Function):
    """Forward and backward of one call, as compiled code."""

    @staticmethod
    def forward(
        ctx: Any,
        module: TrainableModule,
        code: TrainingCode,
        names: tuple[str, ...],
        x: Tensor,
        *params: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.buffers = _needed_buffers(module, code)
        results = module._run(code, x)
        ctx.code, ctx.names, ctx.threads = code, names, module.threads
        # PyTorch checks that nobody changes these before backward
        ctx.save_for_backward(x, *params)
        ctx.saved = {k: v for k, v in results.items() if k[0] == "saved"}
        outputs = {name: to_torch(v) for (role, name), v in results.items() if role == "output"}
        ctx.outputs = list(outputs)
        ctx.set_materialize_grads(True)
        return tuple(outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *params = ctx.saved_tensors
        named = dict(zip(ctx.names, params, strict=True))
        given = dict(zip(ctx.outputs, grads, strict=True))

        def value(slot: Slot) -> Any:
            if slot.role == "saved":
                return ctx.saved[slot.role, slot.name]
            if slot.role == "grad_output":
                return share(given[slot.name], slot)
            if slot.role == "input":
                return share(x, slot)
            return share(named[slot.name] if slot.role == "param" else ctx.buffers[slot.name], slot)

        results = ctx.code.call("backward", value, ctx.threads, kind=kind_of(x))
        inputs = [to_torch(v) for (role, _), v in results.items() if role == "grad_input"]
        out = {name: to_torch(v) for (role, name), v in results.items() if role == "grad"}
        return (None, None, None, inputs[0] if inputs else None, *(out[n] for n in ctx.names))


def _needed_buffers(module: TrainableModule, code: TrainingCode) -> dict[str, Tensor]:
    """Copies of the buffers and frozen parameters that backward reads: they may change by then."""
    needed = {s.name for s in code.manifest.functions["backward"].arguments if s.role == "buffer"}
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {n: state[n].detach().clone() for n in needed}
