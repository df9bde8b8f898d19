"""What every test runs with."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_records_of_the_user(tmp_path_factory):
    """Compilation must not find what the user tuned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTSNN_TUNE_DIR", str(tmp_path_factory.mktemp("tune")))
        yield
