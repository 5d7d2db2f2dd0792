"""The HTML report, the terminal's table, and the command line that onerror calls."""

from __future__ import annotations

import html
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import samples
import yaml
from rich.console import Console

from evaluation.estimates import Estimate, PromptScore, Score
from evaluation.records import StageError, Summary
from evaluation.report import (
    PLOT_FILES,
    gate_value,
    main,
    number,
    percent,
    print_verdicts,
    render,
    report,
)
from evaluation.results import error_folder, read_all, result_files
from evaluation.summary import summarise
from model.configuration import Config


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return three_configurations(tmp_path)


def three_configurations(root: Path) -> Path:
    """Baseline and norms pass, rmsnorm's kernel is refused."""
    results = samples.project(root)
    samples.write(results, "baseline")
    samples.write(results, "norms", slower=2.0)
    samples.write_kernel_error(results, "rmsnorm")
    return results


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of such results, built once."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return build(three_configurations(root))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws no plots, where a test looks at words only: drawing is most of a report's time."""
    monkeypatch.setattr("evaluation.report.picture", lambda *_: None)


def build(results: Path, config: Config | None = None, *, partial: bool = False) -> str:
    page = results / "report.html"
    report(config or samples.config(), results, results / "summary.json", page, partial=partial)
    return page.read_text(encoding="utf-8")


def without_plots(results: Path) -> str:
    """The report's page, quickly."""
    config = samples.config()
    configurations = read_all(results, config.model, config.configurations)
    summary = summarise(config, results)
    return render(config, results, summary, configurations, dict.fromkeys(PLOT_FILES))


