"""The configuration files: what they may say, and what a person is told when they are wrong.

`config/config.yaml` is read into `Config`, `config/kernels/NAME.yaml` into
`KernelConfiguration`. Both are read by `yaml.safe_load` and validated here and nowhere else.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import kernels


class ConfigurationError(Exception):
    """A configuration file is wrong; the message says what, where and how to mend it."""


class Section(BaseModel):
    """A mapping of the configuration: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Layout(Section):
    """How `trace` lays a model out on its target: ranks, cores, and the shapes it predicts."""

    tp_degree: PositiveInt = 1
    """Tensor-parallel ranks; each is a logical core."""
    lnc: Literal[1, 2] = 1
    """Physical cores of a logical core."""
    context: PositiveInt
    """Length of the KV cache, to all of which a decode step attends, in tokens."""
    context_encoding: Annotated[list[PositiveInt], Field(min_length=1)]
    """Context-encoding buckets, ascending, in tokens. TTFT is predicted at the largest."""

    @model_validator(mode="after")
    def _ordered(self) -> Layout:
        if sorted(set(self.context_encoding)) != self.context_encoding:
            raise ValueError("context_encoding must be ascending, without repeats")
        if self.context_encoding[-1] > self.context:
            raise ValueError(
                f"context ({self.context}) must hold the largest context_encoding "
                f"bucket ({self.context_encoding[-1]})"
            )
        return self

    @property
    def decode_steps(self) -> int:
        """Tokens that fit behind a prompt of the smallest bucket, one at least."""
        return max(1, self.context - self.context_encoding[0])


class ModelSource(Section):
    """Where a checkpoint comes from."""

    source: str
    """A directory (relative to the project's root or absolute), or
    `hf://OWNER/NAME@REVISION` with a full commit hash."""
    manifest: str | None = None
    """A manifest.json with the sha256 of every file. Needed for a directory."""
    architecture: str | None = None
    """A folder with config.json, all that `trace` needs of a model; `source` if that is one."""
    layout: Layout | None = None
    """For `trace`; by default one core and `buckets`."""


class Buckets(Section):
    """The static shapes that are compiled."""

    context_encoding: Annotated[list[PositiveInt], Field(min_length=1)]
    """Prompt lengths, in tokens; a prompt is padded to the smallest that holds it."""
    max_length: PositiveInt
    """Length of the KV cache: prompt and output together, in tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Buckets:
        if sorted(set(self.context_encoding)) != self.context_encoding:
            raise ValueError("context_encoding must be ascending, without repeats")
        if self.context_encoding[-1] > self.max_length:
            raise ValueError(
                f"max_length ({self.max_length}) must hold the largest context_encoding "
                f"bucket ({self.context_encoding[-1]})"
            )
        return self


class Sampling(Section):
    """Seeded sampling, run beside greedy decoding."""

    temperature: Positive = 0.8
    top_k: PositiveInt = 20
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: int = 0


class Generate(Section):
    """The generation stage."""

    prompts: str
    max_new_tokens: PositiveInt = 16
    warmup_runs: Annotated[int, Field(ge=0)] = 1
    measured_runs: PositiveInt = 3
    sampling: Sampling = Sampling()


class Latency(Section):
    """The latency stage: each configuration in turn with the baseline, in one process."""

    baseline: Name = "baseline"
    """The kernel configuration that every other is compared with."""
    prompts: Annotated[list[str], Field(min_length=1)] = ["short", "medium", "long"]
    """Names of prompts of `generate.prompts`; each round runs all of them on both sides."""
    new_tokens: Annotated[int, Field(ge=2)] = 8
    """Tokens that every run generates, stop token or not: the work is always the same."""
    standard_error: Positive = 0.01
    """Stop when the means' standard errors, relative to the means, are no larger."""
    time_budget_s: Positive = 6.0
    """Stop after so many seconds in any case; one round is always finished."""
    smallest_difference: Positive = 0.03
    """The share by which two configurations must differ to matter."""
    seed: int = 0
    """The order of sides and prompts is drawn from it, and the resampling."""

    @field_validator("prompts")
    @classmethod
    def _once(cls, prompts: list[str]) -> list[str]:
        if len(set(prompts)) != len(prompts):
            raise ValueError("prompts names one twice")
        return prompts


