"""For tests: data sets of the hub as `datasets` leaves them in its cache after a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Features, Value

TEXT = Value("string")


class Written(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """HF's own writer of Arrow files and their `dataset_info.json`, given rows."""

    VERSION = datasets.Version("0.0.0")

    def __init__(
        self, features: Features, splits: dict[str, list[dict[str, Any]]], **kwargs: Any
    ) -> None:
        self.columns, self.splits = features, splits
        super().__init__(**kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.columns)

    def _split_generators(self, _: object) -> list[datasets.SplitGenerator]:
        return [
            datasets.SplitGenerator(name=name, gen_kwargs={"rows": rows})
            for name, rows in self.splits.items()
        ]

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, Any]]:
        yield from enumerate(rows)


def write(
    cache: Path,
    repository: str,
    config: str,
    features: Features,
    splits: dict[str, list[dict[str, Any]]],
) -> None:
    """Put a data set of the hub into a `datasets` cache."""
    Written(
        features,
        splits,
        cache_dir=str(cache),
        repo_id=repository,
        dataset_name=repository.split("/")[1],
        config_name=config,
        hash="0" * 40,  # the commit of the repository
    ).download_and_prepare()
