"""What the documentation names exists: links, files, commands with their options, Python names."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ttsnn import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [p for p in (ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS) if p.is_file()]
# Where file names in a page may be relative to, beside the root.
BASES = {
    "accelerator.md": "accel_target",
    "cpu-target.md": "passes/cpu",
    "gpu-target.md": "passes/cuda",
    "frontend.md": "frontend",
}
ATTRIBUTES = {"ttsnn.params", "ttsnn.meta"}  # of IRModules

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def shown_commands(text: str) -> list[list[str]]:
    """Words of each command line ``ttsnn …`` in an indented or fenced block."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.strip().removeprefix("$ ")
        words = re.sub(r"^(?:\w+=\S+ +)+", "", words)  # environment variables
        words = re.sub(r"^\.venv/bin/", "", words)
        if words.startswith("ttsnn ") and (line.startswith("    ") or "```" in text):
            given = shlex.split(words, comments=True)[1:]
            if given and given[0] in cli.COMMANDS:
                found.append(given)
    return found


def mentioned_commands(text: str) -> list[list[str]]:
    """Words of each ``ttsnn …`` in the running text."""
    return [m.split()[1:] for m in re.findall(r"`(ttsnn [a-z][^`]*)`", text)]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser, _ = cli._parser(command)
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices[command]


def resolve(name: str) -> Any:
    """The object of a dotted name; AttributeError or ImportError where there is none."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(".".join(parts[:i]))
    return value


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    missing = [p.name for p in DOCS if p.name != "README.md" and f"]({p.name})" not in index]
    assert not missing


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    base = BASES.get(page.name)
    for name in re.findall(r"`([a-z_.][\w.]*/[\w./]*|[\w.]+\.py)`", page.read_text()):
        if "my_" in name or ("/" not in name and base is None):
            continue
        assert any((ROOT / b / name).exists() for b in (".", base or ".")), f"{page.name}: {name}"


@pages
def test_commands_parse(page: Path) -> None:
    for words in shown_commands(page.read_text()):
        words = [w for w in words if w != "…"]
        try:
            parser_of(words[0]).parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{page.name}: ttsnn {' '.join(words)} is refused")


@pages
def test_options_exist(page: Path) -> None:
    for words in mentioned_commands(page.read_text()):
        assert words[0] in cli.COMMANDS, f"{page.name}: ttsnn {words[0]}"
        known = parser_of(words[0])._option_string_actions
        for word in words[1:]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{page.name}: {' '.join(words)}"


@pages
def test_names_resolve(page: Path) -> None:
    text = page.read_text()
    names = set(re.findall(r"(?<![\w./`-])`?(ttsnn(?:\.[A-Za-z_]\w*)+)(?![\w/-])", text))
    for block in blocks(text, "python"):
        for module, imported in re.findall(r"from (ttsnn[\w.]*) import ([\w, ]+)", block):
            names |= {f"{module}.{n.strip()}" for n in imported.split(",")}
    for name in sorted(names - ATTRIBUTES):
        resolve(name)


def test_the_checks_find_something() -> None:
    text = "\n".join(p.read_text() for p in DOCS)
    assert len(shown_commands(text)) > 10
    assert len(mentioned_commands(text)) > 10
    with pytest.raises(ImportError):
        resolve("ttsnn.no_such_name")
    with pytest.raises(SystemExit):
        parser_of("plan").parse_args(["ms_resnet18", "--no-such-option"])


@pytest.mark.slow
def test_snippets_run(tmp_path: Path) -> None:
    """The pages' Python blocks, each page's in one folder and in their order."""
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            if page.name == "artifact.md":  # the command above the block
                made = "ttsnn compile spiking_mlp --dataset digits -o net.ttsnn"
                command = [sys.executable, "-m", *made.split()]
                subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
            run = subprocess.run(
                [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True
            )
            assert run.returncode == 0, f"{page.name}:\n{block}\n{run.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_network", "event_frames"])
def test_examples_run(name: str) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / f"examples/{name}.py")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
