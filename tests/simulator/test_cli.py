"""The command line: exit codes, what it prints, the syntax of arguments, how files are found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from simulator.cli import COMMANDS, main
from simulator.cli.compare import compare
from simulator.cli.problems import BadInput
from simulator.cli.values import ArgumentParser, TensorInput, tensors_to
from simulator.dtypes import DTYPES
from simulator.targets import CHECKED

ROOT = Path(__file__).parents[2]

KERNELS = """
from enum import Enum

import nki
import nki.isa as nisa
import nki.language as nl

class Mode(Enum):
    once = 1
    twice = 2

def moved(x):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    return tile, out

@nki.jit
def scaled(x, factor=2.0, mode=Mode.once, op=nl.multiply):
    tile, out = moved(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=op, operand0=factor)
    print("tracing", mode == Mode.twice)
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def crooked(x):
    tile, out = moved(x)
    for start in range(3):
        nisa.tensor_copy(dst=tile[start + 1 : start + 3, :], src=tile[0:2, :])  # crooked
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def modern(x):
    sizes = [size for size in x.shape]  # modern
    tile, out = moved(x)
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def failing(x):
    return x.shape + 1  # failing

@nki.jit
def empty_nan(x):
    tile, out = moved(x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=float("inf"))
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def updating(x, y):
    nisa.dma_copy(dst=y, src=x)

@nki.jit
def paired(pair):
    tile, out = moved(pair[0])
    nisa.tensor_tensor(dst=tile, data1=tile, data2=moved(pair[1])[0], op=nl.add)
    nisa.dma_copy(dst=out, src=tile)
    return out

@nki.jit
def private(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.private_hbm)
    nisa.dma_copy(dst=out, src=x)
    return out

def undecorated(x):
    tile, out = moved(x)
    nisa.dma_copy(dst=out, src=tile)
    return out, out

CONSTANT = 3
"""
REFERENCES = """
import numpy as np

def scaled(x, factor):
    assert x.dtype == np.float32
    return x * factor

def wrong(x, factor):
    return x * factor + 1

def by_position(a):
    return a * 2

def copied(x):
    return x, x

def shape(x):
    return x[0]

def broken(x):
    raise ValueError("no")  # broken

def many(a, b, c, d, e):
    return a
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kernels(tmp_path: Path) -> str:
    """A file of kernels; its name is of no other module."""
    path = tmp_path / f"kernels_{tmp_path.name}.py"
    path.write_text(KERNELS)
    return str(path)


