"""A real MLflow server: its pages in a real browser, and what happens when it dies midway."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import samples
from browser import Server, chromium, mlflow_server, screenshot
from sample_latency import SCALES

from evaluation import ledger
from evaluation.champion import promote
from evaluation.metrics import key_metrics, metrics
from evaluation.results import read_results, result_files
from evaluation.store import TrackingError, store_client
from evaluation.tracking import initialise, track

pytestmark = pytest.mark.slow
WAIT_MS = 60_000


@dataclass(frozen=True)
class Site:
    """A browser's page, and the server it looks at."""

    page: Any
    url: str
    runs_page: str
    runs: dict[str, str]
    """Configuration -> run."""
    server: Server

    def client(self) -> Any:
        """Of the server, whatever store the environment names."""
        from mlflow import MlflowClient

        return MlflowClient(self.url)

    @property
    def experiment(self) -> str:
        return self.runs_page.split("/")[3]

    def open(self, path: str, *texts: str) -> str:
        """Open a page and wait until it shows every text; the page's text."""
        self.page.goto("about:blank")
        self.page.goto(self.url + path)
        for text in texts:
            self.page.get_by_text(text).first.wait_for(timeout=WAIT_MS)
        return str(self.page.inner_text("body"))


@pytest.fixture(scope="module")
def site(store: Path) -> Iterator[Site]:
    """Three configurations, tracked, one of them the champion."""
    with pytest.MonkeyPatch.context() as patch, chromium() as browser:
        patch.chdir(store)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        results = Path("results")
        for number, name in enumerate(samples.OPS_OF):
            path = result_files(results, "tiny", name)["generate"]
            samples.generation(name, samples.OPS_OF[name], slower=1 + 0.2 * number).write(path)
        tracked = {
            name: track(
                samples.config(), name, results, result_files(results, "tiny", name)["track"]
            ).mlflow_run_id
            for name in samples.OPS_OF
        }
        promote(samples.config(), "norms", results)
        ready = json.loads((store / "mlflow/ready.json").read_text())
        with mlflow_server(store) as server:
            page = browser.new_page(viewport={"width": 1900, "height": 1000})
            yield Site(page, server.url, ready["runs_page"], tracked, server)


def test_the_table_of_runs_has_configurations_verdicts_and_key_metrics(
    site: Site, tmp_path: Path
) -> None:
    text = site.open(site.runs_page, *samples.OPS_OF, "verdict")
    for metric in key_metrics("simulator", "trn2"):
        assert metric in text
    lines = text.split("\n")
    assert lines.count("pass") == len(samples.OPS_OF)
    for scale in SCALES.values():  # each one's own TTFT: the median of 20 ms * its scale
        assert lines.count(f"{20 * 0.98 * scale:.7g}") == 1
    screenshot(site.page, "mlflow-runs", tmp_path)


def test_charts_are_in_sections_and_latency_is_first(site: Site, tmp_path: Path) -> None:
    text = site.open(
        f"{site.runs_page}&compareRunsMode=CHART", "latency_measured_simulator", "baseline"
    )
    sections = re.findall(r"^(\w+)\n\((\d+)\)$", text, re.MULTILINE)
    assert sections[0][0] == "latency_measured_simulator"
    assert int(sections[0][1]) >= 6
    screenshot(site.page, "mlflow-charts", tmp_path)


def test_the_compare_page_has_both_runs_and_their_differences(site: Site, tmp_path: Path) -> None:
    chosen = [site.runs[name] for name in ("baseline", "norms")]
    query = urlencode({"runs": json.dumps(chosen), "experiments": json.dumps([site.experiment])})
    text = site.open(f"/#/compare-runs?{query}", "Comparing 2 Runs", "Show diff only")

    def row(name: str) -> set[str]:
        """The values of both runs, after the name's last mention."""
        return set(re.findall(rf"^{name}\s+(\S+)\s+(\S+)", text, re.MULTILINE)[-1])

    assert row("op.rmsnorm.kernel") == {"reference", "nki_rmsnorm_kernel"}
    site.page.get_by_text("latency_measured_simulator/end_to_end_ms_mean").last.hover()
    screenshot(site.page, "mlflow-compare", tmp_path)
    logged = [site.client().get_run(run).data.metrics for run in chosen]
    shown = metric_rows(site.page)
    for name in (
        "latency_measured_simulator/ttft_ms_p50",
        "latency_measured_simulator/tpot_ms_p50",
        "latency_measured_simulator/end_to_end_ms_p50",
        "latency_ratio_measured_simulator/end_to_end_ratio",
        "latency_predicted_trn2/ttft_ms",
        "latency_predicted_trn2/tpot_ms",
        "score_predicted_trn2/total",
        "score_predicted_trn2/total_corrected",
    ):
        baseline, norms = (run[name] for run in logged)
        assert baseline != norms, "each has its own"
        assert [float(text.replace(",", "")) for text in shown[name]] == pytest.approx(
            [baseline, norms], rel=1e-3
        ), name
    assert shown["latency_measured_simulator/ttft_ms_p50"] == ["19.6", "21.56"]


