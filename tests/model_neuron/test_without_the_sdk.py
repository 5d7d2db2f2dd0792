"""What of the NxD Inference adapter can be tested where NxD Inference is not installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import model.neuron
from kernels import OPS
from model.configuration import Config, ConfigurationError, parse_config, read_config
from model.neuron import neuron_config_keys, weights
from model.neuron.availability import NeuronError
from model.neuron.hooks import HOOKS
from model.neuron.kernels_in_graph import shares_work
from model.neuron.options import OURS, PINNED, neuron_options
from model.neuron.work_directory import MARK, WorkDirectory

ADAPTER = Path(model.neuron.__file__).parent


def config(**neuron: object) -> Config:
    return read_config(Path("config/config.yaml")).model_copy(
        update={"neuron": Config.model_fields["neuron"].annotation(**neuron)}  # type: ignore[misc]
    )


# --- hooks --------------------------------------------------------------------------------------


def test_every_op_has_a_hook_and_every_hook_an_op() -> None:
    assert set(OPS) <= set(HOOKS)


def called_ops() -> dict[str, set[str]]:
    """Op -> methods of the adapter, `module.Class.method`, that call its kernel."""
    found: dict[str, set[str]] = {}
    for file in sorted(ADAPTER.glob("*.py")):
        for owner in ast.parse(file.read_text()).body:
            for method in getattr(owner, "body", []):
                for node in ast.walk(method):
                    if not isinstance(node, ast.Call) or not node.args:
                        continue
                    name, first = ast.unparse(node.func), node.args[0]
                    if name in ("self.kernels", "kernels") and isinstance(first, ast.Constant):
                        place = f"{file.stem}.{owner.name}.{method.name}"
                        found.setdefault(str(first.value), set()).add(place)
    return found


def test_hooks_are_where_the_table_says() -> None:
    calls = called_ops()
    assert set(calls) == set(HOOKS)
    for op, hook in HOOKS.items():
        assert hook.method in calls[op], op


def test_only_one_module_imports_nxd_and_it_is_imported_lazily() -> None:
    importing = {
        file.stem
        for file in ADAPTER.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuronx_"))
        or (isinstance(node, ast.Import) and any(n.name.startswith("neuronx_") for n in node.names))
    }
    assert importing == {"nxd"}
    lazily = "import model.neuron.runtime, model.neuron.compiled, model.neuron.application, sys\n"
    check = "assert 'model.neuron.nxd' not in sys.modules"
    subprocess.run([sys.executable, "-c", lazily + check], check=True)


def test_without_nxd_one_sentence_says_so() -> None:
    program = (
        "from model.configuration import KernelConfiguration as K\n"
        "from model.neuron.application import application_class\n"
        "application_class(K(description='none'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        pytest.skip("NxD Inference is installed")
    last = result.stderr.strip().splitlines()[-1]
    assert "device: neuron needs Neuron SDK 2.29" in last
    assert "neuronx_distributed_inference" in last
    assert last.endswith("or set device: simulator")


def test_kernels_that_do_not_share_work_run_on_one_core() -> None:
    from model.ops import load_kernel

    assert shares_work(load_kernel("nki_flash_attention_kernel"))
    assert shares_work(load_kernel("nki_output_projection_kernel"))  # in a helper's helper
    own = Path(__file__).with_name("one_core_kernel.py")
    assert not shares_work(load_kernel(f"{own}:copy_kernel"))


# --- weights ------------------------------------------------------------------------------------


def hugging_face_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
    }
    for layer in range(2):
        base = f"model.layers.{layer}"
        attention = {"q_proj": (16, 8), "k_proj": (4, 8), "v_proj": (4, 8), "o_proj": (8, 16)}
        shapes |= {f"{base}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{base}.self_attn.{x}_norm.weight": (4,) for x in "qk"}
        shapes |= {f"{base}.{x}_layernorm.weight": (8,) for x in ("input", "post_attention")}
        shapes[f"{base}.mlp.gate.weight"] = (3, 8)
        for expert in range(3):
            at = f"{base}.mlp.experts.{expert}"
            shapes |= {f"{at}.gate_proj.weight": (5, 8), f"{at}.up_proj.weight": (5, 8)}
            shapes[f"{at}.down_proj.weight"] = (8, 5)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("fused", [False, True])
def test_weights_go_to_nxd_and_back(fused: bool) -> None:
    state = hugging_face_state()
    neuron = weights.to_neuron(state, fused_qkv=fused)
    experts = neuron["layers.1.mlp.expert_mlps.mlp_op.gate_up_proj.weight"]
    assert experts.shape == (3, 8, 10)
    assert experts[2][:, 5:].equal(state["model.layers.1.mlp.experts.2.up_proj.weight"].T)
    assert neuron["layers.0.self_attn.q_layernorm.weight"].equal(
        state["model.layers.0.self_attn.q_norm.weight"]
    )
    assert ("layers.0.self_attn.Wqkv.weight" in neuron) == fused
    made = {"rank_util.rank": torch.zeros(1), "layers.0.self_attn.rank_util.rank": torch.zeros(1)}
    back = weights.to_hugging_face(neuron | made, kv_width=4)
    assert back.keys() == state.keys()
    assert all(back[name].equal(state[name]) for name in state)


def test_an_expert_that_is_missing_is_named() -> None:
    state = hugging_face_state()
    del state["model.layers.1.mlp.experts.0.up_proj.weight"]
    with pytest.raises(NeuronError, match=r"layers\.1\.mlp\.experts\.0\.up_proj\.weight is miss"):
        weights.to_neuron(state)
    fused = weights.to_neuron(hugging_face_state(), fused_qkv=True)
    with pytest.raises(NeuronError, match="kv_width"):
        weights.to_hugging_face(fused)


# --- options ------------------------------------------------------------------------------------


def test_options_are_pinned_and_all_known_to_nxd() -> None:
    options = neuron_options(config(tp_degree=2), "bfloat16", 3, on_cpu=False)
    assert options.items() >= PINNED.items()
    assert options.keys() <= neuron_config_keys.KEYS
    assert OURS <= neuron_config_keys.KEYS
    assert (options["tp_degree"], options["batch_size"]) == (2, 3)
    assert options["context_encoding_buckets"] == [32, 64, 128]
    assert options["token_generation_buckets"] == [160]
    assert (options["seq_len"], options["max_context_length"]) == (160, 128)


def test_in_cpu_mode_both_graphs_have_one_length() -> None:
    options = neuron_options(config(), "float32", 1, on_cpu=True)
    assert options["seq_len"] == options["max_context_length"] == 160
    assert options["enable_bucketing"] is False


def test_unknown_options_are_refused_with_the_nearest() -> None:
    wrong = config(options={"async_mod": True, "zzz": 1})
    with pytest.raises(NeuronError, match="did you mean 'async_mode'") as error:
        neuron_options(wrong, "bfloat16", 1, on_cpu=False)
    assert "neuron.options: NxD Inference has no option 'zzz'" in str(error.value)
    assert neuron_options(config(options={"async_mode": True}), "bfloat16", 1, False)["async_mode"]


@pytest.mark.parametrize("key", ["tp_degree", "attn_kernel_enabled"])
def test_options_that_are_decided_elsewhere_are_refused(key: str) -> None:
    with pytest.raises(NeuronError, match=rf"neuron\.options: {key} cannot be set there"):
        neuron_options(config(options={key: 1}), "bfloat16", 1, on_cpu=False)


@pytest.mark.parametrize("buckets", [[640], [160, 80], [80, 80, 160]])
def test_generation_buckets_ascend_to_the_caches_length(buckets: list[int]) -> None:
    wrong = config(token_generation_buckets=buckets)
    with pytest.raises(NeuronError, match=r"must ascend to buckets\.max_length \(160\)"):
        neuron_options(wrong, "bfloat16", 1, on_cpu=False)
    right = neuron_options(config(token_generation_buckets=[80, 160]), "bfloat16", 1, False)
    assert right["token_generation_buckets"] == [80, 160]


def test_the_environments_cores_must_be_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    from model.neuron.application import CORES_VARIABLE, check_cores

    monkeypatch.setenv(CORES_VARIABLE, "2")
    check_cores(2)
    with pytest.raises(NeuronError, match="NEURON_LOGICAL_NC_CONFIG is 2, neuron"):
        check_cores(1)
    monkeypatch.delenv(CORES_VARIABLE)
    check_cores(1)


def test_the_trn2_configuration_is_valid() -> None:
    import yaml

    base = yaml.safe_load(Path("config/config.yaml").read_text())
    given = yaml.safe_load(Path("config/trn2.yaml").read_text())
    merged = (
        base
        | given
        | {key: base[key] | given[key] for key in given if isinstance(base.get(key), dict)}
    )
    trn2 = parse_config(merged)
    assert (trn2.device, trn2.model) == ("neuron", "qwen3-30b-a3b")
    layout = trn2.layout()
    assert (layout.tp_degree, layout.lnc) == (trn2.neuron.tp_degree, trn2.neuron.logical_nc_config)
    assert layout.context == trn2.buckets.max_length
    neuron_options(trn2, trn2.dtype, 1, on_cpu=False)


def test_the_section_neuron_of_the_configuration_is_validated() -> None:
    value = read_config(Path("config/config.yaml")).model_dump()
    value["neuron"]["tp_degre"] = 4
    with pytest.raises(ConfigurationError, match=r"neuron\.tp_degre: unknown key \(did you mean"):
        parse_config(value)


# --- work directory -----------------------------------------------------------------------------


def test_a_folder_with_other_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(NeuronError, match="holds data that this program did not write"):
        WorkDirectory(tmp_path).prepare()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(NeuronError, match="is a file"):
        WorkDirectory(tmp_path / "thesis.tex").prepare()


def test_each_configuration_has_its_folders_and_a_second_compilation_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_COMPILE_WORK_DIR", "unset")
    monkeypatch.setenv("NEURON_COMPILE_CACHE_URL", "unset")
    seen = []
    for name in ("rmsnorm", "all"):
        work = WorkDirectory(tmp_path / name)
        work.prepare()
        names = ("BASE_COMPILE_WORK_DIR", "NEURON_COMPILE_CACHE_URL")
        seen.append(tuple(Path(os.environ[variable]) for variable in names))
        assert all(path.is_dir() and tmp_path / name in path.parents for path in seen[-1])
    assert len({path for pair in seen for path in pair}) == 4
    failed = work.cache / "MODULE_1" / "model.error"
    failed.parent.mkdir()
    failed.write_text("cached failed neff")
    work.prepare()
    assert not failed.exists()
    assert (work.root / MARK).is_file()


def test_the_compilers_last_errors_are_shown(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "w")
    log = work.trace / "token_generation_model" / "_tp0_bk0" / "log-neuron-cc.txt"
    log.parent.mkdir(parents=True)
    log.write_text("INFO fine\nERROR [NCC_IXCG856] instruction is not supported\nINFO bye\n")
    assert work.compiler_errors() == f"{log}: ERROR [NCC_IXCG856] instruction is not supported"


# --- stages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["compile", "generate"])
def test_a_stage_fails_at_once_and_leaves_nothing(stage: str, tmp_path: Path) -> None:
    """Whatever else runs on this machine, no simulator's clock passes for a device's."""
    calls = {
        "compile": "from model.compile import compile_configuration as run\n"
        "run(config, 'rmsnorm', Path('none'), output)",
        "generate": "from model.runtime import load\n"
        "from model.configuration import KernelConfiguration as K\n"
        "load(Path('none'), K(description='none'), dtype='float32', config=config)",
    }
    program = (
        "from pathlib import Path\n"
        "from model.configuration import read_config\n"
        "config = read_config(Path('config/config.yaml'))\n"
        "config = config.model_copy(update={'device': 'neuron'})\n"
        f"output = Path({str(tmp_path / 'manifest.json')!r})\n{calls[stage]}"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NXD_CPU_MODE": "1"},
    )
    assert result.returncode == 1
    assert "NeuronError: device: neuron" in result.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())
