from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """A helper module; tests are imported without a package, so by its path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"ttsnn_tests_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def closed_forms() -> ModuleType:
    """The module of closed forms."""
    return _load("closed_forms")


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module of small networks."""
    return _load("networks")


@pytest.fixture(scope="session")
def pytorch() -> ModuleType:
    """The module that compares with PyTorch."""
    return _load("pytorch")
