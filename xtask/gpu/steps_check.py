"""Questions 1 to 3: what runs where, every kind of graph on CUDA against the CPU, torch's generators, parity with torch-fidelity."""
import ctypes
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import numpy as np

from harness import Failed, Skipped, side_by_side
from prepare import ROOT

DATA, DEMO = ROOT / "tests/data", ROOT / "xtask/demo"
PRECISE, FEATURES, TF32, F16 = 2e-5, 1e-4, 3e-2, 3e-2
# Arguments that the tensor shapes of OpenAI's files do not determine (tests/networks.rs).
OPENAI = {
    "cm-cond": ("KarrasDenoiser", dict(distillation=True, num_head_channels=32)),
    "edm-uncond": ("KarrasDenoiser", dict(distillation=False, num_head_channels=16)),
    "guided-legacy": ("GaussianDiffusion", dict(noise_schedule="cosine", use_new_attention_order=False, num_head_channels=8)),
    "guided-new": ("GaussianDiffusion", dict(noise_schedule="linear", use_new_attention_order=True, num_head_channels=8)),
}
GOLDEN = ["d2o-adm-cond", "d2o-ncsnpp-uncond", "edm-adm-cond", "edm-ddpmpp-cond", "edm-ncsnpp-uncond", "ve-ncsnpp", "vp-ddpmpp"]
PACKAGES = ["torch", "torchvision", "timm", "torch_fidelity", "numpy", "scipy", "onnx", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cufft", "nvidia-curand", "nvidia-cuda-runtime"]


def devices():
    """Number of CUDA devices the driver shows."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def export(run, name, checkpoint, *options):
    """Writes NAME.onnx from a checkpoint, unless it is there."""
    out = run.work / f"{name}.onnx"
    if not out.exists():
        run.d2o("export", checkpoint, "--out", out, "--no-check", *options, limit=run.size(120, 600))
    return out


def start_making(run):
    """Checkpoints and graphs, made on the CPU while the first steps run."""
    limit, orig = run.size(150, 900), run.dest / "orig/D2O"

    def checkpoint(kind, ending, *words):
        def make():
            out = run.work / f"{kind}.{ending}"
            run.script("prepare.py", kind, out, *words, limit=limit, env={"OMP_NUM_THREADS": "2"})
            return out

        run.make(kind, make)

    def images(name, count, seed):
        def make():
            out = run.work / f"{name}.npz"
            run.script("prepare.py", "images", out, count, seed, limit=limit)
            return out

        run.make(name, make)

    def inception():
        out = run.work / "inception.pth"
        run.call([sys.executable, ROOT / "xtask/peers/bench.py", "weights", out], limit=limit)
        return out

    def graph(name, source, *options):
        """Makes a graph of a file, or of the output of another maker."""
        run.make(name, lambda: export(run, name, source if isinstance(source, Path) else run.made(source), *options))

    def denoiser():
        out = run.work / "denoiser.safetensors"
        if orig.is_dir():
            run.script("prepare.py", "denoiser", out, orig, run.size("full", "small"), limit=limit)
            return out
        # Without the original code d2o makes the network, and comparisons with it are skipped.
        fresh, size = run.work / "fresh", run.size([], ["--cbase", 32, "--cres", "1,2", "--num-blocks", 1])
        run.call([run.trainer, "train", "--quiet", "--device", "cpu", "--loss", "edm", "--data", run.made("fake"), "--outdir", fresh, "--batch", 1, "--duration", 1e-6, "--arch", "ncsnpp", "--augment-p", 0, *size],
                 limit=limit)
        run.script("prepare.py", "shaken", out, fresh / "network-snapshot-000000.safetensors", limit=limit)
        return out

    # What the first steps need comes first. Makers that wait for others come last, so that they never fill the pool.
    run.make("inception", inception)
    graph("demo", DEMO / "openmoji-32-d2o.safetensors", "--uint8")
    images("real", run.size(2500, 12), 0)
    images("fake", run.size(2400, 10), 1)
    run.make("denoiser", denoiser)
    for kind, ending in (("lite0", "pth"), ("vgg16", "pth"), ("clip", "pt"), ("dinov2", "pth")):
        checkpoint(kind, ending)
    images("samples", run.size(6400 + 640, 30), 2)
    images("reference", run.size(10_000, 20), 3)
    graph("inception-f32", "inception", "--input", "f32")
    graph("inception-32", "inception", "--fuse-resize", "--image-size", "32")
    graph("cifar10", "denoiser", "--kind", "one-step", "--uint8")
    graph("cifar10-f16", "denoiser", "--kind", "one-step", "--uint8", "--precision", "fp16")
    for kind in ("lite0", "vgg16", "dinov2"):
        graph(f"{kind}-graph", kind, "--kind", "features")
    graph("clip-graph", "clip", "--kind", "features", "--activation", "quick-gelu")
    for name in GOLDEN:
        for kind in ("one-step", "denoiser"):
            graph(f"{name} {kind}", DATA / f"golden/{name}.safetensors", "--kind", kind)
    for name, (kind, kwargs) in OPENAI.items():
        config = run.work / f"{name}.json"
        config.write_text(json.dumps({"class": kind, "init_kwargs": dict(kwargs, image_size=16)}))
        graph(f"openai {name}", DATA / f"openai/{name}.pt", "--kind", "denoiser", "--config", config)
    for name in ("skip-cond", "resnet"):
        graph(f"stylegan2 {name}", DATA / f"stylegan2/{name}.pkl")
    graph("demo heun", DEMO / "openmoji-32-edm.safetensors", "--kind", "denoiser")
    graph("demo before", DEMO / "openmoji-32-edm.safetensors", "--kind", "one-step", "--uint8")


def environment(run):
    """GPU, driver, libraries and the speed of products and copies."""
    found = run.results["environment"]
    found.update(python=platform.python_version(), kernel=platform.release(), machine=platform.machine(), cores=os.cpu_count(), d2o=run.binary.name, packages={})
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            found["cpu"] = line.split(":", 1)[1].strip()
    found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    for name in PACKAGES:
        try:
            found["packages"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["packages"][name] = None
    library = ctypes.CDLL(os.environ["D2O_ONNXRUNTIME"]).OrtGetApiBase
    library.restype = ctypes.POINTER(ctypes.c_void_p * 2)
    found["onnxruntime"] = ctypes.CFUNCTYPE(ctypes.c_char_p)(library().contents[1])().decode()
    found["d2o_version"] = run.call([run.binary, "--version"])["out"].strip()
    run.line(f"d2o ({run.binary.name}) starts: {found['d2o_version']}, ONNX Runtime {found['onnxruntime']}", ok=True)
    run.attempt("d2o with training starts (libtorch)", lambda: trainer(run))
    if run.dry:
        run.skip("GPU, driver, CUDA", "needs a GPU")
    else:
        query = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem,compute_cap"
        if shutil.which("nvidia-smi"):
            row = run.call(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])["out"].splitlines()[0].split(", ")
            found["gpu"] = dict(zip(query.split(","), row))
            banner = run.call(["nvidia-smi"])["out"]
            found["cuda_driver"] = next(iter(re.findall(r"CUDA Version:\s*([\d.]+)", banner)), None)
            run.line(f"GPU: {', '.join(row[:3])}", ok=True)
    ceilings = found["ceilings"] = run.script("peers.py", "ceilings", run.device)
    for name, unit in (("f32_tflops", "TFLOP/s"), ("tf32_tflops", "TFLOP/s"), ("f16_tflops", "TFLOP/s"), ("copy_tb_per_s", "TB/s")):
        run.line(f"PyTorch, {name.split('_')[0]}: {'a large copy' if 'copy' in name else 'a large product'}", ceilings[name], unit)


def trainer(run):
    version = run.call([run.trainer, "--version"])
    run.line("d2o with training starts (libtorch)", version["seconds"], "s", ok=True)


def read_json(path):
    return json.loads(Path(path).read_text())


def verify(run, graph, name, *options, limit=None, tolerance=PRECISE, samples=16, batch=8, runtimes=None):
    """Runs `d2o verify` and returns its JSON, also if outputs differ."""
    out = run.work / f"verify-{re.sub('[^A-Za-z0-9]+', '-', name)}.json"
    out.unlink(missing_ok=True)
    runtimes = runtimes or run.size("ort-cpu,ort-cuda", "ort-cpu,ort-cpu")
    # Several runs share the CPU.
    device = [] if run.dry else ["--device", "0", "--threads", "4"]
    precisions = "--precisions" in options
    done = run.d2o("verify", graph, *([] if precisions else ["--runtimes", runtimes]), *device, "--samples", samples, "--batch", batch, "--tolerance", tolerance,
            "--json", out, *options, ok=(0, 1), limit=limit)
    if not out.exists():
        raise Failed(f"verify of {name}: {run.reason(done['err'] or done['out'])}")
    return read_json(out)


def providers(run):
    """The first session and the first step of training: which provider computes which nodes."""
    for name in ("inception-32", "demo"):
        found = run.attempt(f"nodes of {name} by provider", lambda: placed(run, name))
        if found:
            run.results["environment"].setdefault("nodes", {})[name] = found
    run.attempt("no device visible", lambda: fall_back(run))
    run.attempt("d2o train, two iterations of the demo's network", lambda: first_training(run))


def fall_back(run):
    """With the devices hidden `auto` falls back, with a warning that --quiet keeps, and `cuda` is refused."""
    hidden, out = {"CUDA_VISIBLE_DEVICES": "-1"}, run.work / "fall-back.npz"
    words = [run.binary, "--quiet", "generate", run.made("demo"), "--seeds", "0-3", "--out", out, "--overwrite", "--provider"]
    auto = run.call([*words, "auto"], env=hidden)["err"]
    refused = run.call([*words, "cuda"], env=hidden, ok=(2,))["err"]
    ok = "running on the CPU" in auto and "CUDA device 0 that cannot be used" in refused
    run.line("no device visible: `auto` warns despite --quiet, `cuda` is refused", ok=ok, note="" if ok else f"auto: {auto[:200]}; cuda: {refused[:200]}")


def placed(run, name):
    graph = run.made(name)
    found = verify(run, graph, f"profile {name}", "--profile", samples=run.size(16, 2), batch=run.size(8, 1), tolerance=FEATURES)
    totals, strangers = {}, set()
    for node in found.get("nodes", []):
        totals[node["provider"]] = totals.get(node["provider"], 0) + node["count"]
        if "CUDA" not in node["provider"]:
            strangers.add(node["op"])
    if not totals:
        raise Failed("verify --profile lists no nodes by provider")
    runtimes = sorted({o["runtime"] for o in found["outputs"]} | {found["reference"]})
    text = ", ".join(f"{count} on {provider}" for provider, count in sorted(totals.items()))
    note = text if run.dry or not strangers else f"{text}; not on CUDA: {', '.join(sorted(strangers))}"
    share = sum(c for p, c in totals.items() if "CUDA" in p) / sum(totals.values())
    run.line(f"nodes of {name} on CUDA ({' against '.join(runtimes)})", 100 * share, "%", ok=run.dry or share > 0.5, note=note)
    return totals


def first_training(run):
    outdir = run.work / "first-training"
    images, lite0 = run.made("fake"), run.made("lite0")
    done = run.train("--loss", "d2o", "--transfer", DEMO / "openmoji-32-edm.safetensors", "--data", images, "--backbone", lite0, "--outdir", outdir,
                     "--batch", run.size(16, 2), "--feature-resolution", 64, "--duration", run.size(32e-6, 4e-6), "--tick", 0.001)
    lines = [json.loads(l) for l in (outdir / "stats.jsonl").read_text().splitlines()]
    losses = [{k: v["mean"] for k, v in l.items() if k.startswith("Loss/")} for l in lines]
    finite = all(v is not None and np.isfinite(v) for l in losses for v in l.values())
    run.line("d2o train, two iterations of the demo's network", done["seconds"], "s", ok=finite and len(losses) > 0, note="" if finite else f"losses {losses}")


def ncsnpp(run):
    """Title of the network that the artefacts `denoiser` and `cifar10` contain."""
    return run.size("CIFAR-10's NCSN++ of 56.4 M parameters", "a small NCSN++")


def kinds(run):
    """(name, maker, tolerance, batch) of every kind of graph."""
    for name in GOLDEN:
        for kind in ("one-step", "denoiser"):
            yield f"{name} {kind}", f"{name} {kind}", PRECISE, 8
    for name in OPENAI:
        yield f"openai {name}", f"openai {name}", PRECISE, 8
    for name in ("skip-cond", "resnet"):
        yield f"stylegan2 {name}", f"stylegan2 {name}", PRECISE, 8
    yield "demo, D2O's one-step generator", "demo", PRECISE, 8
    yield "demo, EDM's denoiser", "demo heun", PRECISE, 8
    yield f"{ncsnpp(run)}, one-step", "cifar10", PRECISE, 8
    yield "Inception, images f32 of 299", "inception-f32", FEATURES, 8
    yield "Inception, images u8 of 32", "inception-32", FEATURES, 8
    yield "EfficientNet-Lite0", "lite0-graph", FEATURES, 4
    yield "VGG16", "vgg16-graph", FEATURES, 4
    yield "CLIP ViT-B/32", "clip-graph", FEATURES, 4
    yield "DINOv2 ViT-S/14", "dinov2-graph", FEATURES, 4


HEAVY = ["VGG16", "CLIP ViT-B/32", "DINOv2 ViT-S/14", "Inception, images f32 of 299"]


def against(run):
    return run.size("ort-cuda against ort-cpu", "ort-cpu against itself")


def compare(run, wanted, options=(), tolerance=None, samples=16, title=None):
    """Verifies graphs side by side: nothing here is timed."""
    title = title or against(run)

    def one(item):
        name, maker, allowed, batch = item
        small = 1 if any(name.startswith(h) for h in HEAVY) or name.startswith("Inception") else 2
        try:
            found = verify(run, run.made(maker), f"{name} {' '.join(options)}", *options, tolerance=tolerance or allowed, samples=run.size(samples, small), batch=run.size(batch, small))
            return name, found, None
        except (Failed, Skipped) as why:
            return name, None, why

    for name, found, why in side_by_side(run.size(5, 1), one, wanted):
        if isinstance(why, Skipped):
            run.skip(f"{name}: {title}", str(why))
        elif why:
            run.fail(f"{name}: {title}", why)
        else:
            report(run, f"{name}: {title}", found)


def report(run, what, found):
    worst = max(found["outputs"], key=lambda o: o["max_rel"])
    runtimes = {o["runtime"] for o in found["outputs"]}
    note = "; ".join([f"{sum(o['not_finite'] for o in found['outputs'])} values not finite"] if any(o["not_finite"] for o in found["outputs"]) else [])
    if not run.dry and not any("cuda" in r for r in runtimes):
        note = f"ran on {', '.join(sorted(runtimes))}"
    agree = all(o["agrees"] for o in found["outputs"])
    if agree and worst["max_rel"] > found["tolerance"]:
        note = "; ".join(filter(None, [note, "bytes that differ by one level on a rounding boundary"]))
    run.line(what, worst["max_rel"], "of the largest value", goal_text=f"≤ {found['tolerance']:g}", ok=agree, note=note)


def graphs(run):
    """Every kind of graph on CUDA against the CPU, f32 with TF32 off."""
    compare(run, list(kinds(run)))


def reduced(run):
    """TF32 and f16 against f32."""
    wanted = [k for k in kinds(run) if k[1] in ("d2o-ncsnpp-uncond one-step", "edm-adm-cond denoiser", "stylegan2 resnet", "openai cm-cond", "cifar10", "inception-32", "dinov2-graph")]
    if run.dry:
        run.skip("TF32", "needs a GPU")
    else:
        compare(run, wanted, options=("--tf32",), tolerance=TF32, title="ort-cuda-tf32 against ort-cpu")
    for name, source, options in (
        ("d2o-ncsnpp-uncond one-step", DATA / "golden/d2o-ncsnpp-uncond.safetensors", ["--kind", "one-step"]),
        ("stylegan2 resnet", DATA / "stylegan2/resnet.pkl", []),
    ):
        run.attempt(f"{name}, f16", lambda: half(run, name, export(run, f"{name} f16", source, "--precision", "fp16", *options), 64))
    run.attempt(f"{ncsnpp(run)}, f16", lambda: half(run, "cifar10", run.made("cifar10-f16"), 1024))


def half(run, name, graph, samples):
    found = verify(run, graph, f"{name} f16", tolerance=F16, samples=run.size(16, 2), batch=run.size(8, 1))
    report(run, f"{name}, f16: {against(run)}", found)
    try:
        found = verify(run, run.made(name), f"{name} precisions", "--precisions", "--fp16", graph, samples=run.size(samples, 2), batch=run.size(64, 1), tolerance=F16)
    except Failed as why:
        if run.dry and "CUDA" in str(why):
            raise Skipped("needs a GPU") from None
        raise
    outputs = {o["runtime"]: o for o in found["outputs"]}
    for line in found["precisions"]:
        if line.get("skipped"):
            run.skip(f"{name}, {line['precision']}", line["skipped"])
        elif line["precision"] != "fp32":
            worst = outputs[line["precision"]]["max_rel"]
            run.line(f"{name}, {line['precision']} against fp32", worst, "of the largest value", most=F16, note=f"{line.get('speed') or 0:.0f} inputs/s in verify")


def philox(run):
    """torch's generators: `d2o draw` beside torch.Generator."""
    rng, sides = run.size("torch-cuda", "torch-cpu"), run.size((32, 64, 256, 512), (32, 64))
    words = lambda side: [f"f32:{3 * side * side}", "i1000", f"f64:{3 * side * side}", "i10", f"f32:{3 * side * side}"]
    drawn = []
    for side in sides:

        def draw(side=side):
            out = run.work / f"draws-{side}.npz"
            run.d2o("draw", "--rng", rng, "--seeds", "0-3", *[w for d in words(side) for w in ("--draw", d)], "--out", out)
            drawn.append((side, out))

        run.attempt(f"{rng}: 3·{side}²", draw)
    found = run.script("peers.py", "draws", run.device, "0-3", *[w for side, out in drawn for w in (out, ",".join(words(side)))]) if drawn else {}
    for side, out in drawn:
        worst, title = found[str(out)], f"{rng}: 3·{side}², seeds 0–3"
        run.line(f"{title}, integers drawn between normals", worst["integer"], "apart", most=0)
        run.line(f"{title}, normals f32", worst["f32"], "apart, relative beyond 1", most=1e-6)
        run.line(f"{title}, normals f64", worst["f64"], "apart, relative beyond 1", most=1e-12)
    # The draws of another GPU model; only checks that they are finite.
    out = run.work / "draws-named.npz"

    def named():
        run.d2o("draw", "--rng", "torch-cuda", "--rng-gpu", "a100", "--seeds", "0-1", "--draw", "f32:786432", "--out", out)
        run.line("torch-cuda of an A100, drawn here", ok=bool(np.isfinite(np.load(out)["draw0"]).all()))

    run.attempt("torch-cuda of an A100, drawn here", named)
    if run.dry:
        run.skip("torch's CUDA generators", "needs a GPU; torch-cpu was compared instead")


def parity(run):
    """pool3 and FID of the same images with the same weights: torch-fidelity beside d2o."""
    import h5py

    weights, fake, real, graph = (run.made(n) for n in ("inception", "fake", "real", "inception-f32"))
    theirs = run.work / "parity-torch.npz"
    small = run.size(1000, 5)
    peer = run.script("peers.py", "fidelity", fake, real, weights, run.device, 1e6, theirs, f"trial={run.size(512, 5)}", f"batches={run.size(64, 5)}",
                      f"kid_subset_size={small}")
    files = [run.work / f"parity-{n}.h5" for n in ("fake", "real")]
    result = run.work / "parity.json"
    common = ["--extractor", graph, "--protocol", "torch-fidelity", "--allow-deviation", "extractor", "--bootstrap", 0, "--kid-subset-size", small, *run.provider]
    # Once in each direction, so that the features of both sets are saved.
    run.d2o("evaluate", real, "--ref", fake, "--metrics", "fid", "--save-features", files[1], *common)
    run.d2o("evaluate", fake, "--ref", real, "--metrics", "fid,is,kid,pr", "--save-features", files[0], "--json", result, *common)
    ours, saved = read_json(result), np.load(theirs)
    for file, name in zip(files, ("samples", "reference")):
        with h5py.File(file) as h5:
            rows = h5["features"][:]
        off = float(np.abs(rows - saved[name]).max() / np.abs(saved[name]).max())
        run.line(f"pool3 of {len(rows)} images, {ours['runtime']['runtime']}", off, "of the largest value", most=1e-4)
    values = {n: ours["metrics"][n]["value"] for n in ("fid", "is", "kid", "precision", "recall")}
    names = dict(fid="frechet_inception_distance", kid="kernel_inception_distance_mean", precision="precision", recall="recall")
    names["is"] = "inception_score_mean"
    for metric, most in (("fid", 1e-4), ("is", 1e-4), ("kid", None), ("precision", None), ("recall", None)):
        a, b = values[metric], peer["values"][names[metric]]
        off = abs(a - b) / max(abs(b), 1e-12)
        # torch-fidelity sums KID in f32, and a few neighbours depend on rounding: these figures have no bound.
        run.line(f"{metric}: {a:.8g}, torch-fidelity {b:.8g}", off, "relative", most=most)
