"""A graph's calls are those that really run, at any size, without weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from model.checkpoint import CheckpointError, ModelConfig, read_config
from model.configuration import Config, KernelConfiguration, read_kernel_configuration
from model.op_calls import (
    OpCall,
    TensorSpec,
    graphs_of_kernels,
    graphs_of_ops,
    record_op_calls,
    specialise,
)
from model.ops import GRAPHS
from model.records import CheckpointRecord, Graph
from model.runtime import load
from simulator.targets import TARGETS

ALL = read_kernel_configuration(Path("config/kernels/all.yaml"))
PARTS = read_kernel_configuration(Path("config/kernels/parts.yaml"))
SEPARATE = read_kernel_configuration(Path("config/kernels/separate.yaml"))
LARGE = read_config(Path("model/checkpoints/qwen3-30b-a3b"))


SMALL = LARGE.model_copy(update={"num_hidden_layers": 2})


def calls_of(
    configuration: KernelConfiguration, graph: Graph, architecture: ModelConfig = LARGE
) -> list[OpCall]:
    bucket = 640 if graph == "context_encoding" else 1
    return record_op_calls(
        architecture, configuration, graph, bucket=bucket, context=640, tp_degree=4
    )


def test_a_decode_step_of_qwen3_30b_a3b_on_one_of_four_ranks() -> None:
    calls = calls_of(SEPARATE, "token_generation")
    counts = Counter((call.op, call.kernel is not None) for call in calls)
    assert counts == {
        ("embedding", False): 1,
        ("norm_qkv_proj", True): 48,
        ("qk_norm", True): 48,
        ("rope", True): 48,
        ("attention_decode", True): 48,
        ("o_proj_add", True): 48,
        ("experts_decode", True): 48,
        ("all_reduce", False): 96,
        ("add", False): 48,
        ("norm_lm_head", True): 1,
        ("all_gather", False): 1,
    }
    experts = next(call for call in calls if call.op == "experts_decode" and call.layer == 47)
    assert experts.tensors["gate_up"] == TensorSpec("bfloat16", (128, 2048, 2 * 192))
    assert dict(experts.arguments)["top_k"] == 8
    attention = next(call for call in calls if call.op == "attention_decode")
    assert attention.tensors["q"].shape == (1, 8, 128)
    assert attention.tensors["k_cache"].shape == (1, 1, 640, 128)
    assert calls[-1].results == (TensorSpec("bfloat16", (1, 151936)),)


def test_a_fused_decode_step_has_two_kernels_in_a_layer() -> None:
    calls = calls_of(ALL, "token_generation")
    counts = Counter((call.op, call.kernel is not None) for call in calls)
    assert counts == {
        ("embedding", False): 1,
        ("attention_block_decode", True): 48,
        ("experts_decode", True): 48,
        ("all_reduce", False): 96,
        ("add", False): 96,
        ("norm_lm_head", True): 1,
        ("all_gather", False): 1,
    }
    block = next(call for call in calls if call.op == "attention_block_decode")
    assert block.tensors["k_cache"].shape == (1, 1, 640, 128)
    program = specialise(block, TARGETS["trn2"], cores=2)
    assert program.arguments["o_weight"].shape == (1024, 2048)


def test_layers_are_alike_but_for_their_number() -> None:
    calls = calls_of(SEPARATE, "context_encoding")
    first = [c for c in calls if c.layer == 1]
    last = [c for c in calls if c.layer == 47]
    assert [(c.op, c.arguments, c.results) for c in first] == [
        (c.op, c.arguments, c.results) for c in last
    ]


@pytest.mark.parametrize("graph", ["context_encoding", "token_generation"])
@pytest.mark.parametrize("configuration", [SEPARATE, PARTS, ALL], ids=["separate", "parts", "all"])
def test_the_calls_are_those_that_run(
    record: CheckpointRecord, config: Config, configuration: KernelConfiguration, graph: Graph
) -> None:
    calls = record_op_calls(
        read_config(Path(record.directory)), configuration, graph,
        bucket=8 if graph == "context_encoding" else 1, context=24,
    )  # fmt: skip
    model = load(record, configuration, dtype="float32", config=config)
    model.generate([[1, 2, 3]], 2, [])
    ran = {kernel: count[graph] for kernel, count in model.kernel_calls().items()}
    counted = Counter(call.kernel for call in calls if call.kernel)
    assert counted == {kernel: count for kernel, count in ran.items() if count}


def test_a_kernel_inside_a_reference_names_the_op_around_it() -> None:
    calls = calls_of(PARTS, "token_generation")
    inside = Counter((call.op, call.inside) for call in calls if call.kernel)
    assert inside == {
        ("softmax", "attention_decode"): 48,
        ("softmax", "router"): 48,
        ("silu", "experts"): 48,
        ("expert_aggregate", "experts"): 48,
    }
    first = next(i for i, call in enumerate(calls) if call.inside)
    assert calls[first - 1].op == calls[first].inside


def test_a_calls_kernel_is_specialised_at_its_shapes() -> None:
    call = next(c for c in calls_of(SEPARATE, "token_generation") if c.op == "norm_qkv_proj")
    program = specialise(call, TARGETS["trn2"], cores=2)
    assert program.lnc == 2
    shapes = {name: tensor.shape for name, tensor in program.arguments.items()}
    assert shapes == {"x": (1, 2048), "weight": (2048, 1280), "norm_weight": (2048,)}
    assert program.parameters["eps"] == 1e-6


def test_a_kernel_is_missed_only_where_its_op_occurs() -> None:
    both = {"context_encoding", "token_generation"}
    assert graphs_of_kernels(SEPARATE) == {
        "nki_rmsnorm_kernel": {"context_encoding"},
        "nki_qkv_projection_kernel": both,
        "nki_qk_rmsnorm_kernel": both,
        "nki_rope_kernel": both,
        "nki_flash_attention_kernel": {"context_encoding"},
        "nki_decode_attention_kernel": {"token_generation"},
        "nki_output_projection_kernel": both,
        "nki_expert_router_kernel": {"context_encoding"},
        "nki_moe_prefill_kernel": {"context_encoding"},
        "nki_moe_decode_kernel": {"token_generation"},
        "nki_lm_head_kernel": both,
    }
    silu = {"silu": SEPARATE.ops["rmsnorm"].model_copy(update={"kernel": "nki_silu_kernel"})}
    idle = SEPARATE.model_copy(update={"ops": {**SEPARATE.ops, **silu}})
    assert graphs_of_kernels(idle)["nki_silu_kernel"] == set()


@pytest.mark.parametrize(
    "path", sorted(Path("config/kernels").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_configuration_of_ours_has_no_idle_kernel(path: Path) -> None:
    configuration = read_kernel_configuration(path)
    called: dict[str, set[Graph]] = {op: set() for op in configuration.ops}
    for graph in GRAPHS:
        for call in record_op_calls(SMALL, configuration, graph, context=8):
            if call.kernel is not None:
                assert call.kernel == configuration.ops[call.op].kernel
                called[call.op].add(graph)
    assert all(called.values())
    assert graphs_of_ops(configuration) == called  # of another model, and with data


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not divide by tp_degree 5"):
        record_op_calls(LARGE, SEPARATE, "token_generation", context=8, tp_degree=5)
