"""What the adapter uses of NxD Inference 0.9 and NxD Core 0.18; no other module imports them.

Importing this module needs both packages. Nothing imports it before `model.neuron.availability`
has said that they are there.
"""

from neuronx_distributed.modules.moe.model import MoE
from neuronx_distributed.modules.moe.routing import RouterTopK
from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear
from neuronx_distributed.parallel_layers.mappings import reduce_from_tensor_model_parallel_region
from neuronx_distributed_inference.models.config import MoENeuronConfig
from neuronx_distributed_inference.models.layer_boundary_marker import (
    ModuleMarkerEndWrapper,
    ModuleMarkerStartWrapper,
)
from neuronx_distributed_inference.models.qwen3_moe.modeling_qwen3_moe import (
    NeuronQwen3MoEAttention,
    NeuronQwen3MoeDecoderLayer,
    Qwen3MoeInferenceConfig,
)
from neuronx_distributed_inference.models.qwen3_moe.modeling_qwen3_moe import (
    NeuronQwen3MoeForCausalLM as StockForCausalLM,
)
from neuronx_distributed_inference.models.qwen3_moe.modeling_qwen3_moe import (
    NeuronQwen3MoeModel as StockModel,
)
from neuronx_distributed_inference.modules.attention.attention_base import FlashAttentionStrategy
from neuronx_distributed_inference.modules.attention.utils import repeat_kv
from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

__all__ = [
    "ColumnParallelLinear",
    "FlashAttentionStrategy",
    "MoE",
    "MoENeuronConfig",
    "ModuleMarkerEndWrapper",
    "ModuleMarkerStartWrapper",
    "NeuronQwen3MoEAttention",
    "NeuronQwen3MoeDecoderLayer",
    "Qwen3MoeInferenceConfig",
    "RouterTopK",
    "StockForCausalLM",
    "StockModel",
    "load_pretrained_config",
    "reduce_from_tensor_model_parallel_region",
    "repeat_kv",
]
