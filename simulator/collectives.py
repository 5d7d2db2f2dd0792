"""Several ranks of one kernel in one process: `simulate_ranks`.

On the chip every rank is a (logical) NeuronCore with its own memory that runs the same compiled
kernel; they meet in the collectives of `nki.collectives`. Here every rank is a replay of the
same Program in a thread of its own.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulator.arguments import Call
from simulator.errors import NkiLaxWarning, refuse
from simulator.execute import Plan
from simulator.kernel import Kernel, jit
from simulator.ranks import Ranks, World

__all__ = ["simulate_ranks"]

Arguments = Sequence[Any] | Mapping[str, Any]


def simulate_ranks(kernel: Kernel | Callable[..., Any], arguments: Sequence[Arguments]) -> Any:
    """Run a kernel on several ranks at once.

    Args:
        kernel: jitted or plain; `kernel[2]` gives every rank two cores.
        arguments: for each rank its positional arguments as a tuple, or its arguments by name
            as a dictionary. Shapes, dtypes and parameters must be the same on all ranks.

    Returns:
        A list with the kernel's result on each rank.

    Raises:
        NkiValidationError: the checks of the kernel; ranks called with different shapes; a rank
            that does not come to a collective (the first error in rank order).
    """
    launched = kernel if isinstance(kernel, Kernel) else jit(kernel)
    calls = [_call(launched, each) for each in arguments]
    if not calls:
        return []
    for rank, call in enumerate(calls):
        if call.specs != calls[0].specs:
            raise refuse(
                "collective-arguments",
                f"rank {rank} is called with other shapes, dtypes or parameters than rank 0",
                "All ranks run one compiled kernel: give them the same shapes and parameters",
                limit=str(calls[0].specs),
                value=str(call.specs),
            )
    program = launched.plan(calls[0].specs).program
    for call in calls:
        call.check_writable(program)
    for violation in program.lax:
        warnings.warn(str(violation), NkiLaxWarning, stacklevel=2)
    world = World(len(calls))
    outcomes: list[Any] = [None] * len(calls)
    threads = [
        threading.Thread(target=_run, args=(Plan(program), call, world, rank, outcomes))
        for rank, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _raise_first(outcomes)
    return [call.finish(program, found) for call, found in zip(calls, outcomes, strict=True)]


def _call(kernel: Kernel, arguments: Arguments) -> Call:
    if isinstance(arguments, Mapping):
        return Call(kernel.bind((), dict(arguments)))
    if isinstance(arguments, tuple | list):
        return Call(kernel.bind(tuple(arguments), {}))
    raise refuse(
        "collective-arguments",
        f"the arguments of a rank are a {type(arguments).__name__}",
        "Give each rank a tuple of arguments, or a dictionary of them by name",
        limit="tuple or dict",
        value=type(arguments).__name__,
    )


def _run(plan: Plan, call: Call, world: World, rank: int, outcomes: list[Any]) -> None:
    """One rank, in its thread."""
    for state in plan.states.values():
        if isinstance(state, Ranks):
            state.rank, state.world = rank, world
    how = "has ended"
    try:
        outcomes[rank] = plan.run(call.arrays)
    except BaseException as error:
        outcomes[rank] = error
        how = f"has failed ({type(error).__name__})"
    finally:
        world.end(rank, how)


def _raise_first(outcomes: list[Any]) -> None:
    """Raise the first error that is no mere consequence of another rank's."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    causes = [e for e in errors if "has failed" not in str(e)]
    for error in (*causes, *errors):
        raise error
