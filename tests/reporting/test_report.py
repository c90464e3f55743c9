"""The report builder on tiny notebooks, with a stub in the place of the run."""

import base64
import hashlib
import io
import json
import os
import re
import signal
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import joblib
import nbformat
import pandas as pd
import PIL.Image
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vlmad_lib import ROOT, InputError
from vlmad_lib.reporting import image_browser, notebook_runner, report
from vlmad_lib.reporting import pages as pages_module

EVIL = "<script>alert(1)</script>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PARAMETERS = """profile: str = ""
count: int = 3  # a=b
limit: float = 0.3
label: str = "a=b#c"
shots: list = [
    0, 1]"""
SHOW = (
    "import sys\nfrom IPython.display import HTML, display\n"
    f"picture = '{PIXEL}'\n"
    "display({'image/png': picture}, metadata={'image/png': {'alt': 'Rising \"score\"'}}, raw=True)\n"
    "display({'image/jpeg': picture}, metadata={'alt': 'A grid of parts'}, raw=True)\n"
    "display({'image/png': picture}, raw=True)\n"
    'display(HTML(\'<script src="https://example.org/x.js"></script><img src="https://example.org/x.png">\'\n'
    '             \'<link rel="stylesheet" href="https://example.org/x.css">\'))\n'
    "display(HTML('<table class=\"dataframe\"><thead><tr><th>kind</th><th>n</th></tr></thead>'\n"
    "             '<tbody><tr><td>bolt</td><td>12.5</td></tr></tbody></table>'))\n"
    "print('to stderr', file=sys.stderr)"
)


def code(source: str, *tags: str) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": list(tags)})


class Results:
    """What the run hands over, with a category that attacks the pages."""

    scores = pd.DataFrame({"score": [0.25]})
    metrics = pd.DataFrame({"auroc": [0.5]})
    facts = {
        "warnings": ["Weights are random."],
        "notes": [f"note {EVIL}"],
        "backbones": [
            {"name": "demo", "weights": EVIL, "sha256": "ab" * 32, "parameters": 1234567, "random": True},
        ],
        "data": [{"dataset": "demo", "category": EVIL, "train": 1, "good": 2, "defective": 3, "masks": 3}],
        "seconds": {"features": 1.0},
    }

    def macro(self) -> pd.DataFrame:
        rows = [(EVIL, 0.9, 0.8, 1.0), ("other, zero-shot", None, None, None)]
        return pd.DataFrame(rows, columns=["name", "image_auroc", "low", "high"])

    def headline(self, macro: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"Category": [EVIL], "AUROC": [0.98765], "AUPRO": [None]})

    def by_category(self) -> pd.DataFrame:
        facts = {"category": [EVIL, "bolt", "grid"], "group": "rigid", "method": "other, zero-shot"}
        return pd.DataFrame(facts | {"image AUROC": [0.5, 0.75, None]})


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """The run's stand-in; ``calls`` counts how often it was asked."""
    module = types.ModuleType("vlmad_lib.pipeline.run")
    module.calls = 0

    def run(profile, progress=False, announce=False):
        module.calls += 1
        return Results()

    module.run = run
    monkeypatch.setitem(sys.modules, "vlmad_lib.pipeline.run", module)
    monkeypatch.setattr(image_browser, "write_page", lambda *_: None)  # it has a test of its own
    monkeypatch.setenv("MPLBACKEND", "agg")  # main sets it for the kernels; restored after the test
    return module


def write(folder: Path, books: dict[str, list[nbformat.NotebookNode]]) -> Path:
    """Notebooks and a profile that lists them."""
    folder.mkdir(exist_ok=True)
    for name, cells in books.items():
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    names = [str(folder / name) for name in books]
    profile = {"title": "Tiny & small", "dataset": "demo", "root": "data/demo", "notice": "Only a stub."}
    (folder / "tiny.yml").write_text(yaml.safe_dump(profile | {"notebooks": names}))
    return folder / "tiny.yml"


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write(tmp_path, {"01_one": [new_markdown_cell("# One"), code(PARAMETERS, "parameters")]})


