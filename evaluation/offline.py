"""Importing this first keeps Hugging Face libraries off the network in this process.

Without it a look-up that finds no network retries for most of a minute before it fails.
Everything the evaluation needs is on disk, so a look-up is a mistake to be seen at once.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # our own log lines say how far it is


@contextmanager
def hub_allowed() -> Iterator[None]:
    """Let Hugging Face libraries look things up on the hub within the block."""
    import datasets.config
    import huggingface_hub.constants
    from huggingface_hub.utils._http import reset_sessions

    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = False
    reset_sessions()  # an open one still refuses
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
        reset_sessions()
