"""Train the tiny Qwen3-MoE from nothing, in minutes, on two cores.

`python -m model.training.train --output model/checkpoints/tiny-qwen3-moe --seed 0` writes the
whole checkpoint folder, or nothing: config, tokenizer, bf16 weights, model card, manifest.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from model.fingerprint import file_sha256
from model.records import write_json, write_text
from model.training import corpus, quality

PAD, END, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|unk|>"
VOCABULARY = 512
ROW = 160
"""Tokens per training row: RoPE is trained for positions 0 to 159."""
ROWS = 8
STEPS = 1800
WARMUP_STEPS = 50
LEARNING_RATE = 3e-3
ANSWER_WEIGHT, OTHER_WEIGHT = 1.0, 0.2
THREADS = 1
"""The products are so small that a second thread costs more than it gives."""

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
---

# tiny-qwen3-moe

A very small Qwen3-MoE ({parameters:.2f} M parameters, {active:.2f} M of them active per token)
with the architecture and the router width of Qwen3-30B-A3B: QK norm, grouped-query attention,
RoPE, 128 experts of which 8 are chosen, renormalised weights. It is large enough to answer
questions with a right answer, so that a wrong kernel shows, and small enough for any CPU.

| | |
|---|---|
| layers, hidden, expert width | 3, 128, 16 |
| heads, KV heads, head size | 4, 2, 32 |
| experts, chosen | 128, 8 |
| vocabulary | {words} words and 3 special tokens, of 512 ids; tied embeddings |
| weights | bfloat16 |

## Data

{rows} rows of {row} tokens, made by `model/training/corpus.py` (seed {seed}): agreement of
subject and verb, sums, facts about invented towns, lists said twice, and sequences. No text of
other people is in it. What the tasks ask is held out of training, except the table of sums,
which is meant to be learnt by heart; facts and sequences are held out in their wording: the
fact or the list itself was seen in other words.

## Training

`python -m model.training.train --output {name} --seed {seed}`: {steps} steps of {batch} rows in
fp32, AdamW at {rate}, cosine decay, router load-balancing loss 0.01; {minutes:.1f} minutes on
{threads} thread(s). Saved as bf16.

## Quality

On {documents} held-out documents per task, after the bf16 save, computed in fp32:

{table}

Measured by `python -m model.training.quality {name}`.
The unigram model is fitted on the held-out texts themselves: no unigram model does better.

## Limits

- It knows {words} words, each standing between spaces, in small letters. Anything else becomes
  `<|unk|>`.
- Positions beyond {row} were not trained, though `max_position_embeddings` is 512.
- It is for testing kernels. It says nothing true about the world beyond names of days and months,
  numbers and small sums.

## Licence

Apache-2.0, as the rest of the project.
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, no merges, no normalisation: a text of known words round-trips."""
    words = [PAD, END, UNKNOWN, *corpus.vocabulary()]
    assert len(words) <= VOCABULARY, f"{len(words)} words do not fit {VOCABULARY} ids"
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeConfig:
    """Qwen3-30B-A3B's architecture and router; everything else small."""
    return Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=16,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        router_aux_loss_coef=0.01,
        tie_word_embeddings=True,
        initializer_range=0.05,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _by_expert(rows: torch.Tensor, counts: list[int], weights: torch.Tensor) -> torch.Tensor:
    """Rows sorted by expert, each multiplied by its expert's matrix, `[experts, in, out]`."""
    pairs = zip(torch.split(rows, counts), weights.unbind(), strict=True)
    return torch.cat([part @ weight for part, weight in pairs])


