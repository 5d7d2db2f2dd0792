"""The model is transformers' Qwen3-MoE, with and without kernels, in both graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_model import VOCABULARY
from transformers import Qwen3MoeForCausalLM

from model import runtime
from model.configuration import (
    Config,
    KernelConfiguration,
    OpKernel,
    Sampling,
    read_kernel_configuration,
)
from model.decoding import choose
from model.records import CheckpointRecord
from model.runtime import LanguageModel, PromptError, load

BASELINE = KernelConfiguration(description="reference")
ALL = read_kernel_configuration(Path("config/kernels/all.yaml"))
SEPARATE = read_kernel_configuration(Path("config/kernels/separate.yaml"))


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        for length in (7, 16, 5, 9)
    ]


@pytest.fixture(scope="module")
def reference(random_checkpoint: Path) -> dict[str, list[torch.Tensor]]:
    """HF's logits of every sequence, unpadded, per dtype."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = Qwen3MoeForCausalLM.from_pretrained(
            random_checkpoint, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        with torch.inference_mode():
            found[dtype] = [model(torch.tensor([s])).logits[0].float() for s in sequences()]
    return found


def loaded(record: CheckpointRecord, config: Config, kernels: KernelConfiguration) -> LanguageModel:
    return load(record, kernels, dtype="float32", config=config, check_ops=True)


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kernels", [BASELINE, ALL], ids=["baseline", "all"])
def test_context_encoding_equals_transformers(
    record: CheckpointRecord,
    config: Config,
    reference: dict[str, list[torch.Tensor]],
    kernels: KernelConfiguration,
) -> None:
    found = loaded(record, config, kernels).logits(sequences())
    assert [len(rows) for rows in found] == [7, 16, 5, 9]
    assert worst(found, reference["float32"]) < 1e-5


def test_batches_of_any_size_and_order_give_the_same_logits(
    record: CheckpointRecord, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "ENCODED_TOKENS", 16)  # one row of 16 tokens, two of 8
    model = loaded(record, config, ALL)
    given = [*sequences(), [3], [4, 5]]
    encoded: list[tuple[int, ...]] = []
    run = model.graphs.context_encoding
    monkeypatch.setattr(
        model.graphs,
        "context_encoding",
        lambda tokens, *rest: encoded.append(tuple(tokens.shape)) or run(tokens, *rest),
    )
    found = model.logits(given)
    assert sorted(encoded) == [(1, 16), (1, 16), (2, 8), (2, 8)]  # 16; 9; 7 and 5; 2 and 1
    assert encoded[0] == (1, 16)
    alone = [model.logits([tokens])[0] for tokens in given]
    assert worst(found, alone) < 1e-5


@pytest.mark.parametrize("kernels", [BASELINE, ALL, SEPARATE], ids=["baseline", "all", "separate"])
def test_token_generation_equals_transformers(
    record: CheckpointRecord,
    config: Config,
    reference: dict[str, list[torch.Tensor]],
    kernels: KernelConfiguration,
) -> None:
    found = loaded(record, config, kernels).decode_logits(sequences(), prefix=1)
    assert worst(found, [rows[1:] for rows in reference["float32"]]) < 1e-5


def test_bfloat16_stays_within_twice_transformers_own_error(
    record: CheckpointRecord, config: Config, reference: dict[str, list[torch.Tensor]]
) -> None:
    exact = torch.cat(reference["float32"])
    own = (torch.cat(reference["bfloat16"]) - exact).norm()
    model = load(record, ALL, dtype="bfloat16", config=config)
    ours = (torch.cat(model.logits(sequences())) - exact).norm()
    assert 0 < ours <= 2 * own


def test_greedy_generation_follows_the_logits(
    record: CheckpointRecord, config: Config, random_checkpoint: Path
) -> None:
    prompt = sequences()[0]
    hf = Qwen3MoeForCausalLM.from_pretrained(random_checkpoint, dtype=torch.float32)
    expected = hf.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt) :].tolist()
    generation = loaded(record, config, ALL).generate([prompt], 8, [])[0]
    assert generation.tokens == expected
    assert len(generation.itl_ms) == 7
    assert generation.end_to_end_ms == pytest.approx(
        generation.ttft_ms + sum(generation.itl_ms), rel=1e-6
    )


def test_a_one_token_prompt_is_run(record: CheckpointRecord, config: Config) -> None:
    model = loaded(record, config, BASELINE)
    first = model.generate([[3]], 1, [])[0].tokens[0]
    assert first == int(model.logits([[3]])[0][0].argmax())


