"""The accelerator as a target: lowered, built, called and loaded like any other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.accel_target.device import register
from ttsnn.artifact import read_artifact
from ttsnn.driver import build
from ttsnn.errors import TargetError
from ttsnn.passes.training import Manifest
from ttsnn.runtime.net import load
from ttsnn.targets import get_target

_spec = importlib.util.spec_from_file_location(
    "accel_networks", Path(__file__).with_name("networks.py")
)
assert _spec is not None
assert _spec.loader is not None
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)


def _described(mod: tvm.IRModule) -> tvm.IRModule:
    """The program with the inputs and outputs that an artifact names."""
    meta = json.loads(str(mod.attrs["ttsnn.meta"]))
    x = mod["main"].params[0]
    shape = [int(s) for s in x.ty.shape.values]
    meta["inputs"] = [{"name": "x", "shape": shape, "dtype": str(x.ty.dtype)}]
    meta["outputs"] = [{"name": "output", "shape": [shape[1], 4], "dtype": str(x.ty.dtype)}]
    return mod.with_attr("ttsnn.meta", json.dumps(meta))


def test_a_network_is_compiled_saved_loaded_and_called(tmp_path):
    mod = _described(networks.network("ptt", T=2, N=1))
    values = networks.values_of(mod)
    (want,) = networks.reference(mod, values)
    net = build(mod, "ttsnn-accel:arch=ttsnn4", name="small")
    np.testing.assert_allclose(net(values["x"]), want, rtol=1e-12)
    net.save(tmp_path / "net.ttsnn")
    manifest = read_artifact(tmp_path / "net.ttsnn").manifest
    assert manifest.target["accelerator"] == "ttsnn4"
    assert manifest.executed_macs > 0
    np.testing.assert_array_equal(load(tmp_path / "net.ttsnn")(values["x"]), net(values["x"]))


def test_a_training_step_is_callable():
    mod = networks.train_step(networks.network("ptt", T=2))
    values = networks.values_of(mod)
    want = networks.reference(mod, values)
    target = get_target("ttsnn-accel:arch=sata")
    register()
    vm = relax.VirtualMachine(target.build(target.lower_training(mod)), tvm.cpu())
    got = vm["main"](*[tvm.runtime.tensor(np.asarray(v, order="C")) for v in values.values()])
    slots = Manifest.of(mod).functions["main"].results
    for slot, g, w in zip(slots, got, want, strict=True):
        scale = max(np.abs(w).max(), 1e-12)
        assert np.abs(g.numpy() - w).max() <= 1e-11 * scale, slot.name


def test_options_are_checked():
    with pytest.raises(TargetError, match="did you mean fusion"):
        get_target("ttsnn-accel:fusio=false")
    with pytest.raises(TargetError, match="must be true or false"):
        get_target("ttsnn-accel:fusion=perhaps")
    assert not get_target("ttsnn-accel:merge-cross=false").ideas.merge_cross


def test_what_the_accelerator_lacks_is_refused():
    mod = networks.network("ptt", T=2)
    x = relax.Var("x", relax.TensorType([2, 1, 3, 4, 4], "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [x], attrs={"num_input": 1}):
        with bb.dataflow():
            out = bb.emit_output(relax.op.tan(x))
        bb.emit_func_output(out)
    bad = tvm.IRModule({"main": bb.finalize()["main"]}, attrs=mod.attrs)
    bad = bad.with_attr("ttsnn.params", {})
    with pytest.raises(TargetError, match=r"operator tan.*compile for cpu"):
        get_target("ttsnn-accel").lower(bad)
