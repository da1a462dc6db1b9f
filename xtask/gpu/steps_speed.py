"""Question 4: speed, each figure beside its peer in the same run."""
import csv

import numpy as np

from harness import Failed, Skipped
from steps_check import ncsnpp, read_json

# Goals: docs/cuda.md.
FEATURES_GOAL, GENERATION_GOAL, EVALUATION_GOAL = 0.95, 1.0, 2.0
IMAGES = "img/s"
HEURISTIC, EXHAUSTIVE, TF32 = ("use_tf32=0,cudnn_conv_algo_search=HEURISTIC", "use_tf32=0,cudnn_conv_algo_search=EXHAUSTIVE", "use_tf32=1,cudnn_conv_algo_search=HEURISTIC")
NETWORKS = {"inception-32": "Inception, u8 of 32 resized in the graph", "inception-f32": "Inception, f32 of 299 resized by d2o"}


def first(run):
    """The first samples: the shorter of two runs that are subtracted, and a small reference."""
    out = run.work / "samples-first.npz"
    if not out.exists():
        np.savez(out, arr_0=np.load(run.made("samples"))["arr_0"][: run.size(640, 10)])
    return out


def used(run, done):
    """What the GPU did during a command, for a note."""
    use, memory = run.gpu.between(done["start"], done["end"])
    return "" if use is None or memory is None else f"GPU busy {use:.0f} %, at most {memory:.0f} MiB"


def measured(run, samples, extractor, out, *options, metrics="fid"):
    """The JSON of `d2o evaluate`, and the command."""
    done = run.d2o("evaluate", samples, "--extractor", extractor, "--protocol", "torch-fidelity", "--allow-deviation", "extractor", "--metrics", metrics, "--bootstrap", 0, "--json", out, *run.provider, *options)
    return read_json(out), done


def stage(run, graph, batch, *options):
    """Images per second of the features stage, from two runs, so that start-up and first batch cancel."""
    out = run.work / "stage.json"
    (a, _), (b, _) = (measured(run, s, graph, out, "--ref", first(run), "--batch", batch, *options) for s in (first(run), run.made("samples")))
    more = b["samples"]["count"] - a["samples"]["count"]
    stages = {k.removeprefix("features_"): b["timings"][k] - a["timings"][k] for k in b["timings"] if k.startswith("features")}
    speed = more / max(stages.pop("features"), 1e-9)
    return speed, f"{b['runtime']['runtime']}; of {more} images " + ", ".join(f"{k} {v:.2f} s" for k, v in sorted(stages.items()))


def bare(run, name, *sets, title=None, images=3200):
    """Images a second of bare sessions, by their options."""
    library = run.dest / "lib/libonnxruntime.so.1.31.1"
    found = run.script("bare.py", run.made(name), library, run.device, run.size(images, 20), run.size(64, 10), *sets)["images_per_second"]
    for options, speed in found.items():
        run.line(f"{title or NETWORKS[name]}: bare session, {'CPU' if run.dry else options.replace(',', ', ')}", speed, IMAGES)
    return found


def staged(run, name, peers, *options, batch=None, goal=FEATURES_GOAL):
    """A line of d2o's features stage beside the fastest of bare sessions."""
    batch = batch or run.size(64, 10)
    speed, note = stage(run, run.made(name), batch, *options)
    what = " ".join([f"{NETWORKS[name]}: d2o's features stage, batch {batch}", *options])
    run.line(what, speed, IMAGES, max(peers.values()) if peers else None, "fastest bare session", goal, note=note)


def features(run):
    """d2o's features stage beside a bare ONNX Runtime session."""
    run.settle()
    for name, sets in (("inception-32", [HEURISTIC] if run.dry else [HEURISTIC, EXHAUSTIVE]), ("inception-f32", [HEURISTIC])):
        peers = run.attempt(f"{NETWORKS[name]}: bare session", lambda: bare(run, name, *sets))
        run.attempt(f"{NETWORKS[name]}: d2o's features stage", lambda: staged(run, name, peers))