def text_of(page: str) -> str:
    """The page's text, without markup and repeated white space."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rows(page: str, name: str) -> list[str]:
    """The table rows about a configuration, as text."""
    found = re.findall(rf"<tr[^>]*><td>{name}\b.*?</tr>", page, flags=re.DOTALL)
    return [text_of(row) for row in found]


def test_the_verdicts_come_first(page: str) -> None:
    text = text_of(page)
    assert "2 of 3 kernel configurations pass" in text
    assert text.index("baseline ✓ pass") < text.index("rmsnorm ✗ fail") < text.index("Latency, m")
    assert text.index("Best that passes: norms") < text.index("baseline ✓ pass")


def test_numbers_stand_beside_the_baselines_ratio(page: str) -> None:
    _, intervals, _, speed, predicted, quality, tasks, nki, *_ = rows(page, "norms")
    assert intervals == ("norms ✓ pass 110 109 to 111 22.0 21.8 to 22.2 5.50 5.45 to 5.55")
    assert speed == (
        "norms ✓ pass 62.0 2.00× baseline 10.3 2.00× baseline "
        "93.0 2.00× baseline 43.2 0.50× baseline"
    )
    assert predicted == (
        "norms ✓ pass 8.00 0.80× baseline 4.00 0.80× baseline "
        "5.60 0.80× baseline 2.80 0.80× baseline"
    )
    assert quality == "norms ✓ pass 3.1e-6 ✓ 1.01 1.2e-5 99.2 %"
    assert tasks == "norms ✓ pass 0.840 4.20"
    assert nki == "norms ✓ pass 2.0 % 4 48 1.50"


@pytest.mark.usefixtures("undrawn")
def test_every_pair_has_a_verdict_with_its_interval(results: Path) -> None:
    path = result_files(results, "tiny", "norms")["latency"]
    record = samples.latency("norms", 0.9)
    end, ttft, tpot = record.comparisons
    unsure = Estimate(value=1.02, low=None, high=None)
    pairs = [
        end,
        ttft.model_copy(update={"verdict": "slower", "ratio": unsure.model_copy(
            update={"low": 1.01, "high": 1.03})}),
        tpot.model_copy(update={"verdict": "not enough data", "ratio": unsure}),
    ]  # fmt: skip
    record.model_copy(update={"comparisons": pairs}).write(path)
    page = without_plots(results)
    assert rows(page, "norms")[0] == (
        "norms faster 0.900× (0.891 to 0.909) slower 1.020× (1.01 to 1.03) "
        "not enough data 1.020× (no interval)"
    )
    assert "✓ pass faster end to end, 0.900× (0.891 to 0.909), measured on sim" in text_of(page)


def test_withheld_timings_say_why(results: Path) -> None:
    path = result_files(results, "tiny", "norms")["latency"]
    reason = "output is all zeros: yes, must be no"
    samples.latency("norms", 0.5).model_copy(
        update={"withheld": [reason], "comparisons": [], "measured": None, "conditions": None}
    ).write(path)
    page = without_plots(results)
    assert rows(page, "norms")[0] == f"norms withheld: {reason}"
    assert "0.500×" not in page
    screen = io.StringIO()
    print_verdicts(summarise(samples.config(), results), Console(file=screen, width=240))
    assert re.search(r"norms\s+✗ fail\s+–\s+withheld", screen.getvalue())


@pytest.mark.usefixtures("undrawn")
def test_a_configuration_that_fails_is_not_compared(results: Path) -> None:
    samples.accuracy("norms", ["rmsnorm"], kl=0.2, passed=False).write(
        result_files(results, "tiny", "norms")["accuracy"]
    )
    assert rows(without_plots(results), "norms")[0] == "norms not compared: it fails"


def test_nothing_is_compared_with_a_baseline_that_fails(results: Path) -> None:
    samples.accuracy("baseline", [], kl=0.2, passed=False).write(
        result_files(results, "tiny", "baseline")["accuracy"]
    )
    page = without_plots(results)
    assert rows(page, "norms")[0] == "norms not compared: baseline fails"
    assert "1.100×" not in page


def test_every_pair_of_configurations_is_in_a_matrix(results: Path) -> None:
    error_folder(results, "tiny", "rmsnorm").joinpath("compile.json").unlink()
    samples.write(results, "rmsnorm")
    page = without_plots(results)
    # 1.1 and 1.05 times the baseline, each ± 1 %: 1.1 / 1.05 ± 1.41 %.
    end_to_end, ttft, tpot = rows(page, "norms is")
    assert end_to_end == "norms is slower 1.100× (1.09 to 1.11) slower 1.048× (1.03 to 1.06)"
    assert ttft == tpot == end_to_end
    assert rows(page, "rmsnorm is")[0] == (
        "rmsnorm is slower 1.050× (1.04 to 1.06) faster 0.955× (0.941 to 0.968)"
    )
    text = text_of(page)
    assert "all other pairs are indirect, the ratio of what each took beside baseline" in text


def test_a_configuration_that_fails_is_in_no_pair(page: str) -> None:
    assert rows(page, "rmsnorm is") == []
    assert "Every pair" not in page, "only the baseline's is left, which has its own table"


def test_the_conditions_of_every_timing_are_stated(page: str) -> None:
    [row] = [row for row in rows(page, "norms") if "settled" in row]
    assert row == (
        "norms simulator on CPU: a CPU, 1 thread 20 2 rounds, settled "
        "error of the mean, after 41.0 s of 60.0 s 0.5 %, aim 1.0 % 0.4 to 1.1 "
        "1 of norms and 1 of baseline 7"
    )


def test_gates_before_timing_stand_beside_those_of_accuracy(page: str) -> None:
    text = text_of(page)
    assert "norms: 1 of 1 passed before timing, 1 of 1 of accuracy" in text
    assert rows(page, "output is not all zeros")[0] == (
        "output is not all zeros timing yes yes ✓ pass"
    )
    assert "rmsnorm: no gate was checked" in text


def test_percentiles_have_intervals(page: str) -> None:
    text = text_of(page)
    # The sample: 110 ms, of which p50, p90, p95, p99 are 0.98, 1.05, 1.08, 1.2 times, each ± 1 %.
    assert (
        "End to end 40 110 109 to 111 108 107 to 109 116 114 to 117 119 118 to 120 132 131 to 133"
    ) in text


def test_the_score_has_its_ingredients(results: Path) -> None:
    config = samples.config()
    prompt = PromptScore(
        prompt="p0", context_tokens=18, new_tokens=622, context_bucket=64, base_latency_ms=4000.0,
        latency_ms=2000.0, base_tokens_per_s=160.0, tokens_per_s=320.0, nki_flops_ratio=0.5,
        nki_flops_ratio_weighted=0.25, score=6.0, score_corrected=5.0,
    )  # fmt: skip
    score = Score(
        source="predicted", device="trn2", base="baseline, predicted for trn2",
        comparable=False, accuracy=1, prompts=(prompt,), total=6.0, total_corrected=5.0,
        notes=("Device time only.",),
    )  # fmt: skip
    configurations = read_all(results, config.model, config.configurations)
    summary = summarise(config, results)
    norms = summary.configurations["norms"].model_copy(update={"score": score})
    others = {**summary.configurations, "norms": norms}
    summary = summary.model_copy(update={"configurations": others})
    page = render(config, results, summary, configurations, dict.fromkeys(PLOT_FILES))
    text = text_of(page)
    title = "norms: 6.00 by the contest's formula, 5.00 corrected (predicted for trn2)"
    assert title in text
    assert "Base: baseline, predicted for trn2. Accuracy 1. Not comparable with the" in text
    assert "Device time only." in text
    assert rows(page, "p0") == ["p0 6.00 5.00 18 + 622 64 4,000 2,000 160 320 50.0 % 25.0 %"]
    none = {name: x.model_copy(update={"score": None}) for name, x in others.items()}
    bare = summary.model_copy(update={"configurations": none})
    page = render(config, results, bare, configurations, dict.fromkeys(PLOT_FILES))
    assert "No configuration has the figures for a score." in page


def test_every_section_is_there_and_linked(page: str) -> None:
    links = re.findall(r'<a href="#([a-z]+)">', page.partition("</nav>")[0])
    assert links == [
        "latency", "predicted", "score", "quality", "nki", "ops", "cuts", "timeline", "champion",
        "ledger", "gates", "provenance",
    ]  # fmt: skip
    for link in links:
        assert f'<h2 id="{link}">' in page


def test_ops_stand_beside_their_roofline(page: str) -> None:
    text = text_of(page)
    assert "norms: one decode step, TP=4, context 640, bfloat16 (predicted for trn2)" in text
    # Predicted 3000 us, a roofline of 1500 us, and nothing but a coarse estimate.
    assert "experts_decode 9 3,000 1,500 2.00× memory DMA reference coarse estimate" in text
    assert "rmsnorm 9 400 200 2.00× memory DMA nki_rmsnorm_kernel timing model" in text


def test_the_error_budget_names_what_moves_the_logits_most(page: str) -> None:
    start = page.index("Error budget: which op moves the logits most")
    budget = text_of(page[start : page.index('id="timeline"')])
    assert budget.index("rmsnorm nki_rmsnorm_kernel 75.0 %") < budget.index("qk_norm nki_qk")


def test_without_a_champion_it_says_how_to_promote(page: str) -> None:
    assert "snakemake --cores 1 promote --config champion=NAME" in page


@pytest.mark.usefixtures("undrawn")
def test_a_store_that_is_down_does_not_stop_the_report(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = Path("mlflow/champion-tiny-simulator.json")
    stamp.parent.mkdir()
    stamp.write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9 cannot be used" in text_of(build(results))


@pytest.mark.usefixtures("undrawn")
def test_a_broken_ledger_is_said_and_left_alone(results: Path) -> None:
    ledger = Path("mlflow/ledger.jsonl")
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_text("{\n")
    assert "mlflow/ledger.jsonl:1: not a LedgerEntry" in text_of(build(results))
    assert ledger.read_text() == "{\n"


def test_every_column_says_where_its_numbers_are_from(page: str) -> None:
    for title in ("TTFT p50, ms", "TPOT p50, ms", "Throughput, tokens/s", "KL, bf16, nats/token"):
        assert f"{title}<small>measured on simulator</small>" in page
    for title in ("MACs in NKI (NKI FLOPs ratio)", "Programs"):
        assert f"{title}<small>counted</small>" in page
    assert "wall clock is this machine's CPU and says nothing about Trainium" in text_of(page)


def test_a_refused_kernel_is_red_with_rule_file_and_line(page: str) -> None:
    assert re.search(r'<li class="fail">\s*<span class="name">rmsnorm', page)
    assert "sbuf-capacity" in page
    assert "kernels/rmsnorm.py:42" in page
    assert "Split the free dimension." in page


@pytest.mark.usefixtures("undrawn")
def test_a_wrong_answer_is_not_compared_by_speed(results: Path) -> None:
    samples.accuracy("norms", ["rmsnorm"], kl=0.2, passed=False).write(
        result_files(results, "tiny", "norms")["accuracy"]
    )
    pair, intervals, _, speed, predicted, *_ = rows(without_plots(results), "norms")
    for row in (pair, speed, predicted):
        assert "not compared" in row
    for row in (intervals, speed, predicted):
        assert "baseline" not in row


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert page.count("<svg") == 2 * 6, "six plots, each wide and narrow"
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:image/png)""", page)
    assert not re.search(r"@import|<script|<link|<iframe|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_hostile_text_is_escaped(results: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    StageError(
        configuration="norms",
        stage="generate",
        message=hostile,
        details=[{"rule": hostile, "file": hostile, "message": hostile, "unknown": [1]}],
    ).write(error_folder(results, "tiny", "norms") / "generate.json")
    manifest = samples.manifest("baseline", [hostile])
    manifest.write(result_files(results, "tiny", "baseline")["compile"])
    page = build(results)
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script>") in page


