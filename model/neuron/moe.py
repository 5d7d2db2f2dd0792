"""NxD Inference's mixture of experts with kernels in place.

Shapes: T tokens, H hidden, E experts, k chosen per token, I expert width of this rank. Experts'
outputs are this rank's part of a sum, which `reduce_from_tensor_model_parallel_region` completes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.neuron.kernels_in_graph import GraphKernels
from model.neuron.nxd import MoE, RouterTopK, reduce_from_tensor_model_parallel_region

EXPERT_OPS = ("experts_prefill", "expert_mlp", "expert_aggregate")


class KernelRouter(RouterTopK):  # type: ignore[misc]
    """The router by `router`, or its softmax by `softmax`."""

    kernels: GraphKernels

    def take(self, kernels: GraphKernels, dtype: torch.dtype) -> None:
        """Use the kernels; the weight is also kept as [H, E] in the model's dtype.

        NxD Core fills `weight_T` from the checkpoint if `store_transposed_weights` is set.
        """
        self.kernels = kernels
        if kernels.any_of("router", "experts_decode"):
            weight = self.linear_router.weight.detach().T.clone().to(dtype)
            self.weight_T = nn.Parameter(weight, requires_grad=False)
            self.store_transposed_weights = True

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [B, S, H] -> (logits or affinities, affinities [T, E], index [T, k])."""
        if "router" not in self.kernels:
            return super().forward(hidden_states)  # type: ignore[no-any-return]
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, index = self.choose(rows)
        index = index.to(torch.long)
        affinities = torch.zeros(
            rows.shape[0], self.num_experts, dtype=rows.dtype, device=rows.device
        )
        affinities = affinities.scatter(1, index, weights.to(rows.dtype))
        return affinities, affinities, index

    def choose(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[T, H] -> (weights [T, k] fp32, of sum 1; experts [T, k] int32)."""
        if "router" in self.kernels:
            return self.kernels("router", rows, self.weight_T, self.top_k, True)  # type: ignore[no-any-return]
        _, affinities, index = self.forward(rows[None])
        weights = affinities.to(torch.float32).gather(1, index)
        return weights / weights.sum(1, keepdim=True), index.to(torch.int32)

    def apply_activation_fn(self, weights: Tensor) -> Tensor:
        """Softmax over experts [T, E]."""
        if "softmax" in self.kernels:
            return self.kernels("softmax", weights.to(torch.float32))  # type: ignore[no-any-return]
        return super().apply_activation_fn(weights)  # type: ignore[no-any-return]


class KernelMoE(MoE):  # type: ignore[misc]
    """Router, experts and their sum, each by its op where it is filled."""

    kernels: GraphKernels
    decoding: bool
    """Whether the token-generation graph runs; the decoder layer says so."""

    def take(self, kernels: GraphKernels, dtype: torch.dtype) -> None:
        """Use the kernels."""
        self.kernels = kernels
        self.decoding = False
        self.router.__class__ = KernelRouter
        self.router.take(kernels, dtype)
        if "router" in kernels:  # its weights have the sum 1 already; a second division would
            # hide a wrong kernel
            self.expert_mlps.routed_experts_mlp_config.normalize_top_k_affinities = False
        if "silu" in kernels:
            self.expert_mlps.mlp_op._activation_fn = lambda x: kernels("silu", x)

    def decode(self, hidden_states: Tensor, norm: nn.Module, eps: float) -> Tensor:
        """Norm, router, chosen experts and sum by `experts_decode`: [B, 1, H] -> [B, 1, H]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights = (norm.weight, self.router.weight_T, *self._expert_weights())
        out = self.kernels("experts_decode", rows, *weights, eps, self.router.top_k, True)
        return self._reduce(out.view(hidden_states.shape))

    def _forward_compute_bound(
        self, hidden_states: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor]:
        if not self.kernels.any_of(*self._ops()):
            return super()._forward_compute_bound(hidden_states, padding_mask)  # type: ignore[no-any-return]
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, experts = self.router.choose(rows)
        if padding_mask is not None:
            weights = weights * padding_mask.reshape(-1, 1)
        if "experts_prefill" in self._ops() and "experts_prefill" in self.kernels:
            out = self.kernels("experts_prefill", rows, weights, experts, *self._expert_weights())
        else:
            outputs = self._expert_outputs(rows, experts)
            out = self._aggregate(outputs, weights)
        return (self._reduce(out.view(hidden_states.shape)),)

    def _ops(self) -> tuple[str, ...]:
        return EXPERT_OPS[1:] if self.decoding else EXPERT_OPS

    def _expert_weights(self) -> tuple[Any, Any]:
        """(gate_up [E, H, 2 * I], down [E, I, H])."""
        experts = self.expert_mlps.mlp_op
        return experts.gate_up_proj.weight, experts.down_proj.weight

    def _expert_outputs(self, rows: Tensor, experts: Tensor) -> Tensor:
        """Each token's experts' outputs, [T, k, H].

        A graph has no loops over data. If it has fewer token-expert pairs than experts, each
        pair's weights are fetched; else every expert runs on all tokens, and the chosen are kept,
        as in NxD's own `forward_all_experts`.
        """
        count, chosen = experts.shape
        index = experts.to(torch.long)
        if count * chosen < self.router.num_experts:
            flat = index.reshape(-1)
            tokens = rows.repeat_interleave(chosen, dim=0)
            return self._mlps(tokens[:, None], flat).reshape(count, chosen, -1)
        everything = torch.arange(self.router.num_experts, device=rows.device)
        outputs = self._mlps(rows[None], everything).transpose(0, 1)  # [T, E, H]
        return outputs.gather(1, index[:, :, None].expand(-1, -1, rows.shape[1]))

    def _mlps(self, tokens: Tensor, experts: Tensor) -> Tensor:
        """Expert experts[i] on tokens[i] (or on tokens[0] if there is but one): [i, rows, H]."""
        if "expert_mlp" not in self.kernels:
            mlp = self.expert_mlps.mlp_op
            if tokens.shape[0] == 1:
                return mlp(tokens)  # type: ignore[no-any-return]
            return mlp(tokens, expert_indices=experts)  # type: ignore[no-any-return]
        gate_up, down = self._expert_weights()
        width = down.shape[1]
        outputs = []
        for n in range(experts.shape[0]):
            both = gate_up.data.index_select(0, experts[n : n + 1])[0]
            second = down.data.index_select(0, experts[n : n + 1])[0]
            x = tokens[n if tokens.shape[0] > 1 else 0]
            halves = (both[:, :width].contiguous(), both[:, width:].contiguous())
            outputs.append(self.kernels("expert_mlp", x, *halves, second))
        return torch.stack(outputs)

    def _aggregate(self, outputs: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of [T, k, H] over k."""
        if "expert_aggregate" in self.kernels:
            return self.kernels("expert_aggregate", outputs, weights)  # type: ignore[no-any-return]
        return (outputs * weights.to(outputs.dtype)[..., None]).sum(1)

    def _reduce(self, part: Tensor) -> Tensor:
        group = self.tensor_parallel_group
        return reduce_from_tensor_model_parallel_region(part, process_group=group)  # type: ignore[no-any-return]
