"""The reference logits: Hugging Face's Qwen3-MoE, in bf16 and fp32, on the evaluation's texts.

Computed once per checkpoint and shared by all kernel configurations. The safetensors file
holds, per text i, `tokens.i` (int64 `[len]`) and `bfloat16.i`, `float32.i` (the logits of the
model in that data type, stored as fp32 `[len, vocab]`); for logit matching, per prompt i,
`continued.bfloat16.i` and `continued.float32.i` (the logits of its greedy continuation, fp32
`[new tokens, vocab]`; the prompt is the text's beginning). Its metadata says what made it.
"""

# ruff: noqa: I001
from __future__ import annotations

import evaluation.offline  # noqa: F401  before any Hugging Face library

import importlib.metadata
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import save_file

from evaluation.inputs import EvaluationError, read_texts
from model.configuration import Config
from model.fingerprint import fingerprint
from model.progress import progress
from model.records import CheckpointRecord
from model.runtime import checkpoint_directory
from model.tokenizer import read_tokenizer

log = logging.getLogger(__name__)

ReferenceDtype = Literal["bfloat16", "float32"]
DTYPES: tuple[ReferenceDtype, ...] = ("bfloat16", "float32")
SCHEMA_VERSION = "2"


@dataclass(frozen=True)
class ReferenceLogits:
    """A validated reference file."""

    tokens: list[list[int]]
    logits: dict[ReferenceDtype, list[torch.Tensor]]
    """Data type -> per text fp32 `[len, vocab]`."""
    prompts: list[list[int]]
    """For logit matching: the beginnings of the first texts, of one length."""
    continued: dict[ReferenceDtype, list[torch.Tensor]]
    """Data type -> per prompt the logits of HF's greedy continuation, fp32 `[new, vocab]`."""
    checkpoint_fingerprint: str
    fingerprint: str


def reference(config: Config, checkpoint: Path, output: Path) -> None:
    """Write the reference logits of the first `config.accuracy.sequences` texts.

    Texts longer than the largest context-encoding bucket are cut to it; beginnings of the first
    of them are continued greedily (`config.accuracy.logit_matching`).

    Args:
        config: The evaluation.
        checkpoint: The checkpoint's record; its directory holds safetensors and a tokenizer.
        output: The safetensors file to write, whole or not at all.

    Raises:
        EvaluationError: texts or checkpoint are missing or do not fit each other.
    """
    record = CheckpointRecord.read(checkpoint)
    tokens = reference_tokens(config, record)
    prompts, new_tokens = matched_prompts(config, tokens)
    tensors = {f"tokens.{i}": torch.tensor(ids) for i, ids in enumerate(tokens)}
    directory = checkpoint_directory(record)
    for dtype in DTYPES:
        start = time.perf_counter()
        model = load_hf(directory, dtype)
        logits = [_hf_logits(model, ids) for ids in progress(tokens, "texts")]
        continued = _hf_continuations(model, prompts, new_tokens)
        tensors |= {f"{dtype}.{i}": rows for i, rows in enumerate(logits)}
        tensors |= {f"continued.{dtype}.{i}": rows for i, rows in enumerate(continued)}
        if not all(torch.isfinite(rows).all() for rows in logits + continued):
            raise EvaluationError(f"{directory}: HF's {dtype} logits are not finite")
        log.info(
            "reference: HF %s on %d texts (%d tokens) in %.1f s",
            dtype, len(tokens), sum(map(len, tokens)), time.perf_counter() - start,
        )  # fmt: skip
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "model": record.model,
        "sequences": str(len(tokens)),
        "prompts": str(len(prompts)),
        "prompt_tokens": str(len(prompts[0])),
        "checkpoint_fingerprint": record.fingerprint,
        "fingerprint": fingerprint(
            "reference", SCHEMA_VERSION, record.fingerprint, tokens, prompts, new_tokens,
            list(DTYPES), "eager",
            importlib.metadata.version("transformers"), torch.__version__,
        ),
    }  # fmt: skip
    _save(output, tensors, metadata)


def reference_tokens(config: Config, checkpoint: CheckpointRecord) -> list[list[int]]:
    """The token ids of the texts that logits are compared on.

    Raises:
        EvaluationError: a text has fewer than two tokens, so that nothing can be decoded.
    """
    path, limit = Path(config.accuracy.texts), config.buckets.context_encoding[-1]
    tokenizer = read_tokenizer(checkpoint_directory(checkpoint))
    tokens = []
    for number, text in enumerate(read_texts(path, config.accuracy.sequences), start=1):
        ids = [int(token) for token in tokenizer(text)["input_ids"]][:limit]
        if len(ids) < 2:
            raise EvaluationError(
                f"{path}: text {number} has {len(ids)} tokens; at least 2 are needed: one to "
                "encode and one to decode"
            )
        tokens.append(ids)
    return tokens


