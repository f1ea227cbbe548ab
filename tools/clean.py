"""Clean the notebooks (`make clean-nbs`): no execution counts, metadata, stderr, widgets; cell ids 000, 001, ... `make check` uses the same code."""
import argparse

from notebooks import Project, clean, dumps, select


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("names", nargs="*", help="notebooks (default: all)")
    args = args.parse_args()
    project, changed = Project(), 0
    for name, why in project.broken: print(f"{name}: {why}; left as it is. Next: repair or restore the file.")
    chosen = set(select(project.paths, args.names))
    for nb in project.notebooks:
        if nb.path not in chosen: continue
        clean(nb.nb)
        if (text := dumps(nb.nb)) == nb.text: continue
        nb.path.write_text(text, encoding="utf-8")
        print(f"{nb.name}: cleaned")
        changed += 1
    print(f"{changed} notebook{'s' * (changed != 1)} changed")
    raise SystemExit(1 if project.broken else 0)


if __name__ == "__main__": main()
