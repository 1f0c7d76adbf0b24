"""A headless Chromium, driven over a pipe by its DevTools protocol: pages and their errors."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage")
FLAGS = (*FLAGS, "--hide-scrollbars", "--disable-extensions", "--disable-background-networking", "--mute-audio")


def find():
    """The browser's program, or ``None``."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """Shows one page at a time; ``errors`` holds its console messages, log entries and requests."""

    def __init__(self, process, commands, answers):
        self._process, self._commands, self._answers = process, commands, answers
        self._count, self._rest, self.errors = 0, b"", []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def show(self, path, width, *, dark=False, height=844, media="screen"):
        """Open a file or an address at a width, light or dark, and wait until it has loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.errors = []
        self._loaded = False
        self.ask("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while not self._loaded:
            self._read()

    def value(self, expression):
        """What an expression of JavaScript is on the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key):
        """Press a key and release it."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {}))

    def wait(self, expression):
        """Wait until an expression of JavaScript is true on the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)

    def ask(self, method, **params):
        """Send one command and return its answer."""
        self._count += 1
        session = getattr(self, "_session", None)
        command = {"id": self._count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    def _read(self):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, f"the browser ended with {self._process.wait()}"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, params):
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("file:", "data:")):
            self.errors.append(f"requested {params['request']['url']}")


@contextlib.contextmanager
def browser(program):
    """A browser with a profile of its own, gone afterwards."""
    own, theirs = os.pipe(), os.pipe()
    inputs, outputs = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (own[0], theirs[1]))

    def place():
        os.dup2(inputs, 3)
        os.dup2(outputs, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [program, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), **quiet)
        for fd in (own[0], theirs[1], inputs, outputs):
            os.close(fd)
        try:
            yield Browser(process, own[1], theirs[0])
        finally:
            process.terminate()
            process.wait(PATIENCE)
            os.close(own[1])
            os.close(theirs[0])
