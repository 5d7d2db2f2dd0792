"""The adapter on NxD Inference's public source, in its CPU mode, with the closed packages stood in.

`NXDI_SOURCE` names the two source folders, `PATH/TO/neuronx-distributed-inference/src:PATH/TO/
neuronx-distributed/src` (tags of SDK 2.29). Nothing is fetched here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = "NXDI_SOURCE"
REASON = (
    f"needs NxD Inference's public source: {SOURCE}=.../neuronx-distributed-inference/src:"
    ".../neuronx-distributed/src"
)


def available() -> bool:
    return bool(os.environ.get(SOURCE))


def enable() -> None:
    """Put the sources and the stand-ins in reach of `import`, and switch CPU mode on."""
    import neuron_stubs

    os.environ["NXD_CPU_MODE"] = "1"
    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    neuron_stubs.install(*os.environ[SOURCE].split(os.pathsep))


def random_checkpoint(folder: Path, tied: bool = False, dtype: str = "float32") -> Any:
    """A small random Qwen3-MoE in `folder`, and the Hugging Face model of it."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=128,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
        torch_dtype=getattr(torch, dtype),
    )
    model = Qwen3MoeForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return model


def application(
    application_class: Any, folder: Path, batch: int = 1, ranks: int = 1, dtype: str = "float32"
) -> Any:
    """NxD Inference's own API: configuration, application, CPU."""
    from model.neuron.nxd import MoENeuronConfig, Qwen3MoeInferenceConfig, load_pretrained_config

    neuron = MoENeuronConfig(
        tp_degree=ranks,
        batch_size=batch,
        seq_len=32,
        max_context_length=32,
        torch_dtype=dtype,
        logical_nc_config=2,
        on_cpu=True,
        enable_bucketing=False,
        attn_kernel_enabled=False,
        blockwise_matmul_config={"use_torch_block_wise": True},
    )
    config = Qwen3MoeInferenceConfig(neuron, load_config=load_pretrained_config(str(folder)))
    model = application_class(str(folder), config)
    model.to_cpu()
    return model


@torch.inference_mode()
def run(model: Any, tokens: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """(logits [B, V] after `prefix` tokens by context encoding; [B, T - prefix, V] of the rest)."""
    model.reset()
    batch, count = tokens.shape
    rows = torch.arange(batch)
    positions = torch.arange(prefix).expand(batch, -1)
    first = model(input_ids=tokens[:, :prefix], position_ids=positions, seq_ids=rows).logits[:, -1]
    steps = [
        model(
            input_ids=tokens[:, t : t + 1],
            position_ids=torch.full((batch, 1), t),
            seq_ids=rows,
        ).logits[:, -1]
        for t in range(prefix, count)
    ]
    return first, torch.stack(steps, dim=1)


@contextmanager
def corrupted(kernel_op: Any, factor: float = 1.05) -> Iterator[None]:
    """The op's kernel, all of whose fp results are 5 % off."""
    kernel: Callable[..., Any] = kernel_op.kernel

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        if isinstance(result, tuple):
            return tuple(x * factor if x.is_floating_point() else x for x in result)
        return result * factor

    kernel_op.kernel = wrong
    try:
        yield
    finally:
        kernel_op.kernel = kernel
