"""Open a report in Debian's Chromium: ``python tests/browser.py RUN_FOLDER [--shots DIR] [--axe FILE]``.

Exit code 1 on a fault: a request that leaves this machine, a console error, a picture that is empty or without alt
text, a page wider than its window (all folded parts open), a link to nothing, a search that finds what it should not,
pages of more than 25 MB in all. With axe-core (``npm install axe-core`` in the folder it is run from, or where
``--axe`` says) also what it holds against a page's accessibility; without, that is said.
"""

import argparse
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 800)
LIGHT = 25e6  # bytes of all pages
AXE = Path("node_modules/axe-core/axe.min.js")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOOK = """() => {
  document.querySelectorAll('details').forEach(part => { part.open = true; });
  const pictures = [...document.images];
  const root = document.documentElement;
  const files = [...document.links].filter(link => link.protocol === 'file:');
  return {
    wide: root.scrollWidth - root.clientWidth,
    silent: pictures.filter(picture => !picture.alt.trim()).length,
    empty: pictures.filter(picture => !picture.naturalWidth || !picture.offsetHeight).length,
    lost: [...document.querySelectorAll('a[href^="#"]')].map(link => decodeURIComponent(link.hash.slice(1)))
      .filter(id => !document.getElementById(id)),
    pictures: pictures.length,
    headings: document.querySelectorAll('h1').length,
    files: [...new Set(files.map(link => link.href.split('#')[0]))],
  };
}"""
AUDIT = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .map(one => `${one.help} (${one.id}, ${one.nodes.length}): ${one.nodes[0].html.slice(0, 100)}`)"""
SEARCH = """() => [...document.querySelectorAll('tr[data-words]')]
  .map(row => [!row.hidden, row.dataset.words + ' ' + row.textContent])"""


def faults_of(browser: Browser, page_file: Path, width: int, shots: Path | None, axe: str) -> tuple[list[str], int]:
    """What is wrong with one page at one width, and how many pictures it has; a screenshot is kept."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    page.on("request", lambda request: _check_request(request.url, faults))
    page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.goto(page_file.as_uri())
    if shots:
        page.screenshot(path=shots / f"{page_file.stem}-{width}.png", full_page=True)
    found = page.evaluate(LOOK)
    if axe:
        page.evaluate(axe)
        faults += [f"accessibility: {text}" for text in page.evaluate(AUDIT)]
    if page.locator("#search").count():
        faults += _search(page)
    if page.locator(".gallery").count():
        faults += _browse(page)
    page.close()
    texts = {
        "wide": "{} px wider than the window",
        "silent": "{} pictures without alt text",
        "empty": "{} empty pictures",
        "lost": "links to no heading: {}",
    }
    faults += [text.format(found[key]) for key, text in texts.items() if found[key]]
    if found["headings"] != 1:
        faults.append(f"{found['headings']} first-level headings")
    missing = [url for url in found["files"] if not Path(unquote(urlparse(url).path)).exists()]
    return faults + [f"link to a missing file: {url}" for url in missing], found["pictures"]


def _search(page: Page) -> list[str]:
    """What is wrong with the search of an index: each category must leave the rows that hold it, and no others."""
    faults = []
    for name in page.locator("datalist option").evaluate_all("all => all.map(one => one.value)"):
        page.fill("#search", name)
        rows = page.evaluate(SEARCH)
        if not any(shown for shown, _ in rows) or any(shown != (name.lower() in text.lower()) for shown, text in rows):
            faults.append(f"the search for {name} leaves the wrong rows")
    return faults


def _browse(page: Page) -> list[str]:
    """What is wrong with the page of all pictures: its threshold, its choices, and its keys."""
    faults, escapes = [], {}
    for rate in (0, 50):
        page.locator("[name=rate]").fill(str(rate))
        found, missed, passed, alarms = map(int, page.locator(".counts tbody tr:first-child td").all_inner_texts())
        escapes[rate] = missed
        if alarms > rate / 100 * (passed + alarms):
            faults.append(f"{alarms} false alarms of {passed + alarms} good pictures at {rate} %")
        page.locator("[name=outcome]").select_option("escape")
        if page.locator(".card").count() != min(missed, 48):
            faults.append(f"{page.locator('.card').count()} pictures for {missed} escapes")
        page.locator("[name=outcome]").select_option("")
    if escapes[50] > escapes[0]:
        faults.append(f"more escapes at a looser threshold: {escapes}")
    card = page.locator(".card").first
    card.focus()
    page.keyboard.press("Enter")
    first = page.url
    page.keyboard.press("ArrowRight")
    if not page.locator("dialog[open]").count() or "picture=" not in first or page.url == first:
        faults.append("the keyboard opens no picture, or not the next one")
    shown = page.locator(".detail p").first.inner_text()
    page.goto(page.url)
    page.reload()
    if page.locator(".detail p").first.inner_text() != shown:
        faults.append("the link to a picture opens another one")
    page.keyboard.press("Escape")
    if page.locator("dialog[open]").count():
        faults.append("Escape does not close a picture")
    return faults


def _check_request(url: str, faults: list[str]) -> None:
    """Note a request for anything that is not on this machine."""
    if not url.startswith(("file:", "data:")):
        faults.append(f"requests {url}")


def main() -> int:
    """One line a page; 1 if any has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run folder with index.html")
    parser.add_argument("--shots", type=Path, help="keep a screenshot of each page and width here")
    parser.add_argument("--axe", type=Path, default=AXE, help="axe-core's axe.min.js")
    options = parser.parse_args()
    program = shutil.which("chromium")
    if program is None:
        sys.exit("chromium is not installed; apt-get install chromium")
    index = options.folder.resolve() / "index.html"
    if not index.is_file():
        sys.exit(f"{options.folder} has no index.html; give the folder of one run")
    pages = [index, *sorted(set(index.parent.glob("*.html")) - {index})]
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    axe = options.axe.read_text(encoding="utf-8") if options.axe.is_file() else ""
    failed = False
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for page in pages:
            faults, pictures = [], 0
            for width in WIDTHS:
                found, pictures = faults_of(browser, page, width, options.shots, axe)
                faults += [f"at {width} px: {fault}" for fault in found]
            failed |= bool(faults)
            size = page.stat().st_size / 1000
            print(f"{page.name}: {size:.0f} kB, {pictures} pictures, {'; '.join(faults) or 'ok'}")
        browser.close()
    total = sum(page.stat().st_size for page in pages)
    failed |= total > LIGHT
    print(f"{total / 1e6:.1f} MB in all, of at most {LIGHT / 1e6:.0f}")
    if not axe:
        print(f"accessibility was not checked: there is no {options.axe} (npm install axe-core)")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
