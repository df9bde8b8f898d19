"""``python -m ttsnn`` is the command ``ttsnn``."""

import sys

from ttsnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
