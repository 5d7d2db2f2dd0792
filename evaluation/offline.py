"""Importing this first keeps Hugging Face libraries off the network in this process.

Without it a look-up that finds no network retries for most of a minute before it fails.
Everything the evaluation needs is on disk, so a look-up is a mistake to be seen at once.
"""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")  # our own log lines say how far it is
