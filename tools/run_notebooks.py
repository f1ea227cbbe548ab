"""Run notebooks from top to bottom in fresh kernels and store their outputs, cleaned (`make run-nbs NBS="00_core 03_stats"`).

Library notebooks run as in the tests (IN_TEST=1); the index and the tutorials run in full, as a reader runs them. A notebook whose run
fails keeps the outputs that it had.
"""
import argparse, os, sys, time

from notebooks import Project, clean, dumps, select


def run(nb):
    "Run the notebook and write it back with its outputs."
    import nbformat
    from nbclient import NotebookClient
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env.pop("IN_TEST", None)
    if nb.kind == "library": env["IN_TEST"] = "1"
    node = nbformat.reads(nb.text, as_version=4)
    NotebookClient(node, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(nb.path.parent)}}).execute(env=env)
    clean(node)
    nb.path.write_text(dumps(node), encoding="utf-8")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("names", nargs="*", help="notebooks (default: all library notebooks)")
    args = args.parse_args()
    project, failed = Project(), 0
    chosen = set(select([p for p in project.paths], args.names)) if args.names else {nb.path for nb in project.library}
    for nb in project.notebooks:
        if nb.path not in chosen: continue
        start = time.monotonic()
        try:
            run(nb)
            print(f"{nb.name}: ran in {time.monotonic() - start:.1f} s", flush=True)
        except Exception as e:                                  # whatever a cell raises: say it, go on with the next notebook
            failed += 1
            print(f"{nb.name}: failed, left as it was\n{e}", file=sys.stderr, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__": main()
