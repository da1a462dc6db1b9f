"""Question 5: training beside the original's step, its first loss, a resumed run, and a fine-tuning for the rest of the time."""
import hashlib
import json
import subprocess
import time

import numpy as np

from harness import Failed
from steps_check import DEMO, ncsnpp
from steps_speed import IMAGES, measured, original, used

TRAINING_GOAL = 1.2


def speeds(outdir):
    """Median images per second of the status lines after the first third, which plans and searches."""
    found = [1e3 / json.loads(l)["Timing/sec_per_kimg"]["mean"] for l in (outdir / "stats.jsonl").read_text().splitlines()]
    return float(np.median(found[max(1, len(found) // 3):] or found))


def beside(run, batch, iterations):
    """d2o's step beside the original's in batches of `batch`."""
    images, lite0, checkpoint = run.made("fake"), run.made("lite0"), run.made("denoiser")
    title, peer = f"step of generator and discriminator, {ncsnpp(run)}, batch {batch}, f32", {}

    def theirs():
        start = time.monotonic()
        peer.update(run.script("peers.py", "train", images, checkpoint, original(run), run.device, batch, iterations))
        run.line(f"the original's {title}, cuDNN's benchmark on, TF32 off", peer["images_per_second"], IMAGES, note=used(run, dict(start=start, end=time.monotonic())))

    def ours(*options, goal=TRAINING_GOAL):
        outdir = run.work / f"train-{batch}{''.join(options)}"
        # One status line per several iterations, because each waits for the device.
        done = run.train("--loss", "d2o", "--transfer", checkpoint, "--data", images, "--backbone", lite0, "--outdir", outdir, "--batch", batch, "--freeze", 0, "--r1-gamma", 0,
                         "--feature-resolution", run.size(224, 64), "--tick", run.size(4, 1) * batch / 1000, "--duration", (iterations + run.size(8, 1)) * batch / 1e6, *options)
        note = "backbone at 64 pixels, the original's at 224" if run.dry else used(run, done)
        run.line(" ".join([f"d2o train, {title}", *options]), speeds(outdir), IMAGES, peer.get("images_per_second"), "the original", goal, note=note)

    run.attempt(f"the original's {title}", theirs)
    run.attempt(f"d2o train, {title}", ours)
    return ours


def training(run):
    """One training step of CIFAR-10's network beside the original's, batch 64."""
    run.settle()
    beside(run, *run.size((64, 16), (2, 2)))
    run.skip("d2o train in bf16", "d2o train has no bf16 yet")


def training_more(run):
    """The same in batches of 8, and in TF32."""
    run.settle()
    if run.dry:
        run.skip("batch 8 and TF32", "on the CPU batch 2 stands for all")
        return
    ours = beside(run, 8, 40)
    run.attempt("d2o train --tf32", lambda: ours("--tf32", goal=None))


def first_loss(run):
    """The first loss of `d2o train --loss edm` beside the original network's in f64, with the same noise of the device."""
    checkpoint, seed, batch = DEMO / "openmoji-32-edm.safetensors", 42, 16
    picture = run.work / "one-image.npz"
    np.savez(picture, arr_0=np.load(run.made("fake"))["arr_0"][:1])
    peer = run.script("peers.py", "edm-loss", picture, checkpoint, original(run), run.device, batch, seed)["loss"]
    for title, options, most in (("f32", [], 1e-4), ("--tf32", ["--tf32"], None)):
        if run.dry and options:
            run.skip("with --tf32", "needs a GPU")
            continue

        def measure(title=title, options=options, most=most):
            outdir = run.work / f"first-loss{title}"
            run.train("--loss", "edm", "--transfer", checkpoint, "--data", picture, "--outdir", outdir, "--batch", batch, "--seed", seed,
                      "--lr-rampup-kimg", 0, "--dropout", 0, "--augment-p", 0, "--grid", 0, "--duration", batch / 1e6, "--tick", batch / 1000, *options)
            loss = json.loads((outdir / "stats.jsonl").read_text().splitlines()[0])["Loss/denoising/loss"]["mean"]
            run.line(f"first loss of d2o train, {title}: {loss:.8g}, in f64 {peer:.8g}", abs(loss / peer - 1), "relative", most=most)

        run.attempt(f"first loss, {title}", measure)


def resumed(run):
    """A run killed and resumed beside an undisturbed one."""
    images, lite0 = run.made("fake"), run.made("lite0")
    duration, every = run.size((0.64, 0.16), (0.004, 0.002))

    def words(outdir):
        return ["--loss", "d2o", "--transfer", DEMO / "openmoji-32-edm.safetensors", "--data", images, "--backbone", lite0, "--outdir", outdir, "--feature-resolution", 64,
                "--batch", run.size(16, 2), "--duration", duration / 1000, "--tick", every, "--snap", 1, "--dump", 1, "--r1-interval", run.size(4, 1), "--deterministic"]

    whole, broken = run.work / "whole", run.work / "broken"
    run.train(*words(whole))
    command = [run.trainer, "train", "--quiet", *([] if run.dry else ["--device", "0"]), *words(broken)]
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    run.children.add(child)
    state = broken / "training-state.safetensors"
    while child.poll() is None and not state.exists() and run.left() > 0:
        time.sleep(0.02)
    finished = child.poll() is not None
    run.stop(child)
    if finished or not state.exists():
        raise Failed("the run ended before it could be killed")
    run.train(*words(broken), "--resume")
    same, worst = compared(whole, broken)
    if same:
        run.line("killed and resumed against undisturbed: snapshot and state", ok=True, note="equal bytes")
        return
    again = run.work / "again"
    run.train(*words(again))
    twice, spread = compared(whole, again)
    run.line("killed and resumed against undisturbed: largest difference of the averaged weights", worst, "of the largest value", ok=not twice and worst <= 10 * spread,
             note="two undisturbed runs " + ("are equal" if twice else f"differ by {spread:.1e} themselves"))


def compared(a, b):
    from safetensors.numpy import load_file

    names = sorted(p.name for p in a.glob("*.safetensors"))[-2:]
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    if all((b / n).exists() and digest(a / n) == digest(b / n) for n in names):
        return True, 0.0
    last = next(n for n in names if n.startswith("network"))
    x, y = load_file(a / last), load_file(b / last)
    scale = max(float(np.abs(v).max()) for v in x.values())
    return False, max(float(np.abs(x[k] - y[k]).max()) for k in x) / scale


def fine_tuning(run):
    """A fine-tuning into a one-step generator for the rest of the time, measured before and after."""
    run.settle()
    count, batch = run.size(4096, 12), run.size(64, 4)
    heun, before, extractor, lite0 = (run.made(n) for n in ("demo heun", "demo before", "inception-32", "lite0"))
    images, outdir, after = run.work / "drawn.npz", run.work / "fine-tuned", run.work / "after.onnx"
    done = run.d2o("generate", heun, "--seeds", f"0-{count - 1}", "--sampler", "heun", "--num-steps", run.size(18, 4), "--batch", run.size(256, 12), "--out", images, *run.provider)
    run.line(f"{count} training images by EDM's Heun sampler from the demo's checkpoint", count / done["seconds"], IMAGES)
    reference = run.work / "drawn-reference.npz"
    run.d2o("refs", "make", images, "--extractor", extractor, "--protocol", "torch-fidelity", "--no-features", "--out", reference, *run.provider)
    distances = {}

    def measure(title, graph):
        words = ["--seeds", f"{10**6}-{10**6 + count - 1}", "--ref", reference, "--batch", run.size(64, 4)]
        distances[title] = measured(run, graph, extractor, run.work / f"fine-{title}.json", *words)[0]["metrics"]["fid"]["value"]
        run.line(f"FD of one-step images {title} fine-tuning (Inception with seeded weights)", distances[title])

    run.attempt("before", lambda: measure("before", before))
    # The export and the second evaluation need the rest.
    seconds = run.size(max(20.0, run.left() - 35), 10.0)
    done = run.train("--loss", "d2o", "--transfer", DEMO / "openmoji-32-edm.safetensors", "--data", images, "--backbone", lite0, "--outdir", outdir, "--batch", batch,
                     "--feature-resolution", run.size(224, 64), "--xflip", "--lr", 3e-4, "--dlr", 1.5e-4, "--ema", 0.002, "--snap", 0, "--dump", 0, "--tick", run.size(1.0, 0.004),
                     "--max-seconds", round(seconds, 1))
    log = [json.loads(l) for l in (outdir / "stats.jsonl").read_text().splitlines()]
    note = "; ".join(filter(None, [f"{log[-1]['Progress/kimg']['mean']:.3g} thousand images in {log[-1]['Timing/total_sec']['mean']:.0f} s", used(run, done)]))
    run.line(f"d2o train of the demo's network, batch {batch}, f32", speeds(outdir), IMAGES, note=note)
    run.results["environment"]["training"] = log[:: max(1, len(log) // 100)]
    run.d2o("export", sorted(outdir.glob("network-snapshot-*"))[-1], "--out", after, "--uint8", "--no-check")
    run.attempt("after", lambda: measure("after", after))
    if len(distances) == 2:
        better = distances["after"] < distances["before"]
        run.line("FD after over before", distances["after"] / distances["before"], ok=run.dry or better)
