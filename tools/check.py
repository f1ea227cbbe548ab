"""The quick checks (`make check`): each finding names the file and the cell, says what is wrong and what to do. Exit 1 with findings.

Nothing is run and nothing is changed. Cells are counted from 0, as in their ids.
"""
import argparse, ast, copy, difflib, io, json, re, sys, time, tokenize
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import nbformat

import config, export, readme
from notebooks import ROOT, Cell, Project, clean, dumps

DIRECTIVES = ("default_exp", "export", "exporti", "hide", "eval", "echo", "slow", "cuda")
MAX_LINES, MAX_OUTPUT = 40, 400_000
_path = re.compile(r"(?:/home/|/root/|/Users/|/tmp/tmp)[\w.-]+")


@dataclass(frozen=True)
class Finding:
    file: str
    cell: int | None
    what: str
    fix: str

    def __str__(self): return f"{self.file}: {'' if self.cell is None else f'cell {self.cell}: '}{self.what}; {self.fix}"


def first_difference(have, want):
    "The number (from 1) of the first line in which two texts differ, and that line in each."
    a, b = have.splitlines(), want.splitlines()
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return n + 1, a[n] if n < len(a) else "", b[n] if n < len(b) else ""


# --- settings

def check_config(project):
    "pyproject.toml is what settings.ini gives."
    path = project.root / "pyproject.toml"
    if not path.exists(): return [Finding("pyproject.toml", None, "is missing", "run `make config`")]
    have, want = path.read_text(encoding="utf-8"), config.render(project.root / "settings.ini")
    if have == want: return []
    n, a, b = first_difference(have, want)
    return [Finding("pyproject.toml", None, f"line {n} is {a.strip()!r}, settings.ini gives {b.strip()!r}", "edit settings.ini, then run `make config`")]


def check_version(project):
    "settings.ini, pyproject.toml and the package agree on the version."
    want, out = project.settings["DEFAULT"]["version"], []
    places = {"pyproject.toml": r'^version = "(.*)"$', f"{project.package}/__init__.py": r'^__version__ = "(.*)"$'}
    for (name, pattern), fix in zip(places.items(), ("run `make config`", "run `make export`")):
        path = project.root / name
        m = re.search(pattern, path.read_text(encoding="utf-8"), re.M) if path.exists() else None
        if not m: out.append(Finding(name, None, "names no version", fix))
        elif m[1] != want: out.append(Finding(name, None, f"has the version {m[1]}, settings.ini has {want}", fix))
    return out


# --- the notebook files

def invalid(nb):
    "What nbformat has against a notebook, or None."
    try: nbformat.validate(nbformat.from_dict(nb.nb))
    except nbformat.ValidationError as e: return e


def check_parse(project):
    "Every notebook parses, validates as nbformat 4.5, and its Python compiles."
    out = [Finding(name, None, why, "repair it, or restore it with git") for name, why in project.broken]
    if not project.notebooks: out.append(Finding(project.nbs.name, None, "holds no notebook", "run from a full checkout"))
    for nb in project.notebooks:
        if e := invalid(nb):
            at = [p for p in e.absolute_path if isinstance(p, int)]
            out.append(Finding(nb.name, at[0] if at else None, f"is not valid: {e.message.splitlines()[0][:200]}", "repair it, or restore it with git"))
        for c in nb.code:
            if c.tree is None and not any(line.lstrip().startswith("%%") for line in c.split[0]):
                out.append(Finding(nb.name, c.index, "is not Python", "mend its syntax"))
    return out


def check_clean(project):
    "No metadata but the kernel's name, no execution counts, ids in order, no stderr, no errors, outputs within bounds."
    out, fix = [], "run `make clean-nbs export`"
    for nb in project.notebooks:
        if invalid(nb): continue                                # check_parse says so
        new = copy.deepcopy(nb.nb)
        found = [Finding(nb.name, cell, what, fix) for cell, what in clean(new)]
        if not found and dumps(new) != nb.text: found = [Finding(nb.name, None, "is not written as Jupyter writes it (order of keys, indentation)", fix)]
        out += found
        size = 0
        for c in nb.code:
            for o in c.raw.get("outputs", []):
                text = json.dumps(o)
                size += len(text)
                if o["output_type"] == "error": out.append(Finding(nb.name, c.index, f"stores an error ({o.get('ename')})", "mend the cell and run the notebook again"))
                if m := _path.search(text):
                    out.append(Finding(nb.name, c.index, f"stores a path of one machine ({m[0]})", "show a relative path, and run the notebook again"))
        if size > MAX_OUTPUT: out.append(Finding(nb.name, None, f"stores {size // 1000} kB of outputs, {MAX_OUTPUT // 1000} kB at most", "make its figures fewer or smaller"))
    return out


# --- the form