class Tolerances(Section):
    """What a configuration may differ by before its verdict is fail."""

    float32_relative_l2: Positive = 1e-4
    """fp32 logits against HF's fp32 logits."""
    bfloat16_error_ratio: Positive = 1.3
    """bf16 logits' error against HF's fp32 logits over HF's own bf16 error, the median token's.
    On texts held out, measured on the tiny model: docs/evaluation.md."""
    bfloat16_further_share: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of tokens that are further from HF's fp32 than HF's bf16 is, give or take two standard
    errors."""
    bfloat16_kl_p90_ratio: Positive = 2.0
    """KL divergence from HF's fp32 over HF's bf16's, 90th percentile: for errors at some tokens
    only. Of an op 5 % off everywhere, the two limits above are the sharper ones."""
    bfloat16_kl_per_token: Positive = 2e-3
    """Mean KL divergence of the bf16 logits from HF's bf16 logits, nats per token: for gross
    errors at few tokens. No closer, since one token whose best experts flip moves the mean of a
    thousand by 1e-3. If HF's own bf16 error is large, that sets the limit (evaluation/verdict.py),
    as it does for the next."""
    bfloat16_top1_agreement: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of positions whose most likely token is HF's, in bf16."""
    float32_op: Positive = 1e-5
    """A kernel against its reference in fp32, relative to the reference's largest value."""
    bfloat16_op: Positive = 1e-2
    """The same in bf16, where one rounding step is 2**-8 = 3.9e-3."""


class TopKTolerance(Section):
    """Logit matching: what the reference's k most likely tokens may differ by."""

    k: PositiveInt | None = None
    """null: the whole vocabulary."""
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5
    """In logits."""
    relative: Positive
    """Of the largest of the reference's k logits."""


class LogitMatching(Section):
    """Logit matching (evaluation/logit_matching.py); tolerances as NxD Inference's defaults."""

    sequences: PositiveInt = 8
    """How many of accuracy.texts give a prompt; at most accuracy.sequences."""
    prompt_tokens: PositiveInt = 12
    """A prompt's tokens, at most: the shortest text's are the limit too."""
    new_tokens: PositiveInt = 16
    """Tokens to continue each prompt by, at most: the largest context_encoding bucket holds
    prompt and continuation, since a restart encodes both."""
    top_k: Annotated[list[TopKTolerance], Field(min_length=1)] = [
        TopKTolerance(k=5, relative=0.01),
        TopKTolerance(k=50, relative=0.02),
        TopKTolerance(k=1000, relative=0.03),
        TopKTolerance(k=None, relative=0.05),
    ]
    """The tolerance map; a k above the vocabulary is left out."""
    divergence_tolerance: Positive = 1e-3
    """In logits, where the most likely token differs."""

    @model_validator(mode="after")
    def _each_k_once(self) -> LogitMatching:
        ks = [tolerance.k for tolerance in self.top_k]
        if len(set(ks)) != len(ks):
            raise ValueError("top_k names a k twice")
        return self


class ErrorMap(Section):
    """Error budget and cut-point map (evaluation/error_map.py)."""

    sequences: PositiveInt = 16
    """How many of accuracy.texts; at most accuracy.batch_size."""
    context_tokens: PositiveInt = 32
    """Of each text, at most, through context encoding."""
    decoded_tokens: PositiveInt = 4
    """Of each text, at most, through token generation after it."""


class Accuracy(Section):
    """The accuracy stage."""

    texts: str
    """A JSONL file with `text`: what the logits are compared on."""
    sequences: PositiveInt = 16
    """How many of the texts."""
    tasks: str
    """A folder of lm-eval task files."""
    standard_tasks: list[Name] = []
    """Tasks of lm-eval's own, by name, e.g. arc_easy, hellaswag, gsm8k, wikitext. Their data comes
    from the Hugging Face hub, or from its cache on this machine."""
    documents: PositiveInt = 50
    """How many documents of each task."""
    batch_size: PositiveInt = 16
    logit_matching: LogitMatching = LogitMatching()
    error_map: ErrorMap = ErrorMap()
    tolerances: Tolerances = Tolerances()


