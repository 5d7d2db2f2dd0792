"""`run`: run a kernel on data, and compare what it returns to a reference."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simulator import dtypes
from simulator.cli import data
from simulator.cli.compare import Comparison, call_reference, compare, tolerance_for
from simulator.cli.data import Array
from simulator.cli.launch import ARGUMENTS, EXIT_CODES, Launch, add_launch, read_launch, targets
from simulator.cli.loading import load_function
from simulator.cli.output import Output
from simulator.cli.problems import BROKEN, GOOD, violations_of
from simulator.cli.values import tensors_to
from simulator.errors import NkiLaxWarning, NkiValidationError, Violation
from simulator.kernel import simulate
from simulator.targets import VARIABLE, Target

CLOCK = "measured on this CPU's simulator, not Trainium"
_EXAMPLES = """examples:
  python -m simulator run kernels/silu.py:nki_silu_kernel --arg x=bf16[256,2048]
  python -m simulator run k.py:kernel --arg x=@x.npy --arg eps=1e-6 --out results.npz
  python -m simulator run k.py:kernel --arg x=f32[64,32]:uniform(-1,1) \\
      --reference reference.py:function --rtol 1e-5"""
_REFERENCE = """the reference:
  It gets the kernel's arguments by name, or by position if the names differ; floats as fp32,
  as torch tensors if its module imports torch, else NumPy arrays. An output passes if its
  largest error is at most atol + rtol * the reference's largest value; the default rtol is that
  of the coarsest dtype involved: fp32 1e-4, fp16 4e-3, bf16 2e-2, fp8 0.15 (e5m2 0.3), integers
  0."""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    broken = "the kernel breaks a rule, its Python fails, or it differs from its reference"
    parser = subparsers.add_parser(
        "run",
        help="a kernel on random data or data from files",
        description="Run a kernel on the simulator and describe what it returns.",
        epilog="\n\n".join((_EXAMPLES, ARGUMENTS, _REFERENCE, EXIT_CODES.format(broken=broken))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch(parser)
    parser.add_argument("--reference", metavar="FILE:FUNCTION", help="what to compare to")
    parser.add_argument("--rtol", type=float, help="relative to the reference's largest value")
    parser.add_argument("--atol", type=float, default=0.0, help="default: 0")
    parser.add_argument("--seed", type=int, default=0, help="of the random data (default: 0)")
    parser.add_argument(
        "--eager", action="store_true", help="execute each instruction as it is traced"
    )
    parser.add_argument("--out", metavar="DIR|FILE.npz", help="save the results; bf16, fp8 as fp32")


@dataclass
class Outcome:
    """What a run gave."""

    results: dict[str, Array]
    returned: int
    """How many of the results were returned; the others are updated arguments."""
    seconds: float
    remarks: list[Violation]
    """Warnings, and what `check` refuses although a call runs it."""


def run(args: argparse.Namespace) -> int:
    """Run and print; returns the exit code."""
    output = Output(args.json)
    (target,) = targets(args.target)
    launch = read_launch(args, output)
    random = np.random.default_rng(args.seed)
    inputs = [data.make(tensor, random) for _, tensor in launch.tensors()]
    originals = [array.copy() for array in inputs]
    with output.kernel_prints():
        reference = load_function(args.reference) if args.reference else None
    launch.print_head(output)
    document = {**launch.described(), "target": target.name, "seed": args.seed}
    try:
        with output.kernel_prints(), _target(target):
            outcome = _execute(launch, target, inputs, originals, args.eager)
    except Exception as error:
        found = violations_of(error)
        output.violations(found)
        found_dicts = [violation.as_dict() for violation in found]
        output.document({**document, "ok": False, "violations": found_dicts})
        return BROKEN
    comparisons: dict[str, Comparison] = {}
    if reference is not None:
        with output.kernel_prints():
            expected = _expected(launch, reference, originals)
        comparisons = _compared(launch, outcome, expected, args)
    saved = data.save(outcome.results, args.out) if args.out else None
    _print(output, outcome, comparisons, saved)
    good = all(comparison.ok for comparison in comparisons.values())
    output.document({**document, "ok": good, **_document(outcome, comparisons), "saved": saved})
    return GOOD if good else BROKEN


@contextlib.contextmanager
def _target(target: Target) -> Iterator[None]:
    """Calls of kernels are for this target."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = target.name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _execute(
    launch: Launch, target: Target, inputs: list[Array], originals: list[Array], eager: bool
) -> Outcome:
    """Run the kernel on `inputs`, which it may update; `originals` are copies of them."""
    remarks = [] if eager else _remarks(launch, target)
    kernel = simulate(launch.kernel, eager=True) if eager else launch.kernel
    given = iter(inputs)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NkiLaxWarning)  # among the remarks
        returned = launch.call(kernel, lambda tensor: next(given))
    seconds = time.perf_counter() - started
    flat = list(returned) if isinstance(returned, tuple | list) else [returned]
    results = {f"output {i}": np.asarray(array) for i, array in enumerate(flat)}
    names = [name for name, _ in launch.tensors()]
    for name, array, original in zip(names, inputs, originals, strict=True):
        same = np.array_equal(array.view(np.uint8), original.view(np.uint8))
        if not same and not any(array is result for result in flat):
            results[f"updated {name}"] = array
    return Outcome(results, len(flat), seconds, remarks)


