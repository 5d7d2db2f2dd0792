# ruff: noqa: E402  (the sources come into reach first)
"""One rank of the tensor-parallel test: `parallel.py CHECKPOINT CONFIGURATION`; rank 0 prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import real_source

import simulator.finder  # noqa: F401

real_source.enable()

import torch
from transformers import Qwen3MoeForCausalLM

from model.configuration import kernel_configuration_path, read_kernel_configuration
from model.neuron.kernels_in_graph import GraphKernels
from model.neuron.modeling import bind
from model.ops import build_ops

torch.set_num_threads(1)
folder = Path(sys.argv[1])
ops = build_ops(read_kernel_configuration(kernel_configuration_path(sys.argv[2])))
application_class = bind(GraphKernels(ops.filled, ops.enter))
ranks = int(os.environ["WORLD_SIZE"])
model = real_source.application(application_class, folder, batch=2, ranks=ranks)
tokens = torch.randint(2, 256, (2, 14), generator=torch.Generator().manual_seed(1))
first, rest = real_source.run(model, tokens, 8)
if int(os.environ["RANK"]) == 0:
    with torch.inference_mode():
        expected = Qwen3MoeForCausalLM.from_pretrained(folder).eval()(tokens).logits
    differences = ((first - expected[:, 7]).abs().max(), (rest - expected[:, 8:]).abs().max())
    print("largest difference", max(differences).item())