def test_nan_is_shown_and_breaks_nothing(results: Path) -> None:
    path = result_files(results, "tiny", "norms")["accuracy"]
    samples.accuracy("norms", ["rmsnorm"], kl=0.125, passed=False).write(path)
    path.write_text(path.read_text().replace('_mean": 0.125', '_mean": "NaN"'))
    page = build(results)
    assert any("nan" in row for row in rows(page, "norms"))
    assert Summary.read(results / "summary.json").configurations["norms"].verdict == "fail"


def test_an_empty_results_folder_gives_a_report_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = text_of(build(samples.project(tmp_path), partial=True))
    assert "0 of 3 kernel configurations pass" in text
    assert "Unfinished" in text
    assert "no result of compile, trace, generate, latency, accuracy" in text


@pytest.mark.usefixtures("undrawn")
def test_a_partial_report_stays_outdated(results: Path) -> None:
    page = build(results, partial=True)
    assert "Unfinished" in page
    for name in ("summary.json", "report.html"):
        assert os.path.getmtime(results / name) == 0
    assert "Unfinished" not in build(results)
    assert os.path.getmtime(results / "report.html") > 0


def test_twelve_configurations_stay_small(results: Path) -> None:
    names = [f"configuration-{i}" for i in range(12)]
    for name in names:
        samples.write(results, name)
    page = build(results, samples.config(configurations=names))
    assert "12 of 12" in page
    assert len(page) < 1_000_000


