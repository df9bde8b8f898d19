"""Who may import whom: the folders' order, read off the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"models", "frontend", "passes", "accel_target", "runtime"}

# A part → the parts of ttsnn that it may import. "core" is the files of src/ttsnn that need
# neither PyTorch nor a compiler.
CORE = {"errors", "specs", "files", "lif_attrs", "tt", "plans", "cpus"}
ALLOWED = {
    "core": CORE,
    "cuda": CORE | {"cuda"},
    "ops": CORE | {"ops", "program"},
    "program": CORE | {"program"},
    "debugging": CORE | {"program", "debugging"},
    "models": CORE | {"models", "weights"},
    "frontend": CORE | {"ops", "program", "models", "frontend"},
    "passes": CORE | {"cuda", "ops", "program", "debugging", "passes", "targets"},
    "targets": CORE | {"ops", "program", "passes", "targets"},
    "accel_target": CORE | {"ops", "program", "debugging", "passes", "targets", "accel_target"},
    "artifact": CORE | {"artifact"},
}
FORBIDDEN_LIBRARIES = {
    "core": {"torch", "tvm"},
    "models": {"tvm"},
    "passes": {"torch"},
    "cuda": {"torch"},
    "ops": {"torch"},
    "program": {"torch"},
}


def modules() -> dict[str, Path]:
    """Dotted name → file, for every module of the package."""
    found = {}
    for base, prefix in [(ROOT / "src/ttsnn", "ttsnn"), *((ROOT / p, f"ttsnn.{p}") for p in PARTS)]:
        for path in base.rglob("*.py"):
            rel = path.relative_to(base).with_suffix("")
            parts = [p for p in rel.parts if p != "__init__"]
            found[".".join([prefix, *parts])] = path
    return found


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    """Absolute names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    out: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write `from ttsnn.… import`"
            out |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return out


def part_of(module: str) -> str:
    name = module.split(".")[1] if "." in module else "ttsnn"
    return "core" if name in CORE else name


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_layers(module: str) -> None:
    part = part_of(module)
    if part not in ALLOWED:
        return  # the driver, the command line and the runtime stand on top
    for name in imports(modules()[module], top_level_only=False):
        if name.startswith("ttsnn."):
            assert name.split(".")[1] in ALLOWED[part], f"{module} imports {name}"
        library = name.split(".")[0]
        assert library not in FORBIDDEN_LIBRARIES.get(part, ()), f"{module} imports {library}"


def test_no_import_cycles() -> None:
    known = modules()
    graph = networkx.DiGraph()
    for module, path in known.items():
        for name in imports(path, top_level_only=True):
            # A package's __init__ gathers its own files' names; that is no cycle.
            if name in known and not module.startswith(name + "."):
                graph.add_edge(module, name)
    cycles = [c for c in networkx.simple_cycles(graph) if len(c) > 1]
    assert not cycles, cycles


@pytest.mark.parametrize("part", sorted(PARTS))
def test_every_package_is_listed(part: str) -> None:
    import tomllib

    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    for init in (ROOT / part).rglob("__init__.py"):
        name = ".".join(["ttsnn", *init.parent.relative_to(ROOT).parts])
        assert name in listed, f"{name} is missing from [tool.setuptools] packages"
