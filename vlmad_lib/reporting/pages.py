"""The pages of a report: a notebook's cells and a run's record as HTML that loads nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import latex2mathml.converter
import nbformat
import PIL.Image
from bs4 import BeautifulSoup, Tag
from bs4.formatter import EntitySubstitution, HTMLFormatter
from nbconvert import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from traitlets.config import Config

from vlmad_lib import ROOT, config, files, tables

if TYPE_CHECKING:
    from vlmad_lib.reporting.report import Notebook, Report

TEMPLATE = ROOT / "reports" / "template"
FORMATS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
# The page of all pictures, beside the notebooks' (``image_browser``).
IMAGES = "images.html"
# The page of all terms, from the section of this name in notebooks/TEACHING.md.
GLOSSARY, TERMS = "glossary.html", ROOT / "notebooks" / "TEACHING.md"
# A table of more rows is folded on a page.
LONG = 14
# The width and height that a figure has at most beside its question in the index.
THUMBNAIL = (640, 480)
# The notebooks whose answer may open the index, the first choice first.
ADVICE = ("17", "00")
HTML5 = HTMLFormatter(EntitySubstitution.substitute_xml, "", empty_attributes_are_booleans=True)
NUMBER = re.compile(r"[-+−<>≤≥≈]?\s*\.?\d([\d.,\s%±()\[\]/e+−–-]|to)*|nan|none|refused|[—–-]|", re.IGNORECASE)


def body(cells: list[NotebookNode], path: Path, pages: Collection[str] = (), dataset: str = "demo") -> BeautifulSoup:
    """The cells as HTML: nothing loaded, links to other notebooks led to their pages, headings in order.

    ``dataset``: the profile's, which decides what of a notebook concerns the run (``TAGGED``).
    """
    cells = _concerned(cells, dataset)
    tags = [set(cell.metadata.get("tags", [])) for cell in cells]
    if any("injected-parameters" in names for names in tags):  # the defaults they replace would be a second list
        cells = [cell for cell, names in zip(cells, tags, strict=True) if "parameters" not in names]
    cells = _put_answer_first(cells)
    resources = {"metadata": {"path": str(path.parent)}}
    html, _ = _exporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells), resources)
    soup = BeautifulSoup(html, "html.parser")
    for node in soup.select("script, link, iframe, object, embed, base, meta, style[scoped], form"):
        node.decompose()
    for node in soup(True):
        node.attrs = {name: value for name, value in node.attrs.items() if not name.lower().startswith("on")}
    for node in soup.select("[src]:not([src^='data:'])"):
        node.replace_with(f"[not part of this report: {node.get('alt') or node['src']}]")
    for node in soup.select("math [href]"):
        del node["href"]
    _lead_links(soup, pages)
    _order_headings(soup, path.stem)
    _join_code(soup)
    _fold(soup)
    return soup


# Tags of cells, and the data sets on whose pages alone they stand: ``demo`` is text on the demo data, ``benchmark``
# published figures, beside which those of other data cannot stand.
TAGGED = {"demo": ("demo",), "benchmark": ("demo", *config.BENCHMARKS)}


def _concerned(cells: list[NotebookNode], dataset: str) -> list[NotebookNode]:
    """The cells that a run on a data set concerns.

    Text tagged ``if-shown`` goes with its code cells, those below
    it up to the next text, where none of them shows anything: a heading above nothing tells a reader nothing.
    """
    left_out = {tag for tag, names in TAGGED.items() if dataset not in names}
    cells = [cell for cell in cells if not left_out & set(cell.metadata.get("tags", []))]
    kept, place = [], 0
    while place < len(cells):
        end = place + 1
        while end < len(cells) and cells[end].cell_type == "code":
            end += 1
        section = cells[place:end]
        shown = any(cell.get("outputs") or cell.metadata.get("failed") for cell in section)
        if shown or "if-shown" not in section[0].metadata.get("tags", []):
            kept += section
        place = end
    return kept


def _lead_links(soup: BeautifulSoup, pages: Collection[str]) -> None:
    """Lead links to notebooks and to the glossary to their ``pages``; a link to another file becomes its text."""
    for link in soup.select("a[href]"):
        address = re.sub(rf"^{re.escape(TERMS.name)}(#.*)?$", GLOSSARY, link["href"])
        notebook = re.fullmatch(r"(?:.*/)?([^/#]+)\.ipynb(#.*)?", address)
        if notebook and f"{notebook[1]}.html" in pages:
            link["href"] = f"{notebook[1]}.html{notebook[2] or ''}"
        elif re.match(rf"(https?|mailto):|#|{re.escape(IMAGES)}|{re.escape(GLOSSARY)}", address):
            link["href"] = address
        else:
            link.unwrap()


def _put_answer_first(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells with that tagged ``answer`` behind those of the title, the question and what to read first."""
    answers = [cell for cell in cells if "answer" in cell.metadata.get("tags", []) and cell.get("outputs")]
    rest = [cell for cell in cells if cell not in answers]
    place = next((place for place, cell in enumerate(rest) if cell.cell_type == "code"), len(rest))
    return rest[:place] + answers + rest[place:]


