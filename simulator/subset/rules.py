"""The rules of the Python subset: what each construct is, who refuses it, how to mend it.

`nki` 0.3 to 0.6 re-parse a kernel's source (the parser front end) and know a part of Python;
0.7 runs the kernel (tracing), so that nearly all of Python works there. Sources are sections of
nki_facts.md; [K] is the open front end of the same lineage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.context import VERSIONS
from simulator.errors import Violation

PARSER = VERSIONS[: VERSIONS.index("0.7")]
"""Versions that parse a kernel's source."""
NONE: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One family of constructs. `{}` in `message` and `mend` stands for the construct found."""

    id: str
    refused: tuple[str, ...]
    """Versions that do not accept it; none makes it a warning."""
    message: str
    mend: str
    source: str


@dataclass(frozen=True)
class SubsetFinding:
    """One construct at one place of a kernel's source."""

    rule: str
    severity: Literal["error", "warning"]
    message: str
    mend: str
    file: str
    line: int
    refused: tuple[str, ...]
    """`nki` versions in which the construct is not accepted."""
    function: str
    """Qualified name of the function or class it is in."""
    construct: str

    @property
    def accepted(self) -> tuple[str, ...]:
        """`nki` versions in which the construct is accepted."""
        return tuple(version for version in VERSIONS if version not in self.refused)

    def violation(self) -> Violation:
        """The finding in the form of every other broken rule."""
        limit = ("nki " + ", ".join(self.accepted) if self.accepted else "no nki version") * bool(
            self.refused
        )
        return Violation(
            self.rule,
            f"{self.message} (in {self.function})",
            self.mend,
            self.file,
            self.line,
            limit=limit,
            value=self.construct if limit else "",
        )


def _parser(id: str, message: str, mend: str, source: str = "§6.3") -> Rule:
    return Rule(id, PARSER, message, mend, source)


def _warning(id: str, message: str, mend: str, source: str) -> Rule:
    return Rule(id, NONE, message, mend, source)


_SYNTAX = (
    _parser("subset-lambda", "a lambda", "Define a function at module level and pass its name"),
    _parser("subset-comprehension", "a {}", "Fill a list in a for loop with append"),
    _parser("subset-set", "a set", "Use a tuple, a list or a dict with string keys"),
    _parser("subset-walrus", "an assignment inside an expression", "Assign in a line of its own"),
    _parser("subset-async", "{}", "Write the kernel and its helpers as plain functions"),
    _parser("subset-generator", "{}", "Return a tuple or a list"),
    _parser("subset-fstring-format", "a format specification in an f-string",
            "Print the value as it is: {{x}} or {{x!r}}"),
    _parser("subset-matmul-operator", "the @ operator", "Use nisa.nc_matmul"),
    _parser("subset-star-args", "{}", "Name each argument and each element",
            "§6.3: tuple and keyword expansion, varargs"),
    _warning("subset-kwargs", "the parameter **{} must stay empty in nki 0.3 to 0.6",
             "Name the parameters", "§6.3"),
    _parser("subset-keyword-only", "{} in the kernel's signature",
            "Remove the bare * or /; callers may still pass arguments by name", "§1.4, §6.3"),
    Rule("subset-inner-def", PARSER[:3], "the inner function {}",
         "Move it to module level and pass what it needs; only bodies of nl.fori_loop and "
         "nl.while_loop are inner functions, from 0.6 on", "§6.2, §6.3, A8"),
    _parser("subset-inner-class", "a class inside a function", "Move it to module level"),
    _parser("subset-del", "a del statement", "Let the name be; tiles are freed by lifetime"),
    _parser("subset-match", "a match statement", "Use if and elif"),
    _parser("subset-raise", "a raise statement", "Use assert condition, message"),
    _parser("subset-try", "a try statement", "Test the condition with if before"),
    _parser("subset-import", "an import inside a function", "Import at the top of the module"),
    _parser("subset-global", "a {} statement", "Pass a dict or an NKIObject between functions"),
    _parser("subset-for-target", "a for loop with the target {}",
            "Loop with one name, and take the element apart in the body", "§6.2"),
    _parser("subset-else-on-loop", "an else branch of a {} loop", "Set a flag before break"),
    _parser("subset-with", "the context {}",
            "`with nl.no_reorder():` is the only one; without arguments or `as`", "§6.2, §6.3"),
    _parser("subset-assignment-targets", "an assignment to {}",
            "Assign to names or tuples of names, or to one attribute or one subscript"),
    _parser("subset-dict-key", "the dictionary key {}", "Use string literals as keys"),
    _parser("subset-index", "a {} inside an index", "Index with ints, slices, `...` or nl.ds"),
    _parser("subset-literal", "the literal {}",
            "Values are None, bool, 32-bit int, float, str, and tuples, lists and dicts", "§6.1"),
    _parser("subset-decorator", "the decorator {}",
            "Only nki.jit, on the entry, staticmethod and dataclass are known", "§6.2"),
)  # fmt: skip

