"""The numbers of the notebooks' form (`make stats`): code cells, their median and longest, exported lines, words of prose a line of code, size."""
from statistics import median

from tabulate import tabulate

from notebooks import Project


def row(nb):
    lengths = [len(c.lines) for c in nb.code if c.lines]
    words = sum(len(c.source.split()) for c in nb.cells if c.kind == "markdown")
    return {"notebook": nb.name.removeprefix("nbs/").removesuffix(".ipynb"), "code cells": len(nb.code), "median lines": median(lengths or [0]),
            "longest": max(lengths, default=0), "exported lines": sum(len(c.lines) for c in nb.code if c.to_module),
            "words a line": f"{words / max(1, sum(lengths)):.1f}", "kB": len(nb.text.encode()) // 1000}


def main(): print(tabulate([row(nb) for nb in Project().notebooks], headers="keys", tablefmt="github"))


if __name__ == "__main__": main()
