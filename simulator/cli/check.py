"""`check`: specialise a kernel for every target, and say what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from simulator.check import peak_bytes_per_partition
from simulator.cli.launch import (
    ARGUMENTS,
    EXIT_CODES,
    Launch,
    add_launch,
    nki_version,
    read_launch,
    targets,
)
from simulator.cli.output import Output
from simulator.cli.problems import BROKEN, GOOD, violations_of
from simulator.context import VERSIONS
from simulator.errors import Violation
from simulator.program import Program
from simulator.subset import (
    SubsetFinding,
    accepted_versions,
    check_subset,
    subset_violations,
    subset_warnings,
)
from simulator.targets import Target
from simulator.tensor import MemoryRegion

_EXAMPLES = """examples:
  python -m simulator check kernels/rmsnorm.py:nki_rmsnorm_kernel \\
      --arg x=bf16[256,2048] --arg weight=bf16[2048]
  python -m simulator check k.py:kernel --arg x=f32[64,32] --target trn2 --target trn3
  python -m simulator check k.py:kernel --arg x=f32[64,32] --nki 0.3 0.7 --json"""


def add_parser(subparsers: Any) -> None:
    """Add the command's arguments."""
    parser = subparsers.add_parser(
        "check",
        help="what the hardware or a compiler would refuse in a kernel",
        description="Specialise a kernel at given shapes and print every rule it breaks.",
        epilog="\n\n".join(
            (_EXAMPLES, ARGUMENTS, EXIT_CODES.format(broken="the kernel breaks a rule"))
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_launch(parser, many_targets=True)
    parser.add_argument(
        "--nki", nargs="+", type=nki_version, default=[], metavar="VERSION",
        help=f"versions the kernel must be valid for, of {', '.join(VERSIONS)}",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check and print; returns the exit code."""
    output = Output(args.json)
    wanted = targets(args.target)
    launch = read_launch(args, output)
    findings = source_findings(launch)
    with output.kernel_prints():
        results = [_check(launch, target, findings, args.nki) for target in wanted]
    good = all(result.good for result in results)
    launch.print_head(output)
    for result in results:
        result.print(output)
    _print_source(output, findings, {v for result in results for v in result.violations})
    output.document(
        {
            **launch.described(),
            "ok": good,
            "targets": [result.document() for result in results],
            "source": {
                "versions": accepted_versions(findings),
                "findings": [_finding(finding) for finding in findings],
            },
        }
    )
    return GOOD if good else BROKEN


@dataclass
class Result:
    """What was found on one target."""

    target: Target
    violations: list[Violation]
    program: Program | None = None
    warnings: list[Violation] = field(default_factory=list)
    versions: tuple[str, ...] = ()
    """Versions of nki the kernel is valid for, as far as its source and its Program say."""

    @property
    def good(self) -> bool:
        """Whether no rule is broken."""
        return not self.violations

    def print(self, output: Output) -> None:
        """Print it."""
        count = len(self.violations)
        if self.good:
            output.line(f"{self.target.name}: ", ("good", "bold green"))
        else:
            broken = f"{count} violation{'s' if count > 1 else ''}"
            output.line(f"{self.target.name}: ", (broken, "bold red"))
        output.violations(self.violations)
        output.remarks(self.warnings)
        if self.program is not None and self.good:
            rows = _summary_rows(summary(self.program), self.target)
            output.table([*rows, ("valid for nki", ", ".join(self.versions))])

    def document(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "target": self.target.name,
            "ok": self.good,
            "violations": [violation.as_dict() for violation in self.violations],
            "warnings": [violation.as_dict() for violation in self.warnings],
            "versions": self.versions,
            "summary": None if self.program is None else summary(self.program),
        }


def source_findings(launch: Launch) -> list[SubsetFinding]:
    """What the kernel's Python says about versions of nki."""
    return check_subset(launch.kernel, launch.name, launch.arguments.values())


def _check(
    launch: Launch, target: Target, findings: list[SubsetFinding], demanded: list[str]
) -> Result:
    found = subset_violations(findings, demanded)
    try:
        program = launch.specialise(target)
    except Exception as error:
        left = accepted_versions(findings)
        return Result(target, violations_of(error) + found, versions=left)
    valid = tuple(v for v in accepted_versions(findings) if v in program.versions)
    found += _of_features(program, demanded)
    if not valid and not found:
        found.append(_no_version(program, findings))
    return Result(target, found, program, list(dict.fromkeys(program.warnings)), valid)


def _of_features(program: Program, demanded: Iterable[str]) -> list[Violation]:
    """API that the demanded versions do not have."""
    return [
        Violation(
            "version",
            f"{feature.name} does not exist in nki {', '.join(lacking)}",
            "Use what every demanded version has",
            feature.file,
            feature.line,
            limit=f"nki {', '.join(feature.versions)}",
            value=", ".join(lacking),
        )
        for feature in program.features.values()
        if (lacking := [version for version in demanded if version not in feature.versions])
    ]


def _no_version(program: Program, findings: list[SubsetFinding]) -> Violation:
    """Python that only tracing accepts, with API that only older versions have."""
    worst = max(findings, key=lambda finding: len(finding.refused))
    last = min(program.features.values(), key=lambda f: len(f.versions), default=None)
    old = "what else the kernel does" if last is None else f"{last.name} ({last.versions[-1]})"
    return Violation(
        "version",
        f"{worst.message} needs nki {', '.join(worst.accepted)}, which does not have {old}",
        worst.mend,
        worst.file,
        worst.line,
        limit=f"one of {', '.join(VERSIONS)}",
        value="none",
    )


def summary(program: Program) -> dict[str, Any]:
    """The Program's size in numbers."""
    read, written = program.hbm_bytes()
    return {
        "instructions": dict(sorted(program.instructions_by_engine().items())),
        "sbuf_peak_bytes_per_partition": peak_bytes_per_partition(program, MemoryRegion.sbuf)[0],
        "psum_peak_bytes_per_partition": peak_bytes_per_partition(program, MemoryRegion.psum)[0],
        "macs": program.macs(),
        "hbm_read_bytes": read,
        "hbm_written_bytes": written,
    }


def _summary_rows(facts: dict[str, Any], target: Target) -> list[tuple[str, ...]]:
    engines = facts["instructions"]
    by_engine = ", ".join(f"{engine} {count:,}" for engine, count in engines.items())
    sbuf, psum = facts["sbuf_peak_bytes_per_partition"], facts["psum_peak_bytes_per_partition"]
    return [
        ("instructions", f"{sum(engines.values()):,} ({by_engine})"),
        ("SBUF peak, bytes per partition", f"{sbuf:,} of {target.sbuf_bytes_per_partition:,}"),
        ("PSUM peak, bytes per partition", f"{psum:,} of {target.psum_bytes_per_partition:,}"),
        ("MACs on the Tensor engine", f"{facts['macs']:,}"),
        ("HBM bytes read", f"{facts['hbm_read_bytes']:,}"),
        ("HBM bytes written", f"{facts['hbm_written_bytes']:,}"),
    ]


def _print_source(output: Output, findings: list[SubsetFinding], printed: set[Violation]) -> None:
    """What narrows the versions, and the lints."""
    narrowing = [v for f in findings if f.refused and (v := f.violation()) not in printed]
    lints = subset_warnings(findings)
    if narrowing:
        left = ", ".join(accepted_versions(findings)) or "no version"
        output.line(f"its Python is accepted by nki {left}:")
        output.remarks(narrowing)
    if lints:
        output.line("remarks on its source:")
        output.remarks(lints)


def _finding(finding: SubsetFinding) -> dict[str, Any]:
    return {
        **finding.violation().as_dict(),
        "severity": finding.severity,
        "function": finding.function,
        "refused_by": finding.refused,
    }