def matched_prompts(config: Config, tokens: list[list[int]]) -> tuple[list[list[int]], int]:
    """The prompts of logit matching, of one length, and how many tokens continue each.

    Raises:
        EvaluationError: the largest bucket holds no prompt and a new token.
    """
    settings, largest = config.accuracy.logit_matching, config.buckets.context_encoding[-1]
    length = min(settings.prompt_tokens, *map(len, tokens), largest - 1)
    if length < 1:
        raise EvaluationError(
            f"buckets.context_encoding: the largest holds {largest} tokens; logit matching needs "
            "room for a prompt and its continuation"
        )
    prompts = [ids[:length] for ids in tokens[: settings.sequences]]
    return prompts, min(settings.new_tokens, largest - length)


def read_reference(path: Path) -> ReferenceLogits:
    """Read and validate a reference file.

    Raises:
        EvaluationError: it is missing, truncated, of another schema, or inconsistent.
    """
    mend = "Delete it and run snakemake again; it rebuilds what is missing."
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file of reference logits") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise EvaluationError(f"{path}: not a readable safetensors file: {error}. {mend}") from None
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise EvaluationError(f"{path}: not a reference of schema {SCHEMA_VERSION}. {mend}")
    try:
        found = _parse(metadata, tensors)
    except (KeyError, ValueError) as error:
        raise EvaluationError(f"{path}: incomplete: {error}. {mend}") from None
    if not _consistent(found):
        raise EvaluationError(f"{path}: logits do not fit the tokens, or are NaN. {mend}")
    return found


def _parse(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> ReferenceLogits:
    texts, prompts = range(int(metadata["sequences"])), range(int(metadata["prompts"]))
    length = int(metadata["prompt_tokens"])
    tokens = [[int(x) for x in tensors[f"tokens.{i}"]] for i in texts]
    return ReferenceLogits(
        tokens=tokens,
        logits={dtype: [tensors[f"{dtype}.{i}"] for i in texts] for dtype in DTYPES},
        prompts=[tokens[i][:length] for i in prompts],
        continued={d: [tensors[f"continued.{d}.{i}"] for i in prompts] for d in DTYPES},
        checkpoint_fingerprint=metadata["checkpoint_fingerprint"],
        fingerprint=metadata["fingerprint"],
    )


def _consistent(found: ReferenceLogits) -> bool:
    """Logits for every token, of one vocabulary, finite; continuations of one length."""
    logits = [rows for each in found.logits.values() for rows in each]
    continued = [rows for each in found.continued.values() for rows in each]
    if not found.tokens or not found.prompts or not all(found.prompts):
        return False
    wanted = [(len(ids), *logits[0].shape[-1:]) for _ in DTYPES for ids in found.tokens]
    return (
        [tuple(rows.shape) for rows in logits] == wanted
        and {tuple(rows.shape) for rows in continued}
        == {(len(continued[0]), *logits[0].shape[-1:])}
        and len(continued[0]) > 0
        and all(bool(torch.isfinite(rows).all()) for rows in logits + continued)
    )


def load_hf(directory: Path, dtype: ReferenceDtype) -> Any:
    """HF's model with every weight from `directory`; eager attention, no network.

    Raises:
        EvaluationError: the directory is no such checkpoint, or weights are missing.
    """
    from transformers import Qwen3MoeForCausalLM  # takes seconds, and accuracy only reads the file

    try:
        model, loading = Qwen3MoeForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{directory}: no checkpoint that HF can load: {error}") from None
    # HF only warns of these, and fills them with random numbers.
    wrong = {k: v for k in ("missing_keys", "mismatched_keys") if (v := loading.get(k))}
    if wrong:
        raise EvaluationError(f"{directory}: not a complete Qwen3-MoE checkpoint: {wrong}")
    return model.eval()


@torch.inference_mode()
def _hf_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """fp32 `[len, vocab]`."""
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    return logits.float().contiguous()  # type: ignore[no-any-return]


@torch.inference_mode()
def _hf_continuations(model: Any, prompts: list[list[int]], new_tokens: int) -> list[torch.Tensor]:
    """Logits of greedy continuations, per prompt fp32 `[new_tokens, vocab]`; no token ends one."""
    steps = []
    tokens, cache = torch.tensor(prompts), None
    for _ in range(new_tokens):
        result = model(tokens, past_key_values=cache, use_cache=True)
        steps.append(result.logits[:, -1].float())
        tokens, cache = steps[-1].argmax(-1, keepdim=True), result.past_key_values
    return list(torch.stack(steps, dim=1).contiguous().unbind(0))


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
