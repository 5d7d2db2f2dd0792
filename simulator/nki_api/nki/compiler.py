"""`nki.compiler`: the options that `@nki.jit` takes since 0.7. They have no effect here."""

from __future__ import annotations

from typing import Any


class _Options:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.options = options


class CompileConfig(_Options):
    """`@nki.jit(compile_config=…)`: how the compiler is run."""


class SpecializationConfig(_Options):
    """`@nki.jit(specialization_config=…)`: how kernels are specialised."""


class AddressRotation(_Options):
    """How buffers that a loop allocates take turns."""