@pytest.fixture
def references(tmp_path: Path) -> str:
    path = tmp_path / f"references_{tmp_path.name}.py"
    path.write_text(REFERENCES)
    return str(path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def line_of(file: str, mark: str) -> str:
    lines = Path(file).read_text().splitlines()
    return f"{file}:{next(i for i, line in enumerate(lines, 1) if line.endswith('# ' + mark))}"


# --- check ------------------------------------------------------------------------------


def test_check_of_a_good_kernel_prints_its_size(cli: Run, kernels: str) -> None:
    code, out, _ = cli("check", f"{kernels}:scaled", "--arg", "x=bf16[64,32]")
    assert code == 0
    assert "trn2: good" in out
    assert "0.3, 0.4, 0.5, 0.6, 0.7" in out
    for label in ("instructions", "SBUF peak", "PSUM peak", "MACs", "HBM bytes read"):
        assert label in out


def test_check_of_a_broken_kernel_names_rule_place_limit_and_mend(cli: Run, kernels: str) -> None:
    code, out, _ = cli("check", f"{kernels}:crooked", "--arg", "x=f32[64,32]")
    assert code == 1
    assert line_of(kernels, "crooked") in out
    assert "[partition-start]  tensor_copy.dst" in out
    assert "found 1, 2, 3" in out  # the loop's turns together
    assert out.count("[partition-start]") == 1
    assert "mend:" in out


def test_check_json_is_one_document_and_holds_every_violation(cli: Run, kernels: str) -> None:
    code, out, err = cli("check", f"{kernels}:crooked", "--arg", "x=f32[64,32]", "--json")
    document = json.loads(out)
    assert code == 1
    assert err == ""
    assert document["ok"] is False
    (target,) = document["targets"]
    assert [v["rule"] for v in target["violations"]] == ["partition-start"] * 3
    assert {v["operand"] for v in target["violations"]} == {"dst"}
    assert target["summary"] is None


def test_what_a_kernel_prints_does_not_mix_with_json(cli: Run, kernels: str) -> None:
    code, out, err = cli("check", f"{kernels}:scaled", "--arg", "x=f32[64,32]", "--json")
    assert code == 0
    assert "tracing" in err
    summary = json.loads(out)["targets"][0]["summary"]
    assert summary["instructions"] == {"dma": 2, "vector": 1}
    assert summary["hbm_read_bytes"] == summary["hbm_written_bytes"] == 64 * 32 * 4
    assert summary["sbuf_peak_bytes_per_partition"] == 32 * 4
    assert summary["macs"] == 0


def test_check_for_several_targets(cli: Run, kernels: str) -> None:
    argv = ("check", f"{kernels}:scaled", "--arg", "x=f32[64,32]", "--json")
    document = json.loads(cli(*argv, "--target", "trn3", "--target", "trn2")[1])
    assert [target["target"] for target in document["targets"]] == ["trn3", "trn2"]


def test_the_environment_names_the_default_target(
    cli: Run, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("check", f"{kernels}:scaled", "--arg", "x=f32[64,32]", "--json")
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "gen4")
    assert json.loads(cli(*argv)[1])["targets"][0]["target"] == "trn3"
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    code, _, err = cli(*argv)
    assert code == 2
    assert "trn1" in err


def test_python_that_only_tracing_takes_narrows_the_versions(cli: Run, kernels: str) -> None:
    argv = ("check", f"{kernels}:modern", "--arg", "x=f32[64,32]")
    code, out, _ = cli(*argv)
    assert code == 0
    assert "accepted by nki 0.7" in out
    assert line_of(kernels, "modern") in out
    document = json.loads(cli(*argv, "--json")[1])
    assert document["targets"][0]["versions"] == ["0.7"]
    assert document["source"]["versions"] == ["0.7"]
    assert document["source"]["findings"][0]["rule"] == "subset-comprehension"


def test_demanded_versions_make_it_an_error(cli: Run, kernels: str) -> None:
    argv = ("check", f"{kernels}:modern", "--arg", "x=f32[64,32]", "--nki")
    assert cli(*argv, "0.7")[0] == 0
    code, out, _ = cli(*argv, "0.3", "0.7")
    assert code == 1
    assert out.count("[subset-comprehension]") == 1
    code, _, err = cli(*argv, "0.8")
    assert code == 2
    assert "0.8 is none of" in err


def test_python_and_api_that_no_version_has_together(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / f"no_version_{tmp_path.name}.py"
    path.write_text(
        KERNELS.replace(
            "sizes = [size for size in x.shape]",
            "sizes = [size for size in x.shape]\n    for i in nl.dynamic_range(2):\n"
            "        t = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)\n"
            "        nisa.memset(dst=t, value=0.0)",
        )
    )
    code, out, _ = cli("check", f"{path}:modern", "--arg", "x=f32[64,32]")
    assert code == 1
    assert "[version]" in out
    assert "dynamic_range" in out
    code, out, _ = cli("check", f"{path}:modern", "--arg", "x=f32[64,32]", "--nki", "0.7")
    assert code == 1
    assert "does not exist in nki 0.7" in out


def test_an_exception_of_the_kernel_is_shown_at_its_line(cli: Run, kernels: str) -> None:
    for command in ("check", "run", "show"):
        code, out, err = cli(command, f"{kernels}:failing", "--arg", "x=f32[64,32]")
        assert code == 1
        assert line_of(kernels, "failing") in out
        assert "TypeError" in out
        assert "Traceback" not in out + err


# --- arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "dtype", "shape", "fill", "numbers"),
    [
        ("bf16[256,2048]", "bfloat16", (256, 2048), "", ()),
        ("f32[4]:uniform(-1, 1)", "float32", (4,), "uniform", (-1, 1)),
        ("i32[ 2 , 3 ]:ints(0,100)", "int32", (2, 3), "ints", (0, 100)),
        ("nl.float8_e5m2[8]:zeros", "float8_e5m2", (8,), "zeros", ()),
        ("f8e4m3[1]:normal(0,0.02)", "float8_e4m3", (1,), "normal", (0, 0.02)),
        ("u8[1,2,3,4]:arange", "uint8", (1, 2, 3, 4), "arange", ()),
        ("float4_e2m1fn_x4[2]", "float4_e2m1fn_x4", (2,), "", ()),
    ],
)
def test_tensors(
    text: str, dtype: str, shape: tuple[int, ...], fill: str, numbers: tuple[float, ...]
) -> None:
    value = ArgumentParser({}).value("x", text)
    assert isinstance(value, TensorInput)
    assert (value.spec.dtype, value.spec.shape) == (dtype, shape)
    assert (value.fill, value.numbers) == (fill, numbers)


class Config:
    """A class of the kernel's file."""

    def __init__(self, rows: int) -> None:
        self.rows = rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-3", -3),
        ("None", None),
        ("True", True),
        ("'fast'", "fast"),
        ("(1, (2, 'a'))", (1, (2, "a"))),
        ("{'a': 1}", {"a": 1}),
        ("bf16", DTYPES["bfloat16"]),
        ("nl.int8", DTYPES["int8"]),
        ("LIMIT", 7),
        ("Config.__name__", BadInput),
        ("Config(rows=LIMIT)", 7),
    ],
)
def test_other_values(text: str, value: Any) -> None:
    parser = ArgumentParser({"LIMIT": 7, "Config": Config})
    if value is BadInput:
        with pytest.raises(BadInput):
            parser.value("x", text)
        return
    found = parser.value("x", text)
    assert getattr(found, "rows", found) == value
    assert type(getattr(found, "rows", found)) is type(value)


