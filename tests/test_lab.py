"`make lab` in a real Chromium (`make test-browser`): it opens the course's start page; two tutorials are opened and run whole, no cell fails, and their knobs answer to a click."
import json, os, re, shutil, subprocess, sys, threading, time, urllib.request
from pathlib import Path

import psutil
import pytest

from ftlearn.core import project_root
from serving import SLOW
from test_browser import browser, shot  # noqa: F401

pytestmark = pytest.mark.browser
START = "nbs/tutorials/00_the_whole_loop.ipynb"
WHOLE = 10 * 60   # seconds that a whole tutorial may take, at its small size
HARD = 15 * 60    # seconds after which a test is ended from outside, whatever it waits for
HERE = ".jp-NotebookPanel:not(.lm-mod-hidden)"
FAILED = '[data-mime-type="application/vnd.jupyter.error"], .jp-RenderedText:has-text("Traceback (most recent call last)"), :text("Error displaying widget")'
PLANTED = {"fails": ["2 + 2", "1 / 0", "3 + 3"],
           "knobs": ["from ipywidgets import interact", "interact(lambda n: 'n' * 30, n=(0, 9))", "interact(lambda n: 1 / (n < 6) and 'n' * (30 + n), n=(0, 9))"]}


def until(what, seconds=SLOW):
    "Wait until `what()` is true. It counts its looks, not the clock: a machine that stood still for a while has lost nothing."
    for _ in range(4 * seconds):
        if what(): return
        time.sleep(.25)
    raise AssertionError("it did not happen")


def end(family):
    for p in family:
        try: p.kill()
        except psutil.NoSuchProcess: pass


