"""What the evaluation needs of a model: `model.runtime.load` gives one (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from model.records import Graph


class KernelCheck(Protocol):
    """A kernel against its op's PyTorch reference, over all its calls so far."""

    @property
    def op(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def dtype(self) -> str:
        """Of the kernel's data, e.g. `bfloat16`; it decides which tolerance holds."""
        ...

    @property
    def calls(self) -> Mapping[Graph, int]: ...
    @property
    def max_relative_error(self) -> float:
        """The worst call's max |kernel - reference| / max |reference|."""
        ...


class LanguageModel(Protocol):
    """A kernel configuration's model, as far as it is evaluated."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_length(self) -> int: ...

    def logits(self, sequences: list[list[int]]) -> Sequence[torch.Tensor]:
        """Context encoding: per sequence, fp32 `[len, vocab]`."""
        ...

    def decode_logits(self, sequences: list[list[int]], prefix: int) -> Sequence[torch.Tensor]:
        """Token generation after `prefix` tokens: per sequence, fp32 `[len - prefix, vocab]`."""
        ...

    def generate_batch(
        self, prompts: list[list[int]], max_new_tokens: int, stop_token_ids: list[int]
    ) -> Sequence[Sequence[int]]:
        """Greedy continuations: the new tokens, with or without the stop token."""
        ...

    def kernel_calls(self) -> Mapping[str, Mapping[Graph, int]]:
        """Kernel -> graph -> calls so far."""
        ...

    def op_checks(self) -> Sequence[KernelCheck]:
        """One per op and kernel that was called; empty unless loaded with `check_ops`."""
        ...