def metric_rows(page: Any) -> dict[str, list[str]]:
    """The compare page's table of metrics: name -> each run's value.

    Only rows in sight are in the page, so that it is scrolled from the first to the last.
    """
    page.evaluate(
        """[...document.querySelectorAll('.ReactVirtualized__Grid')]
           .filter(grid => grid.innerText.includes('latency_measured_')).pop()
           .closest('[class*=collapse-content]').id = 'metrics'"""
    )
    grids = "[...document.querySelectorAll('#metrics .ReactVirtualized__Grid')]"
    cells: dict[float, dict[float, str]] = {}
    rows_in_sight = f"""() => {grids}.every(grid => {{
        const cells = [...grid.firstElementChild.children];
        const end = Math.min(grid.scrollTop + grid.clientHeight, grid.scrollHeight);
        return Math.min(...cells.map(cell => cell.offsetTop)) <= grid.scrollTop &&
            Math.max(...cells.map(cell => cell.offsetTop + cell.offsetHeight)) >= end;
    }})"""
    height = page.evaluate(f"Math.max(...{grids}.map(grid => grid.scrollHeight))")
    for top in range(0, height, 250):  # 300 are in sight
        page.evaluate(f"{grids}.forEach(grid => grid.scrollTop = {top})")
        page.wait_for_function(rows_in_sight, timeout=WAIT_MS)
        found = page.evaluate(
            f"""{grids}.flatMap(grid => [...grid.firstElementChild.children].map(cell => [
                parseFloat(cell.style.top), cell.getBoundingClientRect().x, cell.innerText]))"""
        )
        for y, x, text in found:
            cells.setdefault(y, {})[x] = text.strip()
    rows = [[texts[x] for x in sorted(texts)] for texts in cells.values()]
    return {name: values for name, *values in rows}


def test_a_runs_page_says_what_it_found_and_shows_its_plots(site: Site, tmp_path: Path) -> None:
    run = f"/#/experiments/{site.experiment}/runs/{site.runs['norms']}"
    text = site.open(run, "keeps to every tolerance", "nki-assay-tiny-simulator")
    assert "measured on the simulator and says nothing about Trainium" in text
    screenshot(site.page, "mlflow-run", tmp_path)
    site.open(f"{run}/artifacts/plots/ops_predicted_trn2.png", "programs")
    image = site.page.locator("img[src*='ops_predicted'], img[src^='blob:']").first
    image.wait_for(timeout=WAIT_MS)
    assert image.evaluate("image => image.naturalWidth") > 300
    screenshot(site.page, "mlflow-artifacts", tmp_path)


def test_the_registry_names_the_champion(site: Site, tmp_path: Path) -> None:
    text = site.open("/#/models/nki-assay-tiny-simulator?workflowType=machine_learning", "champion")
    assert "Version 1" in text
    screenshot(site.page, "mlflow-champion", tmp_path)
    assert os.environ.get("MLFLOW_TRACKING_URI") is None


def test_a_server_that_dies_midway_loses_and_duplicates_nothing(
    site: Site, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is killed while the run is written, and started again."""
    from mlflow import MlflowClient

    monkeypatch.chdir(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.url)
    config = samples.config(tracking={"experiment": "dies"})
    output = Path("dies.json")
    initialise(config, Path("ready.json"))
    log_inputs = MlflowClient.log_inputs

    def dies(client: MlflowClient, *arguments: Any, **named: Any) -> None:
        log_inputs(client, *arguments, **named)
        site.server.kill()

    monkeypatch.setattr(MlflowClient, "log_inputs", dies)
    with pytest.raises(TrackingError, match="cannot be used") as error:
        track(config, "norms", Path("results"), output)
    assert "`snakemake --cores 1 track_all` sends them" in str(error.value)
    assert not output.exists()
    assert [
        e.mlflow_run_id for e in ledger.read() if e.mlflow_run_id not in site.runs.values()
    ] == []

    monkeypatch.setattr(MlflowClient, "log_inputs", log_inputs)
    site.server.start()
    # The writer is this very process, so that the run might still be somebody's work.
    monkeypatch.setattr("evaluation.tracking.writer_is_dead", lambda _: True)
    run = track(config, "norms", Path("results"), output)
    client = store_client()
    experiment = client.get_experiment_by_name("dies").experiment_id
    (kept,) = client.search_runs([experiment])
    assert (kept.info.run_id, kept.info.status) == (run.mlflow_run_id, "FINISHED")
    assert len(client.search_logged_models([experiment])) == 1
    found = read_results(Path("results"), "tiny", "norms")
    assert set(metrics(found)) < set(kept.data.metrics)
    assert client.list_artifacts(run.mlflow_run_id, "plots")
    assert [entry.mlflow_run_id for entry in ledger.read()].count(run.mlflow_run_id) == 1
    assert track(config, "norms", Path("results"), output) == run
