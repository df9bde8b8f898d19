"""The public names, pinned: a name that goes or comes has to be meant.

``public_names.txt`` has one dotted name a line; write it anew with

    python tests/test_public_names.py
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("public_names.txt")
PACKAGES = [
    "ttsnn",
    "ttsnn.artifact",
    "ttsnn.errors",
    "ttsnn.frontend",
    "ttsnn.models",
    "ttsnn.ops",
    "ttsnn.passes",
    "ttsnn.plans",
    "ttsnn.targets",
    "ttsnn.tt",
]


def names_of(package: str) -> set[str]:
    """``package.name`` for all its public names."""
    return {f"{package}.{name}" for name in importlib.import_module(package).__all__}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_as_recorded(package: str) -> None:
    recorded = {n for n in FILE.read_text().split() if n.rpartition(".")[0] == package}
    now = names_of(package)
    assert now == recorded, f"gone: {sorted(recorded - now)}, new: {sorted(now - recorded)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    assert len(set(module.__all__)) == len(module.__all__)


if __name__ == "__main__":
    FILE.write_text("\n".join(sorted(n for p in PACKAGES for n in names_of(p))) + "\n")
