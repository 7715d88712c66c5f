"""Pictures of the console for the documents: a real server under load, in a real Chromium.

    python -m tests.end_to_end.pictures [--out docker/pictures] [--store STORE]

Without `--store`, the demo model is trained first (half a minute). The store's newest version is
published again with one byte too many, so that a refused version is shown.
"""

import argparse
import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from app.artifacts.store import Artifact, Store
from models.training import experiment, train
from tests import REPOSITORY
from tests.support.server import standalone_server

LARGEST_BYTES = 150_000
POLICIES = """
[default]
{model} = "home"

[policy.home]
formula = "power_product"
weights = {{ click = 1.0, like = 0.5, dwell = 0.5 }}
bounds = {{ click = [0.0, 3.0], like = [0.0, 3.0], dwell = [0.0, 3.0] }}
shadow = "home-next"

[policy.home-next]
formula = "expression"
expression = "click**0.8 * (1 + w.like*like) * log1p(dwell)"
weights = {{ like = 2.0 }}
bounds = {{ like = [0.0, 4.0] }}
"""
LAPTOP, PHONE = (1280, 860), (390, 844)
LOAD_S = 45.0
CLIENTS = 3


def main() -> None:
    """Take every picture; fail if a page reports an error or a picture is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docker" / "pictures")
    parser.add_argument("--store", type=Path, help="a store with one model; default: the demo")
    parser.add_argument("--seconds", type=float, default=LOAD_S, help="of load before the first")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as started:
        folder = Path(temporary)
        artifact = demo(folder / "store", arguments.store)
        (folder / "policies.toml").write_text(POLICIES.format(model=artifact.model))
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with standalone_server(folder / "store", folder / "log", "--lanes", "2") as server:
            pages = Pages(browser, server.url, arguments.out)
            laptop = pages.opened(LAPTOP)
            with load(server.url):
                time.sleep(arguments.seconds / 2)
                damage(artifact)
                time.sleep(arguments.seconds / 2)
                laptop.wait_for_selector("#findings .bad")
                pages.take(laptop, "load")
                pages.take(laptop, "refused", at="#models")
                playground(laptop)
                pages.take(laptop, "playground", at="#playground")
                dark = pages.opened(LAPTOP, scheme="dark")
                dark.wait_for_timeout(9000)
                pages.take(dark, "dark")
                phone = pages.opened(PHONE)
                phone.wait_for_timeout(9000)
                pages.take(phone, "phone")
        browser.close()


def demo(folder: Path, store: Path | None) -> Artifact:
    """Return the newest version of the one model in a store at `folder`."""
    if store is None:
        config = experiment.read(REPOSITORY / "models" / "configs" / "demo.toml")
        return train.run(config, Store(folder), quiet=True, console=Console(file=io.StringIO()))
    shutil.copytree(store, folder)
    *_, artifact = Store(folder).artifacts()
    return artifact


def damage(artifact: Artifact) -> None:
    """Publish the version again, with golden examples that are one byte too long."""
    version = artifact.version + 1
    copy = artifact.folder.with_name(str(version))
    shutil.copytree(artifact.folder, copy.with_name(f".copying-{version}"))
    staged = copy.with_name(f".copying-{version}")
    manifest = json.loads((staged / "model.json").read_text())
    (staged / "model.json").write_text(json.dumps(manifest | {"version": version}))
    with (staged / "golden.safetensors").open("ab") as file:
        file.write(b"x")
    staged.rename(copy)


class Pages:
    """Opens the console in different windows and takes its pictures."""

    def __init__(self, browser: Browser, url: str, out: Path) -> None:
        self._browser = browser
        self._url = url
        self._out = out

    def opened(self, size: tuple[int, int], *, scheme: Any = "light") -> Page:
        """Open the console and wait for its first ranking."""
        width, height = size
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("pageerror", lambda error: sys.exit(f"the page reports: {error}"))
        page.goto(f"{self._url}/console")
        page.wait_for_selector("[data-side=B] tr[data-key]")
        return page

    def take(self, page: Page, name: str, *, at: str = "body") -> None:
        """Scroll to an element and save what the window shows."""
        page.evaluate("at => document.querySelector(at).scrollIntoView()", at)
        page.wait_for_timeout(900)
        path = self._out / f"{name}.png"
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            picture.convert("RGB").quantize(128).save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path} {size / 1e3:.0f} kB")
        if size >= LARGEST_BYTES:
            sys.exit(f"{path} has {size} bytes, at most {LARGEST_BYTES} are allowed")


def playground(page: Page) -> None:
    """Move a slider, so that the two orders differ."""
    slider = page.get_by_label("Weight of like, policy A")
    slider.focus()
    for _ in range(8):
        slider.press("ArrowRight")
    page.wait_for_timeout(500)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Score examples of different sizes all the time, at a rate that swings."""
    stopped = threading.Event()
    [model] = httpx.get(f"{url}/v1/models").json()["models"]
    bodies = [
        httpx.get(f"{url}/v1/models/{model['name']}/example", params={"candidates": n}).json()
        for n in (4, 12, 32)
    ]
    threads = [
        threading.Thread(target=_call, args=(url, bodies, number, stopped), daemon=True)
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def _call(
    url: str, bodies: Sequence[dict[str, Any]], number: int, stopped: threading.Event
) -> None:
    count = 0
    with httpx.Client() as client:
        while not stopped.is_set():
            count += 1
            body = bodies[(count + number) % len(bodies)]
            client.post(f"{url}/v1/score", json=body)
            quiet = (time.monotonic() / 20) % 1 < 0.5
            stopped.wait(0.03 if quiet else 0.008)


if __name__ == "__main__":
    main()