def features_more(run):
    """The features stage in TF32 and in larger batches, and Inception in PyTorch."""
    run.settle()
    name = "inception-32"
    if run.dry:
        run.skip("TF32", "needs a GPU")
    else:
        peers = run.attempt(f"{NETWORKS[name]}: bare session, TF32", lambda: bare(run, name, TF32))
        run.attempt(f"{NETWORKS[name]}: d2o's features stage, TF32", lambda: staged(run, name, peers, "--tf32"))
        run.attempt(f"{NETWORKS[name]}: d2o's features stage, batch 128", lambda: staged(run, name, None, batch=128, goal=None))

    def inception():
        for kind, speed in run.script("peers.py", "inception", run.made("samples"), run.made("inception"), run.device, run.size(512, 4)).items():
            run.line(f"torch-fidelity's Inception in PyTorch, {kind}, images on the device", speed, IMAGES)

    run.attempt("Inception in PyTorch", inception)


def generated(run, graph, counts, *options):
    """Images per second of `d2o generate`, from two runs, so that start-up cancels."""
    seconds = []
    for i, count in enumerate(counts):
        words = ["--seeds", f"0-{count - 1}", "--batch", run.size(64, 4), "--out", run.work / f"generated-{i}.npz"]
        seconds.append(run.d2o("generate", graph, *words, *run.provider, *options)["seconds"])
    return (counts[1] - counts[0]) / max(seconds[1] - seconds[0], 1e-9)


def original(run):
    """The original's code."""
    orig = run.dest / "orig/D2O"
    if not orig.is_dir():
        raise Skipped("DEST/orig/D2O is not there")
    return orig


def precision(run, name, model, peer, *options):
    """A line of `d2o generate` in one precision beside PyTorch in the same."""
    batch, rates = run.size(64, 4), (peer or {}).get("rates", {})
    more = 8192 if name == "f32" else 16384
    speed = generated(run, model, run.size((256, 256 + more), (4, 84)), *options)
    others = ", ".join(f"PyTorch, {k.removeprefix(f'{name} ')}: {v:.0f} {IMAGES}" for k, v in rates.items() if k.startswith(f"{name} ") and k != f"{name} batch {batch}")
    run.line(" ".join([f"{ncsnpp(run)}, {name}, batch {batch}: d2o generate", *options]), speed, IMAGES, rates.get(f"{name} batch {batch}"), "original network, PyTorch",
             GENERATION_GOAL, note=others)


def generation(run):
    """One-step generation of CIFAR-10's NCSN++ in f32 beside the original network in PyTorch."""
    run.settle()
    graph, peer = run.made("cifar10"), {}

    def theirs():
        peer.update(run.script("peers.py", "one-step", run.made("denoiser"), original(run), run.device, run.size("64", "4"), "-", "-"))
        for key, speed in peer["rates"].items():
            run.line(f"{ncsnpp(run)}, original network in PyTorch, {key}, the better of two layouts", speed, IMAGES)
        run.results["environment"]["one_step"] = peer["rates"]
        by_kernel(run, f"{ncsnpp(run)}, original network in PyTorch, f32", peer.get("kernels", {}))

    run.attempt("original network in PyTorch", theirs)
    run.attempt(f"{ncsnpp(run)}, f32: d2o generate", lambda: precision(run, "f32", graph, peer))
    if not run.dry:
        run.attempt(f"{ncsnpp(run)}, f32: d2o generate --cudnn-benchmark", lambda: precision(run, "f32", graph, peer, "--cudnn-benchmark"))


def by_kernel(run, title, times, most=10):
    """Lines of the kernels that take longest: `times` has milliseconds and launches by name, of one batch."""
    total = sum(ms for ms, _ in times.values())
    for name, (ms, launches) in sorted(times.items(), key=lambda t: -t[1][0])[:most]:
        run.line(f"{title}: {name[:120]}", ms, "ms", note=f"{100 * ms / total:.1f} % of {total:.1f} ms in kernels, {launches} launches")


