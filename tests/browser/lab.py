"""JupyterLab and a headless Chromium for tests: started, waited for, ended."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).resolve().parents[2]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

_SETTINGS: dict[str, dict[str, object]] = {
    # else cells outside the window are not in the page, and nothing in them can be found
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}

T = TypeVar("T")


def until(look: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value that ``look`` gives; fails naming ``what`` after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} seconds for {what}", pytrace=False)
        time.sleep(0.1)


def chromium() -> tuple[str, str]:
    """Browser and driver. Where one is missing the test is skipped, and fails under CI=true."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing = "chromedriver" if browser else "chromium"
        reason = f"{missing} is not installed; on Debian and Ubuntu: sudo apt install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return browser, driver


@contextmanager
def browsing(folder: Path, *, width: int = 1500, height: int = 1600) -> Iterator[webdriver.Chrome]:
    """A browser without a window; ``folder`` holds its profile."""
    browser, driver = chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        "--no-sandbox",  # refused to root, as which containers run
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--window-size={width},{height}",
        f"--user-data-dir={folder / 'profile'}",
    ):
        options.add_argument(argument)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        started = webdriver.Chrome(options, Service(driver))
        try:
            yield started
        finally:
            started.quit()


@contextmanager
def jupyterlab(notebooks: Path, folder: Path) -> Iterator[str]:
    """The address (with its token) of a JupyterLab on ``notebooks``; ``folder`` holds what it keeps."""
    for name, setting in _SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(setting))
    kept = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    environment = {
        **os.environ,
        **kept,
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("MPLBACKEND", None)  # the kernel's own puts figures into the notebook
    options = (
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={_free_port()}",
        f"--ServerApp.root_dir={notebooks}",
        "--LabApp.expose_app_in_browser=True",
    )
    command = [sys.executable, "-m", "jupyterlab", *options]
    log = folder / "jupyterlab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=notebooks)
    try:
        yield until(lambda: _address(server, folder / "runtime", log), 60, "JupyterLab to start")
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        found: int = one.getsockname()[1]
        return found


def _address(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    if server.poll() is not None:
        pytest.fail(f"JupyterLab ended: {log.read_text()[-2000:]}", pytrace=False)
    for path in runtime.glob("jpserver-*.json"):
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:  # half written
            continue
        return f"{found['url']}lab/tree/{{}}?token={found['token']}"
    return ""


def opened(browser: webdriver.Chrome, address: str, notebook: str) -> None:
    """Open a notebook and wait for its kernel."""
    browser.get(address.format(notebook))
    idle = (
        "const panel = window.jupyterapp?.shell.currentWidget;"
        "return panel?.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === 'idle';"
    )
    until(lambda: browser.execute_script(idle), 60, "the kernel to be idle")


def run_all(browser: webdriver.Chrome, seconds: float) -> None:
    """Run all cells; fails with what a cell that failed says."""
    browser.execute_script(
        "window.ended = null;"
        "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        ".then(() => {window.ended = 'ran';}, error => {window.ended = String(error);});"
    )
    ended = until(lambda: browser.execute_script("return window.ended;"), seconds, "the notebook to run")
    failed = texts(browser, '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
    assert not failed, failed[0][-1500:]
    assert ended == "ran"


def command(browser: webdriver.Chrome, name: str) -> None:
    """Have JupyterLab do something, as its menus do; does not wait."""
    browser.execute_script("window.jupyterapp.commands.execute(arguments[0]);", name)


def texts(browser: Any, selector: str) -> Sequence[str]:
    """What the elements of a selector say."""
    return [element.text for element in browser.find_elements("css selector", selector)]
