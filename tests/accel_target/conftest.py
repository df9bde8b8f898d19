from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def closed_forms() -> ModuleType:
    """The module of closed forms; tests are imported without a package, so by its path."""
    path = Path(__file__).with_name("closed_forms.py")
    spec = importlib.util.spec_from_file_location("ttsnn_tests_closed_forms", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