class Neuron(Section):
    """`device: neuron`: NxD Inference. docs/trn2.md"""

    tp_degree: PositiveInt = 4
    """Ranks, each a logical NeuronCore; a trn2 chip has 4 of two physical cores each."""
    logical_nc_config: Literal[1, 2] = 2
    """Physical cores of a logical one (LNC); kernels are launched on so many."""
    token_generation_buckets: list[PositiveInt] | None = None
    """Cache lengths compiled for token generation; `[buckets.max_length]` if null."""
    work_directory: str = "results/neuron"
    """Where each configuration has a folder for what NxD and neuronx-cc write. It needs room."""
    options: dict[str, bool | int | float | str | list[int] | None] = {}
    """Further keywords of NxD Inference's MoENeuronConfig; unknown ones are refused."""


class Tracking(Section):
    """MLflow. `MLFLOW_TRACKING_URI` replaces the store."""

    experiment: str = "nki-assay"


class Regression(Section):
    """What `check_regression` lets a configuration be worse by than the champion."""

    measured_slowdown: Positive = 0.05
    """Share. A slowdown fails if it is greater and its 95 % interval excludes none at all."""
    predicted_slowdown: Positive = 0.01
    """Share. Predictions have no noise: any greater slowdown fails."""
    error_growth: Annotated[float, Field(gt=0, le=1)] = 0.25
    """How far an error of the logits may go from the champion's towards its tolerance, as a share
    of the way: roundings differ between right kernels."""
    agreement_loss: Positive = 0.01
    """Absolute, of top-1 agreement."""
    task_loss: Positive = 0.02
    """Absolute for a task's share of right answers, relative for a perplexity."""


class Config(Section):
    """config/config.yaml"""

    model: Name
    models: dict[Name, ModelSource]
    configurations: Annotated[list[Name], Field(min_length=1)]
    device: Literal["simulator", "neuron"] = "simulator"
    target: Literal["trn2", "trn3"] = "trn2"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    buckets: Buckets
    generate: Generate
    latency: Latency = Latency()
    accuracy: Accuracy
    neuron: Neuron = Neuron()
    tracking: Tracking = Tracking()
    regression: Regression = Regression()
    champion: Name | None = None
    """The configuration that `snakemake promote` makes the champion."""
    candidate: Name | None = None
    """The configuration that `snakemake check_regression` compares with the champion. Without
    it: the champion's own name if that is chosen, else the only one chosen beside `baseline`."""

    @model_validator(mode="after")
    def _known_model(self) -> Config:
        if self.model not in self.models:
            raise ValueError(f"model is {self.model!r}; models has: {', '.join(self.models)}")
        if len(set(self.configurations)) != len(self.configurations):
            raise ValueError("configurations names one twice")
        return self

    def architecture(self) -> Path:
        """The folder of the model's config.json.

        Raises:
            ConfigurationError: none is on this machine.
        """
        model = self.models[self.model]
        if model.architecture is None and "://" in model.source:
            raise ConfigurationError(
                f"models.{self.model}: its config.json is not on this machine; name a folder that "
                f"has it in models.{self.model}.architecture"
            )
        return Path(model.architecture or model.source)

    def layout(self) -> Layout:
        """How the model is laid out for `trace`."""
        given = self.models[self.model].layout
        return given or Layout(
            context=self.buckets.max_length, context_encoding=self.buckets.context_encoding
        )


