"""A headless Chromium, asked through the DevTools protocol over a pipe: no other package, no port."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 40  # seconds


def find():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of a browser: `go`, `value` of JavaScript, `until` it is true, keys, and all addresses it asked for."""

    def __init__(self, write, read, size):
        self._write, self._read, self._numbers = write, read, itertools.count(1)
        self._rest, self.requests, self.errors, self.session = b"", [], [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(*size)

    def call(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(PATIENCE)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _next(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 2**20)
            assert part, "the browser has gone"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        method, said = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"].get("exception", {}).get("description") or str(said))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])

    def resize(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def go(self, url):
        self.call("Page.navigate", url=url)

    def value(self, code):
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code):
        end = time.monotonic() + PATIENCE
        while not self.value(code):
            if time.monotonic() > end:
                shown = self.value("JSON.stringify(document.body.dataset) + document.body.innerText")
                raise AssertionError(f"never true: {code}; {self.errors}; {shown}")
            time.sleep(0.05)

    def key(self, key):
        """Presses a key, as a person does."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path, whole=False):
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def opened(folder, size=(1280, 800)):
    """A `Page`; the browser's own files go into `folder`."""
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()

    command = [
        *("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"),  # the protocol's pipes are 3 and 4
        *(find(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-default-apps", "--disable-dev-shm-usage", f"--user-data-dir={folder}", "about:blank"),
    ]
    with open(os.devnull, "wb") as nowhere:
        browser = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, pass_fds=(to_browser, from_browser))
    os.close(to_browser), os.close(from_browser)
    try:
        yield Page(from_us, to_us, size)
    finally:
        browser.terminate()
        try:
            browser.wait(10)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
        os.close(from_us), os.close(to_us)
