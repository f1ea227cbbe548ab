"""Each quick check lets the clean project pass, and names the file and the cell of a fault that was planted."""
import json

import pytest

import check, export, notebooks, readme
from check import CHECKS
from notebooks import Project


def found(test, mini, *parts):
    "The one finding of `test` whose text has all `parts`."
    texts = [str(o) for o in test(Project(mini.root))]
    hits = [t for t in texts if all(p in t for p in parts)]
    assert len(hits) == 1, f"wanted one finding with {parts}, got:\n" + "\n".join(texts or ["none"])
    assert "; " in hits[0], "it does not say what to do"
    return hits[0]


@pytest.mark.parametrize("test", CHECKS, ids=lambda c: c.__name__)
def test_clean_project_passes(test, mini): assert [str(o) for o in test(Project(mini.root))] == []


def test_main_counts(mini, capsys):
    assert check.main(["--root", str(mini.root)]) == 0
    assert f"checks: {len(CHECKS)} passed, 0 failed (0 findings" in capsys.readouterr().out
    mini.replace("pyproject.toml", "A small project.", "A large project.")
    mini.library("00_core", "#| export\ndef double(x): return 2 * x")
    assert check.main(["--root", str(mini.root)]) == 1
    out = capsys.readouterr().out
    assert "pyproject.toml: line" in out and "00_core.ipynb: cell 2: exports double" in out, "all checks run, all findings are printed"


# --- settings

def test_config(mini):
    mini.replace("pyproject.toml", '"fastcore"', '"fastcore<1"')
    found(check.check_config, mini, "pyproject.toml", "fastcore<1", "make config")


def test_config_missing(mini):
    (mini.root / "pyproject.toml").unlink()
    found(check.check_config, mini, "pyproject.toml: is missing", "make config")


def test_version_package(mini):
    mini.replace("mini/__init__.py", "1.2.3", "1.2.2")
    found(check.check_version, mini, "mini/__init__.py", "1.2.2", "1.2.3", "make export")


def test_version_pyproject(mini):
    mini.replace("settings.ini", "version = 1.2.3", "version = 1.3.0")
    found(check.check_version, mini, "pyproject.toml", "1.2.3", "1.3.0", "make config")


# --- files

def test_not_json(mini):
    mini.replace("nbs/00_core.ipynb", '"cells"', 'cells')
    found(check.check_parse, mini, "nbs/00_core.ipynb: is not JSON (line 2")


def test_no_notebook_at_all(mini):
    for p in mini.root.glob("nbs/*.ipynb"): p.unlink()
    found(check.check_parse, mini, "holds no notebook")


def test_not_valid(mini):
    path = mini.root / "nbs/00_core.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    del nb["cells"][2]["outputs"]
    path.write_text(json.dumps(nb), encoding="utf-8")
    found(check.check_parse, mini, "nbs/00_core.ipynb: cell 2: is not valid", "outputs")
    assert check.check_clean(Project(mini.root)) == [], "one fault, one finding"


def test_not_python(mini):
    mini.library("00_core", "#| export\ndef double(x) return 2 * x")
    found(check.check_parse, mini, "nbs/00_core.ipynb: cell 2: is not Python")


def set_in(index, **values): return lambda nb: nb["cells"][index].update(values)


def set_output(**output): return set_in(3, outputs=[output])


@pytest.mark.parametrize("change,where,what", [
    (set_in(3, execution_count=7), "cell 3: ", "has an execution count"),
    (set_in(3, id="abc"), "cell 3: ", "has the id abc, not 003"),
    (set_in(3, metadata={"scrolled": True}), "cell 3: ", "has metadata (scrolled)"),
    (lambda nb: nb["metadata"].update(language_info={"name": "python"}), "", "has metadata beside the kernel's name"),
    (set_output(output_type="stream", name="stderr", text="loading"), "cell 3: ", "stores output of stderr"),
    (set_output(output_type="stream", name="stdout", text="<object at 0x7f00aa>"), "cell 3: ", "stores a memory address"),
    (set_output(output_type="display_data", data={notebooks.WIDGET: {"model_id": "1"}, "text/plain": "HBox()"}, metadata={}), "cell 3: ", "stores a widget"),
    (set_output(output_type="error", ename="ValueError", evalue="no", traceback=[]), "cell 3: ", "stores an error (ValueError)"),
    (set_output(output_type="stream", name="stdout", text="saved to /home/ada/run"), "cell 3: ", "stores a path of one machine (/home/ada)"),
    (set_output(output_type="stream", name="stdout", text="x" * 400_001), "", "stores 400 kB of outputs"),
], ids=["count", "id", "cell-metadata", "metadata", "stderr", "address", "widget", "error", "path", "size"])
def test_not_clean(mini, change, where, what):
    mini.edit("00_core", change)
    found(check.check_clean, mini, f"nbs/00_core.ipynb: {where}{what}")


