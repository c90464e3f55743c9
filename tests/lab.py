"""The workbook as a person has it: JupyterLab in Chromium. ``python tests/lab.py [--shots DIR] [NOTEBOOK ...]``.

Opens copies of notebooks, runs all their cells, and uses the panel of ``vlmad_lib.reporting.explorer`` and every
control of what else can be explored. Exit code 1 where a cell is in error or was not run, or where something that is
chosen or moved ends in an error or changes nothing.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from urllib.request import urlopen

from browser import FLAGS
from playwright.sync_api import Locator, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PATIENCE = 600  # seconds for all cells of a notebook, whose run may not be kept yet
SETTINGS = {  # all cells are in the page; nothing asks anything
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
FAILED = ", ".join(f"[data-mime-type='application/vnd.jupyter.{kind}']" for kind in ("error", "stderr"))


def serve(folder: Path, token: str) -> tuple[subprocess.Popen, str]:
    """JupyterLab on a copy of the notebooks, on a port that is free, with no settings but these."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name, values in SETTINGS.items():
        file = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "spaces"}
    places = {name: str(folder / part) for name, part in own.items()} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--port-retries=0", f"--IdentityProvider.token={token}", f"--notebook-dir={folder / 'notebooks'}"]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            with urlopen(f"{address}/api?token={token}", timeout=5):
                return server, address
        except OSError:
            time.sleep(0.5)
    server.terminate()
    sys.exit(f"JupyterLab does not answer:\n{(folder / 'lab.log').read_text(encoding='utf-8')}")


def run_all(page: Page, file: Path) -> list[str]:
    """Run all cells, save, and read what the file says: faults of cells."""
    page.locator(".jp-NotebookPanel-toolbar").wait_for(timeout=120_000)
    light = page.locator(".jp-Notebook-ExecutionIndicator")
    for _ in range(10):  # it is idle too before it is connected, and then loses what it is told
        page.wait_for_timeout(3000)
        for dialog in page.locator("dialog.jp-Dialog:visible").all():  # it would take every click
            return [f"a dialog: {' '.join(dialog.inner_text().split())}"]
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        if light.get_attribute("data-status") == "busy":
            break
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        page.wait_for_timeout(2000)
        if light.get_attribute("data-status") == "busy":
            continue
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        cells = [one for one in json.loads(file.read_text(encoding="utf-8"))["cells"] if one["cell_type"] == "code"]
        failed = [out for one in cells for out in one["outputs"] if out["output_type"] == "error"]
        if failed or all(one["execution_count"] for one in cells):
            return [f"{one['ename']}: {one['evalue']}" for one in failed]
    return [f"not all cells ran in {PATIENCE} s"]


def changed(page: Page, act: callable, place: Locator) -> float | None:
    """Seconds until an element's content is another after an act; none where it stays."""
    before, started = place.inner_html(), time.monotonic()
    act()
    while time.monotonic() - started < 120:
        now = place.inner_html()
        if now != before and "loads the backbone" not in now:
            return time.monotonic() - started
        page.wait_for_timeout(20)
    return None


def use_panel(page: Page) -> tuple[list[str], list[str]]:
    """Choose, write and move what the panel has: what was done, with seconds, and faults."""
    told, faults = [], []

    def do(what: str, act: callable, place: Locator) -> None:
        seconds = changed(page, act, place)
        (told if seconds is not None else faults).append(
            f"{what}: {'no change' if seconds is None else f'{seconds:.2f} s'}"
        )

    pictures = page.locator(".widget-html", has=page.locator("img[alt*='overlay']")).last
    pictures.scroll_into_view_if_needed()
    images = page.locator(".widget-dropdown", has_text="image").last.locator("select")
    do("image", lambda: images.select_option(index=1), pictures)
    windows = page.locator(".widget-dropdown", has_text="windows").last
    if windows.is_visible():
        do("window", lambda: windows.locator("select").select_option(index=1), pictures)
    boxes = [one for one in page.locator(".widget-text input").all() if one.is_visible()]
    for number, text in enumerate(
        ("a photo of a flawless {}", "a photo of a scratched {}") if len(boxes) > 1 else ("torn",)
    ):
        if boxes:
            boxes[number].fill(text)
            if number < len(boxes) - 1:
                boxes[number].press("Tab")
                page.get_by_text("Write both prompts").wait_for(timeout=60_000)
    if boxes:
        do("first words", lambda: boxes[-1].press("Enter"), pictures)
        boxes[-1].fill("a photo of a {} with a hole" if len(boxes) > 1 else "holed")
        do("words", lambda: boxes[-1].press("Enter"), pictures)
    slider = page.locator(".widget-slider", has_text="threshold").last
    if slider.is_visible():
        counts = page.locator(".widget-html", has_text="false alarms").last
        handle = slider.locator(".noUi-handle")
        do("threshold", lambda: (handle.focus(), handle.press("PageUp")), counts)
    return told, faults + [f"panel: {one}" for one in page.locator(FAILED).all_inner_texts()]


def use_controls(page: Page) -> tuple[list[str], list[str]]:
    """Choose another value of every list and slider of ``interact``: what was done, with seconds, and faults."""
    told, faults = [], []
    for box in page.locator(".widget-interact").all():
        shown = box.locator(".widget-output").last
        box.scroll_into_view_if_needed()
        acts = [("choice", partial(_choose_next, one)) for one in box.locator("select").all()]
        acts += [("slider", partial(_move, one)) for one in box.locator(".noUi-handle").all()]
        for what, act in acts:
            seconds = changed(page, act, shown)
            (told if seconds is not None else faults).append(
                f"{what}: {'no change' if seconds is None else f'{seconds:.2f} s'}"
            )
    return told, faults + [f"control: {one}" for one in page.locator(FAILED).all_inner_texts()]


def _choose_next(one: Locator) -> None:
    """The next value of a list, after the last the first."""
    one.select_option(index=one.evaluate("one => (one.selectedIndex + 1) % one.options.length"))


def _move(handle: Locator) -> None:
    handle.focus()
    handle.press("ArrowRight")


def main() -> int:
    """One line a notebook; 1 if any has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", default=NOTEBOOKS, help="by default all")
    parser.add_argument("--shots", type=Path, help="keep a screenshot of each panel here")
    options = parser.parse_args()
    program, token, failed = shutil.which("chromium"), secrets.token_hex(16), False
    if program is None:
        sys.exit("chromium is not installed; apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, sync_playwright() as playwright:
        server, address = serve(Path(name), token)
        try:
            browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
            for notebook in options.notebooks:
                page = browser.new_page(viewport={"width": 1500, "height": 1200})
                page.goto(f"{address}/lab/tree/{notebook}.ipynb?token={token}&reset", timeout=120_000)
                file = Path(name) / "notebooks" / f"{notebook}.ipynb"
                faults, told = run_all(page, file), ["all cells ran"]
                if not faults and "explore.Panel" in file.read_text(encoding="utf-8"):
                    told, faults = use_panel(page)
                if not faults:
                    more, faults = use_controls(page)
                    told += more
                if options.shots:
                    options.shots.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=options.shots / f"{notebook}.png")
                page.close()
                failed |= bool(faults)
                print(f"{notebook}: {', '.join(told)}; {'; '.join(faults) or 'ok'}", flush=True)
            browser.close()
        finally:
            server.terminate()
            server.wait(30)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