def test_generation_ends_at_a_stop_token_and_at_the_cache(
    record: CheckpointRecord, config: Config
) -> None:
    model = loaded(record, config, BASELINE)
    prompt = sequences()[1]  # 16 of 24 positions
    free = model.generate([prompt], 50, [])[0].tokens
    assert len(free) == 24 - 16 + 1  # the last token needs no place in the cache
    stopped = model.generate([prompt], 50, [free[2]])[0].tokens
    assert stopped == free[: free.index(free[2]) + 1]


@pytest.mark.parametrize("kernels", [BASELINE, ALL], ids=["baseline", "all"])
def test_a_batch_generates_what_each_prompt_does_alone(
    record: CheckpointRecord, config: Config, kernels: KernelConfiguration
) -> None:
    model = loaded(record, config, kernels)
    prompts = [*sequences(), [3]]  # of 7, 16, 5, 9 and 1 tokens; the cache ends the second
    free = [run.tokens for run in model.generate(prompts, 12, [])]
    assert model.generate_batch(prompts, 12, []) == free
    assert {len(tokens) for tokens in free} == {9, 12}
    assert len({tuple(tokens) for tokens in free}) == len(prompts)
    stop = [free[0][2], free[3][0]]
    stopped = [run.tokens for run in model.generate(prompts, 12, stop)]
    assert len({len(tokens) for tokens in stopped}) > 2
    assert model.generate_batch(prompts, 12, stop) == stopped


def test_sampling_is_seeded_and_differs_from_greedy(
    record: CheckpointRecord, config: Config
) -> None:
    model = loaded(record, config, BASELINE)
    prompt = sequences()[0]
    hot = Sampling(temperature=5.0, top_k=50, top_p=1.0, seed=3)
    first, second = (model.generate([prompt], 8, [], hot)[0].tokens for _ in range(2))
    other = model.generate([prompt], 8, [], hot.model_copy(update={"seed": 4}))[0].tokens
    assert first == second != other
    assert first != model.generate([prompt], 8, [])[0].tokens


def test_top_p_and_top_k_cut_the_tail() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.3]))
    random = torch.Generator().manual_seed(0)
    for sampling, allowed in (
        (Sampling(temperature=1.0, top_k=1, top_p=1.0), {1}),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), {1}),
        (Sampling(temperature=1.0, top_k=2, top_p=1.0), {1, 2}),
        (Sampling(temperature=1.0, top_k=3, top_p=1.0), {0, 1, 2}),
    ):
        assert {choose(logits, sampling, random) for _ in range(200)} == allowed


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([1] * 17, r"17 tokens is longer than the largest context_encoding bucket \(16\)"),
        ([VOCABULARY], r"outside the vocabulary \(0 to 95\)"),
        ([-1], "outside the vocabulary"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_refused(
    record: CheckpointRecord, config: Config, prompt: list[int], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        loaded(record, config, BASELINE).generate([prompt], 2, [])


def test_calls_are_counted_per_graph(record: CheckpointRecord, config: Config) -> None:
    model = loaded(record, config, SEPARATE)
    model.generate([sequences()[0]], 3, [])
    layers, decoded = 2, 2
    each = {  # in a run of context encoding, and of token generation
        "nki_rmsnorm_kernel": (layers, 0),
        "nki_qkv_projection_kernel": (layers, layers),
        "nki_qk_rmsnorm_kernel": (layers, layers),
        "nki_rope_kernel": (layers, layers),
        "nki_flash_attention_kernel": (layers, 0),
        "nki_decode_attention_kernel": (0, layers),
        "nki_output_projection_kernel": (layers, layers),
        "nki_expert_router_kernel": (layers, 0),
        "nki_moe_prefill_kernel": (layers, 0),
        "nki_moe_decode_kernel": (0, layers),
        "nki_lm_head_kernel": (1, 1),
    }
    assert model.kernel_calls() == {
        kernel: {"context_encoding": first, "token_generation": decoded * then}
        for kernel, (first, then) in each.items()
    }


def test_a_kernel_may_come_from_any_file(
    record: CheckpointRecord, config: Config, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(Path("kernels/silu.py").read_text())
    chosen = OpKernel(kernel=f"{file}:nki_silu_kernel", parameters={"tile_columns": 16})
    model = loaded(record, config, KernelConfiguration(description="mine", ops={"silu": chosen}))
    model.logits(sequences())
    assert model.kernel_calls()["nki_silu_kernel"]["context_encoding"] == 2 * 2
    assert model.op_checks()[0].max_relative_error < 1e-5
