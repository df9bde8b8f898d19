"""Which files running a network needs, and those of another Python version."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ttsnn.errors import ArtifactError

__all__ = ["copy_runtime", "copy_wheels", "this_python"]

PACKAGES = (
    "ttsnn",
    "tvm",
    "tvm_ffi",
    "ml_dtypes",
    "safetensors",
    "typing_extensions",
    "threadpoolctl",
)
"""What is taken along; NumPy and PyTorch are the machine's own."""

_ROOTS = (
    "ttsnn.runtime.net",
    "ttsnn.runtime.measure",
    "ttsnn.runtime.profile",
    "ttsnn.runtime.step_file",
    "ttsnn.cuda.runtime",
    "safetensors.numpy",
    "ml_dtypes",
    "typing_extensions",
    "threadpoolctl",
    "tvm.runtime.vm",
)
_SOURCES = ("models", "plans", "tt")
# Asked of a process of its own: here the compiler may be loaded. PyTorch stays out of it.
_PROBE = """
import importlib, json, os, sys
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
sys.modules["torch"] = None
packages, roots = json.loads(sys.argv[1])
for name in roots:
    importlib.import_module(name)
files = {}
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file and name.split(".")[0] in packages:
        package = hasattr(module, "__path__")
        files[name] = [file, package]
with open("/proc/self/maps") as maps:
    loaded = sorted({line.split(None, 5)[5].strip() for line in maps if ".so" in line})
bases = {p: os.path.dirname(files[p][0]) for p in packages if p in files and files[p][1]}
print(json.dumps([files, loaded, bases]))
"""


def this_python() -> str:
    """``"3.11"``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def copy_runtime(folder: Path) -> None:
    """Copy what running a network loads; sources beside a loaded one come along.

    Raises:
        ArtifactError: the runtime cannot be loaded here.
    """
    command = [sys.executable, "-c", _PROBE, json.dumps([PACKAGES, _ROOTS])]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ArtifactError(f"bundle: TVM's runtime alone cannot be loaded here: {last}")
    files, loaded, bases = json.loads(result.stdout.splitlines()[-1])
    for name, (file, package) in files.items():
        source = Path(file)
        place = folder.joinpath(*name.split("."))
        if source.suffix == ".so" or ("." not in name and not package):
            _copy(source, place.parent / source.name)
        elif package:
            for sibling in source.parent.glob("*.py"):
                _copy(sibling, place / sibling.name)
        else:
            _copy(source, place.with_suffix(".py"))
    for part in _SOURCES:  # PyTorch networks, for comparisons there; PyTorch is the machine's own
        spec = importlib.util.find_spec(f"ttsnn.{part}")
        for base in (spec.submodule_search_locations or ()) if spec is not None else ():
            for source in [*Path(base).glob("*.py"), *Path(base).glob("*.json")]:
                _copy(source, folder / "ttsnn" / part / source.name)
    for name, base in bases.items():
        for library in loaded:
            if Path(library).is_relative_to(base):
                _copy(Path(library), folder / name / Path(library).relative_to(base))
        if name == "tvm":
            for extra in Path(base, "lib").glob("libtvm_runtime_cuda.so"):
                _copy(extra, folder / name / "lib" / extra.name)


def copy_wheels(folder: Path, version: str, requirements: Sequence[str]) -> None:
    """Add compiled modules for another Python version, from wheels that pip downloads.

    Raises:
        ArtifactError: pip cannot get them.
    """
    with tempfile.TemporaryDirectory(prefix="ttsnn-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", version, "--dest", temporary]
        result = subprocess.run([*command, *requirements], capture_output=True, text=True)
        if result.returncode != 0:
            last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ArtifactError(
                f"bundle: pip cannot download {', '.join(requirements)} for Python {version} "
                f"({last}); export from Python {version} instead"
            )
        tag = f"cpython-{version.replace('.', '')}-"
        for wheel in Path(temporary).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if tag in member and member.endswith(".so"):
                        target = folder / member
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(member) as source, open(target, "wb") as out:
                            shutil.copyfileobj(source, out)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