def test_tensors_in_tuples() -> None:
    value = ArgumentParser({}).value("x", "(f32[2], 3, bf16[4,5])")
    assert tensors_to(value, lambda t: t.spec.shape) == ((2,), 3, (4, 5))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "NAME=VALUE"),
        ("1x=3", "NAME=VALUE"),
        ("x=", "is no value"),
        ("x=bf16[", "is no value"),
        ("x=bf17[2]", "at `bf17`: bf17 is no dtype"),
        ("x=bf16[0]", "at `0`: a dimension is a positive integer"),
        ("x=bf16[2,n]", "at `n`: a dimension is a positive integer"),
        ("x=bf16[2]:gauss", "'gauss'"),
        ("x=bf16[2]:zeros(1)", "zeros takes no numbers"),
        ("x=bf16[2]:ints('a')", "no numbers"),
        ("x=fast", "in quotes: 'fast'"),
        ("x=nl.nothing", "there is no nothing"),
        ("x=[1, 2]", "Write a tuple"),
        ("x=1 + 1", "is no value"),
        ("x=print(1)", "is no known name"),
        ("x=@nowhere.npy", "there is no file nowhere.npy"),
    ],
)
def test_bad_syntax_says_what_and_where(cli: Run, kernels: str, text: str, says: str) -> None:
    code, out, err = cli("check", f"{kernels}:crooked", "--arg", text)
    assert code == 2
    assert out == ""
    assert says in " ".join(err.split())


def test_arguments_that_do_not_fit_the_signature(cli: Run, kernels: str) -> None:
    code, _, err = cli("check", f"{kernels}:scaled", "--arg", "factor=1.0")
    assert code == 2
    assert "argument x of scaled(x, factor=2.0" in err
    code, _, err = cli("check", f"{kernels}:crooked", "--arg", "x=f32[4,4]", "--arg", "z=1")
    assert code == 2
    assert "has no argument z" in err
    code, _, err = cli("check", f"{kernels}:crooked", "--arg", "x=f32[4,4]", "--arg", "x=f32[4,4]")
    assert code == 2
    assert "given twice" in err


def test_parameters_and_names_of_the_file_reach_the_kernel(cli: Run, kernels: str) -> None:
    argv = ("run", f"{kernels}:scaled", "--arg", "x=f32[4,4]:ones", "--arg", "mode=Mode.twice")
    code, out, err = cli(*argv, "--arg", "factor=CONSTANT", "--arg", "op=nl.add", "--json")
    assert code == 0
    assert "tracing True" in err
    assert json.loads(out)["outputs"][0]["min"] == 4.0


