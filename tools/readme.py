"""Render nbs/index.ipynb to README.md (`make readme`), or say whether README.md is what it renders to (`--check`).

Hidden and exported cells are left out, of cells with `echo: false` only the Markdown they give is kept, outputs are kept, and links are made relative to the root of the checkout.
"""
import argparse, difflib, posixpath, re, sys
from pathlib import Path

import nbformat

from notebooks import ROOT, Notebook, Project, clean, dumps

HEADER = "<!-- Rendered from nbs/index.ipynb by `make readme`. Edit the notebook, not this file. -->\n\n"
FIRST = ["text/markdown", "text/html", "text/latex", "text/plain"]
_link = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)")


def relink(text, folder):
    "Links of a Markdown text in `folder`, rewritten to be right one folder up; fenced code is left alone."
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return "".join(p if p.startswith("```") else _link.sub(lambda m: m[1] + posixpath.normpath(posixpath.join(folder, m[2])), p) for p in parts)


def links(text):
    "The relative links of a Markdown text."
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return [m[2] for p in parts if not p.startswith("```") for m in _link.finditer(p)]


def render(root) -> str:
    "The text of README.md. Raises ValueError for a picture among the outputs: a README cannot hold one."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    project = Project(root)
    nb = Notebook(project.nbs / "index.ipynb", project.root)
    clean(nb.nb)
    shown = []
    for c in nb.cells:
        if c.kind == "code" and (c.to_module or {"hide", "default_exp"} & c.directives.keys()): continue
        if c.directives.get("echo") == "false":
            texts = ["".join(o["data"]["text/markdown"]) for o in c.raw["outputs"] if "text/markdown" in o.get("data", {})]
            if texts: shown.append(nbformat.v4.new_markdown_cell(relink("\n\n".join(texts), project.nbs.name), id=c.raw["id"]))
            continue
        c.raw["source"] = c.body if c.kind == "code" else relink(c.source, project.nbs.name)
        if c.raw["source"].strip(): shown.append(c.raw)
        if any(k.startswith("image/") for o in c.raw.get("outputs", []) for k in o.get("data", {})):
            raise ValueError(f"{nb.name}: cell {c.index}: stores a picture, which README.md cannot hold; commit the picture as a file and link to it")
    nb.nb["cells"] = shown
    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": FIRST}}))
    text, _ = exporter.from_notebook_node(nbformat.reads(dumps(nb.nb), as_version=4))
    text = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return HEADER + re.sub(r"\n{3,}", "\n\n", text) + "\n"


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--check", action="store_true", help="write nothing; exit 1 when README.md is out of date")
    args.add_argument("--root", type=Path, default=ROOT)
    args = args.parse_args()
    target = args.root / "README.md"
    try: want = render(args.root)
    except ValueError as e: sys.exit(str(e))
    have = target.read_text(encoding="utf-8") if target.exists() else ""
    if have == want: return
    if not args.check:
        target.write_text(want, encoding="utf-8")
        return print("README.md written from nbs/index.ipynb")
    diff = "".join(difflib.unified_diff(have.splitlines(True), want.splitlines(True), "README.md", "nbs/index.ipynb"))
    sys.exit(f"{diff}README.md is not what nbs/index.ipynb renders to. Next: run `make readme`.")


if __name__ == "__main__": main()
