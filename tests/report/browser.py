"""A headless Chromium, spoken to over its own pipe (the DevTools protocol), with nothing installed for it."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a browser without a window; a context manager."""

    def __init__(self, width=1280, height=900):
        """Remember the size; the browser starts with the block."""
        self._size, self._number, self._left = (width, height), 0, b""
        self.events = []

    def __enter__(self):
        """Start the browser and attach to its page."""
        self._home = tempfile.mkdtemp(prefix="chromium-")
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--no-first-run", "--disable-extensions", "--disable-background-networking", f"--user-data-dir={self._home}",
            f"--window-size={self._size[0]},{self._size[1]}", "about:blank",
        ]  # fmt: skip
        moves = f'exec "$@" 3<&{to_read} 4>&{to_write}'  # the protocol's file descriptors
        shell = ["bash", "-c", moves, "bash", *command]
        self._process = subprocess.Popen(
            shell, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(to_read)
        os.close(to_write)
        self._session = None
        pages = []
        until = time.monotonic() + 60
        while not pages and time.monotonic() < until:
            pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")
        return self

    def __exit__(self, *fault):
        """End the browser and remove what it wrote."""
        self._session = None
        try:
            self.call("Browser.close")
        except (OSError, EOFError):
            pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._home, ignore_errors=True)

    def call(self, method, timeout=60, **parameters):
        """Return what a method of the protocol answers; RuntimeError where it refuses."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            found = self._next(until)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)
        raise TimeoutError(f"no answer to {method} within {timeout} s")

    def _next(self, until):
        while b"\0" not in self._left:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            more = os.read(self._in, 1 << 20)
            if not more:
                raise EOFError("the browser ended")
            self._left += more
        first, _, self._left = self._left.partition(b"\0")
        return json.loads(first)

    def open(self, path, wait="true", behind=""):
        """Open a file (and what is `behind` its name: "#place"), and wait until it is loaded and an expression is true."""
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri() + behind)
        until = time.monotonic() + 60
        while not self.evaluate(f"document.readyState === 'complete' && !!({wait})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{path} does not come to {wait}")
            time.sleep(0.02)

    def evaluate(self, expression):
        """Return the value of an expression (a promise: what it comes to); RuntimeError where it throws."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def media(self, **features):
        """Pretend: prefers_color_scheme="dark", prefers_reduced_motion="reduce"."""
        wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=wanted)

    def processor_seconds(self):
        """Return the processor's time that the page has taken since it was opened, drawing included."""
        return next(m["value"] for m in self.call("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration")

    def resize(self, width, height, mobile=False):
        """Pretend that the window has another size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def screenshot(self, path, *, whole=False):
        """Write what is seen, or the whole page, as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path):
        """Print the page."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", timeout=120, printBackground=True)["data"]))

    def complaints(self):
        """Return every error and warning of the console, and exceptions."""
        self.evaluate("1")
        found = []
        for event in self.events:
            method, given = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(
                    given["exceptionDetails"].get("exception", {}).get("description", given["exceptionDetails"]["text"])
                )
            elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(str([a.get("value") for a in given["args"]]))
            elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(given["entry"]["text"])
        return found

    def requests(self):
        """Return every address that was asked for."""
        self.evaluate("1")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
