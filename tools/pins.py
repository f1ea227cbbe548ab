"""Write constraints.txt (`make pins`): the installed version of everything that the package and its dev extra need, directly or not.

A package's local version ("+cpu") is left out: which build of it is taken is the machine's business. A pin that needs a newer Python than
`min_python` holds from that Python on.
"""
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import config
from notebooks import ROOT, Project

HEADER = "# The exact set that the tests ran with, written by `make pins`. `make install` installs it.\n"


def needed(requirements, extras, seen):
    "Add to `seen` the installed distributions that the requirements ask for, directly or not: {(canonical name, extras): (name, version)}."
    for r in map(Requirement, requirements):
        if r.marker and not any(r.marker.evaluate({"extra": e}) for e in extras): continue
        key = (canonicalize_name(r.name), tuple(sorted(r.extras)))
        if key in seen: continue
        try: d = distribution(r.name)
        except PackageNotFoundError: continue
        seen[key] = (d.name, Version(d.version).public)
        needed(d.requires or [], ("", *r.extras), seen)
    return seen


def line(name, version, oldest):
    "The line of constraints.txt for a package."
    need = SpecifierSet(distribution(name).metadata["Requires-Python"] or "")
    where = "" if need.contains(oldest) else "; " + " and ".join(f'python_full_version {s.operator} "{s.version}"' for s in need)
    return f"{name}=={version}{where}\n"


def main():
    d = Project().settings["DEFAULT"]
    oldest = d["min_python"] + ".0"
    asked = config.lines(d["requirements"]) + config.lines(d["dev_requirements"])
    pins = {canonicalize_name(n): (n, v) for n, v in needed(asked, ("",), {}).values()}
    (ROOT / "constraints.txt").write_text(HEADER + "".join(line(n, v, oldest) for _, (n, v) in sorted(pins.items())), encoding="utf-8")
    print(f"constraints.txt: {len(pins)} packages")


if __name__ == "__main__": main()