class OpKernel(Section):
    """The kernel that fills an op."""

    kernel: str
    """A name of `kernels.KERNELS`, or `path/to/file.py:function`."""
    parameters: dict[str, bool | int | float | str | None] = {}
    """The kernel's keyword parameters."""

    @field_validator("kernel")
    @classmethod
    def _known_kernel(cls, kernel: str) -> str:
        if kernel in kernels.KERNELS:
            return kernel
        path, colon, function = kernel.rpartition(":")
        if colon and path.endswith(".py") and function.isidentifier():
            return kernel
        raise ValueError(
            f"unknown kernel {kernel!r}{_did_you_mean(kernel, list(kernels.KERNELS))}; kernels: "
            f"{', '.join(sorted(kernels.KERNELS))}, or path/to/file.py:function"
        )

    @field_validator("parameters")
    @classmethod
    def _finite(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, value in parameters.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"parameter {name} is {value}; it must be finite")
        return parameters


class KernelConfiguration(Section):
    """config/kernels/NAME.yaml: which op is filled by which kernel."""

    description: str
    ops: dict[str, OpKernel] = {}

    @field_validator("ops")
    @classmethod
    def _known_ops(cls, ops: dict[str, OpKernel]) -> dict[str, OpKernel]:
        for op, filled in ops.items():
            if op not in kernels.OPS:
                raise ValueError(
                    f"unknown op {op!r}{_did_you_mean(op, list(kernels.OPS))}; "
                    f"ops: {', '.join(kernels.OPS)}"
                )
            known = kernels.KERNELS.get(filled.kernel)
            if known is not None and op not in known.ops:
                raise ValueError(
                    f"op {op!r} cannot be filled by {filled.kernel!r}, which is for op "
                    f"{' or '.join(map(repr, known.ops))}"
                )
        return ops


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys allowed beside the one at `location` (whose last item is the unknown key)."""
    here: Any = model
    for step in location[:-1]:
        if isinstance(here, type) and issubclass(here, BaseModel):
            field = here.model_fields.get(str(step))
            here = field.annotation if field else None
        else:  # dict[str, Model] or list[Model]
            arguments = getattr(here, "__args__", ())
            here = arguments[-1] if arguments else None
    if isinstance(here, type) and issubclass(here, BaseModel):
        return list(here.model_fields)
    return []


def _explain(path: Path, model: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        location = item["loc"]
        where = ".".join(str(step) for step in location) or "the file"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            keys = _keys(model, location)
            message = (
                f"unknown key{_did_you_mean(str(location[-1]), keys)}; "
                f"allowed here: {', '.join(keys)}"
            )
        elif item["type"] == "missing":
            message = "this key is needed and missing"
        elif not message.startswith("unknown") and not isinstance(item["input"], dict):
            message = f"{message}; found {item['input']!r}"
        lines.append(f"{path}: {where}: {message}")
    return "\n".join(lines)


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path}: must be a mapping of keys to values, found {value!r}")
    return value


def parse_config(value: Any, path: Path = Path("config/config.yaml")) -> Config:
    """Validate a configuration that is a mapping already (e.g. Snakemake's `config`).

    Raises:
        ConfigurationError: naming `path`, every wrong key, and what is allowed there.
    """
    try:
        return Config.model_validate(value)
    except ValidationError as error:
        raise ConfigurationError(_explain(path, Config, error)) from None


def read_config(path: Path) -> Config:
    """Read and validate config/config.yaml.

    Raises:
        ConfigurationError: see `parse_config`.
    """
    return parse_config(_read_yaml(path), path)


def kernel_configuration_path(name: str, folder: Path = Path("config/kernels")) -> Path:
    """The file of a kernel configuration.

    Raises:
        ConfigurationError: there is none of that name; the message lists those there are.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ConfigurationError(
            f"unknown kernel configuration {name!r}{_did_you_mean(name, known)}: there is no "
            f"{path}. Configurations: {', '.join(known)}"
        )
    return path


def read_kernel_configuration(path: Path) -> KernelConfiguration:
    """Read and validate one kernel configuration.

    Raises:
        ConfigurationError: naming the file, every wrong key, and what is allowed there.
    """
    try:
        return KernelConfiguration.model_validate(_read_yaml(path))
    except ValidationError as error:
        raise ConfigurationError(_explain(path, KernelConfiguration, error)) from None