def check_names(project):
    "Each library notebook has a number and one default_exp, as its file is named, all different; index and tutorials export nothing."
    out, seen, numbers = [], {}, {}
    for nb in project.notebooks:
        if nb.kind != "library":
            out += [Finding(nb.name, c.index, "exports, and only library notebooks may", "move the code into a library notebook, or take the directive out")
                    for c in nb.code if c.to_module or "default_exp" in c.directives]
            continue
        if nb.number is None:
            out.append(Finding(nb.name, None, "has no number", "name it NN_stage.topic.ipynb, or move it to tutorials/"))
            continue
        if nb.number in numbers: out.append(Finding(nb.name, None, f"has the number of {numbers[nb.number]}", "give it one of its own: the order of imports hangs on it"))
        numbers.setdefault(nb.number, nb.name)
        if not nb.modules: out.append(Finding(nb.name, None, "has no default_exp, so that nothing is exported", f"begin its first code cell with `#| default_exp {nb.stage_topic}`"))
        for cell, _ in nb.modules[1:]: out.append(Finding(nb.name, cell, "holds a second default_exp", "keep one a notebook"))
        for cell, module in nb.modules[:1]:
            if module in seen: out.append(Finding(nb.name, cell, f"has the default_exp {module} of {seen[module]}, and overwrites it", "give it one of its own"))
            elif module != nb.stage_topic: out.append(Finding(nb.name, cell, f"has the default_exp {module}, its file is named {nb.stage_topic}", "let the two agree"))
            seen.setdefault(module, nb.name)
    return out


def late_directives(cell:Cell):
    "Directives below the leading lines of a cell, where nbdev does not read them."
    if cell.kind != "code": return []
    try: comments = [t.string for t in tokenize.generate_tokens(io.StringIO(cell.body).readline) if t.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError, IndentationError): comments = [line for line in cell.lines if line.lstrip().startswith("#")]
    return [m[0] for o in comments if (m := re.match(r"#\s*\|\s*\w+", o))]


def check_directives(project):
    "Directives stand in the leading lines of a code cell, and are ones that nbdev knows."
    out = []
    for nb in project.notebooks:
        for c in nb.cells:
            out += [Finding(nb.name, c.index, f"has the directive `{o}` below code, where nbdev does not read it", "move it to the first lines of the cell") for o in late_directives(c)]
            for name, value in c.directives.items():
                if c.kind != "code": out.append(Finding(nb.name, c.index, f"has the directive `{name}` in text", "take it out"))
                elif name not in DIRECTIVES:
                    near = difflib.get_close_matches(name, DIRECTIVES, 1)
                    out.append(Finding(nb.name, c.index, f"has the unknown directive `{name}`", f"write `{near[0]}`" if near else f"use one of {', '.join(DIRECTIVES)}"))
                elif name == "eval" and value != "false": out.append(Finding(nb.name, c.index, f"has `eval: {value}`", "write `eval: false`, or take it out"))
    return out


def imported(tree, package):
    "The modules of `package` that a syntax tree imports, each with the names taken from it: [(\"data.split\", [\"prep\"])]."
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): out += [(a.name, []) for a in node.names]
        elif isinstance(node, ast.ImportFrom): out.append(("." * node.level + (node.module or ""), [a.name for a in node.names]))
    return [(m.removeprefix(package).lstrip("."), names) for m, names in out if m == package or m.startswith((package + ".", "."))]


def check_imports(project):
    "A library notebook imports from lower numbers only; every module that is imported from the package has a notebook."
    out, where = [], {nb.module: nb for nb in project.library if nb.module}
    for nb in project.notebooks:
        for c in nb.code:
            if c.tree is None: continue
            wanted = []
            for module, names in imported(c.tree, project.package):
                # `from ftlearn.data import split` takes a module, `from ftlearn.data.split import prep` a name
                if module in where: wanted.append(module)
                else: wanted += [f"{module}.{n}".lstrip(".") for n in names] if names else [module] if module else []
            for module in dict.fromkeys(wanted):
                if module in ("__version__", "_modidx"): continue
                target = where.get(module)
                if target is None:
                    out.append(Finding(nb.name, c.index, f"imports {project.package}.{module}, which no notebook exports", "correct the name, or write that notebook"))
                elif nb.kind == "library" and nb.number and target is nb: out.append(Finding(nb.name, c.index, "imports its own module", "use the names that the notebook has defined"))
                elif nb.kind == "library" and nb.number and target.number and target.number > nb.number:
                    out.append(Finding(nb.name, c.index, f"imports {project.package}.{module} from {target.name}, a higher number", "move what both need to the lower notebook"))
    return out


def public_names(cell:Cell):
    "The names that nbdev puts into __all__ for an exported cell."
    names, listed = [], []
    for node in cell.tree.body if cell.tree else []:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            decorators = [getattr(d, "id", getattr(getattr(d, "func", None), "id", "")) for d in node.decorator_list]
            if not any(d.startswith("patch") for d in decorators): names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [o.id for t in targets for o in getattr(t, "elts", [t]) if isinstance(o, ast.Name)]
            if "_all_" in flat: listed += [getattr(o, "value", getattr(o, "id", "")) for o in node.value.elts]
            names += flat
    return [n for n in names if not n.startswith("_")] + listed


