"""``ttsnn.compile``, ``ttsnn.plan``, ``ttsnn.compare``: the whole way from model to artifact.

import  ->  (expose spikes)  ->  decompose by plan  ->  target.lower  ->  target.build
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm

from ttsnn import __version__
from ttsnn.artifact import KernelEntry, Manifest, StateEntry, write_artifact
from ttsnn.calibration import check_calibration, firing_rates
from ttsnn.debugging import instruments
from ttsnn.errors import ArtifactError, DataError, ModelImportError, TTSNNError
from ttsnn.files import check_room
from ttsnn.program import params_of
from ttsnn.runtime.cpu import from_llvm
from ttsnn.runtime.net import Net
from ttsnn.sources import ModelOptions, ModelSource, resolve
from ttsnn.specs import TensorSpec

if TYPE_CHECKING:
    from ttsnn.targets import Target

__all__ = [
    "CompiledModel",
    "build",
    "compare",
    "compile",
    "decompose",
    "example_of",
    "import_source",
    "link_library",
    "make_plan",
    "plan",
    "target_entry",
    "versions",
]

_META = "ttsnn.meta"
_LINK_BYTES = 32 << 20  # objects and library of the largest networks so far, several times over


class CompiledModel(Net):
    """A network compiled in this process: call it, ``save`` it.

    Attributes:
        program: the lowered module that the code was generated from.
        compile_s: seconds that each step took.
    """

    def __init__(
        self, executable: Any, manifest: Manifest, program: tvm.IRModule, compile_s: dict
    ) -> None:
        super().__init__(executable, manifest, params_of(program))
        self.executable = executable
        self.program = program
        self.compile_s = compile_s

    @property
    def kernels(self) -> tuple[KernelEntry, ...]:
        """What the code consists of."""
        return self.manifest.kernels

    def save(self, path: str | os.PathLike) -> int:
        """Write the ``.ttsnn`` file; returns its size in bytes.

        Raises:
            ArtifactError: it cannot be linked or written; nothing half-written stays.
        """
        library = link_library(self.executable)
        return write_artifact(path, self.manifest, params_of(self.program), library)


def compile(
    model: Any,
    example: Any = None,
    *,
    target: str = "cpu",
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    seed: int = 0,
    dtype: str | None = None,
    dynamic_batch: bool = False,
    batch: int = 1,
    record_spikes: bool = False,
    out: str | os.PathLike | None = None,
    dump_ir: str | os.PathLike | None = None,
    options: ModelOptions | None = None,
    training: bool = False,
    activation_checkpointing: bool = False,
    database: str | os.PathLike | bool | None = None,
    calibration: Any = None,
) -> Any:
    """Compile a spiking network.

    Args:
        model: what :func:`ttsnn.sources.resolve` accepts: a ``torch.nn.Module``, a zoo name,
            ``"package.module:factory"``, a ``.pt2`` or ``.onnx`` file.
        example: example input, [N, C, H, W] or [T, N, C, H, W]; by default random, of the shape
            that the network declares, with ``batch`` samples.
        target: name of a target, with options: ``"cpu"``, ``"cpu:mcpu=x86-64-v3"``.
        plan: None (stay dense), a rule's text (``"vbmf"``, ``"rank=16"`` …), a plan file, or a
            :class:`ttsnn.plans.TTPlan`.
        mode: ``"stt"``, ``"ptt"`` or ``"htt"``, for rules.
        init: ``"fit"`` the cores to the dense weights, or ``"fresh"`` ones.
        seed: of fresh cores and random weights.
        dtype: ``"float32"`` or ``"float64"``; that of the example by default.
        dynamic_batch: leave the batch size open.
        batch: samples of the default example.
        record_spikes: return the spikes [T, N, …] of every neuron after the outputs.
        out: also write the artifact there.
        dump_ir: folder for the IR after every pass.
        options: how to resolve ``model``, where it is a name.
        training: give a ``torch.nn.Module`` to train instead, see
            :class:`ttsnn.runtime.training.module.TrainableModule`. Without a plan it shares the
            model's weights. Its batch size comes with each call; ``out``, ``record_spikes`` and
            ``dynamic_batch`` are for inference alone.
        activation_checkpointing: with ``training``: backward computes activations again instead
            of keeping them. Less memory, more time, the same bits.
        database: folder of records of :func:`ttsnn.tune` for the target; None takes those of the
            default place, if any; False takes none.
        calibration: inputs like those that the network will get, an array or tensor with any
            number of samples (a sequence or mapping for several inputs), or ``"example"`` for the
            example. How often layers spike on them decides which become event-driven; without
            it none does.

    Returns:
        The network, ready to be called: a :class:`CompiledModel`, or a ``torch.nn.Module`` to
        train.

    Raises:
        TTSNNError: one of its kinds, naming what is wrong and what to do.
    """
    from ttsnn.targets import get_target

    get_target(target)  # what is impossible should fail before minutes of work
    if training:
        if out is not None or record_spikes or dynamic_batch or calibration is not None:
            raise DataError(
                "training=True goes without out, record_spikes, dynamic_batch and calibration; "
                "compile the trained network again for inference"
            )
        network = {"plan": plan, "mode": mode, "init": init, "seed": seed, "dtype": dtype}
        return _trainable(
            model,
            example,
            target,
            {**network, "options": options},
            activation_checkpointing,
            dump_ir,
        )
    if activation_checkpointing:
        raise DataError("activation_checkpointing goes with training=True")
    if out is not None:
        _check_folder(Path(out))
    if calibration is not None:
        check_calibration(target, calibration)
    source = resolve(model, options or ModelOptions(seed=seed), probe=example is None)
    watch = _Stopwatch()
    with instruments(dump_ir):
        with watch("import"):
            example = example_of(source, example, dtype, batch)
            mod = import_source(source, example, dtype=dtype, dynamic_batch=dynamic_batch)
        chosen, plan = source.plan, source.plan_to_apply(plan, mode)
        if plan is not None:
            with watch("decompose"):
                chosen = make_plan(mod, plan, mode)
                mod = decompose(mod, chosen, init=init, seed=seed)
        rates = None
        if calibration is not None:
            with watch("calibrate"):
                rates = firing_rates(mod, calibration, example)
        net = build(
            mod,
            target,
            name=source.name,
            plan=chosen,
            record_spikes=record_spikes,
            watch=watch,
            database=database,
            firing_rates=rates,
        )
    if out is not None:
        with watch("save"):
            net.save(out)
    return net


def _trainable(
    model: Any,
    example: Any,
    target: str,
    settings: dict[str, Any],
    activation_checkpointing: bool,
    dump_ir: str | os.PathLike | None,
) -> Any:
    """A module to train, compiled for the example where one is given."""
    from ttsnn.runtime.training.module import TrainableModule
    from ttsnn.runtime.training.network import network_of

    network = network_of(model, example, **settings)
    module = TrainableModule(
        network, target=target, activation_checkpointing=activation_checkpointing
    )
    module.train()
    if example is not None:
        with instruments(dump_ir):
            module.compile_for(example)
    return module


def import_source(
    source: ModelSource,
    example: Any = None,
    *,
    dtype: str | None = None,
    dynamic_batch: bool = False,
    batch: int = 1,
) -> tvm.IRModule:
    """A resolved network as a program.

    Raises:
        ModelImportError: it cannot be imported, or is a compiled artifact already.
    """
    from ttsnn.frontend import import_model

    if source.kind == "ttsnn":
        raise ModelImportError(f"{source.path}: compiled already; give the network itself")
    return import_model(
        source.module if source.kind == "module" else source.path,
        example=example_of(source, example, dtype, batch),
        dynamic_batch=dynamic_batch,
        dtype=dtype,
        batch_dim=source.input.batch_axis if source.input is not None else None,
    )


def example_of(source: ModelSource, example: Any, dtype: str | None, batch: int) -> Any:
    """The example input of a network: the given one, else a random one; None for files, which
    say themselves what they take.
    """
    if example is None and source.kind == "module":
        return source.example(batch, dtype or "float32", source.options.seed)
    return example


def make_plan(mod: tvm.IRModule, plan: Any, mode: str = "ptt") -> Any:
    """A :class:`ttsnn.plans.TTPlan` for a program from a rule, a file or a plan.

    Raises:
        PlanError: unknown rule, unreadable file, or a plan that does not fit the network.
    """
    from ttsnn.passes import layer_infos
    from ttsnn.plans import plan_for

    return plan_for(plan, layer_infos(mod), mode, T=_meta(mod).get("T"))


def decompose(mod: tvm.IRModule, plan: Any, *, init: str = "fit", seed: int = 0) -> tvm.IRModule:
    """Apply a plan to a program; a plan without layers changes nothing."""
    from ttsnn.passes import DecomposeToTT

    return DecomposeToTT(plan, init=init, seed=seed)(mod) if len(plan) else mod


def build(
    mod: tvm.IRModule,
    target: str | Target = "cpu",
    *,
    name: str = "network",
    plan: Any = None,
    record_spikes: bool = False,
    watch: _Stopwatch | None = None,
    database: str | os.PathLike | bool | None = None,
    firing_rates: Mapping[str, float] | None = None,
    expose_rates: bool = False,
) -> CompiledModel:
    """Compile a program (imported, decomposed) for a target.

    ``firing_rates`` (of :func:`ttsnn.calibration.firing_rates`) and ``expose_rates`` are for
    targets that take them.
    """
    from ttsnn.targets import get_target
    from ttsnn.tuning.lookup import look_up

    watch = watch or _Stopwatch()
    chosen = get_target(target)
    outputs = len(_outputs(mod))
    with watch("tuned"):
        tuned = look_up(mod, chosen, database, firing_rates)
    with watch("lower"):
        options: dict[str, Any] = {} if tuned is None else {"tuned": tuned}
        if firing_rates:
            options["firing_rates"] = firing_rates
        if expose_rates:
            options["expose_rates"] = True
        lowered = chosen.lower(mod, record_spikes=record_spikes, **options)
    with watch("codegen"):
        executable = chosen.build(lowered)
    meta = _meta(lowered) or _meta(mod)
    calls = _calls(lowered)
    exposed = [] if not record_spikes else _meta(lowered).get("outputs", [])[outputs:]
    manifest = Manifest(
        model=name,
        target=target_entry(chosen),
        versions=versions(),
        inputs=tuple(TensorSpec.from_json(s) for s in meta["inputs"]),
        outputs=tuple(TensorSpec.from_json(s) for s in meta["outputs"]),
        state=tuple(
            StateEntry(s["input"], int(s["output"]), float(s.get("initial", 0.0)))
            for s in meta.get("state", ())
        ),
        params=tuple(params_of(lowered)),
        T=meta.get("T"),
        alignment=int(getattr(chosen, "input_alignment", 64)),
        plan=plan.to_json() if plan is not None else None,
        kernels=tuple(
            KernelEntry(
                k.name, k.rule, tuple(k.layers), int(k.macs), calls[k.name] or 1, k.scheduled
            )
            for k in chosen.kernels(lowered)
        ),
        spikes=tuple(s["name"] for s in exposed),
        info=chosen.build_info()
        | ({"tuning": tuned.layers} if tuned is not None and tuned.layers else {})
        | ({"firing_rates": dict(firing_rates)} if firing_rates else {}),
    )
    return CompiledModel(executable, manifest, lowered, watch.seconds)


def plan(
    model: Any,
    rule: Any = "vbmf",
    mode: str = "ptt",
    *,
    options: ModelOptions | None = None,
    example: Any = None,
) -> Any:
    """A :class:`ttsnn.plans.TTPlan` for a network.

    Args:
        model: what :func:`compile` accepts.
        rule: ``"vbmf"``, ``"paper"``, ``"rank=R"``, ``"ratio=X"``, ``"energy=X"``, a plan file.
        mode: form of the convolutions.
        options: how to resolve ``model``, where it is a name.
        example: example input, where the network does not say it.
    """
    source = resolve(model, options, probe=example is None)
    return make_plan(import_source(source, example), rule, mode)


def compare(model: Any, *, phase: str = "inference", **settings: Any) -> dict[str, Any]:
    """Compile a network, and compare it with PyTorch and other runtimes.

    See :func:`ttsnn.runtime.compare.compare` for the settings and the fields of the result, and
    :func:`ttsnn.runtime.training.compare_train.compare_train` for ``phase="train"``, one whole
    training step.
    """
    if phase == "train":
        from ttsnn.runtime.training.compare_train import compare_train

        if settings.pop("calibrate", False):
            raise DataError("calibration is for inference: leave it out, or give phase inference")
        return compare_train(model, **settings)
    if phase != "inference":
        raise DataError(f"unknown phase {phase!r}: use inference or train")
    from ttsnn.runtime.compare import compare as run

    if settings.pop("activation_checkpointing", False):
        raise DataError("activation checkpointing is for training: give phase train")
    return run(model, **settings)


def versions() -> dict[str, str]:
    """Versions that a manifest names."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        ffi = version("apache-tvm-ffi")
    except PackageNotFoundError:
        ffi = "unknown"
    return {"ttsnn": __version__, "tvm": tvm.__version__, "tvm_ffi": ffi}


