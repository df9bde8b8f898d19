"""Makes ``training_small`` importable: tests are collected without being a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "training_small", Path(__file__).with_name("training_small.py")
)
_module = importlib.util.module_from_spec(_spec)
sys.modules["training_small"] = _module
_spec.loader.exec_module(_module)
