"""Data-parallel training in two processes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

_SCRIPT = Path(__file__).with_name("two_processes.py")


def test_two_processes_are_one_with_the_double_batch(tmp_path):
    """SGD, frozen batch norms, float64: within 1e-10."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*words, str(_SCRIPT), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(_SCRIPT.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spec = importlib.util.spec_from_file_location("training_two_processes", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, expected = module.run(8)
    first, second = (load_file(tmp_path / f"rank{r}.safetensors") for r in (0, 1))
    assert set(first) == set(expected)
    for name, value in expected.items():
        scale = max(1e-3, float(np.abs(value).max()))
        assert np.array_equal(first[name], second[name]), name
        assert float(np.abs(first[name] - value).max()) <= 1e-10 * scale, name
    _, other = module.run(4)
    assert np.abs(other["losses"] - expected["losses"]).max() > 1e-6