def read_answer(cells: list[NotebookNode], pages: Collection[str] = ()) -> tuple[list[str], dict[str, str]]:
    """The answer of a notebook: its sentences as HTML, and its figure as a small ``data:`` URL (src) and text (alt).

    The answer is what the cell tagged ``answer`` displays, its links led to ``pages``. None of both of a notebook
    without such a cell, or where it has not been run.
    """
    sentences, picture = [], {}
    for cell in cells:
        outputs = cell.get("outputs", []) if "answer" in cell.metadata.get("tags", []) else []
        for output in outputs:
            data = output.get("data", {})
            if "text/markdown" in data:
                soup = BeautifulSoup(_markdown(data["text/markdown"]), "html.parser")
                _lead_links(soup, pages)
                paragraphs = soup(["p", "li"])
                sentences += [paragraph.decode_contents() for paragraph in paragraphs]
            for kind in ("image/png", "image/jpeg"):
                if kind in data and not picture:
                    picture = {"src": _shrink(base64.b64decode(data[kind])), "alt": _read_alt(output)}
    return sentences, picture


def take_figures(cells: list[NotebookNode], folder: Path, stem: str) -> list[dict[str, str]]:
    """Take the figures attached as SVG or PDF out of cells' outputs and write each as a file of ``folder``.

    Returns the file of each, below the folder of ``folder``, and what it shows, in their order.
    """
    taken = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        for suffix, media_type in config.VECTORS.items():
            if (drawing := output.get("data", {}).pop(media_type, None)) is None:
                continue
            content = drawing.encode() if suffix == "svg" else base64.b64decode(drawing)
            file = folder / f"{stem}-{len(taken) + 1}.{suffix}"
            files.replace_file(file, lambda path, content=content: path.write_bytes(content))
            taken.append({"file": f"{folder.name}/{file.name}", "alt": _read_alt(output)})
    return taken


def _read_alt(output: NotebookNode) -> str:
    """What the figure of an output shows, in words."""
    described = (output.metadata.get(kind, {}).get("alt") for kind in ("image/png", "image/jpeg"))
    return next(filter(None, described), "figure")


