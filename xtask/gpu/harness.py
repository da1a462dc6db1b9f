"""Steps with time limits, verdicts and a table; child processes in groups of their own; the GPU's use over time.

OUT gets results.json (rewritten after every line), table.md, gpu-use.json and log.txt, and nothing else.
"""
import concurrent.futures
import contextlib
import contextvars
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

# Limits of log.txt: characters of the output of a failing command, bytes of the whole file.
TAIL, LOG = 3000, 300_000
# Samples of the GPU's use that gpu-use.json keeps.
SAMPLES = 1500


class Skipped(Exception):
    """A step cannot run here. The message is the reason."""


class Failed(Exception):
    """A step failed. The message is the reason."""


def written(path, text):
    """Writes a file that is complete or absent."""
    partial = Path(f"{path}.partial")
    partial.write_text(text)
    partial.replace(path)


def number(value):
    """Four significant digits, no needless zeros."""
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


class Step:
    """A running step: its record in results.json, its end and its last line (seconds of time.monotonic)."""

    def __init__(self, record, end):
        self.record, self.end, self.mark = record, end, time.monotonic()


# The step of this thread; `side_by_side` passes it to its workers.
CURRENT = contextvars.ContextVar("step")


def side_by_side(workers, function, items):
    """Yields what `function` makes of the items, in their order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(contextvars.copy_context().run, function, item) for item in items]:
            yield future.result()


class GpuUse:
    """nvidia-smi, asked four times a second."""

    COLUMNS = ["seconds", "gpu_percent", "memory_mib", "watts", "sm_mhz"]

    def __init__(self, start):
        self.start, self.samples, self.child = start, [], None
        query = "utilization.gpu,memory.used,power.draw,clocks.sm"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", "0", "-lms", "250"]
        if shutil.which("nvidia-smi"):
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            row = [time.monotonic() - self.start]
            for cell in line.split(","):
                try:
                    row.append(float(cell))
                except ValueError:
                    row.append(None)
            if len(row) == len(self.COLUMNS):
                self.samples.append(row)

    def between(self, first, last):
        """Mean use in percent and peak memory in MiB from `first` to `last` (seconds of time.monotonic); None where there are no samples."""
        rows = [r for r in list(self.samples) if first <= r[0] + self.start <= last]
        mean = lambda values: sum(values) / len(values) if values else None
        memory = [r[2] for r in rows if r[2] is not None]
        return mean([r[1] for r in rows if r[1] is not None]), max(memory) if memory else None

    def thinned(self):
        every = max(1, -(-len(self.samples) // SAMPLES))
        return [[None if v is None else round(v, 2) for v in row] for row in self.samples[::every]]

    def stop(self):
        if self.child:
            self.child.kill()


class Run:
    def __init__(self, dest, out, dry, options):
        self.dest, self.out, self.dry, self.options = Path(dest), Path(out), dry, options
        self.start = time.monotonic()
        self.end = self.start + options.steps_seconds
        self.work = Path(tempfile.mkdtemp(prefix="d2o-gpu-"))
        self.lock, self.children = threading.RLock(), set()
        self.results = {"schema": 1, "dry_run": dry, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "environment": {}, "steps": []}
        self.results["kit"] = self.kit()
        self.gpu = GpuUse(self.start)
        # d2o without training starts without libtorch. With training, loading libtorch's CUDA libraries takes seconds.
        self.trainer = self.dest / "bin/d2o"
        plain = self.dest / "bin/d2o-plain"
        self.binary = plain if plain.exists() else self.trainer
        self.provider = ["--provider", "cpu"] if dry else ["--provider", "cuda", "--device", "0"]
        self.device = "cpu" if dry else "cuda"
        self.makers = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(2 if dry else 8)
        self.write("log.txt", "")

    def kit(self):
        """The kit's parts and files as its manifest has them, and how long unpacking took after which part."""
        manifest, unpacked = self.dest / "manifest.json", self.dest / "unpacked.txt"
        if not manifest.exists():
            return None
        found = json.loads(manifest.read_text())
        largest = sorted(found["files"], key=lambda f: -f["bytes"])[:5]
        rows = [line.split() for line in unpacked.read_text().splitlines()] if unpacked.exists() else []
        return dict(found["about"], parts=found["parts"], files=len(found["files"]), bytes=sum(f["bytes"] for f in found["files"]), largest=largest,
                    unpacked=[dict(part=part, seconds=float(seconds)) for part, seconds in rows])

    def left(self):
        """Seconds left to the step; infinite outside of steps."""
        step = CURRENT.get(None)
        return step.end - time.monotonic() if step else float("inf")

    def size(self, full, small):
        """`small` in a dry run."""
        return small if self.dry else full

    # Results.

    def write(self, name, text):
        written(self.out / name, text)

    def save(self):
        with self.lock:
            self.results["seconds"] = round(time.monotonic() - self.start, 1)
            self.write("results.json", json.dumps(self.results, indent=1, default=str))
            self.write("table.md", "\n".join(self.table()) + "\n")
            uses = [dict(name=s["name"], start=s["start"], end=s["end"]) for s in self.results["steps"] if "end" in s]
            self.write("gpu-use.json", json.dumps(dict(columns=GpuUse.COLUMNS, steps=uses, samples=self.gpu.thinned())))

    HEAD = ["| step | what | figure | peer's figure | ratio | goal | verdict | seconds |", "|---|---|---|---|---|---|---|---|"]

    @staticmethod
    def row(step, line):
        peer = "–" if line.get("peer") is None else f"{number(line['peer'])} {line.get('unit', '')} ({line.get('peer_name', '')})"
        figure = "–" if line.get("figure") is None else f"{number(line['figure'])} {line.get('unit', '')}".strip()
        note = f": {line['note']}" if line.get("note") else ""
        cells = [step, line["what"], figure, peer, number(line.get("ratio")), line.get("goal_text") or "–", line["verdict"] + note, number(line.get("seconds"))]
        return "| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |"

    def table(self):
        return self.HEAD + [self.row(s["name"], line) for s in self.results["steps"] for line in s["lines"]]

    def line(self, what, figure=None, unit="", peer=None, peer_name="", goal=None, slower=False, ok=None, note="", most=None, goal_text=None):
        """Adds a line to the table. `goal`: smallest ratio of the figure to the peer (`slower`: of peer to
        figure). `most`: largest figure. `ok`: whether a check held. Speeds are not judged in a dry run."""
        # JSON has no NaN.
        if figure is not None and not math.isfinite(figure):
            figure, ok, note = None, False, "; ".join(filter(None, [note, f"the figure is {figure}"]))
        ratio = None
        if figure and peer:
            ratio = peer / figure if slower else figure / peer
        verdict = "measured"
        if goal is not None:
            goal_text = f"≥ {goal}"
            verdict = "passed" if ratio is not None and ratio >= goal else "missed"
            if ratio is None:
                verdict, note = "measured", "; ".join(filter(None, [note, "no figure of the peer's"]))
            elif self.dry:
                verdict, note = "passed", "; ".join(filter(None, [note, "not judged on the CPU"]))
        if most is not None:
            goal_text = f"≤ {most:g}"
            ok = figure is not None and figure <= most
        if ok is not None:
            verdict = "passed" if ok else "missed"
        self.put(dict(what=what, figure=figure, unit=unit, peer=peer, peer_name=peer_name, ratio=ratio, goal=goal, goal_text=goal_text, verdict=verdict, note=note))

    def skip(self, what, why):
        self.put(dict(what=what, verdict="skipped", note=why))

    def fail(self, what, why):
        """One line of a step that goes on."""
        self.put(dict(what=what, verdict="failed", note=str(why)))

    def put(self, line):
        step = CURRENT.get()
        with self.lock:
            now = time.monotonic()
            line["seconds"], step.mark = round(now - step.mark, 1), now
            step.record["lines"].append(line)
            print(self.row(step.record["name"], line), flush=True)
            self.save()

    def log(self, text):
        path = self.out / "log.txt"
        with self.lock:
            if path.stat().st_size < LOG:
                with path.open("a") as file:
                    file.write(text + "\n")

    def attempt(self, what, part):
        """Runs `part`, one of several parts of a step. An exception becomes a line of the table."""
        try:
            return part()
        except Skipped as why:
            self.skip(what, str(why))
        except Exception as why:
            if not isinstance(why, Failed):
                self.log(f"--- {what}: {traceback.format_exc()[-TAIL:]}")
            self.fail(what, why if isinstance(why, Failed) else f"{type(why).__name__}: {why}")
        return None

    def perform(self, name, question, limit, need, function):
        """One step; whatever goes wrong becomes its verdict. It is left out if fewer than `need` seconds are left."""
        now = time.monotonic()
        record = dict(name=name, question=question, lines=[], start=round(now - self.start, 1))
        with self.lock:
            self.results["steps"].append(record)
        CURRENT.set(Step(record, min(now + limit, self.end)))
        verdict, why = None, ""
        try:
            if self.end - now < need:
                raise Skipped(f"no time left ({max(0, self.end - now):.0f} s, it needs {need:.0f} s)")
            function(self)
        except Skipped as error:
            verdict, why = "skipped", str(error)
        except Failed as error:
            verdict, why = "failed", str(error)
        except Exception as error:
            verdict, why = "failed", f"{type(error).__name__}: {error}"
            self.log(f"--- {name}: {traceback.format_exc()[-TAIL:]}")
        if verdict:
            self.put(dict(what=function.__doc__.split("\n")[0].rstrip("."), verdict=verdict, note=why))
        verdicts = [line["verdict"] for line in record["lines"]]
        last = "skipped" if "skipped" in verdicts and "measured" not in verdicts else "passed"
        record["verdict"] = verdict or next((v for v in ("failed", "missed", "passed") if v in verdicts), last)
        record.update(why=why, end=round(time.monotonic() - self.start, 1), seconds=round(time.monotonic() - now, 1))
        self.save()

    # Commands.

    def call(self, command, limit=None, env=None, ok=(0,), cwd=None):
        """Runs a command in a process group, killed at the time limit; stdout, stderr, seconds and code."""
        command = [str(c) for c in command]
        left = self.left() if limit is None else limit
        if left <= 0:
            raise Failed(f"no time left for {self.named(command)}")
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, text=True, start_new_session=True, cwd=cwd,
                                     env=dict(os.environ, **(env or {})))
            self.children.add(child)
            try:
                code = child.wait(left)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.stop(child)
            seconds = time.monotonic() - start
            text = []
            for file in (out, err):
                file.seek(0)
                text.append(file.read())
        if code in ok:
            return dict(out=text[0], err=text[1], seconds=seconds, code=code, start=start, end=start + seconds)
        self.log(f"--- {' '.join(command)}\ncode {code} after {seconds:.1f} s\n{text[0][-TAIL // 3:]}\n{text[1][-TAIL:]}")
        ended = f"time limit of {left:.0f} s" if code is None else f"code {code}"
        raise Failed(f"{self.named(command)}: {ended}: {self.reason(text[1] or text[0])}")

    @staticmethod
    def reason(text):
        """The error in an output: up to three lines with error, caused by or hint, else the last line."""
        lines = [l.strip() for l in text.splitlines() if l.strip()]
        errors = [l for l in lines if l.startswith(("error", "caused by", "hint"))][:3]
        return ("; ".join(errors) or (lines or ["it printed nothing"])[-1])[:400]

    @staticmethod
    def named(command):
        return " ".join([os.path.basename(w) for w in command if not w.startswith("-")][:3])

    def stop(self, child):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        self.children.discard(child)

    def d2o(self, *words, **more):
        # Steps may write the same file again.
        again = ["--overwrite"] if words[0] in ("generate", "export", "draw", "evaluate", "refs", "dataset", "verify", "report", "inspect") else []
        return self.call([self.binary, "--quiet", *words, *again], **more)

    def train(self, *words, **more):
        return self.call([self.trainer, "train", "--quiet", *([] if self.dry else ["--device", "0"]), *words], **more)

    def script(self, name, *words, **more):
        """Runs a script of this folder; its last line of JSON, with `ok=(0, None)` even if it was stopped."""
        done = self.call([sys.executable, Path(__file__).with_name(name), *words], **more)
        lines = [l for l in done["out"].splitlines() if l.startswith("{")]
        if not lines:
            raise Failed(f"{name} {words[0]} printed no result")
        return json.loads(lines[-1])

    # Files that steps need, made by other threads in the meantime.

    def make(self, name, function):
        """Starts making a file; steps ask for it by `made`."""
        self.makers[name] = self.pool.submit(function)

    def made(self, name):
        if name not in self.makers:
            raise Failed(f"no step makes {name}")
        try:
            return self.makers[name].result(timeout=None if self.dry else max(0.0, min(150.0, self.left())))
        except concurrent.futures.TimeoutError:
            raise Failed(f"{name} took too long to make") from None
        except Skipped as why:
            raise Skipped(str(why)) from None
        except Exception as why:
            raise Failed(f"{name} could not be made: {why}") from None

    def settle(self):
        """Waits until the makers are done, so that they do not disturb what is timed."""
        concurrent.futures.wait(self.makers.values(), timeout=None if self.dry else 90)

    def close(self):
        self.gpu.stop()
        for child in list(self.children):
            self.stop(child)
        self.pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.work, ignore_errors=True)
