from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def _load_tiny():
    """Tests are imported without a package, so their helper module is loaded by its path."""
    path = Path(__file__).with_name("tiny.py")
    spec = importlib.util.spec_from_file_location("ttsnn_tests_tiny", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tiny_module = _load_tiny()


@pytest.fixture(scope="session")
def tiny():
    """The module of hand-written networks."""
    return tiny_module


@pytest.fixture(scope="session")
def dense_library(tmp_path_factory) -> bytes:
    """``Dense`` as a shared library."""
    return tiny_module.build(tiny_module.Dense, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def leaky_library(tmp_path_factory) -> bytes:
    """``Leaky`` as a shared library."""
    return tiny_module.build(tiny_module.Leaky, tmp_path_factory.mktemp("leaky"))


@pytest.fixture
def dense_path(tiny, dense_library, tmp_path) -> Path:
    """An artifact of ``Dense``."""
    return tiny.write(tmp_path, dense_library)
