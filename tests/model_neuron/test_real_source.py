"""Every op in NxD Inference's real Qwen3-MoE, against Hugging Face and against itself corrupted."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import real_source
import torch
from torch import Tensor

from kernels import KERNELS, OPS
from model.configuration import Config, KernelConfiguration, Neuron, OpKernel, read_config
from model.neuron import neuron_config_keys, weights
from model.neuron.hooks import HOOKS
from model.neuron.kernels_in_graph import GraphKernels
from model.ops import Ops, build_ops
from model.records import CheckpointRecord

pytestmark = pytest.mark.skipif(not real_source.available(), reason=real_source.REASON)

PREFIX, LENGTH = 8, 14
EXACT = 2e-5
"""Largest difference of fp32 logits (standard deviation 1.8). NxD Inference without kernels is
up to 8e-6 away; the order of sums is not Hugging Face's."""
MOVED = 1e-2
"""What a kernel that is 5 % off moves them by at least (measured: 0.1 to 3)."""


@pytest.fixture(autouse=True, scope="module")
def _nxd() -> Any:
    before = dict(os.environ)
    real_source.enable()
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, real_source.random_checkpoint(folder, tied=True)


def filled_with(*ops: str) -> KernelConfiguration:
    """A configuration that fills each op with the kernel that KERNELS has for it."""
    kernel = {op: name for name, info in KERNELS.items() for op in _ops_of(info)}
    return KernelConfiguration(
        description="a test's", ops={op: OpKernel(kernel=kernel[op]) for op in ops}
    )


def _ops_of(info: Any) -> tuple[str, ...]:
    return getattr(info, "ops", None) or (info.op,)


def bound(configuration: KernelConfiguration) -> tuple[Any, Ops]:
    from model.neuron.modeling import bind

    ops = build_ops(configuration)
    return bind(GraphKernels(ops.filled, ops.enter)), ops