def used_names(cell:Cell):
    "The names and attributes that a cell reads."
    if cell.tree is None: return set()
    return ({n.id for n in ast.walk(cell.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            | {n.attr for n in ast.walk(cell.tree) if isinstance(n, ast.Attribute)})


def check_public(project):
    "Every public name is used in its own notebook, in a cell that is not exported and that the tests always run."
    out = []
    for nb in project.library:
        used = set().union(*(used_names(c) for c in nb.code if not c.to_module and c.always_runs))
        for c in nb.code:
            if c.exported:
                out += [Finding(nb.name, c.index, f"exports {name}, which no example in this notebook uses", "add a cell that uses it, or begin its name with _")
                        for name in dict.fromkeys(public_names(c)) if name not in used]
    return out


def check_length(project):
    "No code cell over 40 lines, blank ones and directives not counted."
    return [Finding(nb.name, c.index, f"has {len(c.lines)} lines, {MAX_LINES} at most", "split it: a function or a method a cell")
            for nb in project.notebooks for c in nb.code if len(c.lines) > MAX_LINES]


def check_form(project):
    "A library notebook begins with a title and a one-line promise, and ends with the hidden export."
    out = []
    for nb in project.library:
        first, last = (nb.cells[0], nb.cells[-1]) if nb.cells else (None, None)
        if not first or first.kind != "markdown" or not re.match(r"# .+\n+> .+", first.source):
            out.append(Finding(nb.name, 0, "is no title with a promise", "begin the notebook with `# Title`, and `> one line of promise` under it"))
        if not last or last.kind != "code" or "hide" not in last.directives or "nbdev_export" not in last.source:
            out.append(Finding(nb.name, len(nb.cells) - 1, "is not the hidden export", "end the notebook with `#| hide` and `import nbdev; nbdev.nbdev_export()`"))
    return out


# --- what is made from the notebooks

def origin(text, line):
    "The notebook cell that stands over line `line` (from 1) of an exported module: (file name, number) or None."
    for t in reversed(text.splitlines()[:line]):
        if m := re.match(r"# %% (?:\.\./)+(.+\.ipynb) #(\d+)$", t): return m[1], int(m[2])
    return None


def check_export(project):
    "Exporting the notebooks afresh gives exactly the package that is here: nothing missing, nothing stale, nothing different."
    if project.broken: return []
    fix, out = "run `make export`", []
    try: want, said = export.exported(project.root)
    except RuntimeError as e: return [Finding(project.nbs.name, None, f"cannot be exported: {str(e).splitlines()[-1]}", "mend the notebook, then run `make export`")]
    if said: out.append(Finding(project.nbs.name, None, f"the export warns: {' '.join(said.split())[:300]}", "mend the notebook"))
    have = export.committed(project.root)
    out += [Finding(name, None, "is missing: a notebook exports it", fix) for name in sorted(want.keys() - have.keys())]
    out += [Finding(name, None, "is stale: no notebook exports it", fix) for name in sorted(have.keys() - want.keys())]
    for name in sorted(n for n in want.keys() & have.keys() if want[n] != have[n]):
        n, a, b = first_difference(have[name], want[name])
        file, cell = origin(want[name], n) or (name, None)
        out.append(Finding(file, cell, f"and {name} differ from line {n} of the module on: it has {a.strip()[:80]!r}, the notebook gives {b.strip()[:80]!r}",
                           "edit the notebook, never the module, and run `make export`"))
    return out


def check_readme(project):
    "README.md is what index.ipynb renders to, and its links lead somewhere."
    index = f"{project.nbs.name}/index.ipynb"
    if not (project.nbs / "index.ipynb").exists(): return [Finding(index, None, "is missing", "write it: README.md is rendered from it")]
    if any(name == index for name, _ in project.broken): return []
    try: want = readme.render(project.root)
    except ValueError as e: return [Finding(index, None, str(e), "link to a file")]
    path = project.root / "README.md"
    have = path.read_text(encoding="utf-8") if path.exists() else ""
    out = [Finding(index, None, f"links to {o}, which is not there", "correct the link") for o in dict.fromkeys(readme.links(want)) if not (project.root / o).exists()]
    if have != want:
        n, a, b = first_difference(have, want)
        out.append(Finding("README.md", None, f"line {n} is {a.strip()[:80]!r}, {index} renders to {b.strip()[:80]!r}", "edit the notebook, then run `make readme`"))
    return out


CHECKS = [check_config, check_version, check_parse, check_clean, check_names, check_directives, check_imports, check_public, check_length, check_form,
          check_export, check_readme]


def main(argv=None):
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--root", default=ROOT, help="the checkout to look at (default: this one)")
    args = args.parse_args(argv)
    start, project = time.time(), Project(args.root)
    with ThreadPoolExecutor() as pool:                          # the export is a process of its own: let it run beside the rest
        later = pool.submit(check_export, project)
        found = {check: check(project) for check in CHECKS if check is not check_export} | {check_export: later.result()}
    for check in CHECKS:
        for o in found[check]: print(o)
    n = Counter(bool(v) for v in found.values())
    total = sum(map(len, found.values()))
    print(f"checks: {n[False]} passed, {n[True]} failed ({total} finding{'s' * (total != 1)}, {len(project.notebooks)} notebooks, {time.time() - start:.1f} s)")
    return int(total > 0)


if __name__ == "__main__": sys.exit(main())
