"""NxD Inference's options for a configuration: those we pin, and the user's."""

from __future__ import annotations

from typing import Any

from model.configuration import Config
from model.neuron import neuron_config_keys
from model.neuron.availability import NeuronError

PINNED: dict[str, Any] = {
    # The kernels are what is compared; NxD Inference's own must not run in their place. Its NKI
    # kernel for experts in context encoding is not in SDK 2.29 either.
    "attn_kernel_enabled": False,
    "blockwise_matmul_config": {"use_torch_block_wise": True},
    # Weights are cut up once, when compiled: loading then needs no second copy of them.
    "save_sharded_checkpoint": True,
    # Logits come back to the host, which picks tokens: the same for all configurations.
    "on_device_sampling_config": None,
    "padding_side": "right",
}
_OURS = (
    "tp_degree batch_size seq_len max_context_length torch_dtype logical_nc_config "
    "enable_bucketing context_encoding_buckets token_generation_buckets fused_qkv"
)
OURS = frozenset(_OURS.split())
"""Set from the rest of the configuration."""


def neuron_options(config: Config, dtype: str, batch_size: int, on_cpu: bool) -> dict[str, Any]:
    """Keywords of `MoENeuronConfig`.

    Args:
        config: `buckets` and `neuron` decide.
        dtype: `bfloat16` or `float32`.
        batch_size: sequences at a time.
        on_cpu: NxD Inference's CPU mode, which has one module for both graphs, and no buckets.

    Raises:
        NeuronError: the user's options have one that NxD Inference does not know, or one that
            is set elsewhere.
    """
    further = dict(config.neuron.options)
    neuron_config_keys.check(further, "neuron.options")
    fixed = sorted((OURS | PINNED.keys()) & further.keys())
    if fixed:
        raise NeuronError(
            f"neuron.options: {', '.join(fixed)} cannot be set there; the configuration's other "
            "keys decide, or the hooks of the kernels need it as it is (docs/trn2.md)"
        )
    length = config.buckets.max_length
    generation = list(config.neuron.token_generation_buckets or [length])
    if sorted(set(generation)) != generation or generation[-1] != length:
        raise NeuronError(
            f"neuron.token_generation_buckets is {generation}; it must ascend to "
            f"buckets.max_length ({length})"
        )
    options = {
        "tp_degree": config.neuron.tp_degree,
        "batch_size": batch_size,
        "seq_len": length,
        "torch_dtype": dtype,
        "logical_nc_config": config.neuron.logical_nc_config,
        **PINNED,
        **further,
    }
    if on_cpu:
        return options | {
            "max_context_length": length,
            "enable_bucketing": False,
            "save_sharded_checkpoint": False,
            "on_cpu": True,
        }
    return options | {
        "max_context_length": config.buckets.context_encoding[-1],
        "enable_bucketing": True,
        "context_encoding_buckets": list(config.buckets.context_encoding),
        "token_generation_buckets": generation,
    }