@dataclass
class _Stopwatch:
    """Seconds of each named step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def _meta(mod: tvm.IRModule) -> dict[str, Any]:
    """The frontend's description of a program."""
    if mod.attrs is None or _META not in mod.attrs:
        return {}
    return json.loads(str(mod.attrs[_META]))


def _outputs(mod: tvm.IRModule) -> list[Any]:
    return list(_meta(mod).get("outputs", ()))


def _calls(mod: tvm.IRModule) -> Counter[str]:
    """How often ``main`` calls each function of the module."""
    calls: Counter[str] = Counter()

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.GlobalVar):
            calls[node.name_hint] += 1

    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            tvm.relax.analysis.post_order_visit(binding.value, visit)
    return calls


def target_entry(target: Any) -> dict[str, Any]:
    """What the manifest says of the target; see :mod:`ttsnn.runtime.cpu`."""
    llvm = getattr(target, "tvm_target", None)
    features: Any = ()
    if llvm is not None:
        llvm = llvm.host or llvm
        with contextlib.suppress(Exception):  # kinds without LLVM have no such list
            features = tvm.get_global_func("target.llvm_get_cpu_features")(llvm)
    return {
        "name": target.name,
        "llvm": str(llvm) if llvm is not None else "",
        "arch": platform.machine(),
        "features": from_llvm([str(f) for f in features]),
        **target.manifest_entry(),
    }