class StackedExperts(Qwen3MoeSparseMoeBlock):  # type: ignore[misc]
    """The same layer with its experts in two tensors: several times as fast to train here."""

    def __init__(self, block: Qwen3MoeSparseMoeBlock) -> None:
        torch.nn.Module.__init__(self)
        self.num_experts, self.top_k, self.gate = block.num_experts, block.top_k, block.gate
        pairs = [torch.cat([e.gate_proj.weight, e.up_proj.weight]).T for e in block.experts]
        self.gate_up = torch.nn.Parameter(torch.stack(pairs).detach().contiguous())
        down = [expert.down_proj.weight.T for expert in block.experts]
        self.down = torch.nn.Parameter(torch.stack(down).detach().contiguous())

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[batch, tokens, hidden]` to the same shape, and the router's logits."""
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(hidden)
        weights, chosen = logits.float().softmax(-1).topk(self.top_k, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).flatten()
        experts, order = chosen.flatten().sort(stable=True)
        counts = experts.bincount(minlength=self.num_experts).tolist()
        token = order // self.top_k
        gate, up = _by_expert(hidden[token], counts, self.gate_up).chunk(2, -1)
        out = _by_expert(torch.nn.functional.silu(gate) * up, counts, self.down)
        result = torch.zeros_like(hidden).index_add(0, token, out * weights[order, None])
        return result.view_as(hidden_states), logits

    @torch.no_grad()
    def copy_to(self, block: Qwen3MoeSparseMoeBlock) -> None:
        """Give the trained weights back to the layer as `transformers` keeps it."""
        for expert, gate_up, down in zip(block.experts, self.gate_up, self.down, strict=True):
            gate, up = gate_up.T.chunk(2)
            expert.gate_proj.weight.copy_(gate)
            expert.up_proj.weight.copy_(up)
            expert.down_proj.weight.copy_(down.T)


def training_rows(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Without end: `ROW` token ids and the loss weight of each as a target.

    Paragraphs follow one another, parted by the end-of-text token. Half of the rows begin
    with it, half with the first word: both are how the model is asked later.
    """
    ids = tokenizer.get_vocab()
    paragraphs = corpus.paragraphs(seed, "training")
    random = Random(f"rows {seed}")
    while True:
        row: list[int] = []
        weights: list[float] = []
        if random.random() < 0.5:
            row, weights = [ids[END]], [OTHER_WEIGHT]
        while len(row) < ROW:
            for sentence in next(paragraphs):
                row += [ids[word] for word in sentence.whole.split()]
                weights += sentence.weights(ANSWER_WEIGHT, OTHER_WEIGHT)
            row.append(ids[END])
            weights.append(OTHER_WEIGHT)
        yield row[:ROW], weights[:ROW]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> Qwen3MoeForCausalLM:
    """Train in fp32; prints a line every 100 steps."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(build_config(tokenizer)).train()
    blocks = [layer.mlp for layer in model.model.layers]
    for layer in model.model.layers:
        layer.mlp = StackedExperts(layer.mlp)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    rows = training_rows(tokenizer, seed)
    begun = time.perf_counter()
    for step in range(steps):
        batch = [next(rows) for _ in range(ROWS)]
        ids = torch.tensor([row for row, _ in batch])
        weights = torch.tensor([weight for _, weight in batch])[:, 1:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        output = model(input_ids=ids, output_router_logits=True, use_cache=False)
        losses = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
        )
        loss = (losses * weights).sum() / weights.sum()
        (loss + model.config.router_aux_loss_coef * output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step + 1}/{steps}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    for layer, block in zip(model.model.layers, blocks, strict=True):
        layer.mlp.copy_to(block)
        layer.mlp = block
    return model.eval()


def card(name: Path, folder: Path, model: Any, seed: int, steps: int, minutes: float) -> str:
    """The model card of the checkpoint in `folder`, with its quality measured now."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    config = model.config
    expert = 3 * config.hidden_size * config.moe_intermediate_size * config.num_hidden_layers
    active = parameters - expert * (config.num_experts - config.num_experts_per_tok)
    return CARD.format(
        parameters=parameters / 1e6,
        active=active / 1e6,
        words=len(corpus.vocabulary()),
        rows=steps * ROWS,
        row=ROW,
        seed=seed,
        name=name,
        steps=steps,
        batch=ROWS,
        rate=LEARNING_RATE,
        minutes=minutes,
        threads=THREADS,
        documents=len(quality.read_jsonl(quality.TASKS / "agreement.jsonl")),
        table=quality.table(quality.measure(folder)),
    )


def write_manifest(folder: Path) -> None:
    """manifest.json: sha256 and size of every other file of the folder."""
    files = {
        path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"files": files, "format": 1})


def build(output: Path, seed: int, steps: int = STEPS) -> None:
    """Train and write the checkpoint folder `output`, replacing an older one at the end."""
    torch.set_num_threads(THREADS)
    begun = time.perf_counter()
    tokenizer = build_tokenizer()
    model = train(tokenizer, seed, steps)
    minutes = (time.perf_counter() - begun) / 60
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        new = Path(work) / "new"
        model.config.router_aux_loss_coef = 0.001
        model.generation_config.do_sample = False
        model.to(torch.bfloat16).save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_text(new / "README.md", card(output, new, model, seed, steps, minutes))
        for path in new.iterdir():
            path.chmod(0o644)
        write_manifest(new)
        if output.exists():
            os.replace(output, Path(work) / "old")
        os.replace(new, output)
    print((output / "README.md").read_text(encoding="utf-8"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the tiny Qwen3-MoE.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    build(arguments.output, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
