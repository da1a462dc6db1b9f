"""The other programs' side of xtask/gpu/run.py: torch's generators, torch-fidelity, the original network and the original's training step.

python peers.py draws cuda|cpu SEEDS [D2O.npz DRAW,...]...                              torch's generators beside what `d2o draw` wrote
python peers.py fidelity SAMPLES.npz REFERENCE.npz WEIGHTS.pth cuda|cpu BUDGET FEATURES.npz|- KEY=VALUE...
python peers.py inception SAMPLES.npz WEIGHTS.pth cuda|cpu IMAGES                      torch-fidelity's Inception in several precisions, images on the device
python peers.py one-step CHECKPOINT.safetensors ORIG cuda|cpu BATCH,...|0 LATENTS.npz|- IMAGES.npz|-    the original network, one evaluation an image
python peers.py train IMAGES.npz CHECKPOINT.safetensors ORIG cuda|cpu BATCH ROUNDS     the original's step: generator, discriminator, average
python peers.py edm-loss IMAGES.npz CHECKPOINT.safetensors ORIG cuda|cpu BATCH SEED    EDM's loss in f64 of the noise `d2o train` draws there
python peers.py ceilings cuda|cpu                                                      products and copies of this device

Each prints lines of JSON; a later line has everything of those before it.
"""
import json
import sys
import time

import numpy as np
import torch

import prepare

SIGMA_MAX = 80.0


def say(found):
    print(json.dumps(found), flush=True)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def precise(tf32=False):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


def rate(device, count, run, seconds=1.0):
    """Things per second of `run`, which does `count` of them, over `seconds` after warm-ups."""
    for _ in range(3 if device == "cuda" else 1):
        run()
    wait(device)
    start, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - start < seconds:
        run()
        done += count
        wait(device)
    return done / (time.perf_counter() - start)


def ceilings(device):
    side = 8192 if device == "cuda" else 512
    found = {}
    for name, dtype, tf32 in (("f32", torch.float32, False), ("tf32", torch.float32, True), ("f16", torch.float16, False)):
        precise(tf32)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[f"{name}_tflops"] = rate(device, 2 * side**3, lambda: a @ b, 0.5) / 1e12
    a = torch.empty(side * side, device=device)
    found["copy_tb_per_s"] = rate(device, 2 * a.nbytes, lambda: a.clone(), 0.3) / 1e12
    say(found)


def draws(device, seeds, *files):
    first, last = map(int, seeds.split("-"))
    found = {}
    for path, wanted in zip(files[::2], files[1::2]):
        ours, worst = np.load(path), {}
        for row, seed in enumerate(range(first, last + 1)):
            generator = torch.Generator(device).manual_seed(seed)
            for i, what in enumerate(wanted.split(",")):
                kind, _, count = what.partition(":")
                if count:
                    theirs = torch.randn([int(count)], generator=generator, device=device, dtype=dict(f32=torch.float32, f64=torch.float64)[kind])
                else:
                    kind, theirs = "integer", torch.randint(int(what[1:]), [1], generator=generator, device=device)
                theirs, values = theirs.cpu().numpy(), np.reshape(ours[f"draw{i}"][row], -1)
                assert values.shape == theirs.shape, (what, values.shape, theirs.shape)
                # Above 1 the rounding error of a normal grows with its magnitude.
                off = np.abs(values.astype(np.float64) - theirs) / (1 if kind == "integer" else np.maximum(np.abs(theirs), 1))
                worst[kind] = max(worst.get(kind, 0.0), float(off.max()))
        found[path] = worst
    say(found)


def extractor(weights, device, layers=("2048", "logits_unbiased")):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3("inception-v3-compat", list(layers), feature_extractor_weights_path=weights)
    return net.to(device)


class Images(torch.utils.data.Dataset):
    """u8 images in memory."""

    def __init__(self, path):
        array = np.load(path)["arr_0"] if isinstance(path, str) else path
        self.images = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]

    def first(self, count):
        return torch.utils.data.Subset(self, range(min(count, len(self))))


