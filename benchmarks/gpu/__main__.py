"""``python benchmarks/gpu``, or in a bundle ``python FOLDER/gpu``."""

import sys
from pathlib import Path

# The folder above, not this one: the modules here are the package ``gpu``, and a bundle's loader
# lies beside it.
_ABOVE = str(Path(__file__).resolve().parents[1])
sys.path[:] = [_ABOVE, *(p for p in sys.path if Path(p).resolve() != Path(__file__).parent)]

from gpu.command import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
