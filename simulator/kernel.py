"""`nki.jit` and `nki.simulate`: a kernel as something to call with NumPy or torch data."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any

from simulator.arguments import Call
from simulator.context import CURRENT
from simulator.errors import NkiLaxWarning, NkiValidationError, Violation, refuse
from simulator.execute import Plan
from simulator.machine import precise
from simulator.program import Program
from simulator.specialise import definition, run_eagerly, specialise
from simulator.targets import Target, current_target


class Kernel:
    """An NKI kernel. Calling it specialises it for the arguments, once, and replays it."""

    def __init__(
        self,
        function: Callable[..., Any],
        lnc: int = 1,
        grid: bool = False,
        eager: bool = False,
        platform: str | None = None,
    ) -> None:
        """A kernel to launch.

        Args:
            function: the kernel's Python function.
            lnc: cores of the launch.
            grid: the launch named the number of cores.
            eager: execute while tracing.
            platform: what `nki.jit(platform_target=)` asked for.
        """
        functools.update_wrapper(self, function)
        self.function = function
        self.signature = inspect.signature(function)
        self.lnc = lnc
        self.grid = grid
        self.eager = eager
        self.platform = platform
        self._programs: dict[Any, Program] = {}
        self._plans: dict[Any, Plan] = {}
        self._launches: dict[int, Kernel] = {}

    def __getitem__(self, lnc: Any) -> Kernel:
        """The kernel launched on 1 or 2 cores: `kernel[2](…)`."""
        cores = lnc[0] if isinstance(lnc, tuple) and len(lnc) == 1 else lnc
        if cores not in (1, 2) or isinstance(cores, bool):
            raise refuse(
                "launch",
                f"a launch on {lnc!r} cores",
                "Launch on 1 or 2 cores: kernel[1](…) or kernel[2](…)",
                limit="1 or 2",
                value=repr(lnc),
            )
        if cores not in self._launches:
            self._launches[cores] = Kernel(self.function, cores, True, self.eager, self.platform)
        return self._launches[cores]

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A jitted method, bound to its object."""
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<nki kernel {self.function.__module__}.{self.function.__qualname__}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on NumPy arrays (NumPy results) or CPU torch tensors (torch results)."""
        if CURRENT.get() is not None:  # inlined into the kernel that calls it
            return self.function(*args, **kwargs)
        call = Call(self.bind(args, kwargs))
        if self.eager:
            call.protect()
            target = current_target(self.platform)
            program, results = run_eagerly(
                self.function, call.specs, call.arrays, target, self.lnc, self.grid
            )
        else:
            plan = self.plan(call.specs)
            call.check_writable(plan.program)
            program, results = plan.program, plan.run(call.arrays)
        for violation in program.lax:
            warnings.warn(str(violation), NkiLaxWarning, stacklevel=2)
        return call.finish(program, results)

    def specialise(self, *args: Any, target: Target | None = None, **kwargs: Any) -> Program:
        """The Program for arguments given as TensorSpec, arrays, tensors or plain values.

        Raises:
            NkiValidationError: what the checks found, and what a call only warns of.
        """
        program, _ = self._program(Call(self.bind(args, kwargs)).specs, target)
        if program.lax:
            raise NkiValidationError(list(dict.fromkeys(program.lax)))
        return program

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name, in signature order, with defaults."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.function.__name__}{self.signature}: {error}") from None
        bound.apply_defaults()
        values = dict(bound.arguments)
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                values.update(values.pop(name))
            elif parameter.kind is parameter.VAR_POSITIONAL and not values[name]:
                del values[name]
        return values

    def plan(self, arguments: dict[str, Any], target: Target | None = None) -> Plan:
        """The plan for arguments as `Call.specs` gives them; made once."""
        program, key = self._program(arguments, target)
        if key is None:
            return Plan(program)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan(program)
        return plan

    def _program(self, arguments: dict[str, Any], target: Target | None) -> tuple[Program, Any]:
        """What a plan executes, and its cache's key; making a plan of it takes as long again."""
        target = target or current_target(self.platform)
        key = (target.name, precise(), *((n, _key(v)) for n, v in arguments.items()))
        try:
            program = self._programs.get(key)
        except TypeError:  # unhashable: not cached
            return self._make_program(arguments, target), None
        if program is None:
            program = self._programs[key] = self._make_program(arguments, target)
        return program, key

    def _make_program(self, arguments: dict[str, Any], target: Target) -> Program:
        program = specialise(self.function, arguments, target, self.lnc, self.grid)
        if self.platform is not None:
            program.lax.append(
                Violation(
                    "platform-target",
                    "nki.jit has no platform_target since NKI 0.3",
                    "Set NEURON_PLATFORM_TARGET_OVERRIDE=trn2 or trn3 instead",
                    *definition(self.function),
                    limit="no such option",
                    value=self.platform,
                )
            )
        return program


def _key(value: Any) -> Any:
    """A value as part of a cache's key: 1, 1.0 and True are different parameters.

    Objects count by what they hold, for they may have changed since the last call.
    """
    if isinstance(value, float):
        return (type(value), value.hex())  # tells -0.0 from 0.0, and a NaN is a NaN
    if isinstance(value, tuple | list):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return (dict, *((name, _key(item)) for name, item in value.items()))
    if hasattr(value, "__dict__") and not (callable(value) or isinstance(value, Enum | str)):
        return (type(value), _key(vars(value)))
    return (type(value), value)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a kernel's entry function.

    Args:
        function: the kernel.
        options: those of the SDK. `grid` is a launch; `platform_target`, which the SDK refuses
            since 0.3, is the target of calls if the environment names none, and refused by
            checks; all others concern the SDK's compiler and have no effect.
    """
    if function is None:
        return functools.partial(jit, **options)
    if not callable(function):
        raise TypeError(f"nki.jit decorates a function, not a {type(function).__name__}")
    if isinstance(function, Kernel):
        return function
    platform = options.get("platform_target")
    kernel = Kernel(function, platform=None if platform is None else str(platform))
    return kernel[tuple(options["grid"])] if options.get("grid") else kernel


def simulate(kernel: Kernel | Callable[..., Any], eager: bool = False) -> Kernel:
    """A kernel (or plain function) to call on data, as `nki.simulate(kernel)(…)`.

    Args:
        kernel: decorated or not.
        eager: execute each instruction as it is traced, so that `breakpoint()`,
            `print(tensor)` and `nl.device_print` show values; two cores take turns. Ours; the
            SDK has no such option.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(kernel):
        raise TypeError(f"nki.simulate takes a kernel, not a {type(kernel).__name__}")
    if not isinstance(kernel, Kernel):
        return Kernel(kernel, eager=eager)
    if not eager:
        return kernel
    return Kernel(kernel.function, kernel.lnc, kernel.grid, eager, kernel.platform)
