from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn.errors import DataError
from ttsnn.runtime import threads as threading_module
from ttsnn.runtime.measure import Pairs, peak_mb, time_pairs
from ttsnn.runtime.profile import profile


def test_pairs():
    pairs = Pairs((1.0, 2.0, 4.0), (3.0, 2.0, 8.0))
    assert pairs.ratios == [3.0, 1.0, 2.0]
    assert pairs.ratio == 2.0
    assert pairs.spread == (1.5, 2.5)
    assert Pairs((1.0,), (2.0,)).spread == (2.0, 2.0)


def test_time_pairs_alternate():
    """Who comes first alternates; a block has one call that is not measured."""
    calls = []
    pairs = time_pairs(
        lambda: (calls.append("o"), time.sleep(0.02)),
        lambda: (calls.append("p"), time.sleep(0.06)),
        repeats=2,
    )
    assert "".join(calls) == "oopp" + "oopp" + "ppoo"
    assert len(pairs.ratios) == 2
    assert 2.0 < pairs.ratio < 3.2
    assert 20 <= pairs.ours_ms[0] < 40


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory():
    def call():
        np.ones(40_000_000, np.uint8).sum()

    peak = peak_mb(call)
    assert peak is not None
    assert 35 < peak < 60
    assert peak_mb(lambda: None) < 5


def test_profile(tiny, dense_path):
    net = ttsnn.load(dense_path)
    times, whole = profile(net, [np.ones((3, 6), "float32")], repeats=3, threads=1)
    calls = {t.name: t.calls for t in times}
    assert {"matmul", "add", "relu"} <= set(calls)
    assert sum(n for name, n in calls.items() if name.startswith("add")) == 2
    assert whole > 0
    assert all(t.ms >= 0 for t in times)


def test_threads_reach_tvm_and_pytorch(dense_path, monkeypatch):
    """The number is set where it changes, for the calling thread, and restored."""
    import tvm_ffi

    seen = []
    real = tvm_ffi.get_global_func

    def fake(name, *args):
        if name == "runtime.config_threadpool":
            return lambda mode, count: seen.append(count)
        return real(name, *args)

    monkeypatch.setattr(tvm_ffi, "get_global_func", fake)
    monkeypatch.setattr(threading_module._local, "applied", None, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    net = ttsnn.load(dense_path)
    x = np.ones((1, 6), "float32")
    before = torch.get_num_threads()
    net(x)
    net(x)
    net(x, threads=2)
    net.threads = 5
    net(x)
    net.threads = None
    with ttsnn.threads(1):
        net(x)
        assert torch.get_num_threads() == 1
    net(x)
    assert seen == [3, 2, 5, 1, 3]
    assert torch.get_num_threads() == before
    with pytest.raises(DataError), ttsnn.threads(0):
        pass
    monkeypatch.setattr(threading_module._local, "applied", None, raising=False)
