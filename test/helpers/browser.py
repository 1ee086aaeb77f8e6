"""Headless Chromium through chromedriver's HTTP interface: no package is needed beyond the two programs."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and CHROMEDRIVER else "needs chromium and chromedriver (apt-get install chromium-driver)"


class Browser:
    """One browser window; every method is a command of the WebDriver protocol."""

    def __init__(self, address):
        self.address = address
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "perfLoggingPrefs": {"enableNetwork": True},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def _send(self, method, path, content=None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        self._send("POST", f"{self.session}/url", {"url": path.absolute().as_uri()})

    def run(self, script, *arguments):
        """Run the body of a function and return what it returns."""
        return self._send("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command, **parameters):
        return self._send("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(self, *, width, height=900, dark=False, media=""):
        """Set the size of the window, the colours that the reader prefers, and the medium if not the screen."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.devtools("Emulation.setEmulatedMedia", media=media, features=features)

    def console(self):
        """Return what the page has logged and every error since the last call."""
        return self._send("POST", f"{self.session}/se/log", {"type": "browser"})

    def requested_addresses(self):
        """Return the addresses that pages have asked for since the last call."""
        entries = self._send("POST", f"{self.session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        requests = (message for message in messages if message["method"] == "Network.requestWillBeSent")
        return [message["params"]["request"]["url"] for message in requests]

    def close(self):
        self._send("DELETE", self.session)


@contextmanager
def open_browser():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/status", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        browser = Browser(address)
        yield browser
        browser.close()
    finally:
        driver.terminate()
        driver.wait()


@pytest.fixture(scope="module")
def window():
    """A browser for all tests of a module, which are skipped where there is none."""
    if MISSING:
        pytest.skip(MISSING)
    with open_browser() as opened:
        yield opened