def test_arguments_from_a_yaml_file(cli: Run, kernels: str, tmp_path: Path) -> None:
    path = tmp_path / "arguments.yaml"
    path.write_text("x: bf16[4,4]:ones\nfactor: 1e-1\n")
    argv = ("run", f"{kernels}:scaled", "--kernel-arg-file", str(path), "--json")
    document = json.loads(cli(*argv)[1])
    assert document["outputs"][0]["max"] == pytest.approx(0.1, rel=1e-2)
    assert document["outputs"][0]["dtype"] == "bfloat16"
    overridden = json.loads(cli(*argv, "--arg", "factor=5.0")[1])
    assert overridden["outputs"][0]["max"] == 5.0
    for text in ("- 1", "x: [", "x: 2020-01-01"):
        path.write_text(text)
        assert cli(*argv)[0] == 2


# --- files ------------------------------------------------------------------------------


def test_a_missing_kernel_lists_those_there_are(cli: Run, kernels: str) -> None:
    code, _, err = cli("check", f"{kernels}:scaledd")
    assert code == 2
    for name in ("scaled", "crooked", "updating"):
        assert f"{kernels}:{name}" in err
    assert "undecorated" not in err
    for name in ("CONSTANT", "nl", "Mode"):
        code, _, err = cli("check", f"{kernels}:{name}")
        assert code == 2
        assert "not a kernel" in err
    assert cli("check", kernels)[0] == 2  # which of them?


def test_a_files_only_kernel_needs_no_name(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / f"single_{tmp_path.name}.py"
    path.write_text(KERNELS[: KERNELS.index("@nki.jit\ndef crooked")])
    assert cli("check", str(path), "--arg", "x=f32[4,4]")[0] == 0


@pytest.mark.parametrize("name", ["nowhere.py", "nowhere/k.py", "no.such.module", "nosuchmodule"])
def test_a_missing_file(cli: Run, name: str) -> None:
    code, out, err = cli("check", f"{name}:kernel", "--json")
    assert code == 2
    assert name in err
    assert json.loads(out)["error"]["message"] in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("x = 1\nimport nothing_like_it\n", "ModuleNotFoundError", 2),
        ("x = 1\ny = (\n", "SyntaxError", 2),
        ("\n\n1 / 0\n", "ZeroDivisionError", 3),
        ("import sys\nsys.exit(3)\n", "SystemExit", 2),
        ("from . import k\n", "dotted module", 1),
    ],
)
def test_a_file_that_cannot_be_imported(
    cli: Run, tmp_path: Path, text: str, says: str, line: int
) -> None:
    path = tmp_path / f"broken_{tmp_path.name}.py"
    path.write_text(text)
    code, out, err = cli("check", f"{path}:kernel")
    assert code == 2
    assert out == ""
    assert f"{path}:{line}: " in err
    assert says in err
    assert "Traceback" not in err


def test_a_file_finds_its_neighbours_from_anywhere(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / f"neighbour_{tmp_path.name}.py").write_text(KERNELS)
    (folder / "profile.py").write_text(f"from neighbour_{tmp_path.name} import scaled\n")
    monkeypatch.chdir("/")
    code, out, _ = cli("check", f"{folder}/profile.py:scaled", "--arg", "x=f32[4,4]")
    assert code == 0
    assert f"neighbour_{tmp_path.name}.py" in out


