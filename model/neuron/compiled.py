"""Compile an application; files, MACs and kernel calls of each graph, as one record."""

from __future__ import annotations

from model.fingerprint import file_sha256
from model.neuron.application import Application, Kind
from model.neuron.availability import NeuronError
from model.neuron.hlo import count_macs, graph_files
from model.neuron.work_directory import RECORD, WorkDirectory
from model.ops import GRAPHS
from model.records import Graph, Part, Record


class HloGraph(Part):
    """One graph at one bucket."""

    graph: Graph
    bucket_tokens: int
    """Prompt length in context encoding; cache length in token generation."""
    sha256: str
    """Of the HLO file."""
    macs_nki: int
    """Counted in the HLO, of one rank."""
    macs_total: int
    nki_kernel_calls: int


class CompiledGraphs(Record):
    """compiled/graphs.json in a work directory."""

    kind: Kind
    graphs: list[HloGraph]
    kernel_calls: dict[str, dict[Graph, int]]
    """Kernel -> graph -> calls in one run, counted while it was traced."""
    nki_flops_ratio: float
    """MACs in NKI of both graphs / all of both, at the smallest bucket, as the contest has it."""

    @classmethod
    def of(cls, directory: WorkDirectory) -> CompiledGraphs:
        """Read the record of a work directory."""
        return cls.read(directory.compiled / RECORD)


def compile_application(application: Application, directory: WorkDirectory) -> CompiledGraphs:
    """Compile both graphs at all buckets, cut up the weights, and describe what came out.

    It needs neuronx-cc, and no NeuronCore: it compiles for the target in the environment.

    Raises:
        NeuronError: the compiler failed, with the last lines of its logs; the folder holds other
            data; or an HLO file is missing.
    """
    directory.prepare()
    try:
        application.model.compile(f"{directory.compiled}/")
    except Exception as error:
        found = directory.compiler_errors()
        raise NeuronError(
            f"neuronx-cc or NxD failed: {type(error).__name__}: {error}"
            + (f"\n{found}" if found else f"; logs are below {directory.trace}")
        ) from error
    return describe(application, directory)


def describe(application: Application, directory: WorkDirectory) -> CompiledGraphs:
    """Count what was compiled, and write graphs.json beside it.

    Raises:
        NeuronError: an HLO file is missing, or not every trace of a graph called a kernel as often.
    """
    graphs: list[HloGraph] = []
    buckets: dict[Graph, list[int]] = {
        "context_encoding": application.model.context_encoding_model.config.neuron_config.buckets,
        "token_generation": application.model.token_generation_model.config.neuron_config.buckets,
    }
    for graph in GRAPHS:
        files = graph_files(directory.trace, graph, len(buckets[graph]))
        for bucket, file in zip(buckets[graph], files, strict=True):
            macs = count_macs(file)
            graphs.append(
                HloGraph(
                    graph=graph,
                    bucket_tokens=bucket,
                    sha256=file_sha256(file),
                    macs_nki=macs.nki,
                    macs_total=macs.total,
                    nki_kernel_calls=macs.nki_calls,
                )
            )
    first = [next(g for g in graphs if g.graph == graph) for graph in GRAPHS]
    runs = application.kernels.runs
    total = sum(graph.macs_total for graph in first)
    record = CompiledGraphs(
        kind=application.kind,
        graphs=graphs,
        kernel_calls={
            kernel: {graph: _per_run(kernel, calls[graph], runs.get(graph, 0)) for graph in GRAPHS}
            for kernel, calls in application.ops.kernel_calls().items()
        },
        nki_flops_ratio=sum(graph.macs_nki for graph in first) / total if total else 0.0,
    )
    record.write(directory.compiled / RECORD)
    return record


def _per_run(kernel: str, calls: int, runs: int) -> int:
    if runs == 0 or calls % runs:
        raise NeuronError(f"kernel {kernel} was called {calls} times in {runs} traces of a graph")
    return calls // runs