def _check_folder(path: Path) -> None:
    """Refuse an impossible output before minutes of work."""
    folder = path.parent
    if not folder.is_dir():
        raise ArtifactError(f"{path}: not written, folder {folder} does not exist")
    if path.is_dir():
        raise ArtifactError(f"{path}: not written, it is a folder")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: not written, it is a device or a pipe; name a file")
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"{path}: not written, folder {folder} is not writable")


def link_library(executable: Any) -> bytes:
    """The executable as the bytes of a shared library."""
    with tempfile.TemporaryDirectory(prefix="ttsnn-") as folder:
        file = Path(folder) / "lib.so"
        try:
            check_room(folder, _LINK_BYTES)
            # LLVM's debug information is a third of a large library; names of symbols stay
            options = ["-Wl,--strip-debug"]
            executable.export_library(str(file), workspace_dir=folder, options=options)
            return file.read_bytes()
        except TTSNNError:
            raise
        except Exception as error:
            text = str(error)
            last = (text.strip().splitlines() or [""])[-1]
            cure = (
                f"the disk of {folder} is full; free space or set TMPDIR"
                if isinstance(error, OSError) or "No space left" in text
                else "linking needs a C++ compiler (g++ or clang++), see `ttsnn doctor`"
            )
            raise ArtifactError(f"the library cannot be linked ({last}): {cure}") from error
