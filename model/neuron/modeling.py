"""NxD Inference's Qwen3-MoE under a kernel configuration.

`bind` makes the application class of a configuration. Sub-modules are NxD Inference's own, built
by it and given our classes afterwards, so that parameters keep their names and sharding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.neuron.attention import QKV_OPS, KernelAttention, KernelRMSNorm, head_with_kernel
from model.neuron.kernels_in_graph import GraphKernels
from model.neuron.moe import KernelMoE
from model.neuron.nxd import (
    ModuleMarkerEndWrapper,
    ModuleMarkerStartWrapper,
    NeuronQwen3MoeDecoderLayer,
    StockForCausalLM,
    StockModel,
)


class KernelDecoderLayer(NeuronQwen3MoeDecoderLayer):  # type: ignore[misc]
    """One decoder layer.

    With `add_rmsnorm`, a layer's last sum is left to the norm that follows: the next layer gets
    what is to be added as `residual`, the model's last norm as `residual` of its own.
    """

    kernels: GraphKernels
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    last_norm: list[nn.Module]
    """Of the last layer only, the model's norm that adds; else empty. Not a sub-module."""
    leaves_sum: bool

    def take(self, kernels: GraphKernels, last_norm: nn.Module | None, leaves_sum: bool) -> None:
        """Use the kernels.

        Args:
            kernels: the filled ops.
            last_norm: for the last layer, the model's norm.
            leaves_sum: what follows adds.
        """
        self.kernels = kernels
        self.last_norm = [] if last_norm is None else [last_norm]
        self.leaves_sum = leaves_sum
        eps = self.config.rms_norm_eps
        if "rmsnorm" in kernels:
            self.input_layernorm = KernelRMSNorm(self.input_layernorm, eps, kernels)
            self.post_attention_layernorm = KernelRMSNorm(
                self.post_attention_layernorm, eps, kernels
            )
        self.self_attn.__class__ = KernelAttention
        self.self_attn.take(kernels)
        self.mlp.__class__ = KernelMoE
        self.mlp.take(kernels, self.config.neuron_config.torch_dtype)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_value: Any = None,
        padding_mask: Tensor | None = None,
        residual: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Hidden states [B, S, H] and what NxD Inference's own layer returns beside them."""
        decoding = past_key_value is not None
        hidden_states = ModuleMarkerStartWrapper()(hidden_states)
        block = decoding and "attention_block_decode" in self.kernels
        normed, total, norm = self._enter(hidden_states, residual, block)
        adds = "o_proj_add" in self.kernels and not block
        self.self_attn.residual = total if adds else None
        attended, kv, cos, sin = self.self_attn(
            hidden_states=normed,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_value=past_key_value,
            rmsnorm=norm,
            **kwargs,
        )
        self.self_attn.residual = None
        update, total = self._experts(attended, None if adds else total, decoding, padding_mask)
        if not self.leaves_sum:
            return ModuleMarkerEndWrapper()(total + update), kv, cos, sin, None
        update = ModuleMarkerEndWrapper()(update)
        if self.last_norm:
            self.last_norm[0].residual = total
            return update, kv, cos, sin, None
        return update, kv, cos, sin, total

    def _enter(
        self, hidden_states: Tensor, residual: Tensor | None, block: bool
    ) -> tuple[Tensor, Tensor, nn.Module | None]:
        """(the attention's input, the residual stream, a norm that is the attention's to apply)."""
        norm = self.input_layernorm
        if block:
            total = hidden_states if residual is None else hidden_states + residual
            return total, total, norm
        if residual is not None:
            weight, eps = norm.weight, self.config.rms_norm_eps
            normed, total = self.kernels("add_rmsnorm", hidden_states, residual, weight, eps)
            return normed, total, None
        if "norm_qkv_proj" in self.kernels:
            return hidden_states, hidden_states, norm
        return norm(hidden_states), hidden_states, None

    def _experts(
        self, attended: Tensor, residual: Tensor | None, decoding: bool, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The layer's second half: what is to be added to the residual stream, and the stream.

        `residual` is what is still to be added to `attended`.
        """
        norm = self.post_attention_layernorm
        eps = self.config.rms_norm_eps
        whole = decoding and "experts_decode" in self.kernels
        if residual is not None and not whole and "add_rmsnorm" in self.kernels:
            normed, total = self.kernels("add_rmsnorm", attended, residual, norm.weight, eps)
        else:
            total = attended if residual is None else residual + attended
            if whole:
                return self.mlp.decode(total, norm, eps), total
            normed = norm(total)
        self.mlp.decoding = decoding
        return self.mlp(normed, padding_mask)[0], total


class AddingNorm(nn.Module):
    """The model's last norm by `add_rmsnorm`; the last layer has set what is to be added."""

    residual: Tensor | None = None

    def __init__(self, stock: nn.Module, eps: float, kernels: GraphKernels) -> None:
        super().__init__()
        self.weight = stock.weight
        self.eps = eps
        self.kernels = kernels

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        residual, self.residual = self.residual, None
        return self.kernels("add_rmsnorm", hidden_states, residual, self.weight, self.eps)[0]  # type: ignore[no-any-return]


class KernelModel(StockModel):  # type: ignore[misc]
    """The traced module: both graphs.

    It picks the last valid position of a prompt itself, by the attention mask. NxD Inference
    takes the position with the largest position id, and pads these with 1: of a prompt of one
    token that is a pad.
    """

    kernels: GraphKernels
    norm: nn.Module
    prompt_mask: Tensor | None = None
    all_positions = False
    """Whether context encoding gives logits of all positions, for scoring."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.kernels = type(self).kernels
        super().__init__(config, *args, **kwargs)
        # NxD Inference's `forward` then picks no position. Set afterwards: its constructor resets.
        self.sliced_hidden = True

    def init_model(self, config: Any) -> None:
        """Build NxD Inference's modules, then put the kernels in."""
        refuse_unsupported(config)
        super().init_model(config)
        kernels = self.kernels
        kernels.launch_on(config.neuron_config.logical_nc_config)
        self.norm = _last_norm(self.norm, config.rms_norm_eps, kernels)
        adds_next = "add_rmsnorm" in kernels and "norm_qkv_proj" not in kernels
        for layer in self.layers:
            is_last = layer is self.layers[-1]
            leaves_sum = isinstance(self.norm, AddingNorm) if is_last else adds_next
            layer.__class__ = KernelDecoderLayer
            layer.take(kernels, self.norm if is_last and leaves_sum else None, leaves_sum)
        if kernels.any_of("lm_head", "norm_lm_head"):
            head_with_kernel(self.lm_head, self.norm, config.rms_norm_eps, kernels)

    def create_attn_mask(self, attention_mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """NxD Inference's own; attention_mask [B, S] is 1 where a prompt's tokens are."""
        self.prompt_mask = attention_mask
        return super().create_attn_mask(attention_mask, *args, **kwargs)  # type: ignore[no-any-return]

    def get_model_output(self, *args: Any, **kwargs: Any) -> Any:
        """Run a graph up to its last norm, calls of kernels counted as that graph's."""
        encoding = bool(kwargs.get("is_for_context_encoding"))
        self.kernels.enter("context_encoding" if encoding else "token_generation")
        hidden_states, cache = super().get_model_output(*args, **kwargs)
        if encoding and not self.all_positions:
            assert self.prompt_mask is not None
            valid = self.prompt_mask.to(torch.long).sum(-1)  # [B]
            self.prompt_mask = None
            index = (valid - 1)[:, None, None].expand(-1, 1, hidden_states.shape[-1])
            hidden_states = torch.gather(hidden_states, 1, index)
        return hidden_states, cache


def _last_norm(stock: nn.Module, eps: float, kernels: GraphKernels) -> nn.Module:
    if "norm_lm_head" in kernels:
        return BeforeHead(stock)
    if "add_rmsnorm" in kernels:
        return AddingNorm(stock, eps, kernels)
    return KernelRMSNorm(stock, eps, kernels) if "rmsnorm" in kernels else stock


class BeforeHead(nn.Module):
    """Holds the last norm's weight; the head's kernel normalises."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.weight = stock.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        """What comes in."""
        return hidden_states


class KernelForCausalLM(StockForCausalLM):  # type: ignore[misc]
    """The application: compile, load, generate."""

    kernels: GraphKernels

    def __init__(self, model_path: str, config: Any = None, neuron_config: Any = None) -> None:
        settings = neuron_config
        if settings is None:
            config = self.get_config_cls().load(model_path) if config is None else config
            settings = config.neuron_config
        if self.kernels.any_of(*QKV_OPS):
            settings.fused_qkv = True  # one weight, whose columns are this rank's q, k and v
        super().__init__(model_path, config, neuron_config)

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict: dict[str, Tensor]) -> None:
        """Give the head the embedding's weight; NxD Inference's own Qwen3-MoE cannot."""
        state_dict["lm_head.weight"] = state_dict["embed_tokens.weight"].clone()


def refuse_unsupported(config: Any) -> None:
    """Refuse settings under which the hooks would not be called, or would be wrong.

    Raises:
        ValueError: naming the setting and what it may be.
    """
    neuron = config.neuron_config
    wrong = {
        "norm_topk_prob": not config.norm_topk_prob,
        "sequence_parallel_enabled": neuron.sequence_parallel_enabled,
        "moe_ep_degree": getattr(neuron, "moe_ep_degree", 1) > 1,
        "cp_degree": neuron.cp_degree > 1,
        "attention_dp_degree": neuron.attention_dp_degree > 1,
        "flash_decoding_enabled": neuron.flash_decoding_enabled,
        "k_cache_transposed": neuron.k_cache_transposed,
        "layer_boundary_markers": neuron.layer_boundary_markers,
        "is_prefix_caching": neuron.is_prefix_caching,
        "speculation_length": neuron.speculation_length > 0,
        "padding_side": neuron.padding_side != "right",
        "moe_fused_nki_kernel_enabled": bool(neuron.moe_fused_nki_kernel_enabled),
        "attn_block_tkg_nki_kernel_enabled": bool(neuron.attn_block_tkg_nki_kernel_enabled),
        "qkv_kernel_enabled": bool(neuron.qkv_kernel_enabled or neuron.qkv_nki_kernel_enabled),
    }
    found = [name for name, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ValueError(
            f"the kernels' hooks do not hold with {', '.join(found)} as set; leave "
            "norm_topk_prob true, padding_side right, and the others at NxD Inference's defaults"
        )


def bind(kernels: GraphKernels, all_positions: bool = False) -> type[KernelForCausalLM]:
    """The application class that runs these kernels.

    Args:
        kernels: the filled ops.
        all_positions: context encoding gives the logits of every position, [B, S, V].
    """
    model = type(
        "NeuronQwen3MoeModel", (KernelModel,), {"kernels": kernels, "all_positions": all_positions}
    )
    return type(
        "NeuronQwen3MoeForCausalLM",
        (KernelForCausalLM,),
        {"kernels": kernels, "_model_cls": model},
    )
