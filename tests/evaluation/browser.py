"""A headless Chromium and an MLflow server, both on this machine, for tests that look at pages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SERVER_SECONDS = 90


def chromium_path() -> str:
    """Debian's Chromium; without it the test is skipped, loudly, and in CI it fails."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    message = "no chromium on this machine: PAGES ARE NOT LOOKED AT (apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(message)
    print(f"\n!!! {message}", file=sys.__stderr__)
    pytest.skip(message)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser with an empty profile (playwright makes one and deletes it)."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def screenshot(page: Any, name: str, folder: Path, *, full: bool = False) -> Path:
    """Save what the page looks like, in `SCREENSHOTS` if that is set (in CI it is)."""
    target = Path(os.environ.get("SCREENSHOTS") or folder).absolute() / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(target), full_page=full)
    assert target.stat().st_size > 5000, "the page is blank"
    return target


class Server:
    """An MLflow server on the loopback that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
        environment |= {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", "sqlite:///mlflow/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "mlflow/served")]
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        until = time.monotonic() + SERVER_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        """As a power cut would: the server and its workers, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait(30)
            self.process = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """A running server whose store is `folder`/mlflow."""
    (folder / "mlflow").mkdir(exist_ok=True)
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