class Lab:
    "What `make lab` starts, on a copy of the notebooks in `home`: what is run and saved there changes nothing here. Instead of a browser it opens a script, which notes what was to be shown."
    def __init__(self, home):
        self.home, self.said, self.opened = home, home / "said.txt", home / "opened.txt"
        shutil.copytree(project_root() / "nbs", home / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for name, sources in PLANTED.items():
            cells = [{"cell_type": "code", "id": f"c{i}", "source": source, "metadata": {}, "outputs": [], "execution_count": None} for i, source in enumerate(sources)]
            kernel = {"display_name": "python3", "language": "python", "name": "python3"}
            (home / f"nbs/tutorials/{name}.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells}))
        quiet = home / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"   # no question about news over the page
        quiet.parent.mkdir(parents=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}')
        (home / "browser").write_text(f'#!/bin/sh\nprintf %s "$1" > {self.opened}.part && mv {self.opened}.part {self.opened}\n')
        (home / "browser").chmod(0o755)
        (home / "tmp").mkdir()
        own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython", "TMPDIR": "tmp", "FTLEARN_PROGRESS": "progress.json", "BROWSER": "browser"}
        env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "JUPYTER_TOKEN")} | {"IN_TEST": "1", "OMP_NUM_THREADS": "1"} | {k: str(home / v) for k, v in own.items()}
        make = ["make", "--file", project_root() / "Makefile", "--directory", home, "--old-file", f"{sys.prefix}/.installed", "lab", f"VENV={sys.prefix}", "LAB=--allow-root --port=0"]
        with open(self.said, "wb") as f: self.process = subprocess.Popen(make, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT, env=env)

    def ready(self):
        if self.process.poll() is not None: raise AssertionError(self.said.read_text())
        return self.opened.exists()

    @property
    def shows(self): return self.opened.read_text()   # a file that leads the browser to the server, with the password

    def api(self, path, method="GET"):
        "Ask the server itself."
        address, token = re.search(r'url=(http://[^/]+)/[^"]*token=(\w+)', Path(self.shows.removeprefix("file://")).read_text()).groups()
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/{path}", headers={"Authorization": f"token {token}"}, method=method), timeout=SLOW) as r: return json.loads(r.read() or "null")

    def kernel(self, notebook):
        "What the server says of a notebook's kernel: (state, browsers that listen to it)."
        return next(((s["kernel"]["execution_state"], s["kernel"]["connections"]) for s in self.api("sessions") if s["path"].endswith(notebook)), ("none", 0))

    def cells(self, notebook):
        "The code cells of a notebook as it was saved."
        return [c for c in json.loads((self.home / "nbs/tutorials" / notebook).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()]

    def forget(self):
        "End the kernels, and forget which notebooks were open."
        for s in self.api("sessions"): self.api(f"sessions/{s['id']}", "DELETE")
        shutil.rmtree(self.home / "config/lab/workspaces", ignore_errors=True)

    def close(self):
        "End the server, in a minute by itself or else by force, with its kernels."
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        self.process.terminate()
        try: self.process.wait(60)
        except subprocess.TimeoutExpired: pass
        end(family)
        self.process.wait(60)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        until(lab.ready)
        yield lab
    finally: lab.close()


@pytest.fixture
def page(browser, lab):  # noqa: F811
    "The start page, as `make lab` opens it. It cannot hang: after HARD seconds the browser and the server are ended, and whatever waits for them fails."
    done = threading.Event()
    def guard():
        if not any(done.wait(1) for _ in range(HARD)): end(psutil.Process().children(recursive=True))
    threading.Thread(target=guard, daemon=True).start()
    try:
        context = browser.new_context(viewport=dict(width=1400, height=1000))
        page, page.complaints = context.new_page(), []
        page.set_default_timeout(1000 * SLOW)
        page.on("pageerror", lambda e: page.complaints.append(str(e)))
        page.goto(lab.shows)
        page.wait_for_url("**/lab/tree/**")
        page.locator(f"{HERE} h1").first.wait_for()
        yield page
        context.close()
        lab.forget()
    finally: done.set()


def current(notebook): return f"#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current:has-text('{notebook}')"


def menu(page, name, entry):
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.get_by_text(entry, exact=True).click()


def run_all(page, lab, notebook):
    "Open a notebook in the list of files, run it whole and save it; the notebook in the page, and its code cells as saved."
    page.locator(".jp-DirListing-item").filter(has_text=notebook).dblclick()
    page.locator(current(notebook)).wait_for()
    book = page.locator(HERE)
    marks = lambda: [t.strip() for t in book.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()]
    idle = lambda: lab.kernel(notebook)[0] == "idle" and book.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").count() == 1
    until(lambda: idle() and lab.kernel(notebook)[1] > 0)   # the page alone says "idle" before it has a kernel, and what is to be run then is lost without a word
    menu(page, "Run", "Run All Cells")
    ran = lambda: "[*]:" not in marks() and any(c.isdigit() for c in "".join(marks())) and idle()
    until(ran, WHOLE)
    menu(page, "File", "Save Notebook")
    def saved():
        try: return any(c["execution_count"] for c in lab.cells(notebook))
        except json.JSONDecodeError: return False   # it is just being written
    until(saved)
    return book, lab.cells(notebook)


def errors(cells): return [(o["ename"], o["evalue"]) for c in cells for o in c["outputs"] if o["output_type"] == "error"]


def knobs(book): return book.locator(".widget-interact .noUi-target, .widget-interact select")


def turn(knob, seconds=SLOW):
    "A click on a knob: another value, and another result below it. Raises AssertionError where nothing changes or the result is an error."
    result = knob.locator("xpath=ancestor::*[contains(@class, 'widget-interact')]").locator(".widget-output")
    knob.scroll_into_view_if_needed()
    if knob.evaluate("k => k.tagName") == "SELECT":
        value = lambda: knob.input_value()
        click = lambda: knob.select_option(index=1 if knob.evaluate("k => k.selectedIndex") == 0 else 0)
    else:
        value = lambda: knob.locator(".noUi-handle").get_attribute("aria-valuetext")
        track, at = knob.bounding_box(), knob.locator(".noUi-handle").bounding_box()
        left = at["x"] + at["width"] / 2 < track["x"] + track["width"] / 2
        click = lambda: knob.click(position=dict(x=track["width"] * (.8 if left else .2), y=track["height"] / 2))
    shown = lambda: result.evaluate("r => [...r.querySelectorAll('.jp-OutputArea-output')].map(o => o.textContent + [...o.querySelectorAll('img')].map(i => i.src)).join()")
    before, was = value(), shown()
    assert before and len(was) > 20
    click()
    until(lambda: value() != before and shown() not in ("", was), seconds)
    assert result.locator(FAILED).count() == 0, result.text_content()


def test_it_opens_at_the_start_page(page, lab):
    assert page.url.split("?")[0].endswith(f"/lab/tree/{START}")
    first = json.loads((project_root() / START).read_text(encoding="utf-8"))["cells"][0]["source"]
    assert page.locator(f"{HERE} h1").first.text_content().strip("¶") == "".join(first).split("\n")[0].removeprefix("# ")
    listed = page.locator(".jp-DirListing-item").all_text_contents()
    assert all(any(p.name in text for text in listed) for p in (project_root() / "nbs/tutorials").glob("*.ipynb")), "the other tutorials are listed beside it"
    until(lambda: lab.kernel(START)[0] == "idle")
    assert page.locator(".jp-Dialog").count() == 0 and page.complaints == []
    shot(page, "lab_start")
    link = page.locator(f"{HERE} .jp-RenderedMarkdown a[href*='.ipynb']:not([href*='/tutorials/'])").first   # to a notebook of the library
    name = re.search(r"([^/]+)\.ipynb", link.get_attribute("href"))[1]
    link.click()
    page.locator(current(name)).wait_for()
    until(lambda: "# " + page.locator(f"{HERE} h1").first.text_content().strip("¶") in (lab.home / f"nbs/{name}.ipynb").read_text(encoding="utf-8"))
    assert page.locator(".jp-Dialog").count() == 0 and page.complaints == []


@pytest.mark.parametrize("notebook, n_knobs", [("02_prepare_a_dataset.ipynb", 2), ("03_choose_a_model.ipynb", 3)])
def test_a_tutorial_runs_whole_and_its_knobs_answer(page, lab, notebook, n_knobs):
    book, cells = run_all(page, lab, notebook)
    assert errors(cells) == [] and [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    assert book.locator(FAILED).count() == 0 and book.locator(".jp-RenderedImage img").count() > 0 and book.locator(".jp-RenderedMarkdown table").count() > 3, "pictures and tables are shown"
    until(lambda: knobs(book).count() == n_knobs)
    for i in range(n_knobs):
        turn(knobs(book).nth(i))
        until(lambda: lab.kernel(notebook)[0] == "idle")
        knobs(book).nth(i).scroll_into_view_if_needed()
        shot(page, f"lab_{notebook[:2]}_knob_{i}")
    assert page.complaints == []


def test_a_cell_that_fails_is_seen(page, lab):
    "The tests above can fail: a page with an error in it is noticed."
    book, cells = run_all(page, lab, "fails.ipynb")
    assert errors(cells) == [("ZeroDivisionError", "division by zero")] and [c["execution_count"] for c in cells] == [1, 2, None]
    assert book.locator(FAILED).count() > 0
    shot(page, "lab_fails")


def test_a_knob_that_fails_is_seen(page, lab):
    "A knob that changes nothing, and one whose result is an error: the cells themselves are fine."
    book, cells = run_all(page, lab, "knobs.ipynb")
    assert errors(cells) == [] and [c["execution_count"] for c in cells] == [1, 2, 3]
    until(lambda: knobs(book).count() == 2)
    with pytest.raises(AssertionError, match="it did not happen"): turn(knobs(book).nth(0), seconds=5)
    with pytest.raises(AssertionError, match="ZeroDivisionError"): turn(knobs(book).nth(1))
    shot(page, "lab_knobs")