def resolve(profile: Path, *pairs: str) -> report.Report:
    return report.resolve(str(profile), list(pairs), profile.parent / "out", "command")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("shotz=[0]", ["shotz", "'shots'", "vlmad_lib/config.py"]),
        ("cuont=4", ["cuont", "'count'"]),
        ("profile=x", ["profile"]),
        ("count", ["key=value"]),
        ("count=[1", ["count", "YAML"]),
        ("count=many", ["count", "str", "int", "01_one"]),
        ("count=true", ["count", "bool", "int"]),
        ("count=1.5", ["count", "float", "int"]),
        ("label=7", ["label", "int", "str"]),
        ("shots=3", ["shots"]),
        ("batch=many", ["batch"]),
        ("notebooks=[nowhere]", ["nowhere", "notebooks/"]),
    ],
)
def test_wrong_override_is_refused_before_anything_happens(tiny, stub, capsys, pair, words):
    out = tiny.parent / "out"
    assert report.main([str(tiny), "-p", pair, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert all(word in captured.err for word in words), captured.err
    assert stub.calls == 0
    assert not out.exists()


def test_list_items_have_the_type_of_the_default(tmp_path):
    tiny = write(tmp_path, {"01_one": [code("windows = [2, 3]", "parameters")]})
    assert resolve(tiny, "windows=[5]").notebooks[0].parameters == {"windows": [5]}
    with pytest.raises(InputError, match="windows"):
        resolve(tiny, "windows=[large]")


LIMITS = {
    "alpha": {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "low": {"minimum": 0, "maximum": 1},
    "high": {"minimum": "low", "maximum": 1},
    "pixels": {"minimum": 16, "or": 0},
    "levels": {"minimum": 1, "maximum": 5},
}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["alpha=10"], ["-p alpha: 10", "01_one", "more than 0 and less than 1"]),
        (["alpha=0"], ["-p alpha: 0"]),
        (["alpha=.nan"], ["-p alpha: nan"]),
        (["low=0.5", "high=0.4"], ["-p high: 0.4", "at least 0.5 and at most 1"]),
        (["pixels=5"], ["-p pixels: 5", "at least 16, or 0"]),
        (["levels=[3, 6]"], ["-p levels: 6", "at least 1 and at most 5"]),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_happens(tmp_path, stub, capsys, pairs, words):
    cell = code("alpha = 0.1\nlow = 0.3\nhigh = 0.6\npixels = 120\nlevels = [1]", "parameters")
    cell.metadata["vlmad"] = {"limits": LIMITS}
    tiny = write(tmp_path, {"01_one": [cell]})
    chosen = [part for pair in pairs for part in ("-p", pair)]
    assert report.main([str(tiny), *chosen, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1 and all(word in said for word in words), said
    assert stub.calls == 0 and not (tmp_path / "out").exists()
    assert resolve(tiny, "alpha=0.05", "pixels=0", "levels=[5]", "high=1").notebooks[0].parameters["pixels"] == 0


def test_every_number_of_the_notebooks_has_limits_that_its_default_keeps():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = report._read(path)
        numbers = {
            key
            for key, value in notebook.parameters.items()
            if type(value) in (int, float) or (isinstance(value, list) and value and type(value[0]) in (int, float))
        }
        assert numbers - {"shots"} == set(notebook.limits), path.name  # the profile knows its shots
        for key in notebook.limits:
            report._check_limits(notebook, key)


def test_alpha_of_the_notebooks_is_refused_by_name():
    with pytest.raises(InputError, match="-p alpha: 10 is out of range; 1[12]_.*more than 0 and less than 1"):
        report.resolve("demo", ["alpha=10"], Path("out"), "command")


def test_overrides_reach_profile_and_notebooks(tiny):
    pairs = ["shots=[0, 4]", "limit=1", "label=", "root=/x y", "imports=[{name: X, path: Y}]"]
    found = resolve(tiny, *pairs)
    expected = {"profile": "", "count": 3, "limit": 1, "label": "", "shots": [0, 4]}
    assert found.notebooks[0].parameters == expected
    assert (found.profile.shots, found.profile.root, found.profile.imports[0].path) == ([0, 4], "/x y", "Y")


def test_a_key_of_the_profile_leaves_a_notebooks_own_alone_where_its_kind_differs(tmp_path):
    """The README's own example, on the workbook's own notebooks, of which some have one number of shots."""
    found = report.resolve("mvtec", ["categories=[bottle,cable]", "shots=[0,1]"], tmp_path, "command")
    assert found.profile.shots == [0, 1]
    assert {one.parameters["shots"] for one in found.notebooks if "shots" in one.parameters} == {0}


@pytest.mark.parametrize(
    ("books", "words"),
    [
        ({"01_one": [code("count = max(1, 2)", "parameters")]}, "plain values"),
        ({"index": [code("1")]}, "index.html"),
    ],
)
def test_unusable_notebooks_are_refused(tmp_path, books, words):
    with pytest.raises(InputError, match=words):
        resolve(write(tmp_path, books))


def test_a_file_that_is_no_notebook_is_refused(tiny):
    (tiny.parent / "01_one.ipynb").write_text("{}")
    with pytest.raises(InputError, match="not a notebook"):
        resolve(tiny)


def test_wrong_input_found_by_the_run_leaves_no_folder(tiny, stub, capsys):
    def run(profile, progress=False, announce=False):
        raise InputError("There are no images.")

    stub.run = run
    assert report.main([str(tiny), "--out", str(tiny.parent / "out")]) == 2
    assert capsys.readouterr().err == "There are no images.\n"
    assert list((tiny.parent / "out").iterdir()) == []


def test_two_reports_in_one_second_keep_apart(tmp_path):
    first, second = (resolve(write(tmp_path, {})) for _ in range(2))
    second.started = first.started
    for one in (first, second):
        report.build(one)
    assert first.folder != second.folder
    assert (tmp_path / "out" / "latest").readlink() == Path(second.folder.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole report: good, failing, dying, good; with what was printed, and the exit code."""
    folder = tmp_path_factory.mktemp("books {0}")  # papermill takes braces for its own
    profile = write(
        folder,
        {
            "01_good": [
                new_markdown_cell("# Good & *well*\n\n**Which picture is shown here?** More."),
                new_markdown_cell("[next](02_bad.ipynb#Work)"),
                code(PARAMETERS, "parameters"),
                new_markdown_cell("#### Deep\n\n## Work\n\n## Work\n\n# Again\n\n[gone](../gone.md)"),
                code(SHOW),
                code("secret_source = 1; secret_source", "hide-input"),
                code("print('hidden' + ' output')", "hide-output"),
                code("print('skipped cell')", "skip-execution"),
                code("print('removed cell')", "remove"),
            ],
            "02_bad": [
                new_markdown_cell("# Bad\n\nDoes it fail?\n\n## Work"),
                code("{}['lost <key>']"),
                code("print('never reached')"),
            ],
            "03_dies": [new_markdown_cell("# Dies"), code("import os\nos._exit(3)")],
            "04_last": [code("import os\nos.getcwd(), os.environ['MPLBACKEND']")],
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType("vlmad_lib.pipeline.run")
        module.run = lambda profile, progress=False, announce=False: Results()
        patch.setitem(sys.modules, "vlmad_lib.pipeline.run", module)
        patch.setattr(image_browser, "write_page", lambda *_: None)
        patch.setenv("MPLBACKEND", "agg")
        code_of_exit = report.main([str(profile), "-p", "count=5", "--out", str(folder / "out")])
    return folder / "out" / "latest", code_of_exit


@pytest.fixture(scope="module")
def pages(finished) -> dict[str, BeautifulSoup]:
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in finished[0].glob("*.html")}


@pytest.fixture(scope="module")
def record(finished) -> dict:
    return json.loads((finished[0] / "run.json").read_text())


def test_all_notebooks_run_and_the_exit_code_tells(finished, record):
    assert finished[1] == 1
    assert [entry["status"] for entry in record["notebooks"]] == ["ok", "failed", "failed", "ok"]
    assert record["status"] == "failed"


def test_index_shows_failures_red_with_their_last_line(pages):
    rows = pages["index"].select(".notebooks tbody tr")
    states = [row.select_one(".status") for row in rows]
    assert [state and state.text for state in states] == [None, "failed", "failed", None]
    assert rows[1].select_one(".status.failed")
    assert rows[1].select_one(".error").text == "KeyError: 'lost <key>'"
    assert "Which picture is shown here?" in rows[0].text and "More." not in rows[0].text
    assert [row.a["href"] for row in rows] == ["01_good.html", "02_bad.html", "03_dies.html", "04_last.html"]
    assert "2 failed" in pages["index"].select_one(".facts").text


def test_failing_page_has_the_traceback_and_ends_there(pages):
    page = pages["02_bad"]
    assert "KeyError" in page.select_one(".box.warning pre").text
    assert page.select_one(".box.warning a")["href"] == "#failure"
    assert "lost" in page.select_one("#failure").text
    assert "never reached" not in page.text
    assert "DeadKernelError" in pages["03_dies"].select_one(".box.warning pre").text
    assert "os._exit" in pages["03_dies"].select_one("#failure").text


def test_pages_load_nothing(finished, pages):
    for path in finished[0].glob("*.html"):
        assert "@import" not in path.read_text()
    for name, page in pages.items():
        scripts = page("script")
        assert len(scripts) == (name == "index") and not page(["link", "iframe", "object", "embed", "base"]), name
        digest = [base64.b64encode(hashlib.sha256(one.text.encode()).digest()).decode() for one in scripts]
        policy = page.select_one("meta[http-equiv]")["content"]
        assert re.findall(r"script-src (.*)", policy) == [f"'sha256-{one}'" for one in digest], name
        assert all(node["src"].startswith("data:") for node in page.select("[src]")), name
        assert not re.search(r"url\(|@import", page.style.text), name
        assert "default-src 'none'" in page.select_one("meta[http-equiv]")["content"], name
        for link in page.select("a[href]"):
            file = link["href"].split("#")[0]
            assert not file or (finished[0] / file).is_file(), (name, link)


def test_pictures_carry_their_alt_text(pages):
    texts = [picture["alt"] for picture in pages["01_good"]("img")]
    assert texts == ['Rising "score"', "A grid of parts", "figure without description"]


def test_page_is_well_formed(pages):
    page = pages["01_good"]
    assert (page.html["lang"], page.title.text) == ("en", "Good & well – Tiny & small")
    headings = [node.name for node in page.main(["h1", "h2", "h3", "h4"])]
    assert headings == ["h1", "h2", "h2", "h2", "h2"]
    anchors = [link["href"] for link in page.select("nav a")]
    assert anchors == ["#Deep", "#Work", "#Work-", "#Again"]
    assert all(page.find(id=anchor[1:]) for anchor in anchors)
    assert page.select_one("a[rel=next]")["href"] == "02_bad.html"
    assert page.select_one(".text a")["href"] == "02_bad.html#Work"
    boxes = {box.get_text(strip=True) for box in page.select(".box")}
    assert boxes == {"Only a stub.", "Weights are random."}
    assert [cell.get("class") for cell in page.select(".scroll table td")] == [None, ["num"]]
    for name, other in pages.items():
        assert len(other("h1")) == 1 and len(other("main")) == 1, name


def test_pages_serve_keyboard_and_screen_reader(pages):
    for name, page in pages.items():
        first = page.body.find(["a", "button", "input", "summary"])
        assert (first["class"], page.find(id=first["href"][1:]).name) == (["skip"], "main"), name
        assert all(cell.get("scope") and cell.get_text(strip=True) for cell in page("th")), name
        assert all(node.get("tabindex") == "0" for node in page.select("pre, .scroll")), name
        assert not page.body("style"), name
        assert all(part.get("aria-label") for part in page.select("svg, .scroll")), name


def test_index_can_be_searched_by_category(pages, record):
    rows = pages["index"].select("tr[data-words]")
    assert [row["data-words"] for row in rows if row.a] == ["bolt grid", "", "", ""]  # grid: in the text of a picture
    assert [row.td.text for row in rows if not row.a] == [EVIL, "bolt", "grid"]
    assert [one["value"] for one in pages["index"].select("datalist option")] == [EVIL, "bolt", "grid"]
    assert pages["index"].find(id="search").find_parent(hidden=True)  # until the script that serves it runs
    assert [book["categories"] for book in record["notebooks"]] == [["bolt", "grid"], [], [], []]


def test_the_index_has_a_row_a_product_and_a_column_a_method(pages):
    """It stands open; the other figures are folded below it."""
    open_table, folded = (
        pages["index"].select("table:has(tr[data-words])")[-1],
        pages["index"].select_one(".figures table"),
    )
    heads = [cell.text for cell in open_table.select("thead th")]
    assert heads[:2] == ["product", "group"] and "other, zero-shot" in heads
    assert [row.td.text for row in open_table.select("tbody tr")] == [EVIL, "bolt", "grid"]
    assert open_table.find_parent("details") is None and len(folded.select("tbody tr")) >= 3


def test_headline_figure_has_a_point_for_each_figure(pages):
    figure = pages["index"].svg
    assert len(figure("circle")) == len(figure.select(".interval")) == 1
    assert {EVIL, "other, zero-shot"} <= {node.text for node in figure("text")}


def test_tags_decide_what_is_shown(pages):
    page = pages["01_good"]
    captions = [node.text for node in page.select(".code summary")]
    assert captions == ["parameters", "code", "code"]  # the defaults give way to what was passed
    assert not page.select("details.code[open]")
    assert "secret_source" not in page.text
    assert "hidden' + ' output" in page.text and "hidden output" not in page.text
    assert "skipped cell" not in page.text and "removed cell" not in page.text
    assert "to stderr" in page.select_one("details.messages").text


def test_skipped_cell_was_not_executed(finished):
    cells = nbformat.read(finished[0] / "notebooks" / "01_good.ipynb", as_version=4).cells
    assert [cell.outputs for cell in cells if "skip-execution" in cell.metadata.tags] == [[]]


def test_executed_notebook_records_all_parameters(finished, record):
    book = nbformat.read(finished[0] / "notebooks" / "01_good.ipynb", as_version=4)
    profile = str(finished[0].resolve() / "profile.yml")
    expected = {"profile": profile, "count": 5, "limit": 0.3, "label": "a=b#c", "shots": [0, 1]}
    assert book.metadata.papermill.parameters == expected
    assert record["notebooks"][0]["parameters"] == book.metadata.papermill.parameters


def test_kernels_draw_inline_in_the_notebooks_folder(finished):
    book = nbformat.read(finished[0] / "notebooks" / "04_last.ipynb", as_version=4)
    shown = book.cells[-1].outputs[0].data["text/plain"]
    assert "notebooks" in shown and "matplotlib_inline" in shown


def test_text_from_data_is_escaped(finished, pages):
    source = (finished[0] / "index.html").read_text()
    assert EVIL not in source
    assert pages["index"].text.count(EVIL) >= 4
    assert pages["index"].select_one("h1").text == "Tiny & small"


def test_run_folder_is_complete(finished, record):
    folder = finished[0]
    assert folder.is_symlink() and not folder.readlink().is_absolute()
    assert re.fullmatch(r"tiny-\d{8}-\d{6}-([0-9a-f]{8}|nogit)", folder.readlink().name)
    assert pd.read_parquet(folder / "scores.parquet").score[0] == 0.25
    assert pd.read_csv(folder / "scores.csv").score[0] == 0.25
    assert (folder / "metrics.parquet").is_file() and (folder / "metrics.csv").is_file()
    assert yaml.safe_load((folder / "profile.yml").read_text())["evaluation_size"] == 240
    profile, first = record["profile"], record["notebooks"][0]
    assert (record["schema"], profile["name"], profile["title"]) == (1, "tiny", "Tiny & small")
    assert len(profile["digest"]) == 10 and profile["values"]["fpr_limit"] == 0.3
    assert record["facts"] == Results.facts
    assert record["headline"] == [{"Category": EVIL, "AUROC": 0.98765, "AUPRO": None}]
    assert record["overrides"] == {"count": 5} and "-p count=5" in record["command"]
    assert record["started"] < record["finished"] and record["started"].endswith("+00:00")
    assert {"Python", "papermill", "numpy", "pandas"} <= record["versions"].keys()
    assert first["seconds"] > 0 and first["error"] == ""
    assert record["notebooks"][1]["error"] == "KeyError: 'lost <key>'"
    assert isinstance(record["dirty"], bool) and record["commit"]


def test_interrupted_report_can_be_read(tmp_path, capsys):
    stop = "import os, signal, time\nos.kill(int(os.environ['JPY_PARENT_PID']), signal.SIGINT)\ntime.sleep(30)"
    books = {"01_stop": [new_markdown_cell("# Stop"), code(stop)], "02_rest": [new_markdown_cell("# Rest")]}
    assert report.main([str(write(tmp_path, books)), "--out", str(tmp_path / "out")]) == 130
    assert "0 ok, 0 failed, 2 not run" in capsys.readouterr().out
    page = BeautifulSoup((tmp_path / "out/latest/index.html").read_text(), "html.parser")
    assert page.select_one(".facts .status").text == "interrupted"
    assert [node.text for node in page.select(".notebooks .status")] == ["not run", "not run"]
    assert all((tmp_path / "out/latest" / link["href"]).is_file() for link in page.select(".notebooks a"))
    assert json.loads((tmp_path / "out/latest/run.json").read_text())["status"] == "interrupted"


def test_index_is_kept_up_to_date(tmp_path, monkeypatch):
    seen = []
    write_index = pages_module.write_index

    def seeing(found):
        write_index(found)
        seen.append([entry["status"] for entry in json.loads((found.folder / "run.json").read_text())["notebooks"]])

    monkeypatch.setattr(pages_module, "write_index", seeing)
    monkeypatch.setattr(report, "_execute", lambda notebook, folder: (replace(notebook, status="ok"), []))
    found = resolve(write(tmp_path, {"01_a": [code("1")], "02_b": [code("1")]}))
    report.build(found)
    assert seen == [["not run", "not run"], ["ok", "ok"]]  # so soon it is not written again
    monkeypatch.setattr(report, "INDEX_SECONDS", 0)
    seen.clear()
    found = resolve(write(tmp_path, {"01_a": [code("1")], "02_b": [code("1")]}))
    report.build(found)
    assert seen == [["not run", "not run"], ["ok", "not run"], ["ok", "ok"], ["ok", "ok"]]
    assert found.status == "ok"


def test_workers_run_notebooks_at_once_and_the_index_keeps_their_order(tmp_path):
    """Each waits for the other's file, so neither ends alone; the second ends first."""
    meet = "import os, time\nfrom pathlib import Path\nfolder = Path({folder!r})\n(folder / '{own}').touch()\n"
    meet += "while not (folder / '{other}').exists():\n    time.sleep(0.05)\n{after}\n"
    meet += "os.environ['OMP_NUM_THREADS'], os.environ['LOKY_MAX_CPU_COUNT'], os.getcwd()"
    books = {
        "01_a": [code(meet.format(folder=str(tmp_path), own="a", other="b", after="time.sleep(2)"))],
        "02_b": [code(meet.format(folder=str(tmp_path), own="b", other="a", after=""))],
    }
    found = resolve(write(tmp_path, books), "workers=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("LOKY_MAX_CPU_COUNT", "6")  # said by someone: it stays
        here, share = Path.cwd(), str(max(1, joblib.cpu_count() // 2))
        report.build(found)
        assert Path.cwd() == here and "OMP_NUM_THREADS" not in os.environ
    assert [(book.path.stem, book.status) for book in found.notebooks] == [("01_a", "ok"), ("02_b", "ok")]
    index = BeautifulSoup((found.folder / "index.html").read_text(), "html.parser")
    assert [row.a["href"] for row in index.select(".notebooks tbody tr")] == ["01_a.html", "02_b.html"]
    for name in books:
        cell = nbformat.read(found.folder / "notebooks" / f"{name}.ipynb", as_version=4).cells[-1]
        assert cell.outputs[0].data["text/plain"] == str((share, "6", str(ROOT / "notebooks")))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_finaliser_is_not_lost():
    """Python drops an exception there: it is a matter of chance where Ctrl-C meets a program."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    begun = []
    jobs = [lambda: None, lambda: time.sleep(1), lambda: begun.append(3)]
    with pytest.raises(KeyboardInterrupt):
        notebook_runner.run_jobs(jobs, 1, lambda number, found: Dying() and None)
    assert not begun and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_stops_all_kernels_and_keeps_finished_pages(tmp_path):
    stop = "import os, signal, time\nfrom pathlib import Path\nwait = Path({folder!r}) / 'out/latest/01_done.html'\n"
    stop += "while 'finished here' not in (wait.read_text() if wait.exists() else ''):\n    time.sleep(0.1)\n"
    stop += "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    stop += "os.kill(int(os.environ['JPY_PARENT_PID']), signal.SIGINT)\ntime.sleep(60)"
    books = {
        "01_done": [code("'finished ' + 'here'")],
        "02_stop": [code(stop.format(folder=str(tmp_path)))],
        "03_long": [code("import time\ntime.sleep(60)")],
        "04_rest": [code("1")],
    }
    found = resolve(write(tmp_path, books), "workers=2")
    began = time.perf_counter()
    report.build(found)
    took = time.perf_counter() - began
    assert [book.status for book in found.notebooks] == ["ok", "not run", "not run", "not run"]
    assert took < 40
    assert found.status == "interrupted" and not notebook_runner.Kernel.running
    assert "finished here" in (found.folder / "01_done.html").read_text()
    assert "not been run" in (found.folder / "02_stop.html").read_text()


def test_pages_hold_what_concerns_their_data(tmp_path):
    """Text on the demo is for the demo, published figures for benchmarks; a heading goes with what it announces."""
    silent, told = code("x = 1"), code("x")
    told.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"})]
    cells = [
        new_markdown_cell("# Title"),
        new_markdown_cell("Minutes on the demo.", metadata={"tags": ["demo"]}),
        new_markdown_cell("As the paper says.", metadata={"tags": ["benchmark"]}),
        new_markdown_cell("## Nothing below", metadata={"tags": ["if-shown"]}),
        silent,
        new_markdown_cell("## Something below", metadata={"tags": ["if-shown"]}),
        silent,
        told,
        new_markdown_cell("## A heading of its own"),
    ]
    texts = {
        name: pages_module.body(cells, tmp_path / "x.ipynb", dataset=name).get_text()
        for name in ("demo", "mvtec", "folder")
    }
    assert [("Minutes" in text, "paper" in text) for text in texts.values()] == [
        (True,) * 2,
        (False, True),
        (False,) * 2,
    ]
    for text in texts.values():
        assert "Nothing below" not in text and "Something below" in text and "A heading of its own" in text


def test_the_study_is_left_out_of_reports_on_own_pictures_but_where_asked_for(tmp_path):
    study = "16_the_study_rechecked"
    assert study not in report.resolve("own_images", [], tmp_path, "").profile.notebooks
    assert study in report.resolve("mvtec", [], tmp_path, "").profile.notebooks
    assert report.resolve("own_images", [f"notebooks=[{study}]"], tmp_path, "").profile.notebooks == [study]


def test_the_answer_stands_first_and_beside_its_question(tmp_path):
    """Whatever place its cell has: a small figure and its sentences go to the index."""
    pixels = {"image/png": base64.b64encode(_png(900, 600)).decode()}
    figure = nbformat.v4.new_output("display_data", pixels, metadata={"image/png": {"alt": "Escapes"}})
    words = "Half escape (n = 12).\n\nTest <b>your</b> own: [06](06_type.ipynb), [07](07_size.ipynb)."
    said = nbformat.v4.new_output("display_data", {"text/markdown": words})
    cells = [
        nbformat.v4.new_markdown_cell("# 05 Contrast\n\n**Are faint defects missed?**"),
        nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", {"text/plain": "loaded"})]),
        nbformat.v4.new_code_cell("2", metadata={"tags": ["answer"]}, outputs=[said, figure]),
    ]
    soup = pages_module.body(cells, tmp_path / "05.ipynb")
    text = soup.get_text()
    assert text.index("Half escape") < text.index("loaded") and soup.select_one(".answer img")
    sentences, picture = pages_module.read_answer(cells, ["06_type.html"])
    assert sentences[0] == "Half escape (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}12)."
    assert sentences[1] == 'Test &lt;b&gt;your&lt;/b&gt; own: <a href="06_type.html">06</a>, 07.'
    assert picture["alt"] == "Escapes"
    small = PIL.Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
    assert small.width <= pages_module.THUMBNAIL[0] and small.height <= pages_module.THUMBNAIL[1]
    assert pages_module.read_answer(cells[:2]) == ([], {})


def _png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "white").save(stream, "png")
    return stream.getvalue()


def test_cells_tagged_fold_share_a_box_that_their_heading_opens(tmp_path):
    fold = {"tags": ["fold"]}
    cells = [
        nbformat.v4.new_markdown_cell("# 05 Contrast"),
        nbformat.v4.new_markdown_cell("## How contrast is measured\n\nBy a ring.", metadata=fold),
        nbformat.v4.new_code_cell("1", metadata=fold),
        nbformat.v4.new_markdown_cell("## Faint defects\n\nEvidence."),
        nbformat.v4.new_code_cell("2", metadata=fold),
    ]
    boxes = pages_module.body(cells, tmp_path / "05.ipynb").select("details.fold")
    assert [box.summary.get_text(strip=True) for box in boxes] == ["How contrast is measured", "details"]
    assert "By a ring" in boxes[0].get_text() and len(boxes[0].select(".cell")) == 2


def test_long_tables_are_folded_and_say_what_they_hold():
    for rows, folded in ((pages_module.LONG, False), (pages_module.LONG + 1, True)):
        soup = BeautifulSoup(pd.DataFrame({"category": range(rows)}).to_html(index=False), "html.parser")
        pages_module._mark_tables(soup)
        pages_module._fold_long_tables(soup)
        summary = soup.select_one("details.long > summary")
        assert bool(summary) is folded
        assert not folded or summary.get_text() == f"Table of {rows} rows: category and more"


def test_code_that_shows_nothing_shares_one_box(tmp_path):
    shown = [nbformat.v4.new_output("display_data", {"text/plain": "loaded"})]
    cells = [nbformat.v4.new_markdown_cell("# 05 Contrast")]
    cells += [code("first = 1"), code("second = 2"), code("third = 3"), code("fourth = 4")]
    cells[3].outputs = shown
    soup = pages_module.body(cells, tmp_path / "05.ipynb")
    boxes = [box.get_text() for box in soup.select("details.code")]
    assert len(boxes) == 3 and "first" in boxes[0] and "second" in boxes[0] and boxes[0].count("code") == 1


def test_terms_lead_to_the_glossary_of_the_report(tmp_path, finished):
    cell = nbformat.v4.new_markdown_cell("# 05\n\n[AUROC](TEACHING.md#glossary) [gone](../CHANGELOG.md)")
    links = pages_module.body([cell], tmp_path / "05.ipynb")("a")
    assert [link["href"] for link in links] == [pages_module.GLOSSARY]
    page = BeautifulSoup((finished[0] / pages_module.GLOSSARY).read_text(), "html.parser")
    assert {"AUROC", "AUPRO", "macro mean"} <= {cell.get_text() for cell in page.select("tbody td, tbody th")}


def test_a_picture_that_is_gone_stops_no_notebook(tiny, monkeypatch):
    def refuse(*_):
        raise InputError("a.png does not exist; restore it.")

    monkeypatch.setattr(image_browser, "write_page", refuse)
    built = resolve(tiny)
    report.build(built)
    assert built.status == "ok" and built.facts["notes"][-1] == "No page of pictures: a.png does not exist; restore it."
    assert "No page of pictures" in (built.folder / "index.html").read_text()
