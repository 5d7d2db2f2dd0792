"""Nothing of the simulator goes untested: every rule fires somewhere, every instruction is run.

A test module of this folder says what it shows: `RULES` (body -> (rule, limit, value)) or
`FIRES` (rule names), and `COVERED` (instruction name -> test).
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType

from simulator.instructions import INSTRUCTIONS
from simulator.subset import RULES as SUBSET_RULES

HERE = Path(__file__).parent
NAMED_BY_VALUE = {"sbuf-capacity", "psum-capacity"}
"""Rules whose names the code puts together."""


def modules() -> list[ModuleType]:
    names = sorted(file.stem for file in HERE.glob("test_*.py"))
    return [importlib.import_module(name) for name in names if name != Path(__file__).stem]


def rules_of_the_code() -> set[str]:
    used = set(NAMED_BY_VALUE)
    for file in (HERE.parents[1] / "simulator").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            at = {
                "refuse": 0, "note_lax": 0, "Violation": 0, "_violation": 0, "report": 1,
                "tolerate": 1, "warn": 1, "_note": 2, "_report": 1,
            }  # fmt: skip
            position = at.get(name)
            if position is not None and len(node.args) > position:
                rule = node.args[position]
                if isinstance(rule, ast.Constant) and isinstance(rule.value, str):
                    used.add(rule.value)
    return used


def test_every_rule_of_the_code_is_shown_to_fire() -> None:
    fired: set[str] = set()
    for module in modules():
        rules = getattr(module, "RULES", {}).values()
        fired |= {rule[0] for rule in rules if isinstance(rule, tuple)}
        fired |= set(getattr(module, "FIRES", ()))
    assert rules_of_the_code() - fired == set()


def test_every_instruction_has_a_value_test() -> None:
    covered: set[str] = set()
    for module in modules():
        covered |= set(getattr(module, "COVERED", {}))
    assert covered == set(INSTRUCTIONS)


def test_every_rule_is_in_the_docs() -> None:
    text = (HERE.parents[1] / "docs" / "simulator.md").read_text()
    words = set(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text))
    assert rules_of_the_code() | set(SUBSET_RULES) <= words
