"""The site (`make docs`): every notebook of the course and of the library as a page, with search. Written to build/site; open build/site/index.html.

Pages are Markdown made from the stored outputs (nothing is run), put together by mkdocs. Hidden cells are left out; cells that go into the package are folded, so that a page reads
as a lesson first. A link to a file of the checkout that is no page leads to a copy of it. A link that leads nowhere is an error.
"""
import argparse, posixpath, re, shutil, subprocess, sys, textwrap
from pathlib import Path

import nbformat, yaml

from notebooks import ROOT, Notebook, Project, clean, dumps

STAGES = {"0": "The ground", "1": "Prepare", "2": "Choose", "3": "Evaluate", "4": "Train", "5": "Deploy", "6": "Iterate", "7": "Teach", "8": "The command line", "9": "The command line"}
_link = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(\))")


def stage(name):
    "The part of the site that a library notebook belongs to; the log is the trainer's, though its number is low."
    return "Train" if ".train." in f".{name.split('_', 1)[1]}" or name.split("_", 1)[1].startswith("train.") else STAGES[name[0]]


def title(nb): return re.search(r"^# (.+)$", nb.cells[0].source, re.M)[1].strip()


def folded(cell):
    "An exported cell as a closed box with the names that it defines."
    names = [n for n in re.findall(r"^(?:@\w[^\n]*\n)*(?:def|class) (\w+)", cell.body, re.M)] or [n for n in re.findall(r"^(\w+)(?:, \w+)* = ", cell.body, re.M)]
    what = ", ".join(f"`{n}`" for n in names) or "imports"
    return f"??? example \"In the package: {what}\"\n\n" + textwrap.indent(f"```python\n{cell.body.strip()}\n```", "    ")


def relink(text, page, pages, root, assets):
    "Links of the page's Markdown: notebooks become pages, other files of the checkout are copied beside the site. Returns the text and the links that lead nowhere."
    lost = []
    def one(m):
        target = (page.parent / m[2]).resolve()
        if target in pages: return f"{m[1]}{posixpath.relpath(pages[target], posixpath.dirname(pages[page]) or '.')}{m[3] or ''}{m[4]}"
        if not target.is_relative_to(root) or not target.exists():
            lost.append(m[2])
            return m[0]
        if target.is_dir(): return f"{m[1]}{posixpath.relpath(folder_page(target, root, assets), posixpath.dirname(pages[page]) or '.')}{m[4]}"
        where = f"files/{target.relative_to(root).as_posix()}" + ("" if target.suffix != ".md" else ".txt")
        assets[where] = target.read_bytes()
        return f"{m[1]}{posixpath.relpath(where, posixpath.dirname(pages[page]) or '.')}{m[4]}"
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.M | re.S)
    return "".join(p if p.startswith("`") else _link.sub(one, p) for p in parts), lost


def folder_page(folder, root, assets):
    "A page that lists a folder of the checkout."
    where = f"files/{folder.relative_to(root).as_posix()}/index.md"
    assets[where] = (f"# {folder.relative_to(root)}\n\n" + "".join(f"- {p.name}\n" for p in sorted(folder.iterdir()) if not p.name.startswith("."))).encode()
    return where


def markdown(path, root, number):
    "(the page's Markdown, its pictures by name) of a notebook, from its stored outputs."
    from nbconvert import MarkdownExporter
    from traitlets.config import Config
    nb = Notebook(path, root)
    clean(nb.nb)
    cells = []
    for c in nb.cells:
        if c.kind == "code" and {"hide", "default_exp"} & c.directives.keys(): continue
        if c.directives.get("echo") == "false":
            texts = ["".join(o["data"]["text/markdown"]) for o in c.raw["outputs"] if "text/markdown" in o.get("data", {})]
            cells.append(nbformat.v4.new_markdown_cell("\n\n".join(texts), id=c.raw["id"]))
        elif c.to_module: cells.append(nbformat.v4.new_markdown_cell(folded(c), id=c.raw["id"]))
        else:
            c.raw["source"] = c.body if c.kind == "code" else c.source
            if c.raw["source"].strip(): cells.append(c.raw)
    nb.nb["cells"] = cells
    exporter = MarkdownExporter(config=Config({"NbConvertBase": {"display_data_priority": ["text/markdown", "image/svg+xml", "image/png", "text/html", "text/plain"]}}))
    text, resources = exporter.from_notebook_node(nbformat.reads(dumps(nb.nb), as_version=4), {"unique_key": f"p{number}", "output_files_dir": f"pictures{number}"})
    return re.sub(r"\x1b\[[0-9;]*m", "", text), resources["outputs"]


def build(root, out):
    "Pages under `out`/pages and mkdocs.yml; the links that lead nowhere, as (notebook, link)."
    project, lost, assets = Project(root), [], {}
    books = project.paths
    pages = {p.resolve(): p.relative_to(project.nbs).with_suffix(".md").as_posix() for p in books}
    src = out / "pages"
    shutil.rmtree(src, ignore_errors=True)
    nav = {"Home": ["index.md"], "The course": [], "Solutions": []} | {s: [] for s in dict.fromkeys(STAGES.values())}
    for number, path in enumerate(books):
        text, pictures = markdown(path, root, number)
        text, bad = relink(text, path.resolve(), pages, root.resolve(), assets)
        lost += [(path.relative_to(root).as_posix(), b) for b in bad if b not in pictures]
        where = src / pages[path.resolve()]
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(text, encoding="utf-8")
        for name, data in pictures.items():
            (where.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (where.parent / name).write_bytes(data)
        if path.stem != "index":
            part = {"solutions": "Solutions", "tutorials": "The course"}.get(path.parent.name) or stage(path.stem)
            number_of, name = path.stem.split("_")[0], title(Notebook(path, root))
            nav[part].append({name if name.startswith(f"{number_of} ") else f"{number_of} {name}": pages[path.resolve()]})
    for name, data in assets.items():
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(data)
    theme = {"name": "material", "font": False, "features": ["navigation.indexes", "navigation.top", "search.highlight"], "palette": [{"scheme": "default", "primary": "indigo"}]}
    config = {"site_name": project.package, "docs_dir": "pages", "site_dir": "site", "use_directory_urls": False, "theme": theme, "plugins": ["search"],
              "markdown_extensions": ["admonition", "pymdownx.details", "pymdownx.highlight", "pymdownx.superfences", "tables", {"toc": {"permalink": True}}], "extra": {"generator": False},
              "nav": [{k: v} if k != "Home" else {"Home": "index.md"} for k, v in nav.items() if v], "validation": {"omitted_files": "ignore", "links": {"anchors": "warn", "not_found": "warn"}}}
    (out / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return len(books), lost


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--root", type=Path, default=ROOT)
    args.add_argument("--out", type=Path, help="build/ of the root when left out")
    args = args.parse_args()
    out = args.out or args.root / "build"
    out.mkdir(parents=True, exist_ok=True)
    n, lost = build(args.root, out)
    if lost: sys.exit("".join(f"{nb}: the link {link} leads nowhere\n" for nb, link in lost) + f"{len(lost)} dead links. Next: mend them in the notebooks named, then run `make docs` again.")
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(out / "mkdocs.yml")], capture_output=True, text=True)
    if done.returncode: sys.exit(done.stdout + done.stderr)
    print(f"{n} pages: {out / 'site/index.html'}")


if __name__ == "__main__": main()
