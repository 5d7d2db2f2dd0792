"""The Python subset: each rule fires on what it refuses and is silent on what it does not."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from simulator.context import VERSIONS
from simulator.subset import (
    RULES,
    SubsetFinding,
    accepted_versions,
    check_subset,
    subset_violations,
    subset_warnings,
)

HEAD = """
import functools
import math
import os
from dataclasses import dataclass
from enum import Enum, IntEnum

import numpy as np
import nki
import nki.isa as nisa
import nki.language as nl
"""
PARSER = VERSIONS[:4]
_count = itertools.count()


def load(folder: Path, source: str) -> ModuleType:
    """Import a module with this source."""
    name = f"subset_case_{next(_count)}"
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def module_text(code: str) -> str:
    """A module around the body of a kernel, or code that holds the kernel already."""
    code = textwrap.dedent(code).strip()
    if "def kernel(" in code:
        return f"{HEAD}\n{code}\n"
    body = textwrap.indent(code, "    ")
    return f"{HEAD}\n@nki.jit\ndef kernel(x, n=2, flag=None):\n{body}\n    return x\n"


def check(folder: Path, code: str, **options: Any) -> list[SubsetFinding]:
    return check_subset(load(folder, module_text(code)).kernel, **options)


# rule -> pairs of what it refuses (the line is marked) and what it does not
CASES: dict[str, list[tuple[str, str]]] = {
    "subset-lambda": [("f = lambda y: y + 1  # <-", "f = n + 1")],
    "subset-comprehension": [
        ("a = [i for i in range(n)]  # <-", "a = []\nfor i in range(n):\n    a.append(i)"),
        ("a = tuple(i for i in range(n))  # <-", "a = tuple(range(n))"),
        ("a = {str(i): i for i in range(n)}  # <-", "a = {'a': n}"),
    ],
    "subset-set": [("a = {1, 2}  # <-", "a = (1, 2)")],
    "subset-walrus": [("if (m := n) > 1:  # <-\n    pass", "m = n\nif m > 1:\n    pass")],
    "subset-async": [
        ("async def kernel(x):  # <-\n    return x", "def kernel(x):\n    return x"),
        (
            "async def wait():  # <-\n    return 1\n\ndef kernel(x):\n    wait()\n    return x",
            "def wait():\n    return 1\n\ndef kernel(x):\n    wait()\n    return x",
        ),
    ],
    "subset-generator": [
        ("def kernel(x):\n    yield x  # <-", "def kernel(x):\n    return x"),
        (
            "def two(n):\n    yield n  # <-\n\ndef kernel(x):\n    two(1)\n    return x",
            "def two(n):\n    return (n, n)\n\ndef kernel(x):\n    two(1)\n    return x",
        ),
    ],
    "subset-fstring-format": [("print(f'{n:.2f}')  # <-", "print(f'{n} {x.shape} {n!r}')")],
    "subset-matmul-operator": [
        ("y = x @ x  # <-", "y = n * n"),
        ("y = x\ny @= x  # <-", "y = n\ny *= n"),
    ],
    "subset-star-args": [
        ("a = (1, 2)\nb = max(*a)  # <-", "a = (1, 2)\nb = max(a[0], a[1])"),
        ("a = dict()\nb = dict(**a)  # <-", "a = dict()\nb = a.copy()"),
        ("a = {'b': 1}\nc = {**a}  # <-", "a = {'b': 1}\nc = a"),
        ("a, *b = x.shape  # <-", "a, b = x.shape"),
        ("def kernel(x, *rest):  # <-\n    return x", "def kernel(x, rest=()):\n    return x"),
    ],
    "subset-kwargs": [
        ("def kernel(x, **rest):  # <-\n    return x", "def kernel(x, rest=None):\n    return x")
    ],
    "subset-keyword-only": [
        ("def kernel(x, *, n):  # <-\n    return x", "def kernel(x, n):\n    return x"),
        ("def kernel(x, /, n):  # <-\n    return x", "def kernel(x, n):\n    return x"),
        (
            "def kernel(x, *, n):  # <-\n    return x",
            "def helper(y, *, n):\n    return y\n\ndef kernel(x):\n    return helper(x, n=1)",
        ),
    ],
    "subset-inner-def": [
        (
            "def inner(y):  # <-\n    return y\ninner(n)",
            "nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)",
        )
    ],
    "subset-inner-class": [("class A:  # <-\n    pass", "pass")],
    "subset-del": [("a = 1\ndel a  # <-", "a = 1")],
    "subset-match": [("match n:  # <-\n    case 1:\n        pass", "if n == 1:\n    pass")],
    "subset-raise": [("if n:\n    raise ValueError('n')  # <-", "assert n, 'n'")],
    "subset-try": [("try:  # <-\n    a = 1\nfinally:\n    a = 2", "a = 1")],
    "subset-import": [
        ("import math as m  # <-", "a = math.pi"),
        ("from math import ceil  # <-", "a = math.ceil(1.5)"),
    ],
    "subset-global": [("global BIG  # <-\nBIG = 1", "big = 1")],
    "subset-for-target": [
        ("for a, b in ((1, 2),):  # <-\n    pass", "for a in ((1, 2),):\n    b = a[0]")
    ],
    "subset-else-on-loop": [
        ("for i in range(n):\n    pass\nelse:\n    a = 1  # <-", "for i in range(n):\n    pass"),
        ("while n > 3:\n    n -= 1\nelse:\n    a = 1  # <-", "while n > 3:\n    n -= 1"),
    ],
    "subset-with": [
        ("with nl.no_reorder() as order:  # <-\n    pass", "with nl.no_reorder():\n    pass"),
        ("with nl.no_reorder(n):  # <-\n    pass", "with nl.no_reorder():\n    pass"),
        ("with open('file'):  # <-\n    pass", "pass"),
    ],
    "subset-assignment-targets": [
        ("a = [1]\nb = [1]\na[0] = b[0] = 2  # <-", "a = [1]\nb = c = 2\na[0] = 2"),
        ("a = [1]\na[0], b = 1, 2  # <-", "(a, b), c = (1, 2), 3"),
        ("[a, b] = 1, 2  # <-", "a, b = 1, 2"),
    ],
    "subset-dict-key": [
        ("a = {1: 2}  # <-", "a = {'1': 2}"),
        ("a = dict()\na[1] = 2  # <-", "a = dict()\na['1'] = 2\nb = [1]\nb[0] = 3"),
    ],
    "subset-index": [
        ("y = x[[0, 1]]  # <-", "y = x[0, 1]"),
        ("y = x[(0, 1), :]  # <-", "y = x[0:2, :]"),
    ],
    "subset-literal": [
        ("a = 4294967296  # <-", "a = 2147483647"),
        ("a = b'x'  # <-", "a = 'x'"),
        (
            "LIMIT = 2**40\n\ndef kernel(x):\n    print(LIMIT)  # <-\n    return x",
            "LIMIT = 2**20\n\ndef kernel(x):\n    print(LIMIT)\n    return x",
        ),
    ],
    "subset-decorator": [
        (
            "@functools.cache  # <-\ndef two():\n    return 2\n\n"
            "def kernel(x):\n    two()\n    return x",
            "def two():\n    return 2\n\n@nki.jit\ndef kernel(x):\n    two()\n    return x",
        )
    ],
    "subset-builtin": [
        ("a = sum((1, 2))  # <-", "a = max((1, 2))"),
        ("for p in zip((1,), (2,)):  # <-\n    pass", "for p in range(n):\n    pass"),
        ("for p in enumerate((1, 2)):  # <-\n    pass", "sum = n\na = sum + 1"),
        ("a = getattr(x, 'shape')  # <-", "a = isinstance(x.shape, tuple)"),
    ],
    "subset-method": [
        ("a = [2, 1]\na.sort()  # <-", "a = [2, 1]\na.reverse()\na.append(3)"),
        ("a = {'b': 1}\na.update(c=2)  # <-", "a = {'b': 1}\na.setdefault('c', 2)"),
        ("a = ', '.join(('b', 'c'))  # <-", "a = f'b, {n}'"),
    ],
    "subset-foreign-call": [
        ("a = np.prod(x.shape)  # <-", "a = x.shape[0] * x.shape[1]"),
        ("a = math.prod(x.shape)  # <-", "a = math.ceil(n / 2) + math.log2(n)"),
        ("a = functools.reduce(max, (1, 2))  # <-", "a = max(1, 2)"),
    ],
    "subset-global-value": [
        (
            "SEEN = frozenset((1,))\n\ndef kernel(x):\n    print(1 in SEEN)  # <-\n    return x",
            "SEEN = (1,)\n\ndef kernel(x):\n    print(1 in SEEN)\n    return x",
        ),
        (
            "ROW = np.ones(4)\n\ndef kernel(x):\n    print(ROW)  # <-\n    return x",
            "ROW = 4.0\n\ndef kernel(x):\n    print(ROW)\n    return x",
        ),
    ],
    "subset-class": [
        (
            "class A:  # <-\n    pass\n\ndef kernel(x):\n    A()\n    return x",
            "class A(nl.NKIObject):\n    '''Text.'''\n    a: int = 1\n\n"
            "def kernel(x):\n    A()\n    return x",
        ),
        (
            "class A(IntEnum):  # <-\n    a = 1\n\ndef kernel(x, a=A.a):\n    return x",
            "class A(Enum):\n    a = 1\n\ndef kernel(x, a=A.a):\n    return x",
        ),
        (
            "class A(nl.NKIObject):\n    for i in (1,):  # <-\n        pass\n\n"
            "def kernel(x: 'A'):\n    return x",
            "@dataclass(frozen=True)\nclass A(nl.NKIObject):\n    i: int = 1\n\n"
            "    @staticmethod\n    def make():\n        return A(2)\n\n"
            "def kernel(x: 'A'):\n    return A.make()",
        ),
    ],
    "subset-jit-in-jit": [
        (
            "@nki.jit\ndef inner(x):\n    return x\n\ndef kernel(x):\n    return inner(x)  # <-",
            "def inner(x):\n    return x\n\n@nki.jit\ndef kernel(x):\n    return inner(x)",
        )
    ],
    "subset-is": [
        ("a = flag is None  # <-", "a = flag == None"),
        ("a = flag is not n  # <-", "a = flag != n"),
    ],
    "subset-closure": [
        (
            "def make(m):\n    def kernel(x):\n        print(m)  # <-\n        return x\n"
            "    return kernel\n\nkernel = make(2)",
            "m = 2\n\ndef kernel(x):\n    print(m)\n    return x",
        )
    ],
    "lint-positional": [
        (
            "nisa.tensor_copy(x, x)  # <-",
            "nisa.tensor_copy(x, src=x)\nnisa.tensor_copy(dst=x, src=x)",
        )
    ],
    "lint-divide": [
        ("a = nl.divide  # <-", "a = nl.multiply"),
        ("nisa.tensor_tensor(dst=x, data1=x, data2=x, op=nl.mod)  # <-", "a = n % 2"),
    ],
    "lint-matmul-transpose": [
        ("y = nl.matmul(x, x)  # <-", "y = nl.matmul(x, x, transpose_x=True)")
    ],
    "lint-dynamic-loop": [
        ("for i in nl.dynamic_range(n):  # <-\n    pass", "for i in range(n):\n    pass"),
        ("r = nisa.register_alloc(n)\nwhile r:  # <-\n    pass", "while n < 0:\n    pass"),
    ],
    "lint-memset-float": [
        (
            "t = nl.ndarray((n, n), dtype=nl.int32, buffer=nl.sbuf)\n"
            "nisa.memset(dst=t[0:1, :], value=-1.5)  # <-",
            "t = nl.ndarray((n, n), dtype=nl.int32, buffer=nl.sbuf)\nnisa.memset(dst=t, value=-1)\n"
            "f = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)\n"
            "nisa.memset(dst=f, value=1.5)",
        )
    ],
    "lint-affine-range": [
        ("for i in nl.affine_range(n):  # <-\n    pass", "for i in range(n):\n    pass")
    ],
    "lint-mutable-global": [
        (
            "TABLE = {'a': 1}\n\ndef kernel(x):\n    print(TABLE['a'])  # <-\n    return x",
            "TABLE = (1,)\n\ndef kernel(x):\n    print(TABLE[0])\n    return x",
        )
    ],
    "lint-impure": [("a = os.environ  # <-", "a = n")],
    "lint-tensor-operator": [
        (
            "t = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)\nu = t[0:1, :] * 2  # <-",
            "t = nl.ndarray((n, n), dtype=nl.float32, buffer=nl.sbuf)\nu = t.shape[0] * 2",
        )
    ],
}
PAIRS = [
    pytest.param(rule, bad, good, id=f"{rule}-{i}" if i else rule)
    for rule, pairs in CASES.items()
    for i, (bad, good) in enumerate(pairs)
]


@pytest.mark.parametrize(("rule", "bad", "good"), PAIRS)
def test_fires(tmp_path: Path, rule: str, bad: str, good: str) -> None:
    found = [finding for finding in check(tmp_path, bad) if finding.rule == rule]
    assert found
    lines = Path(found[0].file).read_text().splitlines()
    assert "# <-" in lines[found[0].line - 1]
    assert found[0].severity == ("error" if found[0].refused else "warning")
    assert "{" not in found[0].message
    violation = found[0].violation()
    assert violation.mend
    assert f"{found[0].file}:{found[0].line}" in str(violation)


@pytest.mark.parametrize(("rule", "bad", "good"), PAIRS)
def test_is_silent(tmp_path: Path, rule: str, bad: str, good: str) -> None:
    findings = check(tmp_path, good)
    assert rule not in {finding.rule for finding in findings}
    refused = {f.rule for f in findings if f.refused}
    assert not refused


def test_every_rule_has_a_case() -> None:
    elsewhere = {"subset-no-source", "subset-neuronxcc"}  # below
    assert set(RULES) == set(CASES) | elsewhere


# --- versions ---------------------------------------------------------------------------


def test_what_the_parser_refuses_leaves_0_7_and_is_no_error(tmp_path: Path) -> None:
    findings = check(tmp_path, "a = [i for i in range(n)]")
    assert accepted_versions(findings) == ("0.7",)
    assert subset_violations(findings) == []
    (demanded,) = subset_violations(findings, ["0.3"])
    assert demanded.limit == "nki 0.7"
    assert demanded.value == "list comprehension"
    assert subset_violations(findings, ["0.7"]) == []


def test_lints_leave_every_version(tmp_path: Path) -> None:
    findings = check(tmp_path, "a = flag is None\nnisa.tensor_copy(x, x)")
    assert accepted_versions(findings) == VERSIONS
    assert [v.rule for v in subset_warnings(findings)] == ["subset-is", "lint-positional"]
    assert subset_violations(findings, VERSIONS) == []


@pytest.mark.parametrize(
    "code",
    ["async def kernel(x):\n    return x", "def kernel(x):\n    yield x"],
    ids=["coroutine", "generator"],
)
def test_a_kernel_that_is_no_plain_function_is_refused_by_all(tmp_path: Path, code: str) -> None:
    findings = check(tmp_path, code)
    assert accepted_versions(findings) == ()
    (violation,) = subset_violations(findings)
    assert violation.limit == "no nki version"


@pytest.mark.parametrize(
    ("code", "versions"),
    [
        ("def body(i):\n    pass\nnl.fori_loop(0, n, body)", ("0.6", "0.7")),
        ("def body(i):\n    pass\nnl.fori_loop(0, n, body_fun=body)", ("0.6", "0.7")),
        ("def body(i):\n    pass\nbody(1)", ("0.7",)),
    ],
)
def test_inner_functions_are_for_loop_bodies_since_0_6(
    tmp_path: Path, code: str, versions: tuple[str, ...]
) -> None:
    assert accepted_versions(check(tmp_path, code)) == versions


def test_the_old_namespace_ends_with_0_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("neuronxcc.nki")
    old.load = None  # type: ignore[attr-defined]
    package = ModuleType("neuronxcc")
    package.nki = old  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "neuronxcc", package)
    monkeypatch.setitem(sys.modules, "neuronxcc.nki", old)
    code = "import neuronxcc.nki as old\n\ndef kernel(x):\n    old.load\n    return x"
    findings = check(tmp_path, code)
    assert {f.rule for f in findings} == {"subset-neuronxcc"}
    assert accepted_versions(findings) == ("0.3",)
    assert accepted_versions(check(tmp_path, code.replace("old.load", "x"))) == VERSIONS


# --- what is reached --------------------------------------------------------------------

HELPERS = """
def outer(y):
    return inner(y)

