"""The reference logits: Hugging Face's Qwen3-MoE, in bf16 and fp32, on the evaluation's texts.

Computed once per checkpoint and shared by all kernel configurations. The safetensors file
holds, per text i, `tokens.i` (int64 `[len]`) and `bfloat16.i`, `float32.i` (the logits of the
model in that data type, stored as fp32 `[len, vocab]`); its metadata says what made it.
"""

# ruff: noqa: I001
from __future__ import annotations

import evaluation.offline  # noqa: F401  before any Hugging Face library

import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoTokenizer, Qwen3MoeForCausalLM

from evaluation.inputs import EvaluationError, read_texts
from model.configuration import Config
from model.fingerprint import fingerprint
from model.records import CheckpointRecord
from model.runtime import checkpoint_directory

log = logging.getLogger(__name__)

ReferenceDtype = Literal["bfloat16", "float32"]
DTYPES: tuple[ReferenceDtype, ...] = ("bfloat16", "float32")
SCHEMA_VERSION = "1"


@dataclass(frozen=True)
class ReferenceLogits:
    """A validated reference file."""

    tokens: list[list[int]]
    logits: dict[ReferenceDtype, list[torch.Tensor]]
    """Data type -> per text fp32 `[len, vocab]`."""
    checkpoint_fingerprint: str
    fingerprint: str


def reference(config: Config, checkpoint: Path, output: Path) -> None:
    """Write the reference logits of the first `config.accuracy.sequences` texts.

    Texts longer than the largest context-encoding bucket are cut to it.

    Args:
        config: The evaluation.
        checkpoint: The checkpoint's record; its directory holds safetensors and a tokenizer.
        output: The safetensors file to write, whole or not at all.

    Raises:
        EvaluationError: texts or checkpoint are missing or do not fit each other.
    """
    record = CheckpointRecord.read(checkpoint)
    tokens = reference_tokens(config, record)
    tensors = {f"tokens.{i}": torch.tensor(ids) for i, ids in enumerate(tokens)}
    for dtype in DTYPES:
        start = time.perf_counter()
        for i, logits in enumerate(_hf_logits(checkpoint_directory(record), dtype, tokens)):
            tensors[f"{dtype}.{i}"] = logits
        log.info(
            "reference: HF %s on %d texts (%d tokens) in %.1f s",
            dtype, len(tokens), sum(map(len, tokens)), time.perf_counter() - start,
        )  # fmt: skip
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "model": record.model,
        "sequences": str(len(tokens)),
        "checkpoint_fingerprint": record.fingerprint,
        "fingerprint": fingerprint(
            "reference", SCHEMA_VERSION, record.fingerprint, tokens, list(DTYPES), "eager",
            transformers.__version__, torch.__version__,
        ),
    }  # fmt: skip
    _save(output, tensors, metadata)


def reference_tokens(config: Config, checkpoint: CheckpointRecord) -> list[list[int]]:
    """The token ids of the texts that logits are compared on.

    Raises:
        EvaluationError: a text has fewer than two tokens, so that nothing can be decoded.
    """
    path, limit = Path(config.accuracy.texts), config.buckets.context_encoding[-1]
    tokenizer = AutoTokenizer.from_pretrained(
        checkpoint_directory(checkpoint), local_files_only=True
    )
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
    wanted = {"schema_version", "sequences", "checkpoint_fingerprint", "fingerprint"}
    if not wanted <= metadata.keys() or metadata["schema_version"] != SCHEMA_VERSION:
        raise EvaluationError(f"{path}: not a reference of schema {SCHEMA_VERSION}. {mend}")
    try:
        count = int(metadata["sequences"])
        tokens = [[int(x) for x in tensors[f"tokens.{i}"]] for i in range(count)]
        logits = {dtype: [tensors[f"{dtype}.{i}"] for i in range(count)] for dtype in DTYPES}
    except (KeyError, ValueError) as error:
        raise EvaluationError(f"{path}: incomplete: {error}. {mend}") from None
    vocab = {x.shape[-1] for rows in logits.values() for x in rows}
    if not tokens or len(vocab) != 1:
        raise EvaluationError(f"{path}: no texts, or vocabularies of different sizes. {mend}")
    for rows in logits.values():
        for ids, row in zip(tokens, rows, strict=True):
            if row.shape != (len(ids), *vocab) or not torch.isfinite(row).all():
                raise EvaluationError(f"{path}: logits do not fit the tokens, or are NaN. {mend}")
    return ReferenceLogits(
        tokens, logits, metadata["checkpoint_fingerprint"], metadata["fingerprint"]
    )


def load_hf(directory: Path, dtype: ReferenceDtype) -> Any:
    """HF's model with every weight from `directory`; eager attention, no network.

    Raises:
        EvaluationError: the directory is no such checkpoint, or weights are missing.
    """
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
def _hf_logits(
    directory: Path, dtype: ReferenceDtype, tokens: list[list[int]]
) -> list[torch.Tensor]:
    model = load_hf(directory, dtype)
    result = []
    for number, ids in enumerate(tokens, start=1):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float().contiguous()
        if not torch.isfinite(logits).all():
            raise EvaluationError(
                f"{directory}: HF's {dtype} logits of text {number} are not finite"
            )
        result.append(logits)
    return result


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
