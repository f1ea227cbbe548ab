"""Write pyproject.toml from settings.ini (`make config`), or say how the two differ (`--check`)."""
import argparse, configparser, difflib, sys
from pathlib import Path

import tomli_w

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Generated from settings.ini by `make config`. Edit settings.ini, not this file.\n\n"


def lines(text): return [line.strip() for line in text.strip().splitlines() if line.strip()]


def value(text):
    "An nbdev key as TOML: true and false, whole numbers, else text."
    if text in ("true", "false"): return text == "true"
    return int(text) if text.isdigit() else text


def render(settings:Path) -> str:
    "The text of pyproject.toml for the settings.ini at `settings`."
    ini = configparser.ConfigParser(interpolation=None)
    if not ini.read(settings, encoding="utf-8"): raise SystemExit(f"{settings}: not found. Next: run from a full checkout.")
    d = ini["DEFAULT"]
    lib = d["lib_path"]
    doc = {
        "build-system": {"requires": ["setuptools>=77"], "build-backend": "setuptools.build_meta"},
        "project": {
            "name": d["name"], "version": d["version"], "description": d["description"], "readme": "README.md",
            "requires-python": f">={d['min_python']}", "license": d["license"], "license-files": ["LICENSE"],
            "authors": [{"name": d["author"]}], "keywords": d["keywords"].split(),
            "classifiers": ["Programming Language :: Python :: 3", "Programming Language :: Python :: 3 :: Only",
                            "Intended Audience :: Education", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
            "dependencies": lines(d["requirements"]),
            "optional-dependencies": {"dev": lines(d["dev_requirements"])},
            "scripts": dict(map(str.strip, line.split("=", 1)) for line in lines(d["console_scripts"])),
            "entry-points": {"nbdev": {lib: f"{lib}._modidx:d"}},
        },
        "tool": {
            "setuptools": {"packages": {"find": {"include": [f"{lib}*"]}}},
            "nbdev": {"lib_path": lib, "nbs_path": d["nbs_path"],
                      **{k: value(v) for k, v in ini["nbdev"].items() if k not in ini.defaults()}},
            "pytest": {"ini_options": {"testpaths": ["tests"], "markers": ["browser: needs Chromium; make test-browser runs these"], "addopts": "-m 'not browser'"}},
        },
    }
    return HEADER + tomli_w.dumps(doc)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--check", action="store_true", help="write nothing; exit 1 when pyproject.toml is not what settings.ini gives")
    args.add_argument("--root", type=Path, default=ROOT)
    args = args.parse_args()
    target, want = args.root / "pyproject.toml", render(args.root / "settings.ini")
    have = target.read_text(encoding="utf-8") if target.exists() else ""
    if have == want: return
    if not args.check:
        target.write_text(want, encoding="utf-8")
        return print("pyproject.toml written from settings.ini")
    diff = "".join(difflib.unified_diff(have.splitlines(True), want.splitlines(True), "pyproject.toml", "settings.ini"))
    sys.exit(f"{diff}pyproject.toml is not what settings.ini gives. Next: run `make config`.")


if __name__ == "__main__": main()
