"""One self-contained file for the contest: a configuration's kernels and the NxD Inference adapter.

The file is put together from the sources that run here, definition by definition: what is
reached from the kernels, from how their ops call them, and from the adapter. Imports among our
modules go; a name that two modules define gets its module's name behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from kernels import KERNELS
from kernels.contracts import CONTRACTS
from model.configuration import (
    KernelConfiguration,
    kernel_configuration_path,
    read_kernel_configuration,
)
from model.neuron.sources import Definition, Target, find, read
from model.records import write_text

FILE = "qwen_with_nki.py"
CLASS = "NeuronQwen3MoeForCausalLM"
"""What the contest's main.py takes from the module."""

Key = tuple[str, str]


def write_submission(name: str, output: Path) -> None:
    """Write the file of configuration `name`, whole or not at all.

    Raises:
        ConfigurationError: the configuration, or a kernel of it, is wrong.
        SourceError: a kernel's file has statements that cannot be moved.
    """
    configuration = read_kernel_configuration(kernel_configuration_path(name))
    text = bundle(configuration, name)
    compile(text, str(output), "exec")
    write_text(output, text)


def bundle(configuration: KernelConfiguration, name: str) -> str:
    """The file's text."""
    adapter = [("model.neuron.modeling", "bind"), ("model.neuron.kernels_in_graph", "GraphKernels")]
    roots = [*adapter, ("model.neuron.kernels_in_graph", "GraphOp")]
    table = []
    for op, chosen in configuration.ops.items():
        kernel, call = _kernel(chosen.kernel), (CONTRACTS[op].call.__module__, "")
        call = (call[0], CONTRACTS[op].call.__name__)
        roots += [kernel, call]
        table.append((op, call, kernel, dict(chosen.parameters)))
    modules, definitions = _reached(roots)
    names = _names(definitions)
    imports: dict[str, Target] = {}
    parts = []
    for module in modules:
        mine = [d for d in definitions if d.module == module]
        if mine:
            parts.append(f"# --- {_title(module)} {'-' * max(3, 90 - len(_title(module)))}\n")
            parts += [_text(definition, names, imports) for definition in mine]
    head = (
        f'"""Qwen3-MoE for NxD Inference with NKI kernels: configuration {name!r} of nki-assay.\n\n'
        f"{configuration.description}\n\n"
        "Made from that project's sources (`snakemake contest_submission`); change these, not "
        'this file.\n"""\n\nfrom __future__ import annotations\n\n'
    )
    entries = "".join(
        f'    "{op}": GraphOp({names[call]}, {names[kernel]}, {parameters!r}),\n'
        for op, call, kernel, parameters in table
    )
    last = (
        f"# --- configuration {name} {'-' * max(3, 76 - len(name))}\n\n"
        f"KERNELS = {{\n{entries}}}\n\n{CLASS} = bind(GraphKernels(KERNELS))\n"
    )
    return head + _import_lines(imports) + "\n\n" + "\n\n".join([*parts, last])


def _kernel(kernel: str) -> Key:
    """Where a kernel's function is: (module or file, name)."""
    if kernel in KERNELS:
        return KERNELS[kernel].module, kernel
    path, _, function = kernel.rpartition(":")
    return path, function


def _title(module: str) -> str:
    path = find(module)
    assert path is not None
    return module if module.endswith(".py") else module.replace(".", "/") + ".py"


def _reached(roots: Iterable[Key]) -> tuple[list[str], list[Definition]]:
    """Modules, each after those it uses, and their definitions that are reached, in file order."""
    todo, seen = list(roots), set(roots)
    modules: list[str] = []
    while todo:
        module, name = todo.pop()
        for use in read(module).definitions[name].uses:
            if use.target.ours and use.target.name is not None:
                key = (use.target.module, use.target.name)
                if key not in seen:
                    seen.add(key)
                    todo.append(key)
    involved = {module for module, _ in seen}

    def visit(module: str) -> None:
        if module in modules:
            return
        for definition in read(module).definitions.values():
            if (module, definition.name) in seen:
                for use in definition.uses:
                    if use.target.module in involved and use.target.module != module:
                        visit(use.target.module)
        modules.append(module)

    for module in sorted(involved):
        visit(module)
    found = [
        definition
        for module in modules
        for definition in read(module).definitions.values()
        if (module, definition.name) in seen
    ]
    return modules, found


def _names(definitions: list[Definition]) -> dict[Key, str]:
    """Each definition's name in the file."""
    counts: dict[str, int] = {}
    for definition in definitions:
        counts[definition.name] = counts.get(definition.name, 0) + 1
    return {
        (d.module, d.name): d.name
        if counts[d.name] == 1
        else f"{d.name}_{Path(_title(d.module)).stem}"
        for d in definitions
    }


def _text(definition: Definition, names: dict[Key, str], imports: dict[str, Target]) -> str:
    """A definition's source with the file's names; what it imports goes to `imports`."""
    lines = list(read(definition.module).lines[definition.first - 1 : definition.last])
    for use in sorted(definition.uses, key=lambda use: (use.line, use.start), reverse=True):
        if use.target.ours and use.target.name is not None:
            new = names[use.target.module, use.target.name]
        else:
            new = use.alias
            if imports.setdefault(new, use.target) != use.target:
                raise AssertionError(f"{new} is imported from two modules")
        index = use.line - definition.first
        line = lines[index]
        lines[index] = line[: use.start] + new.encode() + line[use.end :]
    text = b"".join(lines).decode()
    own = names[definition.module, definition.name]
    if own != definition.name:
        text = re.sub(rf"^((?:def|class) )?{definition.name}\b", rf"\g<1>{own}", text, flags=re.M)
    text = re.sub(r" +# (type: ignore|noqa)[^\n]*", "", text)
    return text.rstrip() + "\n"


def _import_lines(imports: dict[str, Target]) -> str:
    lines = set()
    for alias, target in imports.items():
        if target.name is None:
            whole = f"import {target.module}"
            lines.add(whole if alias == target.module else f"{whole} as {alias}")
        else:
            renamed = "" if alias == target.name else f" as {alias}"
            lines.add(f"from {target.module} import {target.name}{renamed}")
    return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line))) + "\n"