def test_the_terminals_table(results: Path) -> None:
    screen = io.StringIO()
    print_verdicts(summarise(samples.config(), results), Console(file=screen, width=200))
    text = screen.getvalue()
    assert "\x1b" not in text
    lines = text.split("\n")
    [row] = [number for number, line in enumerate(lines) if line.startswith("norms")]
    norms, below = lines[row : row + 2]
    assert norms.split() == ["norms", "✓", "pass", "21.6", "slower", "8.00", "5.60"]
    assert below.split() == ["5.39", "1.100×", "(1.09", "to", "1.11)", "4.00", "2.80"]
    assert re.search(r"rmsnorm\s+✗ fail(\s+–){4}", text)
    assert "contest score, predicted for trn2, base baseline, predicted for trn2: " in text
    assert "[sbuf-capacity]" in text, "square brackets are not rich's markup"
    assert "says nothing about Trainium" in text


def test_the_terminals_table_fits_80_columns(results: Path) -> None:
    screen = io.StringIO()
    print_verdicts(summarise(samples.config(), results), Console(file=screen, width=80))
    table, _, _ = screen.getvalue().partition("contest score")
    lines = table.split("\n")
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines), "nothing is cut off"
    for text in ("configuration", "baseline", "1.100× (1.09 to 1.11)", "predicted", "trn3", "4.00"):
        assert text in table


@pytest.mark.parametrize("no_color", [True, False])
def test_colours_are_left_out_if_asked(
    results: Path, monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = io.StringIO()
    colour = Console(file=screen, width=80, force_terminal=True, color_system="standard")
    print_verdicts(summarise(samples.config(), results), colour)
    # Red is 31 and green 32; without colours, bold may stay.
    assert bool(re.search(r"\x1b\[3[12]m", screen.getvalue())) is not no_color


def test_the_command_line_as_onerror_calls_it(results: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(samples.config().model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.report", "--partial", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "✗ fail" in done.stderr
    assert "Unfinished" in (results / "report.html").read_text()


def test_a_wrong_configuration_is_one_sentence(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (12, "12"),
        (123456, "123,456"),
        (31.0, "31.0"),
        (99.96, "100"),
        (123.4, "123"),
        (999.7, "1,000"),
        (1234.5, "1,234"),
        (0.00123, "0.00123"),
        (3e-4, "3.0e-4"),
        (-0.5, "-0.500"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_shares_and_gates() -> None:
    assert [percent(x) for x in (0.0, 0.0012, 0.5, 1.0)] == ["0.0 %", "0.12 %", "50.0 %", "100.0 %"]
    assert [gate_value(x) for x in (None, "yes", 9.0, 0.5)] == ["not measured", "yes", "9", "0.500"]