def test_not_as_jupyter_writes(mini):
    mini.replace("nbs/00_core.ipynb", "\n ", "\n  ")
    found(check.check_clean, mini, "nbs/00_core.ipynb", "not written as Jupyter writes it")


def test_clean_mends_what_the_check_finds(mini):
    def dirty(nb):
        nb["metadata"]["language_info"] = {"name": "python"}
        nb["cells"][3] |= {"execution_count": 2, "id": "zz", "metadata": {"a": 1},
                           "outputs": [{"output_type": "stream", "name": "stderr", "text": ["w"]}, {"output_type": "stream", "name": "stdout", "text": ["<a at 0x1f>\n"]}]}
    mini.edit("00_core", dirty)
    nb = Project(mini.root).notebooks[0]
    assert len(notebooks.clean(nb.nb)) == 6
    nb.path.write_text(notebooks.dumps(nb.nb), encoding="utf-8")
    assert check.check_clean(Project(mini.root)) == []
    assert Project(mini.root).notebooks[0].nb["cells"][3]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["<a>\n"]}]


# --- form

def test_names_twice(mini):
    mini.library("11_data.other", "1", export="data.rows")
    found(check.check_names, mini, "nbs/11_data.other.ipynb: cell 1: has the default_exp data.rows of nbs/10_data.rows.ipynb")


def test_names_differ_from_file(mini):
    mini.library("11_data.other", "1", export="data.another")
    found(check.check_names, mini, "nbs/11_data.other.ipynb: cell 1: has the default_exp data.another, its file is named data.other")


def test_names_two_in_one(mini):
    mini.library("11_data.other", "#| default_exp data.more")
    found(check.check_names, mini, "nbs/11_data.other.ipynb: cell 2: holds a second default_exp")


def test_names_none(mini):
    mini.write("11_data.other", "md:# Other", "#| export\nx = 1")
    found(check.check_names, mini, "nbs/11_data.other.ipynb: has no default_exp")


def test_names_number(mini):
    mini.library("10_data.other", "1")
    mini.library("other", "1", export="other")
    found(check.check_names, mini, "nbs/10_data.rows.ipynb: has the number of nbs/10_data.other.ipynb")
    found(check.check_names, mini, "nbs/other.ipynb: has no number")


def test_names_tutorial_exports(mini):
    mini.write("tutorials/00_first", "md:# First", "#| export\nx = 1")
    found(check.check_names, mini, "nbs/tutorials/00_first.ipynb: cell 1: exports")


@pytest.mark.parametrize("cell,what", [
    ("import os\n#| cuda\nos.getpid()", "has the directive `#| cuda` below code"),
    ("# a comment first\n#| export\nx = 1", "has the directive `#| export` below code"),
    ("#| exprt\nx = 1", "has the unknown directive `exprt`; write `export`"),
    ("#| eval: maybe\nx = 1", "has `eval: maybe`"),
    ("md:#| hide\nText.", "has the directive `hide` in text"),
], ids=["below-import", "below-comment", "unknown", "eval", "markdown"])
def test_directives(mini, cell, what):
    mini.library("11_data.other", cell)
    found(check.check_directives, mini, "nbs/11_data.other.ipynb: cell 2: ", what)


def test_directives_in_a_string_are_text(mini):
    mini.library("11_data.other", 'text = """\n#| export\n"""')
    assert check.check_directives(Project(mini.root)) == []


@pytest.mark.parametrize("cell,what", [
    ("from mini.data.rows import four", "imports mini.data.rows from nbs/10_data.rows.ipynb, a higher number"),
    ("from mini.data import rows", "imports mini.data.rows from nbs/10_data.rows.ipynb, a higher number"),
    ("import mini.data.rows as r", "imports mini.data.rows from nbs/10_data.rows.ipynb, a higher number"),
    ("#| export\ndef f():\n    from mini.data.rows import four\n    return four", "a higher number"),
    ("from mini.nowhere import x", "imports mini.nowhere"),
    ("from mini.ground import y", "imports its own module"),
], ids=["from", "module", "import", "in-a-function", "unknown", "own"])
def test_imports(mini, cell, what):
    mini.library("01_ground", "%matplotlib inline\nimport mini", cell)
    found(check.check_imports, mini, "nbs/01_ground.ipynb: cell 3: ", what)


def test_imports_of_a_tutorial_are_free(mini):
    mini.write("tutorials/00_first", "md:# First", "from mini.data.rows import four\nfrom mini.core import double")
    assert check.check_imports(Project(mini.root)) == []


