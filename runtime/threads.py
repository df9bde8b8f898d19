"""CPU threads of compiled networks, and living beside PyTorch's pool.

TVM keeps one pool of worker threads for each calling thread. Three of its defaults do not suit
a library inside a larger process, so they are set (unless the user did) before any pool starts:

- ``TVM_NUM_THREADS``: how large a pool can ever become; TVM takes half the logical CPUs and
  never grows a pool. Here: all CPUs that the process may use. How many are *used* is decided by
  :func:`threads`, or ``net(x, threads=…)``.
- ``TVM_BIND_THREADS=0``: TVM binds the calling thread to one core, and every thread that is
  started later, such as PyTorch's, inherits that core.
- ``TVM_THREAD_POOL_SPIN_COUNT``: idle workers spin for about 0.2 s, which takes the cores from
  PyTorch after each call. Here: some milliseconds, longer than the gap between two kernels.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from ttsnn.cpus import available_cpus
from ttsnn.errors import DataError

__all__ = [
    "apply_threads",
    "check_threads",
    "default_threads",
    "prepare",
    "threads",
]

_SPIN = 10_000
_local = threading.local()
_scope: int | None = None


def prepare() -> None:
    """Set the environment that TVM reads when its first pool starts; keeps what is set."""
    os.environ.setdefault("TVM_NUM_THREADS", str(available_cpus()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", str(_SPIN))


def default_threads() -> int:
    """Threads that a network uses where nobody said: OMP_NUM_THREADS, else all CPUs."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(said) if said.isdigit() and int(said) > 0 else available_cpus()


def apply_threads(count: int | None) -> None:
    """Make TVM use ``count`` threads (None: as :func:`threads` says, else the default) for what
    this calling thread runs next. Cheap where nothing changes.
    """
    wanted = count or _scope or default_threads()
    if getattr(_local, "applied", None) == wanted:
        return
    import tvm_ffi

    # 1: "big" affinity mode; without binding only the number counts
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, wanted)
    _local.applied = wanted


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` CPU threads, in compiled networks and in PyTorch alike.

    Process-wide for PyTorch (its ``set_num_threads``) and for networks that were not told
    otherwise; what held before is restored. PyTorch is set only where it is loaded.

    Raises:
        DataError: a count below 1.
    """
    global _scope
    check_threads(count)
    torch = sys.modules.get("torch")
    before, torch_before = _scope, torch.get_num_threads() if torch else 0
    _scope = count
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        _scope = before
        if torch:
            torch.set_num_threads(torch_before)


def check_threads(count: int | None) -> None:
    """Raise DataError where ``count`` is no number of threads."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise DataError(f"threads must be a whole number of at least 1, got {count!r}")
