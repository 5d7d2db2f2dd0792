"""What a graph calls, at any size, without weights: the model is run on tensors of no data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kernels import layer_reference
from kernels.contracts import CONTRACTS
from model.checkpoint import ModelConfig, empty_weights, local_config
from model.configuration import KernelConfiguration
from model.ops import GRAPHS, STEPS, KernelOp, Ops, fake, kernel_name, load_kernel
from model.qwen3_moe import Cache, Qwen3Moe
from model.records import Graph
from simulator import dtypes
from simulator.errors import NkiValidationError, Violation
from simulator.kernel import Kernel
from simulator.program import Program
from simulator.specialise import TensorSpec as ProgramSpec
from simulator.targets import Target


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument or result."""

    dtype: str
    """E.g. `bfloat16`."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


Value = TensorSpec | int | float | bool | str | None


@dataclass(frozen=True)
class OpCall:
    """One call of an op in a graph. Equal calls cost the same, up to their layer."""

    op: str
    """An op of `kernels.OPS`, or what no kernel can fill: `embedding`, `add`, `cache_write`,
    `attention_chunk`, `experts` (arguments as experts_prefill, in token generation), and the
    collectives `all_reduce` and `all_gather`."""
    layer: int | None
    """None for what is outside of the layers."""
    arguments: tuple[tuple[str, Value], ...]
    """By name, in the op's order; shapes are one rank's."""
    results: tuple[TensorSpec, ...]
    kernel: str | None
    """The kernel as the configuration names it; None for the PyTorch reference."""
    parameters: tuple[tuple[str, Value], ...] = ()
    """Of the configuration."""
    inside: str | None = None
    """The op, itself in the list and without a kernel, whose reference makes this call: its work
    is part of that op's."""

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The arguments that are tensors."""
        return {name: value for name, value in self.arguments if isinstance(value, TensorSpec)}


def record_op_calls(
    architecture: ModelConfig,
    configuration: KernelConfiguration,
    graph: Graph,
    *,
    batch: int = 1,
    bucket: int = 1,
    context: int,
    tp_degree: int = 1,
    dtype: str = "bfloat16",
    every: bool = False,
    device: Literal["meta", "cpu"] = "meta",
) -> list[OpCall]:
    """All op calls of one run of a graph, in order, as one tensor-parallel rank makes them.

    Args:
        architecture: of the whole model; no weights are needed.
        configuration: which kernel fills which op.
        graph: context encoding or token generation.
        batch: sequences.
        bucket: tokens of each sequence; 1 in token generation.
        context: length of the KV cache, `bucket` at least.
        tp_degree: ranks; 1 has no collectives.
        dtype: of weights and activations.
        every: context encoding gives logits of every position, not only of the last ones.
        device: `cpu` runs references on real tensors, for a small model: what shapes alone would
            take makes torch import its compiler, more than a second.

    Kernels are not loaded, so whether they can be is not known afterwards (`build_ops`).

    Raises:
        CheckpointError: the model does not divide by `tp_degree`.
    """
    calls: list[OpCall] = []
    with torch.device(device):
        kind: torch.dtype = getattr(torch, dtype)
        weights = empty_weights(architecture, kind, context, tp_degree)
        local = local_config(architecture, tp_degree)
        filled = {
            op: KernelOp(op, chosen.kernel, _never, dict(chosen.parameters))
            for op, chosen in configuration.ops.items()
        }
        ops = Ops(filled, watch=lambda op, run: _watched(op, run, calls, lambda: ops))
        model = Qwen3Moe(local, weights, ops, tp_degree)
        kv = Cache.empty(local, batch, context, kind)
        tokens = torch.zeros(batch, bucket, dtype=torch.int64)
        lengths = torch.zeros(batch, 1, dtype=torch.int32)
        if graph == "context_encoding":
            model.context_encoding(tokens, lengths, kv, every)
        else:
            model.token_generation(tokens, lengths, kv)
    return calls


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a recorded kernel is not run")


def _watched(
    op: str, run: Callable[..., Any], calls: list[OpCall], table: Callable[[], Ops]
) -> Callable[..., Any]:
    """An op that notes how it is called; a kernel gives tensors of its reference's shapes."""
    filled = run if isinstance(run, KernelOp) else None

    def call(*arguments: Any) -> Any:
        ops = table()
        position = len(calls)
        outer, ops.inside = ops.inside, op
        if not filled:
            results = run(*arguments)
        elif arguments[0].is_meta:
            results = fake(op, *arguments)
        else:
            results = CONTRACTS[op].reference(*arguments)
        ops.inside = outer
        calls.insert(
            position,  # before what it calls itself
            OpCall(
                op=op,
                layer=ops.layer,
                arguments=tuple(
                    (name, _spec(value))
                    for name, value in zip(argument_names(op), arguments, strict=False)
                ),
                results=tuple(_spec(value) for value in _tensors(results)),
                kernel=filled.source if filled else None,
                parameters=tuple(filled.parameters.items()) if filled else (),
                inside=outer,
            ),
        )
        return results

    return call


