"""Settings of the whole suite: one thread (OpenMP spins under load), no network for hubs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import simulator.finder  # noqa: F401  (`import nki` works from here on)