def kernels(run):
    """Sessions of the generator by their options, and the kernels of one batch."""
    run.settle()
    title = f"{ncsnpp(run)}, one-step"
    if run.dry:
        raise Skipped("needs a GPU")
    for name, precise in (("cifar10", "use_tf32=0"), ("cifar10-f16", "use_tf32=1")):
        sets = [f"{precise},cudnn_conv_algo_search={algorithm}{layout}" for layout in ("", ",prefer_nhwc=1") for algorithm in ("HEURISTIC", "EXHAUSTIVE")]
        run.attempt(f"{name}: bare sessions", lambda: bare(run, name, *sets, title=f"{title}{' f16' if 'f16' in name else ''}", images=1280))
    run.attempt(f"{title}: kernels", lambda: by_kernel(run, f"{title}, d2o generate, f32", profiled(run, run.made("cifar10"))))


def profiled(run, graph):
    """Milliseconds and launches by kernel of a batch of 64 of `d2o generate`."""
    options = ["--csv", "--print-units", "base", "--metrics", "gpu__time_duration.sum", "--clock-control", "none", "--target-processes", "all"]
    done = run.call(["ncu", *options, run.binary, "--quiet", "generate", graph, "--seeds", "0-63", "--batch", 64, "--out", run.work / "profiled.npz", "--overwrite", *run.provider])
    rows = list(csv.reader(l for l in done["out"].splitlines() if l.startswith('"')))
    name, value = (rows[0].index(c) for c in ("Kernel Name", "Metric Value"))
    times = {}
    for row in rows[1:]:
        ms, launches = times.get(row[name], (0.0, 0))
        times[row[name]] = (ms + float(row[value].replace(",", "")) / 1e6, launches + 1)
    return times


def generation_more(run):
    """The same in TF32 and f16, and the bytes of images beside the original network's."""
    run.settle()
    peer = dict(rates=run.results["environment"].get("one_step", {}))
    if run.dry:
        run.skip("TF32", "needs a GPU")
    else:
        run.attempt(f"{ncsnpp(run)}, tf32: d2o generate", lambda: precision(run, "tf32", run.made("cifar10"), peer, "--tf32"))
    run.attempt(f"{ncsnpp(run)}, f16: d2o generate", lambda: precision(run, "f16", run.made("cifar10-f16"), peer))

    def same():
        latents, images = run.work / "latents.npz", run.work / "generated-same.npz"
        run.d2o("generate", run.made("cifar10"), "--seeds", f"0-{run.size(255, 3)}", "--batch", run.size(64, 4), "--save-latents", latents, "--out", images, *run.provider)
        found = run.script("peers.py", "one-step", run.made("denoiser"), original(run), run.device, "0", latents, images)
        run.line("bytes equal to those of the original network in PyTorch on the same latents, f32", 100 * found["equal"], "%", ok=found["largest"] <= 1,
                 note=f"largest difference {found['largest']}")

    run.attempt("images beside the original network's", same)


def fuse(run):
    """A generator feeding Inception: plain, --fuse and --fuse=memory."""
    run.settle()
    graph, extractor, count = run.made("demo"), run.made("inception-32"), run.size(6400, 20)
    plain = []
    for title, options in (("plain", []), ("--fuse", ["--fuse"]), ("--fuse=memory", ["--fuse=memory"])):

        def one(title=title, options=options):
            words = ["--ref", first(run), "--seeds", f"0-{count - 1}", "--batch", run.size(64, 10)]
            found, done = measured(run, graph, extractor, run.work / "fuse.json", *words, *options)
            plain.append(count / found["timings"]["features"])
            note = "; ".join(filter(None, [f"FID {found['metrics']['fid']['value']:.6g}", used(run, done)]))
            run.line(f"one-step images to features, {count} seeds, {title}", plain[-1], IMAGES, plain[0] if len(plain) > 1 else None, "plain", note=note)

        run.attempt(f"one-step images to features, {title}", one)