@functools.cache
def argument_names(op: str) -> tuple[str, ...]:
    """An op's arguments: those of its schema, or of the function that no kernel replaces."""
    if op in CONTRACTS:
        text = CONTRACTS[op].schema.partition(")")[0] if "!" not in CONTRACTS[op].schema else ""
        if text:
            return tuple(item.split()[-1] for item in text.strip("(").split(","))
    functions: dict[str, Callable[..., Any]] = {
        "attention_decode": layer_reference.decode_attention_in_place,
        "attention_block_decode": layer_reference.attention_block_decode,
        "attention_chunk": layer_reference.chunk_attention,
        "experts": CONTRACTS["experts_prefill"].reference,
        **STEPS,
    }
    if op == "add":
        return ("x", "other")
    parameters = inspect.signature(functions[op]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _tensors(results: Any) -> tuple[Tensor, ...]:
    if results is None:
        return ()
    return results if isinstance(results, tuple) else (results,)


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec(str(value.dtype).removeprefix("torch."), tuple(value.shape))
    return value


@functools.cache
def _small_architecture(layers: int) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "hidden_size": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "moe_intermediate_size": 8,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "vocab_size": 64,
            "max_position_embeddings": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e4,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
        }
    )


def graphs_of_ops(configuration: KernelConfiguration, layers: int = 2) -> dict[str, set[Graph]]:
    """Filled op -> the graphs that call its kernel; found without running a kernel.

    Sizes do not matter for that, so it is a small model that runs; of the number of layers only
    whether there is a second, the first to have something to add to the residual stream.
    """
    graphs: dict[str, set[Graph]] = {op: set() for op in configuration.ops}
    architecture = _small_architecture(min(layers, 2))
    for graph in GRAPHS:
        for call in record_op_calls(architecture, configuration, graph, context=8, device="cpu"):
            if call.kernel is not None:
                graphs[call.op].add(graph)
    return graphs


def graphs_of_kernels(configuration: KernelConfiguration) -> dict[str, set[Graph]]:
    """Kernel name -> the graphs that call it; a kernel whose op is never called has none."""
    graphs: dict[str, set[Graph]] = {}
    for op, found in graphs_of_ops(configuration).items():
        graphs.setdefault(kernel_name(configuration.ops[op].kernel), set()).update(found)
    return graphs


# --- the kernel behind a call ---------------------------------------------------------------


class CompileError(Exception):
    """A kernel cannot be specialised for a call; `violations` holds the rules that it breaks."""

    def __init__(self, message: str, violations: list[Violation]) -> None:
        self.violations = violations
        super().__init__(message)


def specialise(
    call: OpCall, target: Target | None = None, cores: int = 1, where: str = ""
) -> Program:
    """The Program of a call's kernel at the call's shapes, whose results are the op's.

    Args:
        call: of an op that a kernel fills.
        target: whose limits hold; None for the environment's.
        cores: of the launch (LNC), 1 or 2.
        where: what an error calls the place, e.g. `graph context_encoding`.

    Raises:
        CompileError: the kernel breaks a rule at these shapes, fails, or gives other results
            than the op's; with op, kernel, shapes and rules.
        ConfigurationError: the kernel cannot be loaded.
    """
    assert call.kernel is not None, f"no kernel fills {call.op}"
    name = kernel_name(call.kernel)
    kernel: Any = load_kernel(call.kernel)
    header = ", ".join(filter(None, (f"op {call.op}, kernel {name}", where)))
    if not isinstance(kernel, Kernel):
        raise CompileError(f"{header}: is no function with @nki.jit", [])
    if cores > 1:
        kernel = kernel[cores]
    programs: list[Program] = []
    shapes = ""

    def stand(*args: Any, **kwargs: Any) -> Any:
        nonlocal shapes
        given = [_program_value(value) for value in args]
        named = {name: _program_value(value) for name, value in kwargs.items()}
        bound = kernel.signature.bind(*given, **named).arguments
        shapes = ", ".join(f"{key}={_text(value)}" for key, value in bound.items())
        programs.append(kernel.specialise(*given, target=target, **named))
        results = tuple(
            torch.empty(x.shape, dtype=getattr(torch, str(x.dtype))) for x in programs[0].results
        )
        return results if programs[0].returns_tuple else results[0]

    try:
        results = tuple(_spec(x) for x in _tensors(_call_kernel(call, stand)))
    except NkiValidationError as error:
        raise CompileError(f"{header}, called with {shapes}:\n{error}", error.violations) from None
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise CompileError(f"{header}, called with {shapes}:\n{what}", []) from error
    if results != call.results:
        found, wanted = (", ".join(map(str, x)) for x in (results, call.results))
        raise CompileError(f"{header}, called with {shapes}:\ngives {found}, not {wanted}", [])
    return programs[0]


def _call_kernel(call: OpCall, kernel: Callable[..., Any]) -> Any:
    """The op's results, by its contract, on tensors without data."""
    with torch.device("meta"):
        arguments = [
            torch.empty(value.shape, dtype=getattr(torch, value.dtype))
            if isinstance(value, TensorSpec)
            else value
            for _, value in call.arguments
        ]
        return CONTRACTS[call.op].call(kernel, *arguments, **dict(call.parameters))


def _text(value: Any) -> str:
    return str(value) if isinstance(value, ProgramSpec) else repr(value)


def _program_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ProgramSpec(
            tuple(value.shape), dtypes.DTYPES[str(value.dtype).removeprefix("torch.")]
        )
    return value