def _remarks(launch: Launch, target: Target) -> list[Violation]:
    """Warnings, and what a check refuses but a call does not. Specialises the kernel."""
    try:
        return list(dict.fromkeys(launch.specialise(target).warnings))
    except NkiValidationError as error:
        return violations_of(error)


# --- the reference ----------------------------------------------------------------------


def _expected(launch: Launch, reference: Any, inputs: list[Array]) -> list[Array]:
    given = iter(inputs)
    return call_reference(
        reference,
        {
            name: tensors_to(value, lambda t: data.as_reference(next(given), t.spec.dtype))
            for name, value in launch.arguments.items()
        },
    )


def _compared(
    launch: Launch, outcome: Outcome, expected: list[Array] | None, args: argparse.Namespace
) -> dict[str, Comparison]:
    """Result -> comparison: of what was returned, or of updated arguments if nothing was."""
    if expected is None:
        return {}
    names = list(outcome.results)[: outcome.returned or None]
    if len(names) != len(expected):
        nan = float("nan")
        problem = f"the kernel gives {len(names)} results, the reference {len(expected)}"
        return {"all": Comparison(False, nan, nan, nan, nan, problem)}
    used = [str(tensor.spec.dtype) for _, tensor in launch.tensors()]
    found = {}
    for name, wanted in zip(names, expected, strict=True):
        array = outcome.results[name]
        own = _dtype(array)
        exact = array.dtype.kind in "iub"
        rtol = args.rtol if args.rtol is not None else 0.0 if exact else tolerance_for([own, *used])
        found[name] = compare(array, wanted, rtol, args.atol)
    return found


# --- printing ---------------------------------------------------------------------------


def _dtype(array: Array) -> str:
    return str(dtypes.from_numpy(array.dtype) or array.dtype)


def _statistics(array: Array) -> dict[str, Any]:
    """Shape, dtype, least, greatest and mean of the finite values, counts of the others."""
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    return {
        "shape": array.shape,
        "dtype": _dtype(array),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "mean": float(finite.mean()) if finite.size else None,
        "nan": int(np.isnan(values).sum()),
        "inf": int(np.isinf(values).sum()),
    }


def _document(outcome: Outcome, comparisons: dict[str, Comparison]) -> dict[str, Any]:
    """What was found as JSON-able values."""
    outputs = []
    for name, array in outcome.results.items():
        facts = {"name": name, **_statistics(array)}
        if name in comparisons:
            facts["comparison"] = asdict(comparisons[name])
        outputs.append(facts)
    return {
        "violations": [],
        "warnings": [warning.as_dict() for warning in outcome.remarks],
        "outputs": outputs,
        "problems": [c.problem for c in comparisons.values() if c.problem],
        "wall_clock_s": outcome.seconds,
        "wall_clock_of": CLOCK,
    }


def _print(
    output: Output, outcome: Outcome, comparisons: dict[str, Comparison], saved: str | None
) -> None:
    output.remarks(outcome.remarks)
    heads = ("result", "dtype and shape", "min", "max", "mean", "NaN", "Inf")
    rows = []
    for name, array in outcome.results.items():
        facts = _statistics(array)
        numbers = ["-" if facts[k] is None else f"{facts[k]:.6g}" for k in ("min", "max", "mean")]
        shape = f"{facts['dtype']}[{','.join(map(str, facts['shape']))}]"
        rows.append((name, shape, *numbers, str(facts["nan"]), str(facts["inf"])))
    if rows:
        output.table(rows, heads)
    for name, found in comparisons.items():
        verdict = ("pass", "bold green") if found.ok else ("fail", "bold red")
        numbers_text = (
            f"max abs error {found.max_abs_error:.3g}, relative to the largest value "
            f"{found.max_relative_error:.3g}, relative L2 {found.relative_l2:.3g}; "
            f"allowed {found.tolerance:.3g}"
        )
        output.line(
            f"{name} against the reference: ", verdict, f"  {found.problem or numbers_text}"
        )
    if saved:
        output.line(f"saved to {saved}")
    output.line(f"{outcome.seconds * 1e3:.3g} ms, {CLOCK}")
