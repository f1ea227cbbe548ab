"""What the tools know of notebooks: where they are, what stands in a cell, and what a clean one looks like.

Cells are counted from 0, as in their ids: cell 7 has the id 007.
"""
import ast, configparser, json, re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
_directive = re.compile(r"\s*#\s*\|\s*([^\s:]+)\s*:?\s*(.*?)\s*$")
_address = re.compile(r"(<[^<>]*?) at 0x[0-9a-fA-F]+(?=[^<>]*>)")


@dataclass
class Cell:
    index: int
    kind: str                                     # code, markdown or raw
    source: str
    raw: dict = field(repr=False)

    @cached_property
    def split(self):
        "The leading lines that nbdev reads directives from, and the rest."
        lines, n = self.source.splitlines(), 0
        while n < len(lines) and (not lines[n].strip() or _directive.match(lines[n]) or lines[n].lstrip().startswith("%%")): n += 1
        return lines[:n], lines[n:]

    @cached_property
    def directives(self): return {m[1]: m[2] for line in self.split[0] if (m := _directive.match(line))}

    @property
    def body(self): return "\n".join(self.split[1])

    @property
    def lines(self): return [line for line in self.split[1] if line.strip()]

    @property
    def exported(self): return self.kind == "code" and bool({"export", "exports"} & self.directives.keys())

    @property
    def to_module(self): return self.exported or "exporti" in self.directives

    @property
    def always_runs(self):
        return self.kind == "code" and not {"slow", "cuda"} & self.directives.keys() and self.directives.get("eval") != "false"

    @cached_property
    def tree(self):
        "The cell as a syntax tree; None for a cell magic and for what is no Python. Line magics and shell lines count as `pass`."
        if self.kind != "code" or any(line.lstrip().startswith("%%") for line in self.split[0]): return None
        plain = (re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in self.split[1])
        try: return ast.parse("\n".join(plain))
        except SyntaxError: return None


class Notebook:
    "One notebook file. `kind` is library, index or tutorial."
    def __init__(self, path, root):
        self.path, self.name = path, path.relative_to(root).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.nb = json.loads(self.text)
        self.cells = [Cell(i, c["cell_type"], "".join(c["source"]), c) for i, c in enumerate(self.nb["cells"])]
        self.code = [c for c in self.cells if c.kind == "code"]
        m = re.match(r"(\d+)([a-z]?)_(.+)", path.stem)
        self.number = (int(m[1]), m[2]) if m else None
        self.kind = "tutorial" if path.parent.parent != root else "index" if path.stem == "index" else "library"
        self.stage_topic = m[3] if m else None

    @property
    def modules(self): return [(c.index, c.directives["default_exp"].strip()) for c in self.code if "default_exp" in c.directives]

    @property
    def module(self): return self.modules[0][1] if self.modules else None

    def __repr__(self): return self.name


class Project:
    "The checkout at `root`: its settings and its notebooks; `broken` lists (file name, why) of those that are not readable as notebooks."
    def __init__(self, root=ROOT):
        self.root = Path(root).resolve()
        self.settings = configparser.ConfigParser(interpolation=None)
        if not self.settings.read(self.root / "settings.ini", encoding="utf-8"):
            raise SystemExit(f"{self.root / 'settings.ini'}: not found. Next: run from a full checkout.")
        d = self.settings["DEFAULT"]
        self.lib, self.nbs = self.root / d["lib_path"], self.root / d["nbs_path"]
        self.package = d["lib_path"]

    @property
    def paths(self):
        "Library notebooks by number, then the index, then the tutorials; as nbdev, without what begins with _ or a dot."
        found = [p for p in self.nbs.rglob("*.ipynb") if not any(o[0] in "_." for o in p.relative_to(self.nbs).parts)]
        return sorted(found, key=lambda p: (p.parent != self.nbs, p.stem == "index", p.relative_to(self.nbs).as_posix()))

    @cached_property
    def _read(self):
        good, broken = [], []
        for p in self.paths:
            try: good.append(Notebook(p, self.root))
            except json.JSONDecodeError as e: broken.append((p.relative_to(self.root).as_posix(), f"is not JSON (line {e.lineno}: {e.msg})"))
            except UnicodeDecodeError as e: broken.append((p.relative_to(self.root).as_posix(), f"is not UTF-8 (byte {e.start})"))
            except (KeyError, TypeError) as e: broken.append((p.relative_to(self.root).as_posix(), f"is no notebook of format 4 ({e!r})"))
        return good, broken

    @property
    def notebooks(self): return self._read[0]

    @property
    def broken(self): return self._read[1]

    @property
    def library(self): return [nb for nb in self.notebooks if nb.kind == "library"]


