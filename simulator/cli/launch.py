"""What check, run and show share: a kernel, its arguments and its target from the command line."""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simulator.cli.loading import load_kernel
from simulator.cli.output import Output
from simulator.cli.problems import BadInput
from simulator.cli.values import (
    SYNTAX,
    ArgumentParser,
    TensorInput,
    tensors_in,
    tensors_to,
)
from simulator.context import VERSIONS
from simulator.kernel import Kernel
from simulator.program import Program
from simulator.targets import CHECKED, TARGETS, Target, current_target

EXIT_CODES = """exit codes:
  0  good
  1  {broken}
  2  the command cannot be followed: no such file or kernel, a file that cannot be
     imported, an argument that is no value"""

ARGUMENTS = """arguments of the kernel:
  --arg x=bf16[256,2048]           a tensor: dtype and shape
  --arg x=bf16[256,2048]:uniform   what to fill it with (run): normal, normal(0,0.02),
                                   uniform, uniform(-1,1), ints(0,100), arange, zeros, ones
  --arg x=@x.npy                   a tensor from a file; @x.npy:bf16 converts it
  --arg eps=1e-6                   a Python literal; strings in quotes: "mode='fast'"
  --arg op=nl.exp                  a name of nl or nisa, or of the kernel's file
  --arg w='(bf16[4,8], bf16[4])'   a tuple
  dtypes: bf16 f16 f32 tf32 i8 i16 i32 u8 u16 u32 bool f8e4m3 f8e4m3fn f8e5m2, and nl's names"""


@dataclass
class Launch:
    """A kernel to launch with given arguments."""

    kernel: Kernel
    arguments: dict[str, Any]
    """By name, in signature order, defaults included; tensors as TensorInput."""
    given: frozenset[str]
    """Names of the arguments that were given, not left at their default."""
    lnc: int

    @property
    def file(self) -> str:
        """The kernel's file."""
        return inspect.getsourcefile(self.kernel.function) or ""

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.function.__qualname__

    def specialise(self, target: Target) -> Program:
        """The Program for these arguments. Raises what the kernel raises."""
        specialise = functools.partial(self.kernel.specialise, target=target)
        program: Program = self.call(specialise, lambda tensor: tensor.spec)
        return program

    def tensors(self) -> list[tuple[str, TensorInput]]:
        """The tensor arguments in order, those inside tuples and dictionaries too."""
        return [found for item in self.arguments.items() for found in tensors_in(*item)]

    def call(self, function: Callable[..., Any], convert: Callable[[TensorInput], Any]) -> Any:
        """Call with the kernel's arguments, every tensor converted, in order."""
        bound = self.kernel.signature.bind_partial()
        for name, value in self.arguments.items():
            bound.arguments[name] = tensors_to(value, convert)
        return function(*bound.args, **bound.kwargs)

    def described(self) -> dict[str, Any]:
        """What the documents say of it."""
        arguments = {
            name: str(value) if isinstance(value, TensorInput) else repr(tensors_to(value, str))
            for name, value in self.arguments.items()
            if name in self.given
        }
        return {"kernel": self.name, "file": self.file, "lnc": self.lnc, "arguments": arguments}

    def print_head(self, output: Output) -> None:
        """Print what is launched."""
        facts = self.described()
        output.line((facts["kernel"], "bold"), f"  {facts['file']}")
        for name, value in facts["arguments"].items():
            output.line(f"{name} = {value}", indent=2)


def add_launch(parser: argparse.ArgumentParser, many_targets: bool = False) -> None:
    """Add the arguments that name a kernel and how to launch it."""
    parser.add_argument(
        "kernel", metavar="FILE:KERNEL", help="a path or a dotted module, and a kernel in it"
    )
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="an argument; see below"
    )
    parser.add_argument(
        "--kernel-arg-file", metavar="YAML", help="a mapping from names to values of --arg"
    )
    target = "NEURON_PLATFORM_TARGET_OVERRIDE, or trn2"
    if many_targets:
        parser.add_argument(
            "--target", action="append", choices=CHECKED, help=f"may be repeated ({target})"
        )
    else:
        parser.add_argument("--target", choices=CHECKED, help=f"default: {target}")
    parser.add_argument(
        "--lnc", type=int, choices=(1, 2), help="physical cores of the launch: kernel[LNC](…)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def targets(names: list[str] | str | None) -> list[Target]:
    """The targets that were named, or the environment's.

    Raises:
        BadInput: the environment names none.
    """
    if names:
        wanted = [names] if isinstance(names, str) else names
        return [TARGETS[name] for name in dict.fromkeys(wanted)]
    try:
        target = current_target()
    except ValueError as error:
        raise BadInput(str(error), "Set it to trn2 or trn3, or give --target") from None
    if target.name not in CHECKED:
        raise BadInput(
            f"NKI 0.3 and later do not compile for {target.name}",
            "Set NEURON_PLATFORM_TARGET_OVERRIDE to trn2 or trn3, or give --target",
        )
    return [target]


def read_launch(args: argparse.Namespace, output: Output) -> Launch:
    """Load the kernel and read its arguments.

    Raises:
        BadInput: the kernel or an argument cannot be had.
    """
    with output.kernel_prints():
        kernel, module = load_kernel(args.kernel)
        parser = ArgumentParser(vars(module))
        given = _from_file(args.kernel_arg_file, parser) if args.kernel_arg_file else {}
        on_line: dict[str, Any] = {}
        for text in args.arg:
            name, value = parser.assignment(text)
            if name in on_line:
                raise BadInput(f"argument {name} is given twice", "Give it once")
            on_line[name] = value
    given |= on_line
    launched = kernel if args.lnc is None else kernel[args.lnc]
    return Launch(launched, _bound(kernel, given), frozenset(given), args.lnc or kernel.lnc)


def _from_file(path: str, parser: ArgumentParser) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", "Name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no YAML: {error}", "Mend the file") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BadInput(f"{path} is no mapping", "Write lines of NAME: VALUE")

    def value(name: str, item: Any) -> Any:
        if isinstance(item, str):
            return parser.value(name, item)
        if isinstance(item, list):
            return tuple(value(name, part) for part in item)
        if isinstance(item, dict):
            return {key: value(name, part) for key, part in item.items()}
        if item is None or isinstance(item, bool | int | float):
            return item
        raise BadInput(f"{path}: {name} is a {type(item).__name__}", SYNTAX)

    return {name: value(name, item) for name, item in content.items()}


def _bound(kernel: Kernel, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments in the signature's order, with its defaults."""
    bound: dict[str, Any] = {}
    rest = dict(given)
    parameters = kernel.signature.parameters
    takes = f"{kernel.function.__name__}{kernel.signature}"
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            bound[name], rest = rest, {}
        elif name in rest:
            bound[name] = rest.pop(name)
        elif parameter.default is not parameter.empty:
            bound[name] = parameter.default
        else:
            raise BadInput(
                f"argument {name} of {takes} is not given",
                f"Add --arg {name}=… ; a tensor is written {name}=bf16[128,512]",
            )
    if rest:
        raise BadInput(
            f"{takes} has no argument {', '.join(rest)}", f"It has: {', '.join(parameters)}"
        )
    return bound


def nki_version(text: str) -> str:
    """A version of nki, as argparse reads it."""
    if text not in VERSIONS:
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(VERSIONS)}")
    return text
