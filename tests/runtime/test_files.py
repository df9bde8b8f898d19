"""Output goes to files, whole: never over a device, never half where there is no room."""

import os
import resource
import subprocess
import sys

import pytest

from ttsnn.artifact import replacing
from ttsnn.errors import ArtifactError, DataError, ModelImportError, PlanError
from ttsnn.files import check_room
from ttsnn.frontend.files import write_atomically
from ttsnn.plans import TTLayer, TTPlan
from ttsnn.runtime.tensors import _check
from ttsnn.specs import TensorSpec


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    plan = TTPlan({"fc": TTLayer("linear", "tt", (2,), out_factors=(2, 2), in_factors=(2, 2))})
    with pytest.raises(PlanError, match="device or a pipe"):
        plan.save(pipe)
    with pytest.raises(ModelImportError, match="device or a pipe"):
        write_atomically(pipe, b"x")
    with pytest.raises(ArtifactError, match="device or a pipe"), replacing(pipe):
        pass
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_no_room(tmp_path):
    with pytest.raises(OSError):
        check_room(tmp_path, 1 << 60)
    check_room(tmp_path, 1 << 12)
    assert os.listdir(tmp_path) == []


def test_full_disk_while_linking(tmp_path):
    """LLVM ends the process where an object cannot be written; the message must come first."""
    done = subprocess.run(
        f"{sys.executable} -m ttsnn compile spiking_mlp --dataset digits -o net.ttsnn".split(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_only_dtypes_that_can_be_compiled_are_suggested():
    spec = TensorSpec("x", (2, 3), "float32")
    with pytest.raises(DataError, match="compile with dtype='float64'"):
        _check(spec, "float64", (2, 3), {})
    with pytest.raises(DataError, match=r"convert it$"):
        _check(spec, "int32", (2, 3), {})
