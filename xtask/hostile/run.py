"""Makes hostile files, gives each to every command that reads its kind, and prints what happened as Markdown.

    python run.py WORK D2O [--before JSON] [--json OUT] [--only KIND,...]

WORK is a folder for the inputs (kept) and outputs. A run may map 6 GiB and take a minute. Within bounds is a run that ends by itself, with a result or an error,
within 10 s and below 1 GiB + 4 times the file. `--json` keeps the figures; `--before` compares with those of another build.
Needs numpy, onnx, Pillow and h5py; D2O_ONNXRUNTIME names ONNX Runtime.
"""
import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KINDS = ["checkpoints", "graphs", "images", "containers"]
SECONDS, ADDRESSES = 60, 6 << 30
# Bounds of a run: seconds, and MiB of memory in addition to four times the file size.
BOUND_SECONDS, BOUND_MIB = 10, 1024
# Files that other inputs use; they are not inputs themselves.
PARTS = {"elsewhere", "flips", "flip-base.h5", "secret.h5", "secret", "small-features.onnx", "sub"}


def commands(kind, path, work):
    """Every command that reads such a file."""
    name, extractor = path.name, work / "in/graphs/small-features.onnx"
    out = lambda ending: work / f"out{ending}"
    if kind == "checkpoints":
        return [["inspect", path], ["export", path, "--no-check", "--out", out(".onnx")]]
    if kind == "images":
        return [["dataset", path, "--resolution", "32", "--out", out(".zip")]] + ([] if name.startswith("svg") else [["inspect", path]])
    if kind == "containers":
        return [
            ["inspect", path],
            ["refs", "inspect", path],
            ["dataset", path, "--resolution", "32", "--out", out(".zip")],
            ["evaluate", work / "good/images.npz", "--ref", path, "--extractor", extractor, "--metrics", "fid"],
            ["evaluate", path, "--ref", work / "good/reference.npz", "--extractor", extractor, "--metrics", "fid"],
        ]
    found = [["inspect", path]]
    if name.startswith("gen-"):
        found.append(["generate", path, "--seeds", "0-3", "--out", out(".npz")])
    elif name.startswith("feat-") or name == "fake-inception.onnx":
        found.append(["refs", "make", work / "good/images.npz", "--extractor", path, "--out", out(".npz")])
    else:
        for runtime in ("ort-cpu", "tract"):
            found.append(["verify", path, "--samples", "2", "--batch", "2", "--runtimes", f"{runtime},{runtime}"])
    return found


def run(binary, words, work):
    for old in work.glob("out*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()

    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([binary, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, preexec_fn=limits, start_new_session=True)
        status, late = 0, False
        while True:
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() - start > SECONDS:
                late = True
                os.killpg(child.pid, signal.SIGKILL)
                _, status, usage = os.wait4(child.pid, 0)
                break
            time.sleep(0.01)
        child.returncode = status
        log.seek(0)
        text = log.read().decode("utf8", "replace")
    if late:
        verdict = "no answer"
    elif "panicked at" in text:
        verdict = "panic"
    elif os.WIFSIGNALED(status):
        verdict = "abort"
    else:
        verdict = "result" if os.WEXITSTATUS(status) in (0, 1) else "error"
    return dict(verdict=verdict, seconds=round(time.monotonic() - start, 1), mib=usage.ru_maxrss >> 10)


def size(path):
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def within(row):
    return row["verdict"] in ("result", "error") and row["seconds"] <= BOUND_SECONDS and row["mib"] <= BOUND_MIB + 4 * (row["bytes"] >> 20)


def make(kind, work, python):
    out = work / "in" / kind
    if not out.exists():
        out.mkdir(parents=True)
        subprocess.run([python, HERE / f"{kind}.py", out], cwd=work, check=True, stdout=subprocess.DEVNULL)
    return sorted(p for p in [*out.iterdir(), *out.glob("sub/ext-*")] if p.name not in PARTS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("d2o", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default=",".join(KINDS))
    options = parser.parse_args()
    work, binary = options.work.resolve(), options.d2o.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tests").exists():
        (work / "tests").symlink_to(ROOT / "tests")
    if not (work / "demo.onnx").exists():
        subprocess.run([binary, "--quiet", "export", ROOT / "xtask/demo/openmoji-32-d2o.safetensors", "--uint8", "--no-check", "--out", work / "demo.onnx"], check=True)
    inputs = {kind: make(kind, work, sys.executable) for kind in KINDS}
    (work / "good").mkdir(exist_ok=True)
    images, extractor = work / "good/images.npz", work / "in/graphs/small-features.onnx"
    if not images.exists():
        subprocess.run([binary, "--quiet", "generate", work / "demo.onnx", "--seeds", "0-63", "--out", images], check=True)
        subprocess.run([binary, "--quiet", "refs", "make", images, "--extractor", extractor, "--out", work / "good/reference.npz"], check=True)
    before = json.loads(options.before.read_text()) if options.before else {}
    rows = {}
    for kind in options.only.split(","):
        for path in inputs[kind]:
            for words in commands(kind, path, work):
                found = dict(run(binary, words, work), bytes=size(path))
                rows[f"{kind}/{path.name}: {words[0] if words[0] != 'refs' else ' '.join(words[:2])}{' as --ref' if '--ref' in words and words[1] != path else ''}{' on tract' if 'tract,tract' in words else ''}"] = found
                print(f"{'' if within(found) else '!!! '}{list(rows)[-1]}: {found}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=0))
    text = lambda r: f"{r['verdict']} | {r['seconds']} | {r['mib']}" if r else "– | – | –"
    for kind in options.only.split(","):
        mine = {k: r for k, r in rows.items() if k.startswith(f"{kind}/")}
        bad = lambda table: sum(k in table and not within(dict(table[k], bytes=mine[k]["bytes"])) for k in mine)
        print(f"## {kind.capitalize()}\n\n{len(mine)} runs; outside the bounds {bad(before) if before else '–'} before, {bad(rows)} now.\n")
        print("| input and command | before | s | MiB | now | s | MiB |\n|---|---|---|---|---|---|---|")
        for key, row in mine.items():
            print(f"| {key.split('/', 1)[1]} | {text(before.get(key))} | {text(row)} |")
        print()


if __name__ == "__main__":
    main()