def test_relative_imports_inside_a_package(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"package_{tmp_path.name}"
    (package / "inner").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").touch()
    (package / "base.py").write_text(KERNELS)
    (package / "inner" / "k.py").write_text("from ..base import scaled\n")
    assert cli("check", f"{package}/inner/k.py:scaled", "--arg", "x=f32[4,4]")[0] == 0
    monkeypatch.chdir(tmp_path)
    assert cli("check", f"{package.name}.inner.k:scaled", "--arg", "x=f32[4,4]")[0] == 0


def test_our_own_kernels_are_good(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    argv = ("--arg", "x=bf16[130,256]", "--nki", "0.3", "0.7", "--target", "trn2")
    assert cli("check", "kernels/silu.py:nki_silu_kernel", *argv)[0] == 0
    assert cli("check", "kernels.silu:nki_silu_kernel", *argv)[0] == 0


# --- run --------------------------------------------------------------------------------


def test_run_describes_each_output(cli: Run, kernels: str) -> None:
    code, out, _ = cli("run", f"{kernels}:undecorated", "--arg", "x=bf16[8,4]:arange")
    assert code == 0
    assert "output 0" in out
    assert "output 1" in out
    assert "bfloat16[8,4]" in out
    assert "measured on this CPU's simulator, not Trainium" in out


def test_run_counts_nan_and_inf(cli: Run, kernels: str) -> None:
    argv = ("run", f"{kernels}:empty_nan", "--json", "--arg")
    (facts,) = json.loads(cli(*argv, "x=f32[8,4]:zeros")[1])["outputs"]
    assert (facts["nan"], facts["inf"], facts["min"], facts["mean"]) == (32, 0, None, None)
    (facts,) = json.loads(cli(*argv, "x=f32[8,4]:ones")[1])["outputs"]
    assert (facts["nan"], facts["inf"]) == (0, 32)


def test_data_are_seeded_and_as_asked_for(cli: Run, kernels: str) -> None:
    def facts(tensor: str, *more: str) -> dict[str, Any]:
        argv = ("run", f"{kernels}:undecorated", "--arg", f"x={tensor}", "--json", *more)
        code, out, _ = cli(*argv)
        assert code == 0
        found: dict[str, Any] = json.loads(out)["outputs"][0]
        return found

    assert facts("f32[64,64]") == facts("f32[64,64]")
    assert facts("f32[64,64]") != facts("f32[64,64]", "--seed", "1")
    assert abs(facts("f32[64,64]")["mean"]) < 0.1
    assert facts("f32[64,64]:normal(5, 0.1)")["min"] > 4
    uniform = facts("f32[64,64]:uniform(2, 3)")
    assert 2 <= uniform["min"] < 2.1 < 2.9 < uniform["max"] <= 3
    assert (facts("i32[64,64]")["min"], facts("i32[64,64]")["max"]) == (0, 7)
    assert facts("u8[64,64]:ints(90, 100)")["max"] == 99
    assert (facts("bool[64,64]")["min"], facts("bool[64,64]")["max"]) == (0, 1)
    assert facts("i8[2,4]:arange")["max"] == 7


def test_packed_dtypes_have_no_data(cli: Run, kernels: str) -> None:
    code, _, err = cli("run", f"{kernels}:undecorated", "--arg", "x=float8_e4m3fn_x4[4,4]")
    assert code == 2
    assert "no data can be made" in err


def test_run_on_files_and_save(cli: Run, kernels: str, tmp_path: Path) -> None:
    x = np.arange(32, dtype=np.float64).reshape(8, 4)
    np.save(tmp_path / "x.npy", x)
    argv = ("run", f"{kernels}:scaled", "--arg")
    assert cli(*argv, f"x=@{tmp_path}/x.npy")[0] == 2  # fp64
    file = f"x=@{tmp_path}/x.npy:bf16"
    assert cli(*argv, file, "--out", f"{tmp_path}/made/out.npz")[0] == 0
    with np.load(tmp_path / "made" / "out.npz") as saved:
        assert saved["output_0"].dtype == np.float32
        np.testing.assert_array_equal(saved["output_0"], 2 * x)
    assert cli(*argv, file, "--out", f"{tmp_path}/folder")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "folder" / "output_0.npy"), 2 * x)
    np.save(tmp_path / "b.npy", x.astype(ml_dtypes.bfloat16))  # NumPy calls it V2
    assert cli(*argv, f"x=@{tmp_path}/b.npy:bf16", "--out", f"{tmp_path}/folder")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "folder" / "output_0.npy"), 2 * x)
    (tmp_path / "text.npy").write_text("no array")
    assert cli(*argv, f"x=@{tmp_path}/text.npy")[0] == 2


def test_updated_arguments_are_results(cli: Run, kernels: str) -> None:
    argv = ("--arg", "x=f32[4,4]:ones", "--arg", "y=f32[4,4]:zeros", "--json")
    document = json.loads(cli("run", f"{kernels}:updating", *argv)[1])
    assert [(o["name"], o["min"]) for o in document["outputs"]] == [("updated y", 1.0)]