@pytest.mark.parametrize("cells,name", [
    (["#| export\ndef lonely(x): return x"], "lonely"),
    (["#| export\nclass Lonely: pass"], "Lonely"),
    (["#| export\na, LONELY = 1, 2", "a"], "LONELY"),
    (["#| export\ndef lonely(x): return x", "#| export\ndef _other(x): return lonely(x)"], "lonely"),
    (["#| export\ndef lonely(x): return x", "#| cuda\nlonely(1)"], "lonely"),
    (["#| export\ndef lonely(x): return x", "#| eval: false\nlonely(1)"], "lonely"),
], ids=["function", "class", "constant", "only-exported", "only-cuda", "never-run"])
def test_public_name_without_example(mini, cells, name):
    mini.library("11_data.other", *cells)
    found(check.check_public, mini, "nbs/11_data.other.ipynb: cell 2: ", f"exports {name}, which no example")


def test_public_names_that_need_no_example(mini):
    mini.library("11_data.other", "#| export\nfrom fastcore.basics import patch", "#| export\nclass A: pass\n_private = 1", "#| exporti\ndef helper(): pass",
                 "#| export\n@patch\ndef method(self:A): return 1", "A().method()")
    assert check.check_public(Project(mini.root)) == []


def test_length(mini):
    lines = [f"x{i} = {i}" for i in range(40)]
    mini.library("11_data.other", "\n\n".join(["#| hide", *lines]))
    assert check.check_length(Project(mini.root)) == []
    mini.library("11_data.other", "\n".join(["#| hide", *lines, "y = 1"]))
    found(check.check_length, mini, "nbs/11_data.other.ipynb: cell 2: has 41 lines, 40 at most")


def test_form(mini):
    mini.write("11_data.other", "md:# Other, and no promise", "#| default_exp data.other", "x = 1")
    found(check.check_form, mini, "nbs/11_data.other.ipynb: cell 0: ", "promise")
    found(check.check_form, mini, "nbs/11_data.other.ipynb: cell 2: ", "hidden export")


# --- what is made from the notebooks

def test_export_differs(mini):
    mini.replace("mini/data/rows.py", "double(double(x))", "double(x) * 2")
    found(check.check_export, mini, "nbs/10_data.rows.ipynb: cell 4: ", "mini/data/rows.py", "double(x) * 2", "make export")


def test_export_missing_and_stale(mini):
    (mini.root / "mini/core.py").unlink()
    (mini.root / "mini/data/gone.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/12_data.gone.ipynb.\n")
    found(check.check_export, mini, "mini/core.py: is missing")
    found(check.check_export, mini, "mini/data/gone.py: is stale")


def test_export_index_of_names(mini):
    mini.replace("mini/_modidx.py", "double", "triple")
    found(check.check_export, mini, "mini/_modidx.py")


def test_export_warning(mini):
    mini.write("11_data.other", "md:# Other", "#| export\nx = 1")
    found(check.check_export, mini, "the export warns", "11_data.other.ipynb")


def test_export_main_mends(mini, monkeypatch, capsys):
    (mini.root / "mini/core.py").unlink()
    mini.replace("mini/data/rows.py", "double(double(x))", "double(x) * 2")
    (mini.root / "mini/gone.py").write_text("# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/12_gone.ipynb.\n")
    (mini.root / "mini/mine.py").write_text("x = 1\n")
    monkeypatch.setattr(export, "ROOT", mini.root)
    export.main()
    out = capsys.readouterr().out
    assert "mini/core.py: new" in out and "mini/data/rows.py: rewritten" in out and "mini/gone.py: removed" in out and "mini/mine.py: not made by any notebook" in out
    (mini.root / "mini/mine.py").unlink()
    assert check.check_export(Project(mini.root)) == []


def test_readme_drift(mini):
    mini.replace("README.md", "# Mini", "# Maxi")
    found(check.check_readme, mini, "README.md: line", "Maxi", "make readme")


def test_readme_dead_link(mini):
    mini.write("index", "md:# Mini\n\nSee [nothing](tutorials/99_none.ipynb).")
    found(check.check_readme, mini, "nbs/index.ipynb: links to nbs/tutorials/99_none.ipynb")


def test_readme_picture(mini):
    mini.edit("index", set_in(2, outputs=[{"output_type": "display_data", "data": {"image/png": "aGk="}, "metadata": {}}]))
    found(check.check_readme, mini, "nbs/index.ipynb: ", "cell 2: ", "stores a picture")


def test_readme_shows_what_it_should(mini):
    mini.edit("index", set_in(2, outputs=[{"output_type": "execute_result", "data": {"text/markdown": "| a |\n|---|", "text/html": "<b>a</b>"}, "metadata": {}, "execution_count": None}]))
    text = readme.render(mini.root)
    assert "secret" not in text and "1 + 1" in text and "| a |" in text and "<b>" not in text and "](nbs/00_core.ipynb)" in text
