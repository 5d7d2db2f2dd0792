"""An op 5 % off fails by the bf16 logits alone: no fp32 run and no check of the op is asked.

On texts that the limits were not set on (`benchmarks/gate_trials.py`); every op, more texts and
random checkpoints are in `benchmarks/gates.py`. A limit loosened until one of these errors passes
its gate fails here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gate_trials import (
    CONFIG,
    FAULTS,
    Judged,
    Subject,
    broken,
    judge,
    run,
    tiny_subject,
)
from evaluation.inputs import read_texts
from model.configuration import Tolerances, read_config, read_kernel_configuration
from model.records import Graph
from model.training import corpus

SEED, SEQUENCES, WORDS = 10, 8, (40, 50)
EVERY_NUMBER = FAULTS[0]
MEDIAN, SHARE, P90 = "median error", "share of tokens further away", "90th percentile of KL"
KERNELS = CONFIG.parent / "kernels"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.set_num_threads(1)
    return tiny_subject(tmp_path_factory.mktemp("tiny"), SEED, SEQUENCES, *WORDS)


@pytest.fixture(scope="module")
def model(subject: Subject) -> Any:
    """The configuration that fills most, `all`: its own rounding hides an error best."""
    return subject.load(read_kernel_configuration(KERNELS / "all.yaml"))


def judged(model: Any, subject: Subject) -> Judged:
    return judge(run(model, subject.reference), subject.reference, Tolerances(), slice(None))


def test_the_evaluation_has_the_limits_that_are_tested_here() -> None:
    assert read_config(CONFIG).accuracy.tolerances == Tolerances()


def test_the_texts_are_none_that_the_limits_were_set_on() -> None:
    found = corpus.texts(SEED, SEQUENCES, *WORDS)
    known = read_texts(CONFIG.parent / "tasks/data/heldout.jsonl", 200)
    assert known[:16] == corpus.texts(1, 16)
    assert not set(found) & set(known)


@pytest.mark.slow
def test_right_kernels_pass(model: Any, subject: Subject) -> None:
    found = judged(model, subject)
    assert [gate.name for gate in found.failed] == []
    assert len(found.gates) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "graph", "closed"),
    [
        ("attention_prefill", "context_encoding", {MEDIAN, SHARE}),
        ("norm_lm_head", "context_encoding", {MEDIAN, SHARE, P90}),
        ("attention_block_decode", "token_generation", {MEDIAN, SHARE, P90}),
        ("experts_decode", "token_generation", {MEDIAN, SHARE}),
    ],
)
def test_an_op_5_percent_off_fails_in_bfloat16_alone(
    model: Any, subject: Subject, op: str, graph: Graph, closed: set[str]
) -> None:
    with broken(model.model.ops.filled[op], EVERY_NUMBER):
        found = judged(model, subject)
    names = [gate.name for gate in found.failed if gate.name.startswith(graph)]
    assert closed <= {kind for kind in (MEDIAN, SHARE, P90) for name in names if kind in name}