def test_tensors_in_a_tuple(cli: Run, kernels: str) -> None:
    pair = "pair=(f32[4,4], f32[4,4])"
    assert cli("check", f"{kernels}:paired", "--arg", pair)[0] == 0
    code, out, _ = cli("run", f"{kernels}:paired", "--arg", pair, "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0]["shape"] == [4, 4]


def test_eager_gives_the_same(cli: Run, kernels: str) -> None:
    argv = ("run", f"{kernels}:scaled", "--arg", "x=bf16[8,4]", "--json")
    eager, replayed = json.loads(cli(*argv, "--eager")[1]), json.loads(cli(*argv)[1])
    assert eager["outputs"] == replayed["outputs"]
    assert cli("run", f"{kernels}:crooked", "--arg", "x=f32[8,4]", "--eager")[0] == 1


def test_run_on_two_cores_and_another_target(cli: Run, kernels: str) -> None:
    argv = ("run", f"{kernels}:undecorated", "--arg", "x=f32[8,4]", "--target", "trn3", "--json")
    before = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
    document = json.loads(cli(*argv)[1])
    assert (document["target"], document["lnc"]) == ("trn3", 1)
    assert os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") == before
    assert cli(*argv, "--lnc", "3")[0] == 2
    assert json.loads(cli(*argv, "--lnc", "2")[1])["lnc"] == 2


def test_run_remarks_on_what_check_refuses_and_a_call_does_not(cli: Run, kernels: str) -> None:
    argv = (f"{kernels}:private", "--arg", "x=f32[8,4]")
    assert cli("check", *argv)[0] == 1
    code, out, _ = cli("run", *argv)
    assert code == 0
    assert "[output-buffer]" in out
    assert [w["rule"] for w in json.loads(cli("run", *argv, "--json")[1])["warnings"]] == [
        "output-buffer"
    ]


# --- references -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "code"),
    [("scaled", 0), ("by_position", 0), ("wrong", 1), ("shape", 1), ("copied", 1)],
)
def test_comparison(cli: Run, kernels: str, references: str, function: str, code: int) -> None:
    argv = ("run", f"{kernels}:scaled", "--arg", "x=bf16[64,32]", "--reference")
    found, out, _ = cli(*argv, f"{references}:{function}")
    assert found == code
    assert ("fail" if code else "pass") in out
    document = json.loads(cli(*argv, f"{references}:{function}", "--json")[1])
    assert document["ok"] is (code == 0)


def test_tolerances(cli: Run, kernels: str, references: str) -> None:
    argv = ("run", f"{kernels}:scaled", "--arg", "x=bf16[64,32]:ones", "--reference")
    assert cli(*argv, f"{references}:wrong", "--atol", "1.01")[0] == 0
    assert cli(*argv, f"{references}:wrong", "--rtol", "0.3")[0] == 1
    assert cli(*argv, f"{references}:wrong", "--rtol", "0.34")[0] == 0
    assert cli(*argv, f"{references}:scaled", "--rtol", "0")[0] == 0