def inner(y):
    return outer(y) if y else [z for z in y]

def unused(y):
    return lambda: y
"""


def test_helpers_are_checked_transitively_and_recursion_ends(tmp_path: Path) -> None:
    findings = check(tmp_path, HELPERS + "\ndef kernel(x):\n    return outer(x)\n")
    assert [(f.rule, f.function) for f in findings] == [("subset-comprehension", "inner")]


def test_helpers_of_other_modules_are_checked(tmp_path: Path) -> None:
    helper = load(tmp_path, HEAD + HELPERS)
    code = f"import {helper.__name__} as h\n\ndef kernel(x):\n    return h.outer(x)\n"
    (finding,) = check(tmp_path, code)
    assert finding.file == helper.__file__
    code = f"from {helper.__name__} import outer\n\ndef kernel(x):\n    return outer(x)\n"
    assert [f.file for f in check(tmp_path, code)] == [helper.__file__]


def test_functions_passed_as_values_and_partials_are_checked(tmp_path: Path) -> None:
    code = """
    def apply(f, y):
        return f(y)

    def bad(y):
        return [z for z in y]

    PART = functools.partial(bad, 1)

    def kernel(x):
        return apply({}, x)
    """
    for value in ("bad", "PART"):
        assert [f.function for f in check(tmp_path, code.replace("{}", value))] == ["bad"]


CLASS = """
class Config(nl.NKIObject):
    a: int = 1

    def size(self):
        return self.inner()

    def inner(self):
        return sum((1, 2))

    def __hash__(self):
        return hash(self.a)

    def host(self):
        return ', '.join(('a', 'b'))