def evaluation(run):
    """50 000 images from seeds to FID, IS, KID, precision and recall beside torch-fidelity."""
    run.settle()
    count, kid = run.size(50_000, 20), run.size(1000, 5)
    graph, extractor, reference = run.made("demo"), run.made("inception-32"), run.made("reference")
    seeds, seconds, values = ["--seeds", f"0-{count - 1}"], {}, {}
    words = ["--ref", reference, "--kid-subset-size", kid, *(["--batch", 10] if run.dry else [])]

    def ours(name, title, samples, *more):
        found, done = measured(run, samples, extractor, run.work / f"evaluation-{name}.json", *words, *more, metrics="fid,is,kid,pr")
        stages = ", ".join(f"{k} {v:.1f}" for k, v in sorted(found["timings"].items(), key=lambda t: -t[1]) if v >= 0.05)
        seconds[name], values[name] = done["seconds"], found["metrics"]
        note = "; ".join(filter(None, [f"{found['runtime']['runtime']}; seconds by stage: {stages}", used(run, done)]))
        run.line(f"{title}, one process, its start included", done["seconds"], "s", note=note)

    def made():
        done = run.d2o("generate", graph, *seeds, "--out", images, *run.provider)
        run.line(f"d2o generate of the same {count} images into an npz, its start included", count / done["seconds"], IMAGES, note=used(run, done))

    images = run.work / "made.npz"
    run.attempt("from seeds", lambda: ours("seeds", f"d2o, {count} images from seeds to all metrics", graph, *seeds))
    run.attempt("d2o generate", made)
    if not images.exists():
        raise Failed("no images for torch-fidelity")
    run.attempt("from a file", lambda: ours("file", f"d2o, {count} images of a file to all metrics", images))
    options = [f"kid_subset_size={kid}", f"trial={run.size(4096, 5)}", f"batches={run.size('64,256', '5')}"]
    peer = run.script("peers.py", "fidelity", images, reference, run.made("inception"), run.device, max(30.0, run.left() - 10), "-", *options, ok=(0, None))
    parts = peer["seconds"]
    total = sum(parts.values())
    for key, speed in peer["rates"].items():
        run.line(f"torch-fidelity 0.4.0, features, {key}", speed, IMAGES)
    note = "seconds by stage: " + ", ".join(f"{k} {v:.1f}" for k, v in parts.items())
    note += "; features measured on some of the images and scaled" if peer.get("scaled") else ""
    note += "" if peer["finished"] else "; stopped before it was done: it takes longer"
    run.line(f"torch-fidelity 0.4.0, f32, batch {peer['batch']}, {' + '.join(map(str, peer['images']))} images in memory, imports left out", total, "s", note=note)
    judged = dict(peer=total, peer_name="torch-fidelity", goal=EVALUATION_GOAL, slower=True)
    if "seeds" in seconds:
        run.line(f"evaluation of {count} images, d2o from seeds, both f32", seconds["seeds"], "s", **judged)
    if "file" in seconds:
        run.line(f"evaluation of {count} images, d2o from a file, both f32", seconds["file"], "s", **judged)
    for name in ("file", "seeds"):
        if name in values and peer["values"]:
            a, b = values[name]["fid"]["value"], peer["values"]["frechet_inception_distance"]
            run.line(f"FID {a:.8g} ({name}), torch-fidelity {b:.8g}", abs(a - b) / max(abs(b), 1e-12), "relative", most=1e-4)
    tf32 = peer["rates"].get(f"tf32 batch {peer['batch']}")
    if tf32 and run.left() > 45:
        run.attempt("from seeds, --tf32", lambda: ours("tf32", f"d2o, {count} images from seeds to all metrics, --tf32", graph, *seeds, "--tf32"))
        if "tf32" in seconds:
            theirs = total - parts["features"] + sum(peer["images"]) / tf32
            run.line("evaluation, both in TF32 (torch-fidelity's default on CUDA)", seconds["tf32"], "s", **dict(judged, peer=theirs, peer_name="torch-fidelity, features scaled"))
