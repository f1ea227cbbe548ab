"""What the speed benchmarks share: timing a call, and judging ratios round by round."""
import statistics, time


def timed(run, *args):
    "(seconds, result) of a call."
    start = time.perf_counter()
    out = run(*args)
    return time.perf_counter() - start, out


def told(ratios, mark, digits=1):
    "The median, the mark and each round's ratio, as text."
    return f"{statistics.median(ratios):,.{digits}f} times as fast (mark {mark:g}; by round {', '.join(f'{r:,.{digits}f}' for r in ratios)})"


def verdict(good): return "holds" if good else "DOES NOT HOLD"
