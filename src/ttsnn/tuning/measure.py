"""Building and timing candidates: MetaSchedule's builder and runners, set up for our kernels.

What workers run is here as plain functions, which they import by name.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.runner.local_runner import default_run_evaluator
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

from ttsnn.errors import TuningError

__all__ = ["parse_tracker", "start_builder", "start_runner"]

BUILD_TIMEOUT_S, RUN_TIMEOUT_S = 120.0, 30.0

BUILDS_PER_PROCESS = 100
"""TVM leaks a little with every build."""

EVALUATOR = ms.runner.EvaluatorConfig(number=1, repeat=5, min_repeat_ms=10)
"""Five times the mean of as many calls as take 10 ms."""

DENSITY = 0.25
"""Part of a layer's input that is one, as spikes are, where nobody knows it; the rest is zero."""


def start_builder(build: Callable, folder: str, workers: int) -> Any:
    """A builder of candidates in processes of their own.

    Args:
        build: ``(module, target) → library``, importable by name.
        folder: where libraries go.
        workers: processes.
    """
    return _Builder(build, folder, workers)


@derived_object
class _Builder(ms.builder.PyBuilder):
    """Keeps its workers for many candidates.

    MetaSchedule's own builder starts them anew for every batch, which takes several seconds; a
    kernel of ours is built in a third of one.
    """

    def __init__(self, build: Callable, folder: str, workers: int) -> None:
        super().__init__()
        self.work = partial(_build, build, folder)
        self.pool = PopenPoolExecutor(
            max_workers=workers,
            timeout=BUILD_TIMEOUT_S,
            initializer=_ignore_interrupts,
            maximum_process_uses=BUILDS_PER_PROCESS,
        )

    def build(self, build_inputs: list) -> list:
        """Build a batch; what fails has its message in the result."""
        given = [(i.mod, i.target) for i in build_inputs]
        out = []
        for done in self.pool.map_with_error_catching(self.work, given):
            if done.status == StatusKind.COMPLETE:
                out.append(ms.builder.BuilderResult(done.value, None))
            else:
                said = f"{done.status.name}: {done.value}"
                out.append(ms.builder.BuilderResult(None, said))
        return out


def start_runner(threads: int, tracker: tuple[str, int] | None, key: str | None) -> Any:
    """A runner on this machine, or on the devices that a tracker of TVM's RPC has under a key.

    Raises:
        TuningError: no tracker there, or it has no such device.
    """
    initializer = partial(_use_threads, threads)
    if tracker is None:
        return ms.runner.LocalRunner(
            timeout_sec=RUN_TIMEOUT_S,
            evaluator_config=EVALUATOR,
            f_alloc_argument=_arguments,
            f_run_evaluator=_time,
            initializer=initializer,
        )
    host, port = tracker
    config = ms.runner.RPCConfig(host, port, key, session_timeout_sec=int(RUN_TIMEOUT_S))
    try:
        devices = config.count_num_servers(allow_missing=False)
    except Exception as error:
        raise TuningError(
            f"tracker {host}:{port} has no device with the key {key!r} (or does not answer): "
            "start one with `python -m tvm.exec.rpc_server --tracker HOST:PORT --key KEY`"
        ) from error
    return ms.runner.RPCRunner(
        rpc_config=config,
        evaluator_config=EVALUATOR,
        f_create_session=partial(_session, threads),
        f_alloc_argument=_remote_arguments,
        f_run_evaluator=_remote_time,
        max_workers=devices,
        initializer=_ignore_interrupts,
    )


def parse_tracker(text: str) -> tuple[str, int]:
    """``HOST:PORT``.

    Raises:
        TuningError: it is not.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise TuningError(f"tracker {text!r}: write HOST:PORT, 192.168.0.2:9190")
    return host, int(port)


# -- in the workers ----------------------------------------------------------------------------


def _ignore_interrupts() -> None:
    """Ctrl-C is for the tuner, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _use_threads(count: int) -> None:
    from ttsnn.runtime.threads import apply_threads, prepare

    _ignore_interrupts()
    prepare()
    apply_threads(count)


def _build(build: Callable, folder: str, given: tuple[tvm.IRModule, tvm.target.Target]) -> str:
    """Build and link a candidate; MetaSchedule removes the folder that it is alone in."""
    library = build(*given)
    path = os.path.join(tempfile.mkdtemp(dir=folder), "candidate.so")
    library.export_library(path)
    return path


def _session(threads: int, config: Any) -> Any:
    session = config.connect_server()
    session.get_function("runtime.config_threadpool")(1, threads)
    return session


def _remote_arguments(_session: Any, device: Any, args_info: Any, repeat: int) -> list[list]:
    return _arguments(device, args_info, repeat)


def _arguments(device: Any, args_info: Any, repeat: int) -> list[list]:
    """Spikes for the first argument, normal numbers for the others; the same for everyone.

    Where the first argument has an axis of inputs, the second is as long as there are to be ones.
    """
    rng = np.random.default_rng(0)
    shapes = [tuple(int(s) for s in shape) for _, _, shape in args_info]
    density = DENSITY
    if len(shapes[0]) > 5:
        density = math.prod(shapes[1]) / math.prod(shapes[0])
    values = []
    for i, ((_, dtype, _), shape) in enumerate(zip(args_info, shapes, strict=True)):
        spikes = i == 0
        drawn = rng.random(shape, np.float32) < density if spikes else rng.standard_normal(shape)
        values.append(drawn.astype(dtype))
    return [[tvm.runtime.tensor(v, device) for v in values] for _ in range(repeat)]


def _time(module: Any, device: Any, config: Any, arguments: list[list]) -> list[float]:
    """Seconds for one input."""
    inputs = math.prod(arguments[0][0].shape[:-5])
    return [s / inputs for s in default_run_evaluator(module, device, config, arguments)]


def _remote_time(_session: Any, *arguments: Any) -> list[float]:
    return _time(*arguments)