@cache
def tokens(batch: int) -> Tensor:
    return torch.randint(2, 256, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def difference(model: Any, reference: Any, batch: int) -> tuple[float, float]:
    """Of both graphs' logits from Hugging Face's, the largest."""
    expected = reference(tokens(batch)).logits
    first, rest = real_source.run(model, tokens(batch), PREFIX)
    return (
        (first - expected[:, PREFIX - 1]).abs().max().item(),
        (rest - expected[:, PREFIX:]).abs().max().item(),
    )


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_op_is_called_where_its_hook_says_and_counts(
    op: str, checkpoint: tuple[Path, Any]
) -> None:
    application_class, ops = bound(filled_with(op))
    model = real_source.application(application_class, checkpoint[0])
    assert max(difference(model, checkpoint[1], 1)) < EXACT
    called = {graph for graph, calls in ops.filled[op].calls.items() if calls}
    assert called == set(HOOKS[op].graphs)
    with real_source.corrupted(ops.filled[op]):
        encoding, generation = difference(model, checkpoint[1], 1)
    assert generation > MOVED
    assert (encoding > MOVED) == ("context_encoding" in HOOKS[op].graphs)


CONFIGURATIONS = sorted(path.stem for path in Path("config/kernels").glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_each_configuration_is_right_and_each_of_its_ops_counts(
    name: str, checkpoint: tuple[Path, Any]
) -> None:
    from model.configuration import kernel_configuration_path, read_kernel_configuration

    configuration = read_kernel_configuration(kernel_configuration_path(name))
    application_class, ops = bound(configuration)
    model = real_source.application(application_class, checkpoint[0], batch=2)
    assert max(difference(model, checkpoint[1], 2)) < EXACT
    for op, filled in ops.filled.items():
        assert sum(filled.calls.values()), op
        with real_source.corrupted(filled):
            assert max(difference(model, checkpoint[1], 2)) > MOVED, op


def test_one_token_prompts_and_ragged_batches(checkpoint: tuple[Path, Any]) -> None:
    """NxD Inference's own takes a pad for the last token of a prompt of one."""
    application_class, _ = bound(filled_with("rmsnorm"))
    model = real_source.application(application_class, checkpoint[0], batch=3)
    lengths = torch.tensor([1, 2, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = tokens(3)[:, :9] * mask
    positions = torch.arange(9).expand(3, -1).masked_fill(mask == 0, 1)
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        for row, length in enumerate(lengths.tolist()):
            expected = checkpoint[1](ids[row : row + 1, :length]).logits[0, -1]
            assert (found[row] - expected).abs().max().item() < EXACT, length


def test_the_language_model_is_hugging_faces(checkpoint: tuple[Path, Any]) -> None:
    from model.neuron import runtime

    folder, reference = checkpoint
    config = read_config(Path("config/config.yaml"))
    buckets = config.buckets.model_copy(update={"max_length": 32, "context_encoding": [8, 16]})
    config = config.model_copy(update={"neuron": Neuron(tp_degree=1), "buckets": buckets})
    record = CheckpointRecord(
        model="random", directory=str(folder), source=str(folder), files={}, fingerprint="0"
    )
    model = runtime.load(
        record,
        filled_with("rmsnorm"),
        dtype="float32",
        config=config,
        check_ops=True,
        batch_size=2,
    )
    sequences = [tokens(1)[0, :n].tolist() for n in (1, 5, 14)]
    with torch.inference_mode():
        expected = [reference(torch.tensor([s])).logits[0] for s in sequences]
        for found, wanted in zip(model.logits(sequences), expected, strict=True):
            assert (found - wanted).abs().max().item() < EXACT
        for found, wanted in zip(model.decode_logits(sequences[1:], 3), expected[1:], strict=True):
            assert (found - wanted[3:]).abs().max().item() < EXACT
        [short, stopped] = [
            reference.generate(torch.tensor([s]), max_new_tokens=6, do_sample=False)
            for s in sequences[:2]
        ]
    found = model.generate(sequences[:2], 6, [1])
    assert found[0].tokens == short[0, 1:].tolist()
    assert found[1].tokens == stopped[0, 5:].tolist()
    calls = model.kernel_calls()["nki_rmsnorm_kernel"]
    assert calls["context_encoding"] == 5 * (3 + 2)
    assert calls["token_generation"] % 5 == 0
    (check,) = model.op_checks()
    assert (check.op, check.dtype, sum(check.calls.values())) == (
        "rmsnorm",
        "float32",
        sum(calls.values()),
    )
    assert 0 < check.max_relative_error < 1e-5


def test_the_options_that_nxd_knows_are_those_of_its_source() -> None:
    source = next(
        path
        for folder in os.environ[real_source.SOURCE].split(os.pathsep)
        if (path := Path(folder) / "neuronx_distributed_inference/models/config.py").is_file()
    )
    found = {"capacity_factor", "glu_mlp"}
    for owner in ast.parse(source.read_text()).body:
        if isinstance(owner, ast.ClassDef) and owner.name in ("NeuronConfig", "MoENeuronConfig"):
            for node in ast.walk(owner):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "kwargs.pop",
                    "kwargs.get",
                ):
                    found.add(ast.literal_eval(node.args[0]))
    assert found == neuron_config_keys.KEYS


@pytest.mark.parametrize("fused", [False, True])
def test_weights_are_converted_as_nxd_converts_them(
    fused: bool, checkpoint: tuple[Path, Any]
) -> None:
    from types import SimpleNamespace

    from neuronx_distributed_inference.models.qwen3_moe.modeling_qwen3_moe import (
        convert_qwen3_moe_hf_to_neuron_state_dict,
    )

    state = {name: tensor.clone() for name, tensor in checkpoint[1].state_dict().items()}
    neuron = SimpleNamespace(
        glu_mlp=True, tp_degree=1, fused_qkv=fused, quantized=False,
        quantized_mlp_kernel_enabled=False, modules_to_not_convert=None,
    )  # fmt: skip
    config = SimpleNamespace(neuron_config=neuron, num_hidden_layers=2, num_experts=8)
    theirs = convert_qwen3_moe_hf_to_neuron_state_dict(
        {name.removeprefix("model."): tensor.clone() for name, tensor in state.items()}, config
    )
    ours = weights.to_neuron(state, fused_qkv=fused)
    assert ours.keys() == {name for name in theirs if not name.endswith("rank_util.rank")}
    assert all(ours[name].equal(theirs[name]) for name in ours)
    back = weights.to_hugging_face(theirs, kv_width=2 * 16)
    assert all(back[name].equal(state[name]) for name in state)


def test_settings_under_which_hooks_would_not_be_called_are_refused(
    checkpoint: tuple[Path, Any],
) -> None:
    from model.neuron.application import build
    from model.neuron.availability import NeuronError

    config: Config = read_config(Path("config/config.yaml"))
    wrong = Neuron(tp_degree=1, options={"flash_decoding_enabled": True})
    config = config.model_copy(update={"neuron": wrong})
    application = build(
        config, filled_with("rmsnorm"), checkpoint[0], kind="generation", batch_size=1
    )
    with pytest.raises((NeuronError, ValueError), match="flash_decoding_enabled"):
        application.model.to_cpu()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "name"), [(2, "all"), (4, "all"), (2, "separate"), (2, "norms")])
def test_with_tensor_parallelism(ranks: int, name: str, checkpoint: tuple[Path, Any]) -> None:
    """Two ranks have a key head each; of four, two share one."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"),
            *(str(Path(__file__).with_name("parallel.py")), str(checkpoint[0]), name),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    found = [line for line in result.stdout.splitlines() if line.startswith("largest difference")]
    assert len(found) == 1, result.stderr[-2000:]
    assert float(found[0].split()[-1]) < EXACT