def kernel(x, config=None):
    return {}
"""


def test_a_methods_names_matter_only_if_it_is_called(tmp_path: Path) -> None:
    called = check(tmp_path, CLASS.replace("{}", "Config().size()"))
    assert [(f.rule, f.function) for f in called] == [("subset-builtin", "Config.inner")]
    assert check(tmp_path, CLASS.replace("{}", "Config()")) == []


def test_a_methods_grammar_matters_in_any_case(tmp_path: Path) -> None:
    code = CLASS.replace("hash(self.a)", "(lambda: 1)()")
    assert [f.rule for f in check(tmp_path, code.replace("{}", "Config()"))] == ["subset-lambda"]


def test_classes_of_arguments_are_checked(tmp_path: Path) -> None:
    code = CLASS.replace("{}", "x").replace("nl.NKIObject", "object")
    module = load(tmp_path, module_text(code))
    assert check_subset(module.kernel) == []
    found = check_subset(module.kernel, arguments=[3, "a", (1,), None, module.Config()])
    assert [f.rule for f in found] == ["subset-class"]


def test_nki_numpy_and_the_standard_library_are_not_looked_into(tmp_path: Path) -> None:
    code = "t = nl.ndarray((n, 1), dtype=nl.float32, buffer=nl.sbuf)\na = np.float32\nb = math.pi"
    assert check(tmp_path, code) == []


# --- what is given ----------------------------------------------------------------------


def test_wrapped_kernels_are_unwrapped(tmp_path: Path) -> None:
    module = load(tmp_path, module_text("a = {1, 2}"))
    plain = module.kernel.function
    kernel = type(module.kernel)

    class Owner:
        method = kernel(plain)

    given = [plain, module.kernel[2], functools.partial(plain, n=3), Owner().method]
    assert [[f.rule for f in check_subset(g)] for g in given] == [["subset-set"]] * len(given)


def test_without_source_only_tracing_works() -> None:
    scope: dict[str, Any] = {}
    exec("def kernel(x):\n    return x", scope)
    for given in (scope["kernel"], np.add, len):
        findings = check_subset(given, "made_up")
        assert [f.rule for f in findings] == ["subset-no-source"]
        assert accepted_versions(findings) == ("0.7",)
    assert accepted_versions(check_subset(lambda x: x)) == ("0.7",)


def test_a_function_is_read_once(tmp_path: Path) -> None:
    module = load(tmp_path, module_text("a = {1, 2}"))
    assert check_subset(module.kernel) is check_subset(module.kernel.function)


def test_what_public_kernel_libraries_use_is_accepted(tmp_path: Path) -> None:
    code = """
    from typing import Optional

    class Mode(Enum):
        fast = 0
        exact = 1

    @dataclass
    class Tiles(nl.NKIObject):
        rows: int
        names: Optional[list] = None

        def __post_init__(self):
            self.count = divmod(self.rows, 128)[0]

        def last(self) -> int:
            assert self.rows > 0, f"rows is {self.rows}"
            return min(self.rows, 128)

    def halve(y: int, by=2):
        return y // by

    def pick(mode: Mode):
        if mode == Mode.fast:
            return halve
        return None

    @nki.jit
    def kernel(x, scale: float = 1.0, mode: Mode = Mode.fast, tiles: Optional[Tiles] = None):
        '''Text.'''
        rows, columns = x.shape
        out: nl.ndarray = nl.ndarray((rows, columns), dtype=x.dtype, buffer=nl.shared_hbm)
        plan = Tiles(rows) if tiles == None else tiles
        plan.count += 1
        (a, b), c = (1, 2), 3
        buffers, seen = [], {"rows": rows}
        function = pick(mode)
        for i in range(0, max(len(buffers), plan.last()), 32):
            if not isinstance(i, int) or 0 < i < 2:
                continue
            buffers.append(str(i) + f"tile {i!s}")
            seen["last"] = float(i) ** 2
            nisa.dma_copy(dst=out[i : i + 1, ...], src=x[i, nl.ds(0, columns)])
        while a < 3 and function(a) not in (7, 8):
            a += 1
            break
        print("done", tuple(list((1, 2))), abs(-1), bool(b), c)
        return out, (x if mode != Mode.exact else out)
    """
    assert check(tmp_path, code) == []