def _shrink(pixels: bytes) -> str:
    """A picture of at most ``THUMBNAIL`` pixels a side as a ``data:`` URL."""
    picture = PIL.Image.open(io.BytesIO(pixels)).convert("RGB")
    picture.thumbnail(THUMBNAIL, PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.quantize(64).save(stream, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


class _Exporter(HTMLExporter):
    """Turns cells into HTML without going over it once more: ``body`` does."""

    def from_notebook_node(self, nb: NotebookNode, resources: dict | None = None, **kw: Any) -> tuple[str, dict]:
        return TemplateExporter.from_notebook_node(self, nb, resources, **kw)


@lru_cache(maxsize=1)
def _exporter() -> _Exporter:
    """What turns cells into HTML; made once, as its templates are compiled when they are first used."""
    config = Config(NbConvertBase={"display_data_priority": FORMATS})
    config.HTMLExporter = Config(embed_images=True, exclude_anchor_links=True)
    exporter = _Exporter(config, template_name="cells", extra_template_basedirs=[str(TEMPLATE)])
    exporter.register_filter("highlight_code", Highlight2HTML(parent=exporter))
    exporter.register_filter("markdown2html", _markdown_of_cell)
    exporter.register_filter("escaped2html", _markdown)
    return exporter


class _Renderer(IPythonRenderer):
    """Markdown as HTML with formulas as MathML, which browsers show without a script and read aloud."""

    def inline_math(self, body: str, display: str = "inline") -> str:
        try:
            return latex2mathml.converter.convert(body, display=display)
        except Exception:  # it raises many kinds, some of them no ValueError; what is no formula stays text
            return self.escape_html(f"${body}$")

    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")


def _markdown(text: str, maths: bool = False) -> str:
    """The Markdown of an output as HTML: a tag in it comes from data, as a folder's name, and is shown as text.

    So are dollar signs, unless the cell has the tag ``maths``.
    """
    renderer = (_Renderer if maths else IPythonRenderer)(escape=True, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(tables.keep_together(text))


@jinja2.pass_context
def _markdown_of_cell(context: jinja2.runtime.Context, text: str) -> str:
    """The Markdown of a cell as HTML, with its pictures."""
    path, attachments = context["resources"]["metadata"]["path"], context["cell"].get("attachments", {})
    renderer = _Renderer(escape=False, attachments=attachments, embed_images=True, path=path, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(text)


def _order_headings(soup: BeautifulSoup, title: str) -> None:
    """One h1, first, and no level left out below it; ids of their own, named as in Jupyter."""
    if soup.h1 is None:
        soup.insert(0, soup.new_tag("h1", string=title))
    level, taken = 0, set()
    for heading in soup(["h1", "h2", "h3", "h4", "h5", "h6"]):
        level = min(max(int(heading.name[1]), 2), level + 1)
        heading.name = f"h{level}"
        heading["id"] = heading.get_text().strip().replace(" ", "-")
        while heading["id"] in taken:
            heading["id"] += "-"
        taken.add(heading["id"])


def _join_code(soup: BeautifulSoup) -> None:
    """Join cells that show nothing but their folded code, one after another, into one box."""
    for cell in soup.select(".cell"):
        before = cell.find_previous_sibling(True)
        if before is None or not (_is_code_alone(cell) and _is_code_alone(before)):
            continue
        if cell.has_attr("data-fold") != before.has_attr("data-fold"):
            continue
        for node in list(cell.select("details.code > :not(summary)")):
            before.details.append(node.extract())
        cell.decompose()


def _is_code_alone(cell: Tag) -> bool:
    """Whether a cell shows folded code and nothing else; the parameters stand by themselves."""
    children = cell.find_all(True, recursive=False)
    if "cell" not in cell.get("class", []) or cell.get("id") or len(children) != 1:
        return False
    return children[0].get("class") == ["code"] and children[0].summary.get_text() == "code"


def _fold(soup: BeautifulSoup) -> None:
    """Fold cells tagged ``fold``: each run of them into one box, which the heading of the first opens.

    A run without a heading is called *details*. A new heading begins a new box. What failed stays open.
    """
    for cell in soup.select("[data-fold]"):
        del cell["data-fold"]
        before, heading = cell.find_previous_sibling(True), cell.find(["h2", "h3", "h4"])
        if heading is None and before is not None and "fold" in before.get("class", []):
            before.append(cell.extract())
            continue
        box, summary = soup.new_tag("details", attrs={"class": "fold"}), soup.new_tag("summary")
        summary.append(heading.extract() if heading else "details")
        cell.wrap(box)
        box.insert(0, summary)
    for box in soup.select("details.fold:has(#failure)"):
        box["open"] = ""


def _fold_long_tables(soup: BeautifulSoup) -> None:
    """Fold each table of more than ``LONG`` rows behind a line that names its first columns and counts its rows."""
    for table in soup("table"):
        rows = len(table.select("tbody tr"))
        if rows <= LONG or table.find_parent("details", class_=["solution", "figures"]):
            continue
        names = [cell.get_text(" ", strip=True) for cell in table.select("thead tr:first-child > *")]
        names = ", ".join(list(filter(None, names))[:4])
        summary = soup.new_tag("summary", string=f"Table of {rows} rows" + (f": {names} and more" if names else ""))
        box = table.find_parent("div", class_="scroll").wrap(soup.new_tag("details", attrs={"class": "long"}))
        box.insert(0, summary)


def _mark_tables(soup: BeautifulSoup) -> None:
    """Give each table a box that scrolls, its headers a scope, and columns that hold numbers only the class ``num``."""
    for table in soup("table"):
        table.attrs.pop("border", None)
        box = {"class": "scroll", "tabindex": "0", "role": "group"}  # a keyboard scrolls what can have the focus
        box["aria-label"] = table.caption.get_text(strip=True) if table.caption else "table"
        table.wrap(soup.new_tag("div", attrs=box))
        for cell in table("th"):
            if not cell.get_text(strip=True):  # a header of nothing
                cell.name = "td"
            elif not cell.get("scope"):
                cell["scope"] = "col" if cell.find_parent("thead") else "row"
        rows = [row(["th", "td"]) for row in table("tr") if not row.find(colspan=True)]
        for place in range(1, max(map(len, rows), default=0) + 1):  # from the right: pandas joins index cells
            column = [row[-place] for row in rows if len(row) >= place]
            texts = [cell.get_text(strip=True) for cell in column if cell.find_parent("tbody")]
            if all(map(NUMBER.fullmatch, texts)):
                for cell in column:
                    cell["class"] = [*cell.get("class", []), "num"]


def _named(soup: BeautifulSoup, categories: Collection[str]) -> list[str]:
    """The categories that a page names, in its text or in what its pictures show."""
    text = " ".join([soup.get_text(" "), *(picture.get("alt", "") for picture in soup("img"))])
    return [name for name in categories if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


def write_page(report: Report, notebook: Notebook, cells: list[NotebookNode]) -> None:
    """Write one notebook's page; without cells it says that the notebook has not been run."""
    books = report.notebooks
    place = books.index(notebook)
    names = [book.page for book in books]
    soup = body(cells, notebook.path, names, report.profile.dataset)
    notebook.answer, notebook.picture = read_answer(cells, names)
    notebook.categories = _named(soup, dict.fromkeys(row["category"] for row in report.categories))
    values = {"headings": soup(["h2", "h3"]), "cells": len(cells)}
    around = {"previous": [None, *books][place], "next": [*books, None][place + 1]}
    _render(report, "page.html.j2", notebook.page, soup, fold=True, notebook=notebook, **around, **values)


def write_glossary(report: Report) -> None:
    """Write the page of all terms."""
    text = TERMS.read_text(encoding="utf-8").partition("## Glossary\n")[2].partition("\n## ")[0]
    soup = BeautifulSoup(_markdown(text), "html.parser")
    for link in soup("a"):
        link.unwrap()
    _render(report, "glossary.html.j2", GLOSSARY, soup)


def write_index(report: Report) -> None:
    """Write index.html and run.json as things stand.

    The index opens with the answer of the first of ``ADVICE`` that has one: which method to take.
    """
    answers = {book.path.stem[:2]: book for book in report.notebooks if book.answer}
    advice = next((answers[number] for number in ADVICE if number in answers), None)
    tabled = sorted(path.name for path in report.folder.iterdir() if path.suffix in (".parquet", ".csv"))
    products: dict[str, dict[str, Any]] = {}  # a row a product, a column a method
    for row in report.categories:
        product = products.setdefault(row["category"], {"product": row["category"], "group": row["group"]})
        product[row["method"]] = row[tables.TITLES["image_auroc"]]
    for name in dict.fromkeys(row["method"] for row in report.categories):  # the same columns in each row
        for product in products.values():
            product[name] = product.pop(name, None)
    profile = (report.folder / "profile.yml").read_text(encoding="utf-8")
    images = IMAGES if (report.folder / IMAGES).is_file() else ""
    shown = {"files": tabled, "yaml": profile, "advice": advice, "images": images, "products": list(products.values())}
    _render(report, "run.html.j2", "index.html", **shown)
    record = report.record()
    for notebook in record["notebooks"]:
        del notebook["picture"]
    record = json.dumps(record, indent=1, default=str)
    files.replace_file(report.folder / "run.json", lambda path: path.write_text(record, encoding="utf-8"))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """The templates of the pages."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True)
    environment.filters["duration"] = _duration
    return environment


def render_template(record: dict[str, Any], template: str, script: str, **values: Any) -> str:
    """The text of a page from the template folder; all is escaped that is not marked safe there.

    Args:
        record: ``Report.record`` of the report that the page belongs to.
        template: A file of the folder.
        script: Another: the one script that the page may run.
        values: What else the template shows.
    """
    style = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    code = (TEMPLATE / script).read_text(encoding="utf-8").strip()
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    shared = {"style": style, "script": code, "allowed": f"'sha256-{allowed}'"}
    return _environment().get_template(template).render(run=record, **shared, **values)


def _render(
    report: Report, template: str, page: str, inner: BeautifulSoup | None = None, fold: bool = False, **values: Any
) -> None:
    """Write a page; ``inner`` takes the place of its element ``template``, and is not parsed again.

    ``fold``: long tables are folded.
    """
    text = render_template(report.record(), template, "search.js", **values)
    soup = BeautifulSoup(text, "html.parser")
    if inner is not None:
        soup.template.replace_with(*inner.contents)
    _mark_tables(soup)
    if fold:
        _fold_long_tables(soup)
    for node in soup.body("style"):  # of pandas' tables
        soup.head.append(node.extract())
        node.attrs.clear()
    for node in soup("pre"):
        node["tabindex"] = "0"
    html = soup.decode(formatter=HTML5)
    files.replace_file(report.folder / page, lambda path: path.write_text(html, encoding="utf-8"))


def _duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
