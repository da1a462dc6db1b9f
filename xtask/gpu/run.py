"""Every question of docs/cuda.md in one run, most important first; started by run.sh, which sets the libraries' paths.

    run.sh DEST OUT [--dry-run] [--steps-seconds 420] [--train-seconds 480] [--total-seconds 570] [--only STEP,...]

A step has a time limit and a verdict of its own, and a step that fails stops nothing. All but the last share --steps-seconds: what finds no time left is
skipped by name. The last, a fine-tuning, takes --train-seconds, or less if --total-seconds end before (commands on the machine may be limited to ten minutes). OUT gets results.json, table.md, gpu-use.json and log.txt, which are
complete after every line of the table, so a run that is stopped loses nothing but the step it was at; `cargo xtask gpu-report OUT` makes docs/cuda.md of them.
"""
import argparse
import concurrent.futures
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import steps_check as check
import steps_speed as speed
import steps_train as train
from harness import Run

# Name, question of docs/cuda.md, time limit and smallest useful time in seconds, whether times are measured, function.
# Consecutive steps that measure no times run in parallel.
STEPS = [
    ("environment", 1, 60, 10, True, check.environment),
    ("providers", 1, 100, 15, False, check.providers),
    ("graphs", 1, 100, 20, False, check.graphs),
    ("random numbers", 2, 100, 10, False, check.philox),
    ("parity", 3, 100, 20, False, check.parity),
    ("first loss", 5, 100, 15, False, train.first_loss),
    ("reduced precision", 1, 100, 20, False, check.reduced),
    ("resumed run", 5, 100, 20, False, train.resumed),
    ("features", 4, 90, 20, True, speed.features),
    ("generation", 4, 90, 25, True, speed.generation),
    ("kernels", 4, 90, 30, True, speed.kernels),
    ("training", 5, 90, 30, True, train.training),
    ("evaluation", 4, 240, 60, True, speed.evaluation),
    ("fuse", 4, 60, 15, True, speed.fuse),
    ("more features", 4, 75, 20, True, speed.features_more),
    ("more generation", 4, 75, 20, True, speed.generation_more),
    ("more training", 5, 75, 20, True, train.training_more),
]
LAST = ("fine-tuning", 5, train.fine_tuning)


def warm_cache():
    """Reads the large libraries into memory ahead of the first process that maps them."""
    for folder in dict.fromkeys(os.environ["LD_LIBRARY_PATH"].split(":")):
        for path in sorted(Path(folder).glob("*.so*")) if folder else []:
            with contextlib.suppress(OSError), path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU with small sizes; what needs a GPU is skipped by name")
    parser.add_argument("--steps-seconds", type=float, default=420.0)
    parser.add_argument("--train-seconds", type=float, default=480.0)
    parser.add_argument("--total-seconds", type=float, default=570.0)
    parser.add_argument("--only", default="", help="names of steps, separated by commas")
    options = parser.parse_args()
    if options.dry_run:
        options.steps_seconds, options.total_seconds = 3600.0, 7200.0
    elif check.devices() == 0:
        sys.exit("error: no CUDA device is here; --dry-run tries everything on the CPU")
    names = [s[0] for s in STEPS] + [LAST[0]]
    wanted = [w.strip() for w in options.only.split(",") if w.strip()] or names
    if unknown := [w for w in wanted if w not in names]:
        sys.exit(f"error: no step {', '.join(unknown)}; there are {', '.join(names)}")
    run = Run(options.dest, options.out, options.dry_run, options)
    run.results["wanted"] = wanted

    def stopped(*_):
        run.save()
        run.close()
        os._exit(1)

    signal.signal(signal.SIGTERM, stopped)
    print("\n".join(run.HEAD), flush=True)
    try:
        if not run.dry:
            threading.Thread(target=warm_cache, daemon=True).start()
        check.start_making(run)
        for timed, steps in itertools.groupby([s for s in STEPS if s[0] in wanted], key=lambda s: s[4]):
            perform = lambda s: run.perform(s[0], s[1], 3600 if run.dry else s[2], 0 if run.dry else s[3], s[5])
            with concurrent.futures.ThreadPoolExecutor(1 if timed or run.dry else 8) as pool:
                list(pool.map(perform, steps))
        if LAST[0] in wanted:
            run.end = min(run.start + options.total_seconds, time.monotonic() + options.train_seconds)
            run.perform(LAST[0], LAST[1], options.total_seconds, 0 if run.dry else 75, LAST[2])
        run.results["finished"] = True
    finally:
        run.save()
        run.close()
    counts = {}
    for step in run.results["steps"]:
        counts[step["verdict"]] = counts.get(step["verdict"], 0) + 1
    print(f"\n{run.results['seconds']:.0f} s: " + ", ".join(f"{n} {v}" for v, n in counts.items()), flush=True)
    # Threads that are still making files end with the process.
    os._exit(0)


main()
