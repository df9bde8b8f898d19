"""All cases of a folder on this machine, within a given time."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from gpu import summary
from gpu.cases import INDEX, Case, read_index
from gpu.child import CHECK
from gpu.limits import shares
from gpu.names import ORDER, OURS
from gpu.store import FILE, write_json

ENTRY = Path(__file__).with_name("__main__.py")
STARTING = 10.0  # seconds under which no process is started any more
GRACE = 30.0  # more seconds than a contender may take, before its process is ended from outside


def run(args: argparse.Namespace) -> int:
    """Measure; the report is written after each contender."""
    cases, problem = _cases(args)
    if problem:
        print(f"gpu run: {problem}", file=sys.stderr)
        return 2
    report = Report(args)
    end = time.monotonic() + 60 * args.minutes
    for about in cases:
        case = Case.of(about)
        if end - time.monotonic() < STARTING:
            report.left(case)
            continue
        print(case.name, flush=True)
        _run_case(case, about, args, report, end)
    print()
    print(summary.text(report.data))
    print(f"\nresults: {args.out}")
    return 0 if report.data["rows"] else 1


def _cases(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str | None]:
    """What to run, or what is wrong."""
    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return [], (
            f"PyTorch ({torch.__version__}, {built}) sees no GPU here; see nvidia-smi, "
            "CUDA_VISIBLE_DEVICES and whether the driver is at least of CUDA 13 (580)"
        )
    index = args.folder / INDEX
    try:
        cases = read_index(args.folder)
    except FileNotFoundError:
        return [], f"{index} is missing; write it with `gpu compile`, or name the folder"
    except (ValueError, TypeError) as error:
        return [], f"{index} is damaged ({error}); copy the folder again"
    cases = [a for a in cases if fnmatch(Case.of(a).name, args.only)]
    files = [
        args.folder / FILE,
        *(Case.of(a).file(args.folder, k) for a in cases for k in a["artifacts"]),
    ]
    lacking = [file for file in files if not file.is_file()]
    if lacking:
        return [], f"{lacking[0]} is missing; copy the folder again"
    if not cases:
        return [], f"{index} has no case whose name fits {args.only!r}"
    if not args.out.absolute().parent.is_dir():
        return [], f"{args.out}: its folder does not exist"
    return cases, _unfit(cases, args.folder)


def _unfit(cases: list[dict[str, Any]], folder: Path) -> str | None:
    """Which file is damaged, or why this machine cannot run what it holds."""
    from safetensors import SafetensorError, safe_open

    from ttsnn.artifact import read_artifact
    from ttsnn.errors import TTSNNError
    from ttsnn.runtime.devices import place_of

    targets: dict[str, dict] = {}
    for about in cases:
        case = Case.of(about)
        try:
            for kind in about["artifacts"]:
                artifact = read_artifact(case.file(folder, kind))
                targets[json.dumps(artifact.manifest.target)] = artifact.manifest.target
            for file in (folder / FILE, case.file(folder, "check.safetensors")):
                if file.exists():
                    with safe_open(file, "numpy"):
                        pass
        except TTSNNError as error:
            return str(error)
        except SafetensorError as error:
            return f"{file}: damaged ({error}); copy the folder again"
    try:
        for target in targets.values():
            place_of(target, str(folder))
    except TTSNNError as error:
        return str(error)
    return None


def _run_case(
    case: Case, about: dict[str, Any], args: argparse.Namespace, report: Report, end: float
) -> dict[str, Any]:
    """One process after the other until every contender has a result."""
    row = report.add(case, about)
    left = _applicable(case, tuple(args.contenders.split(",")))
    if OURS in left:
        left.insert(0, CHECK)
    end = min(end, time.monotonic() + args.case_seconds)
    while left:
        if end - time.monotonic() < STARTING:
            report.found(row, {n: {"error": "not begun: time is over"} for n in left})
            break
        child = Child(case, left, args, lambda found: report.found(row, found))
        problem = child.wait(end)
        found = child.told["found"]
        if child.told["running"] or not any(n in found for n in left):
            found[child.told["running"] or left[0]] = {"error": problem or "no result"}
            report.found(row, found)
        left = [n for n in left if n not in found]
    return row


def _applicable(case: Case, wanted: tuple[str, ...]) -> list[str]:
    """The contenders of a case, in the order in which they are measured."""
    names = [n for n in ORDER if n in wanted]
    if case.mode == "dense":
        names = [n for n in names if not n.startswith("dense_")]
    if case.phase == "train" or case.batch > 1:
        names = [n for n in names if n != "inductor_graph"]
    return names


class Child:
    """A process that measures some contenders of a case.

    Attributes:
        told: what it has written, see :class:`gpu.child.Row`.
    """

    def __init__(
        self,
        case: Case,
        names: list[str],
        args: argparse.Namespace,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.told: dict[str, Any] = {"running": None, "found": {}}
        self._report = report
        self._patience = args.contender_seconds + GRACE
        self._command = [sys.executable, str(ENTRY), "child", str(args.folder.absolute())]
        self._command += [case.name, "--contenders", *names, "--device", args.device]
        for name in ("repeats", "seconds", "contender_seconds"):
            self._command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]

    def wait(self, end: float) -> str | None:
        """Report what it writes, until it ends or ``end`` comes; returns why it ended badly."""
        with tempfile.TemporaryDirectory(prefix="ttsnn-") as folder:
            file, errors = Path(folder) / "row.json", Path(folder) / "errors.txt"
            with open(errors, "w") as stream:
                process = subprocess.Popen([*self._command, "--row", str(file)], stderr=stream)
                heard = time.monotonic()
                try:
                    while process.poll() is None:
                        now = time.monotonic()
                        heard = now if self._read(file) else heard
                        if now > min(end, heard + self._patience):
                            return "stopped: " + ("time was over" if now > end else "it hung")
                        time.sleep(0.2)
                finally:
                    process.kill()
                    process.wait()
            self._read(file)
            if process.returncode == 0:
                return None
            last = (errors.read_text().strip().splitlines() or ["no message"])[-1][:300]
        code = process.returncode
        return f"its process ended ({f'signal {-code}' if code < 0 else code}): {last}"

    def _read(self, file: Path) -> bool:
        """Whether there is something new."""
        told = json.loads(file.read_text()) if file.exists() else self.told
        if told == self.told:
            return False
        self.told = told
        self._report(told["found"])
        return True


class Report:
    """The results, written at each change."""

    def __init__(self, args: argparse.Namespace) -> None:
        gpu = args.device == "cuda"
        self._out = args.out
        self.data: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if gpu else "CPU, emulated GPU",
            "memory_mb": torch.cuda.get_device_properties(0).total_memory / 2**20 if gpu else None,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "rows": [],
            "left": [],
        }

    def add(self, case: Case, about: dict[str, Any]) -> dict[str, Any]:
        """A row without results."""
        row: dict[str, Any] = asdict(case)
        row |= {k: about[k] for k in ("compile_s", "launches", "macs", "bytes")}
        row |= {"results": {}, "errors": {}}
        self.data["rows"].append(row)
        return row

    def found(self, row: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
        """Results of contenders."""
        for name, value in found.items():
            if name == CHECK:
                row[CHECK] = value
            elif "error" in value:
                row["errors"][name] = value["error"]
            else:
                row["results"][name] = value
        if OURS in row["results"]:
            ms = row["results"][OURS]["ms"]
            device = self.data["device"]
            row["shares"] = shares(row["precision"], row["macs"], row["bytes"], ms, device)
        self._write()

    def left(self, case: Case) -> None:
        """A case for which no time was left."""
        self.data["left"].append(case.name)
        self._write()

    def _write(self) -> None:
        write_json(self._out, self.data)
