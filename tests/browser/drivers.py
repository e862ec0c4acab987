"""Debian's three browsers, each as a WebDriver (W3C), so that a journey is written once for all of them."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.options import BaseOptions
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.command import Command
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver

from tests.servers import CHROMIUM_FLAGS, find_chromium, free_port, leashed

WIDTH, HEIGHT = 1366, 768


def program(name: str, path: str = os.environ["PATH"]) -> str:
    """Where a program is; a test that needs one that is not there fails."""
    found = shutil.which(name, path=path)
    if found is None:
        pytest.fail(f"No {name} here. `make browsers` installs it on Debian.", pytrace=False)
    return found


@contextmanager
def driven_by(command: list[str | Path], port: int, options: BaseOptions) -> Iterator[WebDriver]:
    """A browser behind a driver that speaks HTTP on `port`."""

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with leashed([*command, f"--port={port}"], Path(tempfile.mkdtemp(prefix="turnkeeper-driver-")), ready):
        connection = RemoteConnection(client_config=ClientConfig(f"http://127.0.0.1:{port}"))
        driver = webdriver.Remote(connection, options=options)
        try:
            yield driver
        finally:
            driver.quit()


@contextmanager
def chromium(javascript: bool) -> Iterator[WebDriver]:
    """Chromium, through Debian's chromedriver."""
    options = webdriver.ChromeOptions()
    options.binary_location = find_chromium() or program("chromium")
    for flag in (*CHROMIUM_FLAGS, f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(flag)
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    with driven_by([program("chromedriver")], free_port(), options) as driver:
        yield driver


@contextmanager
def webkit(javascript: bool) -> Iterator[WebDriver]:
    """WebKitGTK in its own small window, on a screen that nobody sees."""
    screen = free_port()

    def ready() -> bool:
        return Path(f"/tmp/.X11-unix/X{screen}").exists()

    options = webdriver.WebKitGTKOptions()
    # The program stands beside the library, not on the PATH.
    options.binary_location = program("MiniBrowser", ":".join(map(str, Path("/usr/lib").glob("*/webkit2gtk-4.*"))))
    options.add_argument("--automation")
    options.add_argument(f"--geometry={WIDTH}x{HEIGHT}")
    if not javascript:
        options.add_argument("--enable-javascript=false")
    display = [program("Xvfb"), f":{screen}", "-screen", "0", f"{WIDTH}x{HEIGHT}x24", "-nolisten", "tcp"]
    driver_ = ["env", f"DISPLAY=:{screen}", program("WebKitWebDriver")]
    with (
        leashed(display, Path(tempfile.mkdtemp(prefix="turnkeeper-screen-")), ready),
        driven_by(driver_, free_port(), options) as driver,
    ):
        yield driver


@contextmanager
def firefox(javascript: bool) -> Iterator[WebDriver]:
    """Firefox, without the geckodriver that Debian does not have."""
    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-firefox-"))
    profile, told = folder / "profile", folder / "profile" / "MarionetteActivePort"
    profile.mkdir()
    settings = {
        "marionette.port": 0,
        "javascript.enabled": javascript,
        "app.update.disabledForTesting": True,
        "browser.shell.checkDefaultBrowser": False,
        "browser.startup.page": 0,
        "datareporting.policy.dataSubmissionEnabled": False,
        "toolkit.telemetry.reportingpolicy.firstRun": False,
    }
    lines = (f'user_pref("{name}", {json.dumps(value)});\n' for name, value in settings.items())
    (profile / "user.js").write_text("".join(lines))
    command = [program("firefox-esr"), "--headless", "--marionette", "--no-remote", "--profile", profile]
    with leashed(["env", f"HOME={folder}", *command], folder, lambda: told.exists() and bool(told.read_text())):
        driver = webdriver.Remote(Marionette(int(told.read_text())), options=webdriver.FirefoxOptions())
        driver.set_window_size(WIDTH, HEIGHT)
        try:
            yield driver
        finally:
            driver.quit()


class Marionette(RemoteConnection):
    """WebDriver's commands in Firefox's own words: what geckodriver would say to it, over the same socket."""

    def __init__(self, port: int) -> None:
        super().__init__(client_config=ClientConfig(f"http://127.0.0.1:{port}"))
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._file = self._socket.makefile("rb")
        self._ids = count(1)
        self._read()  # it greets first

    def _read(self) -> Any:
        length = b""
        while (byte := self._file.read(1)) != b":":
            assert byte, "Firefox has gone"
            length += byte
        return json.loads(self._file.read(int(length)))

    def execute(self, command: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send one command and wait for its answer, which looks as if geckodriver had given it."""
        asked = {name: value for name, value in params.items() if name != "sessionId"}
        if command == Command.NEW_SESSION:
            asked = {}
        if command in (Command.FIND_CHILD_ELEMENT, Command.FIND_CHILD_ELEMENTS):
            asked["element"] = asked.pop("id")
        message = json.dumps([0, next(self._ids), f"WebDriver:{WORDS[command]}", asked]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, _, fault, found = self._read()
        if fault:
            return {"status": 500, "value": json.dumps({"value": fault})}
        return {"value": found["value"] if isinstance(found, dict) and found.keys() == {"value"} else found}

    def close(self) -> None:
        """The browser ends with its leash."""
        self._file.close()
        self._socket.close()


WORDS = {
    Command.NEW_SESSION: "NewSession",
    Command.QUIT: "DeleteSession",
    Command.GET: "Navigate",
    Command.GO_BACK: "Back",
    Command.REFRESH: "Refresh",
    Command.GET_CURRENT_URL: "GetCurrentURL",
    Command.GET_TITLE: "GetTitle",
    Command.NEW_WINDOW: "NewWindow",
    Command.CLOSE: "CloseWindow",
    Command.SWITCH_TO_WINDOW: "SwitchToWindow",
    Command.SET_WINDOW_RECT: "SetWindowRect",
    Command.GET_WINDOW_RECT: "GetWindowRect",
    Command.W3C_GET_CURRENT_WINDOW_HANDLE: "GetWindowHandle",
    Command.W3C_GET_WINDOW_HANDLES: "GetWindowHandles",
    Command.GET_ALL_COOKIES: "GetCookies",
    Command.DELETE_ALL_COOKIES: "DeleteAllCookies",
    Command.FIND_ELEMENT: "FindElement",
    Command.FIND_ELEMENTS: "FindElements",
    Command.FIND_CHILD_ELEMENT: "FindElement",
    Command.FIND_CHILD_ELEMENTS: "FindElements",
    Command.CLEAR_ELEMENT: "ElementClear",
    Command.CLICK_ELEMENT: "ElementClick",
    Command.SEND_KEYS_TO_ELEMENT: "ElementSendKeys",
    Command.GET_ELEMENT_TEXT: "GetElementText",
    Command.GET_ELEMENT_TAG_NAME: "GetElementTagName",
    Command.GET_ELEMENT_ATTRIBUTE: "GetElementAttribute",
    Command.GET_ELEMENT_PROPERTY: "GetElementProperty",
    Command.GET_ELEMENT_RECT: "GetElementRect",
    Command.IS_ELEMENT_ENABLED: "IsElementEnabled",
    Command.IS_ELEMENT_SELECTED: "IsElementSelected",
    Command.W3C_GET_ACTIVE_ELEMENT: "GetActiveElement",
    Command.W3C_ACTIONS: "PerformActions",
    Command.W3C_CLEAR_ACTIONS: "ReleaseActions",
    Command.W3C_EXECUTE_SCRIPT: "ExecuteScript",
    Command.SCREENSHOT: "TakeScreenshot",
}

BROWSERS: dict[str, Callable[[bool], Any]] = {"chromium": chromium, "firefox": firefox, "webkit": webkit}
