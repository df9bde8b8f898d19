"""The dataset whose shape a network takes where nothing else says it."""

from __future__ import annotations

from typing import Any

from ttsnn.errors import DataError
from ttsnn.sources.source import ModelOptions

DEFAULT_DATASET = "cifar10"


def dataset_of(options: ModelOptions) -> Any:
    from ttsnn.models import DATASETS

    name = options.dataset or DEFAULT_DATASET
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]