def fidelity(samples, reference, weights, device, budget, save, *options):
    """Times torch-fidelity's functions; scales the features of some images if all exceed the budget (seconds)."""
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc, utils

    options = dict(o.split("=") for o in options)
    trial, batches = int(options.get("trial", 4096)), [int(b) for b in options.get("batches", "64,256").split(",")]
    kid = dict(kid_subset_size=int(options.get("kid_subset_size", 1000)), verbose=False)
    start, cuda, sets = time.perf_counter(), device == "cuda", [Images(samples), Images(reference)]
    net = extractor(weights, device)
    features = lambda images, batch: utils.get_featuresdict_from_dataset(images, net, batch, cuda, False, False)

    def timed(images, batch):
        clock = time.perf_counter()
        out = features(images, batch)
        return out, time.perf_counter() - clock

    found = dict(finished=False, rates={}, seconds={}, values={}, images=[len(s) for s in sets])
    precise()
    batch, total = batches[0], sum(found["images"])
    # With several batch sizes: which is the fastest, and how fast in TF32, PyTorch's default for convolutions on CUDA.
    for name, tf32 in (("tf32", True), ("f32", False)) if len(batches) > 1 else ():
        precise(tf32)
        for batch in batches:
            timed(sets[0].first(2 * batch), batch)
            part = sets[0].first(trial)
            found["rates"][f"{name} batch {batch}"] = len(part) / timed(part, batch)[1]
    if found["rates"]:
        batch = max(batches, key=lambda b: found["rates"][f"f32 batch {b}"])
    found["batch"] = batch
    say(found)
    # The metrics take about as long again, so features get half of the remaining time.
    left = (float(budget) - (time.perf_counter() - start)) / 2
    expected = total / found["rates"][f"f32 batch {batch}"] if found["rates"] else 0.0
    found["scaled"] = expected > left
    if found["scaled"]:
        share = max(0.05, left / expected)
        parts = [timed(s.first(int(len(s) * share)), batch) for s in sets]
        found["seconds"]["features"] = sum(p[1] for p in parts) * total / sum(len(p[0]["2048"]) for p in parts)
        # The time of a metric depends on the number of rows, not on their values.
        outs = [{k: v.repeat(-(-len(s) // len(v)), 1)[: len(s)] + 1e-3 * torch.randn(len(s), v.shape[1]) for k, v in p[0].items()} for s, p in zip(sets, parts)]
    else:
        parts = [timed(s, batch) for s in sets]
        found["seconds"]["features"] = sum(p[1] for p in parts)
        outs = [p[0] for p in parts]
    found["rates"].setdefault(f"f32 batch {batch}", total / found["seconds"]["features"])
    say(found)
    if save != "-":
        np.savez(save, samples=outs[0]["2048"].numpy(), reference=outs[1]["2048"].numpy())
    pools = [o["2048"] for o in outs]

    def stage(name, run):
        clock = time.perf_counter()
        values = run()
        found["seconds"][name] = time.perf_counter() - clock
        if not found["scaled"]:
            found["values"].update(values)
        say(found)

    stage("is", lambda: metric_isc.isc_features_to_metric(outs[0]["logits_unbiased"]))
    stage("kid", lambda: metric_kid.kid_features_to_metric(*pools, **kid))
    stage("fid", lambda: metric_fid.fid_statistics_to_metric(*map(metric_fid.fid_features_to_statistics, pools), False))
    stage("pr", lambda: metric_prc.prc_features_to_metric(*pools, verbose=False))
    found["finished"] = True
    say(found)


def inception(samples, weights, device, count):
    images = Images(samples).images[: int(count)].to(device)
    net, found = extractor(weights, device), {}
    kinds = [("f32", False, None, False), ("f32, channels last", False, None, True)]
    if device == "cuda":
        kinds += [("TF32, channels last", True, None, True), ("f16, channels last", True, torch.float16, True)]
    torch.backends.cudnn.benchmark = True
    for name, tf32, dtype, last in kinds:
        precise(tf32)
        net = net.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        with torch.no_grad(), torch.autocast(device, dtype or torch.float16, enabled=dtype is not None):
            found[name] = max(rate(device, len(part), lambda: [v.cpu() for v in net(part)], 0.7) for part in (images[:64], images[:256]))
        say(found)


def kernels(run):
    """Milliseconds and launches of each kernel of one run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return {e.key: [e.self_device_time_total / 1000, e.count] for e in found.key_averages()}


def loaded(checkpoint, orig, kind="EDMPrecond"):
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        meta = json.loads(file.metadata()["init_kwargs"])
        state = {k.removeprefix("ema."): file.get_tensor(k) for k in file.keys() if k.startswith("ema.")}
    net = getattr(prepare.networks(orig), kind)(**meta)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def one_step(checkpoint, orig, device, batches, latents, images):
    """Images a second by precision and batch (`batches` 0: none), and how `images` of `latents` compare."""
    net = loaded(checkpoint, orig).to(device)
    side, data, found = net.img_resolution, net.sigma_data, dict(rates={})
    quantise = lambda x: (x * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def denoise(z, dtype):
        """As EDMPrecond.forward, with the inner network in `dtype`, which the class does not let choose."""
        x, sigma = z * SIGMA_MAX, torch.full([len(z), 1, 1, 1], SIGMA_MAX, device=z.device)
        root = (sigma**2 + data**2).sqrt()
        inner = net.model((x / root).to(dtype), (sigma.log() / 4).flatten(), class_labels=None)
        return data**2 / (sigma**2 + data**2) * x + sigma * data / root * inner.float()

    kinds = [("f32", False, torch.float32)]
    if device == "cuda":
        kinds += [("tf32", True, torch.float32), ("f16", True, torch.float16), ("bf16", True, torch.bfloat16)]
    torch.backends.cudnn.benchmark = True
    with torch.no_grad():
        if latents != "-":
            precise(False)
            z, ours = torch.from_numpy(np.load(latents)["latents"]), np.load(images)["arr_0"]
            theirs = [quantise(net(p.to(device) * SIGMA_MAX, torch.full([len(p)], SIGMA_MAX, device=device))).cpu().numpy() for p in z.split(64)]
            off = np.abs(np.concatenate(theirs).astype(int) - ours)
            found.update(equal=float((off == 0).mean()), largest=int(off.max()))
            say(found)
        for name, tf32, dtype in kinds if batches != "0" else []:
            precise(tf32)
            for layout in (torch.contiguous_format, torch.channels_last):
                net.model.to(dtype=dtype, memory_format=layout)
                # The original computes GroupNorm in f32, whatever the precision of its convolutions.
                for module in net.model.modules():
                    if type(module).__name__ == "GroupNorm":
                        module.float()
                for batch in map(int, batches.split(",")):

                    def run():
                        z = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=layout)
                        return quantise(denoise(z, dtype)).cpu()

                    key, speed = f"{name} batch {batch}", rate(device, batch, run, 0.5)
                    if speed > found["rates"].get(key, 0.0):
                        found["rates"][key] = speed
                        if device == "cuda" and name == "f32":
                            found["kernels"] = kernels(run)
            say(found)


def train(path, checkpoint, orig, device, batch, rounds):
    """As `timed` of tests/data/gen/recipe.py, on a device: TF32 off and cuDNN's benchmark on, as the original's training loop has them."""
    prepare.networks(orig)
    recipe = prepare.source("tests/data/gen/recipe.py")
    real_stdout, sys.stdout = sys.stdout, sys.stderr
    modules = recipe.original_modules(orig)
    precise(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    batch, images = int(batch), np.load(path)["arr_0"]
    of_batch = recipe.stepper(modules, loaded(checkpoint, orig, "D2OPrecond").requires_grad_(True), device)

    def step(at):
        index = np.arange(at * batch, (at + 1) * batch) % len(images)
        of_batch(torch.from_numpy(images[index]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1)

    warm = 4 if device == "cuda" else 1
    for at in range(warm):
        step(at)
    wait(device)
    start = time.perf_counter()
    for at in range(int(rounds)):
        step(warm + at)
    wait(device)
    sys.stdout = real_stdout
    say(dict(images_per_second=int(rounds) * batch / (time.perf_counter() - start), batch=batch, rounds=int(rounds)))


def edm_loss(path, checkpoint, orig, device, batch, seed):
    """What `d2o train --loss edm` reports for its first iteration: its noise, drawn on the same device, through the original network in f64."""
    recipe, batch = prepare.source("tests/data/gen/recipe.py"), int(batch)
    recipe.SEED = int(seed)
    torch.manual_seed(int(recipe.words("iteration0.denoising.rank0", 1)[0] >> np.uint64(1)))
    images = torch.from_numpy(np.load(path)["arr_0"][:1]).permute(0, 3, 1, 2).repeat(batch, 1, 1, 1).to(device).float() / 127.5 - 1
    sigma = (torch.randn([batch], device=device) * 1.2 - 1.2).exp()
    noise = torch.randn_like(images)
    images, sigma, noise = (t.cpu().double() for t in (images, sigma, noise))
    net = loaded(checkpoint, orig).double()
    wide = sigma.reshape(-1, 1, 1, 1)
    single = torch.float32
    # The original casts to f32 by name.
    torch.float32 = torch.float64
    try:
        out = net(images + noise * wide, sigma)
    finally:
        torch.float32 = single
    weight = (wide**2 + net.sigma_data**2) / (wide * net.sigma_data) ** 2
    say(dict(loss=float(((out - images) ** 2 * weight).sum() / batch)))


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
