"""Weights from files, and what is said when they do not fit."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ttsnn.errors import ModelImportError
from ttsnn.models import create, load_weights


def tiny(seed=0, **kw):
    return create("spiking_mlp", "digits", hidden=(6,), seed=seed, **kw)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_arrive(tmp_path, suffix, wrapped) -> None:
    source, target = tiny(1), tiny(2)
    state = dict(source.state_dict())
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        if wrapped:  # a checkpoint of a data-parallel network
            state = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save(state, path)
    load_weights(target, path)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(target(x), source(x))


def change(**edits):
    state = dict(tiny().state_dict())
    for key, value in edits.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"fc__weight": None}, "1 missing .*fc.weight"),
        ({"extra__weight": torch.zeros(2)}, "1 unknown .*extra.weight"),
        ({"fc__weight": torch.zeros(10, 7)}, r"fc.weight is \[10, 7\], expected \[10, 6\]"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_do_not_fit(tmp_path, edits, words, suffix) -> None:
    path = tmp_path / f"weights{suffix}"
    state = change(**edits)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = tiny(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelImportError, match=words):
        load_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_files_that_are_no_weights(tmp_path) -> None:
    model = tiny()
    with pytest.raises(ModelImportError, match="no such"):
        load_weights(model, tmp_path / "missing.pt")
    for name, content in (
        ("short.safetensors", b"\x10\x00\x00"),
        ("garbage.pt", b"not a file of tensors"),
        ("code.pt", pickle.dumps(Evil(), protocol=2)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelImportError, match=name):
            load_weights(model, tmp_path / name)
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ModelImportError, match="state_dict"):
        load_weights(model, tmp_path / "module.pt")
    torch.save({"fc.weight": 3}, tmp_path / "number.pt")
    with pytest.raises(ModelImportError, match=r"fc\.weight"):
        load_weights(model, tmp_path / "number.pt")