_NAMES = (
    _parser("subset-builtin", "the built-in {}",
            "Known are print len range min max abs int float bool str list tuple dict slice "
            "isinstance type divmod", "§6.2"),
    _parser("subset-method", "the method {}",
            "Lists have append extend pop remove reverse index count clear copy; dicts get items "
            "keys values pop setdefault clear copy; strings none", "§6.2"),
    _parser("subset-foreign-call", "a call of {}",
            "Compute it before the launch and pass it as a parameter; of math there are ceil "
            "floor gcd log2 log10 pow sqrt", "§6.2"),
    _parser("subset-global-value", "the global {}, which is no constant",
            "Pass it as an argument", "§6.2, §6.5"),
    _parser("subset-class", "the class {}",
            "Inherit from nl.NKIObject or Enum alone, at module level, with only assignments, "
            "annotations and methods in the body", "§6.2, §6.3"),
    _warning("subset-jit-in-jit", "a call of the jitted kernel {}, which nki 0.2 refused and 0.3 "
             "inlines", "Decorate the entry alone", "§1.3, §6.2, §6.3"),
    _parser("subset-no-source", "{} has no source that could be parsed",
            "Define it in a file", "§6"),
    Rule("subset-neuronxcc", VERSIONS[1:], "the old namespace: {}",
         "Use nki.language and nki.isa", "§1.2"),
    _warning("subset-is", "`{}` compares by value in nki 0.3 to 0.6",
             "Use == or !=", "§6.3, §6.6 W1, A7"),
    _warning("subset-closure", "{} is a variable of an enclosing function; the parser front end "
             "looks names up in the module", "Pass it as a parameter", "§8 trap 20, A8, [K]"),
)  # fmt: skip

_LINTS = (
    _warning("lint-positional", "{} gets operands by position; their order differs by version",
             "Name every operand after dst", "§6.6 E4"),
    _warning("lint-divide", "nl.{} has no hardware behind it",
             "Multiply by nisa.reciprocal", "§6.6 E5, §8 trap 1"),
    _warning("lint-matmul-transpose", "nl.matmul without transpose_x=True fails on hardware",
             "Pass x transposed, with transpose_x=True", "§6.6 E5, §8 trap 8"),
    _warning("lint-dynamic-loop", "{} does not exist in nki 0.7",
             "Unroll with range, or use nl.fori_loop or nl.while_loop from 0.6 on", "§6.6 E5"),
    _warning("lint-memset-float", "memset of an {} tile with the fraction's type",
             "Write the value as an int", "§6.6 W2"),
    _warning("lint-affine-range", "nl.{} is a deprecated name of range",
             "Use range", "§6.6 W3"),
    _warning("lint-mutable-global", "the mutable global {}: changes do not reach kernels that are "
             "compiled already", "Make it a tuple or a constant, or pass it", "§6.6 W4"),
    _warning("lint-impure", "module {} in a kernel, whose result is cached",
             "Read it before the launch and pass it", "§6.5"),
    _warning("lint-tensor-operator", "Python's operators on the tensor {}",
             "Use nki.isa or nki.language", "§6.6 W5"),
)  # fmt: skip

RULES: dict[str, Rule] = {rule.id: rule for rule in (*_SYNTAX, *_NAMES, *_LINTS)}
"""Every rule of the subset, by id."""