def test_torch_references_get_torch_tensors(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = cli(
        "run", "kernels/silu.py:nki_silu_kernel", "--arg", "x=bf16[130,64]",
        "--reference", "kernels/reference.py:silu",
    )  # fmt: skip
    assert code == 0
    assert "pass" in out


def test_bad_references(cli: Run, kernels: str, references: str) -> None:
    argv = ("run", f"{kernels}:undecorated", "--arg", "x=f32[4,4]", "--reference")
    assert cli(*argv, f"{references}:copied")[0] == 0
    code, _, err = cli(*argv, f"{references}:broken")
    assert code == 2
    assert line_of(references, "broken") in err
    code, _, err = cli(*argv, f"{references}:many")
    assert code == 2
    assert "does not fit" in err
    code, _, err = cli(*argv, f"{references}:nothing")
    assert code == 2
    assert f"{references}:scaled" in err


def test_compare_in_numbers() -> None:
    y = np.array([1.0, -4.0, 0.0])
    found = compare(y + np.array([0.0, 0.4, 0.3]), y, rtol=0.1, atol=0.0)
    assert found.ok
    assert found.max_abs_error == pytest.approx(0.4)
    assert found.max_relative_error == pytest.approx(0.1)
    assert found.relative_l2 == pytest.approx(0.5 / np.sqrt(17))
    assert not compare(y + 0.5, y, rtol=0.1, atol=0.0).ok
    assert compare(y + 0.5, y, rtol=0.1, atol=0.1).ok
    nan = np.array([np.nan, 1.0])
    assert compare(nan, nan, 0, 0).ok
    assert not compare(nan, np.array([1.0, 1.0]), 1, 1).ok
    assert not compare(np.array([1.0, 1.0]), nan, 1, 1).ok
    assert not compare(np.array([np.inf]), np.array([-np.inf]), 1, 1).ok
    assert not compare(np.ones(2), np.ones((2, 1)), 1, 1).ok
    assert compare(np.zeros(2), np.zeros(2), 0, 0).max_relative_error == 0


# --- show -------------------------------------------------------------------------------


def test_show_prints_the_program_with_its_source(cli: Run, kernels: str) -> None:
    argv = ("show", f"{kernels}:scaled", "--arg", "x=f32[4,4]")
    code, out, _ = cli(*argv)
    assert code == 0
    assert "program scaled" in out
    assert "%0 = argument x: float32[4,4]" in out
    assert "vector.tensor_scalar" in out
    assert "nisa.tensor_scalar" not in out
    assert "nisa.tensor_scalar(dst=tile, data=tile" in cli(*argv, "--source")[1]


def test_show_chooses_instructions(cli: Run, kernels: str) -> None:
    argv = ("show", f"{kernels}:scaled", "--arg", "x=f32[4,4]")
    out = cli(*argv, "--engine", "vector")[1]
    assert "vector.tensor_scalar" in out
    assert "dma.dma_copy" not in out
    out = cli(*argv, "--limit", "1")[1]
    assert "dma.dma_copy" in out
    assert "vector." not in out
    assert "1 of 3 instructions" in out


def test_show_json(cli: Run, kernels: str) -> None:
    argv = ("show", f"{kernels}:scaled", "--arg", "x=f32[4,4]", "--json", "--source")
    document = json.loads(cli(*argv)[1])
    assert [i["engine"] for i in document["instructions"]] == ["dma", "vector", "dma"]
    assert document["instructions"][1]["source"].startswith("nisa.tensor_scalar")
    assert document["instruction_count"] == 3
    assert document["storages"][0]["name"] == "x"
    document = json.loads(cli("show", f"{kernels}:crooked", "--arg", "x=f32[4,4]", "--json")[1])
    assert document["ok"] is False
    assert document["violations"]


# --- the command itself -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["check", "run", "show"])
def test_help_has_examples_and_exit_codes(cli: Run, command: str) -> None:
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert "examples:" in out
    assert "exit codes:" in out
    assert "--arg x=bf16[256,2048]" in out


def test_every_command_is_listed(cli: Run) -> None:
    out = cli("--help")[1]
    assert all(name in out for name in COMMANDS)
    assert CHECKED == ("trn2", "trn3")


@pytest.mark.parametrize("argv", [[], ["nothing"], ["check"], ["check", "k", "--target", "trn1"]])
def test_a_wrong_command_is_bad_input(cli: Run, argv: list[str]) -> None:
    code, out, err = cli(*argv)
    assert code == 2
    assert out == ""
    assert "usage:" in err


def test_no_colours_when_not_on_a_terminal(cli: Run, kernels: str) -> None:
    _, out, err = cli("check", f"{kernels}:crooked", "--arg", "x=f32[4,4]")
    assert "\x1b" not in out + err


def test_colours_on_a_terminal_unless_no_color(
    cli: Run, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("check", f"{kernels}:crooked", "--arg", "x=f32[4,4]")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\x1b[36m" in cli(*argv)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in cli(*argv)[1]
    assert "\x1b" not in cli(*argv, "--json")[1]


def test_as_a_program(kernels: str) -> None:
    command = [sys.executable, "-m", "simulator", "check", f"{kernels}:crooked", "--json"]
    done = subprocess.run(
        [*command, "--arg", "x=f32[4,4]"],
        cwd="/", capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["targets"][0]["violations"]
    assert done.stderr == ""


FIRES = {"python-error"}
