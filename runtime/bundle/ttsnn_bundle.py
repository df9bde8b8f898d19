"""Compiled networks that run without TVM's compiler.

python ttsnn_bundle.py                check each network against the results beside it
python ttsnn_bundle.py --json         the same as JSON
python ttsnn_bundle.py NAME           one network

import ttsnn_bundle                   # with this folder on sys.path
net = ttsnn_bundle.load("NAME")
y = net(x)                            # NumPy arrays or PyTorch tensors
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent

__all__ = ["check", "load", "names", "prepare"]


def prepare() -> dict[str, Any]:
    """Find the bundled libraries; what is wrong with this Python or this folder is said at once.

    Returns:
        What ``bundle.json`` says.
    """
    try:
        bundle = json.loads((HERE / "bundle.json").read_text())
        versions, sizes, _ = bundle["python"], bundle["files"], bundle["nets"]
    except (OSError, ValueError, KeyError) as error:
        _refuse(f"{HERE / 'bundle.json'}: missing or damaged ({error}); copy the bundle again")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in versions:
        _refuse(
            f"this bundle is for Python {' and '.join(versions)}, not {version}; "
            f"export it with --python {version}"
        )
    for name, size in sizes.items():  # a library that ends early would end the process
        file = HERE / name
        if not file.is_file() or file.stat().st_size != size:
            _refuse(f"{file}: missing or damaged (not {size} bytes); copy the bundle again")
    try:
        import numpy  # noqa: F401
    except ImportError:
        _refuse("this bundle needs NumPy: pip install numpy")
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    folder = str(HERE / "lib")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        import tvm.runtime.vm  # noqa: F401

        import ttsnn.errors  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        _refuse(f"{folder}: cannot be loaded ({error}); copy the bundle again")
    return bundle


def _refuse(message: str) -> NoReturn:
    """End with the exit code of a mistake that the caller can mend."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def names() -> list[str]:
    """Names of the networks."""
    return list(prepare()["nets"])


def load(name: str) -> Any:
    """A network: ``net(x)``; of a training step: ``step(x, labels, lr)``."""
    entry = prepare()["nets"][name]
    path = HERE / "nets" / f"{name}.ttsnn"
    if entry["kind"] == "step":
        from ttsnn.runtime.step_file import load_step

        return load_step(path)
    from ttsnn.runtime.net import load

    return load(path)


def check(name: str) -> dict[str, Any]:
    """Run a network on the stored input; a training step once for each stored loss and logits.

    Returns:
        ``max_rel_error``: max |result − stored| / max |stored| of the result that comes closest
        to its ``tolerance``, or is farthest beyond; ``ok``; ``load_s``, ``call_ms`` (once all has
        run).
    """
    entry = prepare()["nets"][name]
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from ttsnn.errors import ArtifactError

    path = HERE / "nets" / f"{name}.check.safetensors"
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: missing or damaged ({error}); copy it again") from None
    inputs = [stored[k] for k in sorted(k for k in stored if k.startswith("in."))]
    wanted = [stored[k] for k in sorted(k for k in stored if k.startswith("out."))]
    start = time.perf_counter()
    net = load(name)
    seconds = time.perf_counter() - start
    calls = len(wanted) // 2 if entry["kind"] == "step" else 1

    def run() -> list[Any]:
        net.reset()
        found: list[Any] = []
        for _ in range(calls):
            results = net(*inputs)
            found += results if isinstance(results, (tuple, list)) else [results]
        return found

    found = run()
    start = time.perf_counter()
    run()
    ms = (time.perf_counter() - start) * 1e3 / calls
    errors = []
    for got, want in zip(found, wanted):
        difference = np.abs(np.asarray(got, np.float64) - want)
        relative = float(difference.max() / max(float(np.abs(want).max()), 1e-30))
        errors.append(relative if np.isfinite(relative) else float("inf"))
    worst, limit = max(zip(errors, entry["tolerance"]), key=lambda pair: pair[0] / pair[1])
    return {
        "name": name,
        "target": entry["target"],
        "max_rel_error": worst,
        "tolerance": limit,
        "ok": len(found) == len(wanted) and worst <= limit,
        "load_s": seconds,
        "call_ms": ms,
    }


def main(words: list[str] | None = None) -> int:
    """Check, print, and return 0 where all is well, 1 for wrong results, 2 for errors."""
    parser = argparse.ArgumentParser(description="Check the networks of this bundle.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(words)
    known = names()
    for name in args.names:
        if name not in known:
            print(f"no network {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    from ttsnn.errors import TTSNNError

    results, status = [], 0
    for name in args.names or known:
        try:
            result = check(name)
        except TTSNNError as error:
            result = {"name": name, "ok": False, "error": str(error)}
        results.append(result)
        status = max(status, 2 if "error" in result else int(not result["ok"]))
        if not args.json:
            if "error" in result:
                print(f"{name}: {result['error']}")
            else:
                print(
                    f"{name} ({result['target']}): {'ok' if result['ok'] else 'WRONG'}, max rel "
                    f"error {result['max_rel_error']:.2e} (at most {result['tolerance']:.1e}), "
                    f"{result['call_ms']:.2f} ms a call"
                )
    if args.json:
        print(json.dumps({"results": results}, indent=2))
    return status


if __name__ == "__main__":
    sys.exit(main())