def select(paths, names):
    "The `paths` that `names` name (a path, a file name or its stem); all of them when `names` is empty."
    if not names: return paths
    found = []
    for name in names:
        hits = [p for p in paths if name in (p.stem, p.name, f"{p.parent.name}/{p.stem}") or Path(name).resolve() == p]
        if not hits: raise SystemExit(f"no notebook {name!r}. Next: name one of {', '.join(p.stem for p in paths) or 'none: there are no notebooks'}.")
        found += hits
    return found


def _strip_address(text): return [_address.sub(r"\1", t) for t in text] if isinstance(text, list) else _address.sub(r"\1", text)


def clean(nb):
    "Make the notebook (a dict, changed in place) clean. Gives back what was not: a list of (cell number or None, what)."
    found = []
    if (nb.get("nbformat"), nb.get("nbformat_minor")) != (4, 5):
        found.append((None, f"has format {nb.get('nbformat')}.{nb.get('nbformat_minor')}, not 4.5"))
        nb["nbformat"], nb["nbformat_minor"] = 4, 5
    if nb.get("metadata") != {"kernelspec": KERNEL}:
        found.append((None, f"has metadata beside the kernel's name ({', '.join(sorted(nb.get('metadata', {}))) or 'none at all'})"))
        nb["metadata"] = {"kernelspec": dict(KERNEL)}
    for i, cell in enumerate(nb["cells"]): found += [(i, what) for what in _clean_cell(cell, f"{i:03d}")]
    return found


def _clean_cell(cell, id_):
    found = []
    if cell.get("id") != id_: found.append(f"has the id {cell.get('id')}, not {id_}")
    if cell.get("metadata"): found.append(f"has metadata ({', '.join(sorted(cell['metadata']))})")
    cell["id"], cell["metadata"] = id_, {}
    if cell["cell_type"] != "code": return found
    if cell.get("execution_count") is not None: found.append("has an execution count")
    cell["execution_count"] = None
    outputs = [o for o in cell.get("outputs", []) if not (o["output_type"] == "stream" and o.get("name") == "stderr")]
    if len(outputs) != len(cell.get("outputs", [])): found.append("stores output of stderr")
    for o in outputs: found += _clean_output(o)
    cell["outputs"] = [o for o in outputs if o.get("data") != {}]
    return found


def _clean_output(o):
    found = []
    if o.get("execution_count") is not None: found.append("has an execution count in an output")
    if "execution_count" in o: o["execution_count"] = None
    if o.get("metadata"): found.append("has metadata in an output"); o["metadata"] = {}
    data = o.get("data", {})
    if WIDGET in data:
        found.append("stores a widget, which shows nothing without its kernel")
        del data[WIDGET]
        if set(data) <= {"text/plain"}: data.clear()
    for where in [(o, "text")] + [(data, k) for k in data if k.startswith("text/")]:
        if where[1] in where[0] and (new := _strip_address(where[0][where[1]])) != where[0][where[1]]:
            found.append("stores a memory address"); where[0][where[1]] = new
    return found


def dumps(nb):
    "The notebook as the text of its file, as Jupyter writes it."
    return nbformat.writes(nbformat.from_dict(nb), version=nbformat.NO_CONVERT).rstrip("\n") + "\n"
