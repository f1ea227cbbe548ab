"The site: every notebook a page, nothing fetched from elsewhere, a dead link named."
import json, re, shutil, subprocess, sys

import pytest

from ftlearn.core import project_root

ROOT = project_root()
DOCS = [sys.executable, str(ROOT/"tools/docs.py")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run([*DOCS, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out/"site"


def notebooks(): return [p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]


def test_every_notebook_is_a_page(site):
    for p in notebooks():
        page = (site/p.relative_to(ROOT/"nbs")).with_suffix(".html")
        assert page.exists(), p.name
        head = re.search(r"^# (.+)$", "".join(json.loads(p.read_text(encoding="utf-8"))["cells"][0]["source"]), re.M)[1]
        assert re.search(r"<h1[^>]*>", page.read_text(encoding="utf-8")) and head.split()[0].strip("`*") in page.read_text(encoding="utf-8")


def test_it_needs_no_network(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?://[^"]+)"|<link[^>]+rel="stylesheet"[^>]+href="(https?://[^"]+)"', page.read_text(encoding="utf-8"))
        assert not fetched, (page.name, fetched)


def test_the_search_knows_the_lessons(site):
    text = json.dumps(json.loads((site/"search/search_index.json").read_text(encoding="utf-8"))["docs"])
    assert "Wilson" in text and "label mask" in text and "nbdev_export" not in text


def test_pictures_are_there(site):
    page = (site/"tutorials/00_the_whole_loop.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img[^>]+src="([^"]+)"', page)
    assert pictures and all((site/"tutorials"/p).is_file() for p in pictures)


def test_a_dead_link_is_named(tmp_path):
    root = tmp_path/"copy"
    (root/"nbs").mkdir(parents=True)
    shutil.copy(ROOT/"settings.ini", root)
    cell = lambda text: {"cell_type": "markdown", "id": "000", "metadata": {}, "source": [text]}
    for name, text in {"index": "# Home\n\n[gone](no_such.ipynb)", "00_core": "# Core\n\nfine: [home](index.ipynb), `[not](a_link)`"}.items():
        (root/f"nbs/{name}.ipynb").write_text(json.dumps({"cells": [cell(text)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    done = subprocess.run([*DOCS, "--root", str(root)], capture_output=True, text=True)
    assert done.returncode == 1 and "nbs/index.ipynb: the link no_such.ipynb leads nowhere" in done.stderr and "1 dead links" in done.stderr, done.stderr
