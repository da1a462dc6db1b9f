"""Images of the originals' own generate.py, on the CPU, from small networks with seeded weights.

    python generate.py OUT --orig DIR [--golden GOLDEN] [--seeds 64]
    python generate.py --levels --orig DIR > tests/data/ablation_levels.rs

DIR holds checkouts `edm` (NVlabs/edm@008a4e5), `d2o` (Zyriix/D2O@9f8124d), `sid` (mingyuanzhou/SiD@01fbb13) and `cm`
(openai/consistency_models@e32b69e). For each case OUT/NAME.npz holds `images` u8 [N, H, W, 3], `arr_1` (classes as the original records
them), for consistency models also `latents` and `labels`; OUT/cases.json lists checkpoint, options of `d2o export` and `d2o generate`.
Checkpoints are the originals' own pickles, so they stay in OUT. With `--golden`, weights come from tests/data/golden instead, and
OUT/NAME.npz is all that is written. Each original runs in a process of its own, since their packages share names.
"""
import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np

SONG = dict(model_type="SongUNet", model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
DDPMPP = dict(SONG, embedding_type="positional", encoder_type="standard", decoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1])
NCSNPP = dict(SONG, embedding_type="fourier", encoder_type="residual", decoder_type="standard", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
ADM = dict(model_type="DhariwalUNet", model_channels=32, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8])
CHURN = dict(S_churn=40, S_min=0.05, S_max=50, S_noise=1.003)
# Where D(x) = x - σ F(x), a random F leaves most of x in the image: started low, it stays within range.
LOW = dict(sigma_max=0.6)

# name: original, class, arguments of the network, options of its generate.py.
CASES = {
    "edm-heun-uncond": ("edm", "EDMPrecond", dict(NCSNPP, label_dim=0), {}),
    "edm-heun-cond": ("edm", "EDMPrecond", dict(DDPMPP, label_dim=10), {}),
    "edm-heun-class": ("edm", "EDMPrecond", dict(ADM, label_dim=10), dict(class_idx=3, num_steps=7, rho=5.0)),
    "edm-churn-uncond": ("edm", "EDMPrecond", dict(DDPMPP, label_dim=0), CHURN),
    "edm-churn-cond": ("edm", "EDMPrecond", dict(ADM, label_dim=10), CHURN),
    "edm-ablation-vp": ("edm", "VPPrecond", dict(DDPMPP, label_dim=0), dict(LOW, solver="euler", discretization="vp", schedule="vp", scaling="vp")),
    "edm-ablation-ve": ("edm", "VEPrecond", dict(NCSNPP, label_dim=0), dict(LOW, solver="heun", discretization="ve", schedule="ve", scaling="none")),
    "edm-ablation-iddpm": ("edm", "iDDPMPrecond", dict(ADM, label_dim=10), dict(LOW, solver="heun", discretization="iddpm", schedule="linear", scaling="none")),
    "edm-ablation-churn": ("edm", "iDDPMPrecond", dict(ADM, label_dim=0), dict(LOW, solver="heun", discretization="edm", schedule="vp", scaling="vp", **CHURN)),
    "d2o-one-step-uncond": ("d2o", "D2OPrecond", dict(NCSNPP, label_dim=0), dict(sampler="one_step")),
    "d2o-one-step-cond": ("d2o", "D2OPrecond", dict(ADM, label_dim=10), dict(sampler="one_step")),
    "sid-uncond": ("sid", "EDMPrecond", dict(DDPMPP, label_dim=0), {}),
    "sid-cond": ("sid", "EDMPrecond", dict(ADM, label_dim=10), {}),
    "cd-one-step-uncond": ("cm", None, dict(class_cond=False), dict(sampler="onestep")),
    "cd-one-step-cond": ("cm", None, dict(class_cond=True), dict(sampler="onestep")),
    "cd-multi-step-uncond": ("cm", None, dict(class_cond=False), dict(sampler="multistep", ts=(0, 22, 39), steps=40)),
    "cd-multi-step-cond": ("cm", None, dict(class_cond=True), dict(sampler="multistep", ts=(0, 22, 39), steps=40)),
}

# name: original, file in tests/data/golden, options.
GOLDEN = {
    "edm-heun-cond": ("edm", "edm-ddpmpp-cond", {}),
    "edm-churn-uncond": ("edm", "edm-ncsnpp-uncond", CHURN),
    "edm-ablation-vp": ("edm", "vp-ddpmpp", dict(LOW, solver="euler", discretization="vp", schedule="vp", scaling="vp")),
    "d2o-one-step-uncond": ("d2o", "d2o-ncsnpp-uncond", dict(sampler="one_step")),
    "d2o-one-step-class": ("d2o", "d2o-adm-cond", dict(sampler="one_step", class_idx=3)),
    "sid-cond": ("sid", "edm-adm-cond", {}),
}

# Options of d2o for an option of an original.
NAMES = dict(num_steps="--num-steps", sigma_min="--sigma-min", sigma_max="--sigma-max", rho="--rho", S_churn="--s-churn", S_min="--s-min",
             S_max="--s-max", S_noise="--s-noise", solver="--solver", discretization="--disc", schedule="--schedule", scaling="--scaling",
             class_idx="--class")


def seed_weights(net, torch):
    """Weights that keep activations of order one, biases and norms away from their defaults."""
    generator = torch.Generator().manual_seed(1)
    normal = lambda p: torch.randn(p.shape, generator=generator)
    with torch.no_grad():
        for name, p in sorted(net.named_parameters()):
            if p.ndim > 1:
                p.copy_(normal(p) / np.sqrt(max(1, p[0].numel())))
            elif name.endswith("weight"):
                p.copy_(1 + 0.1 * normal(p))
            else:
                p.copy_(0.1 * normal(p))
        for name, b in sorted(net.named_buffers()):
            if name.endswith("freqs"):
                b.copy_(16 * normal(b))
    return net.eval().requires_grad_(False)


def golden_weights(net, path, torch):
    """Tensors below `weights.` of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    state = {}
    for name, entry in header.items():
        if name.startswith("weights."):
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data[8 + size + begin:8 + size + end], np.float32).copy()
            state[name[len("weights."):]] = torch.from_numpy(values).reshape(entry["shape"])
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def golden_config(path):
    data = path.read_bytes()
    metadata = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]
    return metadata["class"], json.loads(metadata["init_kwargs"])


def pngs(folder, seeds):
    import PIL.Image
    return np.stack([np.array(PIL.Image.open(folder / f"{s:06d}.png")) for s in seeds])


def one_process(torch):
    """What the originals' main functions ask of torch.distributed, for one process on the CPU."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    from torch_utils import distributed
    distributed.init = lambda: None


def run_edm_family(original, cases, out, orig, golden, seeds):
    sys.path.insert(0, str(orig / original))
    import torch
    torch.set_num_threads(1)
    one_process(torch)
    from training import networks
    for name, (precond, kwargs, options) in cases.items():
        net = getattr(networks, precond)(**kwargs)
        net = golden_weights(net, golden[name], torch) if golden else seed_weights(net, torch)
        pkl, folder = out / f"{name}.pkl", out / name
        with open(pkl, "wb") as f:
            pickle.dump(dict(ema=net), f)
        if original == "sid":
            sid(torch, net, folder, seeds)
        else:
            import generate
            every = dict(subdirs=False, class_idx=None, max_batch_size=64, num_steps=18, sigma_min=None, sigma_max=None, rho=7, S_churn=0,
                         S_min=0, S_max=float("inf"), S_noise=1)
            if original == "edm":
                every.update(solver=None, discretization=None, schedule=None, scaling=None)
            else:
                every.update(ema=True, middle=1.0)
                os.makedirs(folder, exist_ok=True)
            generate.main.callback(network_pkl=str(pkl), outdir=str(folder), seeds=list(seeds), device=torch.device("cpu"), **{**every, **options})
        arrays = dict(images=pngs(folder, seeds))
        if net.label_dim:
            # What D2O's image_pack records: the class drawn from a seed's stream, even where another one is asked for.
            drawn = []
            for seed in seeds:
                g = torch.Generator().manual_seed(seed)
                torch.randn([net.img_channels, net.img_resolution, net.img_resolution], generator=g)
                drawn.append(torch.randint(net.label_dim, size=[1], generator=g).item())
            arrays["arr_1"] = np.array(drawn)
        (np.savez_compressed if golden else np.savez)(out / f"{name}.npz", **arrays)


def sid(torch, net, folder, seeds):
    """The loop of sid_generate.py, whose main function knows only CUDA."""
    import sid_generate
    os.makedirs(folder, exist_ok=True)
    rnd = sid_generate.StackedRandomGenerator(torch.device("cpu"), list(seeds))
    latents = rnd.randn([len(seeds), net.img_channels, net.img_resolution, net.img_resolution])
    labels = None
    if net.label_dim:
        labels = torch.eye(net.label_dim)[rnd.randint(net.label_dim, size=[len(seeds)])]
    images = sid_generate.sid_sampler(net, latents, labels, randn_like=rnd.randn_like, init_sigma=2.5)
    pixels = (images * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for seed, image in zip(seeds, pixels):
        sid_generate.save_image(image, 3, str(folder / f"{seed:06d}.png"))


def run_cm(cases, out, orig, seeds):
    """image_sample.py with `--generator determ-indiv --seed 0`: sample i owns the generator of seed i. Attention in f32, as on a CPU."""
    sys.path.insert(0, str(orig / "cm"))
    for name in ["piq", "blobfile", "mpi4py"]:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["mpi4py"].MPI = None
    sys.modules["piq"].LPIPS = lambda **kwargs: None
    import torch
    torch.set_num_threads(1)
    torch.Tensor.half = torch.Tensor.float
    from cm import unet, script_util
    from cm.karras_diffusion import karras_sample
    from cm.random_util import get_generator
    legacy = unet.AttentionBlock.__init__
    unet.AttentionBlock.__init__ = lambda self, *a, **k: legacy(self, *a, **{**k, "attention_type": "legacy"})
    script_util.NUM_CLASSES = 10
    for name, (_, kwargs, options) in cases.items():
        arguments = script_util.model_and_diffusion_defaults()
        arguments.update(image_size=16, num_channels=32, num_res_blocks=1, num_head_channels=32, attention_resolutions="8", channel_mult="1,2",
                         use_scale_shift_norm=True, resblock_updown=True, **kwargs)
        model, diffusion = script_util.create_model_and_diffusion(**arguments, distillation=True)
        seed_weights(model, torch)
        torch.save(model.state_dict(), out / f"{name}.pt")
        model_kwargs, arrays = {}, {}
        count = len(seeds)
        if kwargs["class_cond"]:
            model_kwargs["y"] = torch.randint(10, size=(count,), generator=torch.Generator().manual_seed(7))
            arrays["labels"] = model_kwargs["y"].numpy()
        latents = get_generator("determ-indiv", count, 0).randn(count, 3, 16, 16)
        with torch.no_grad():
            sample = karras_sample(diffusion, model, (count, 3, 16, 16), model_kwargs=model_kwargs, device="cpu", clip_denoised=True,
                                   generator=get_generator("determ-indiv", count, 0), **{"steps": 40, **options})
        pixels = ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.savez(out / f"{name}.npz", images=pixels, latents=latents.numpy(), seeds=np.array(list(seeds)), **arrays)


def config_of_cm(case):
    """NET.json for `d2o export`: what the state dict does not tell."""
    return {"class": "KarrasDenoiser", "init_kwargs": {"image_size": 16, "distillation": True, "num_head_channels": 32}}


def manifest(out, seeds):
    rows = []
    for name, (original, precond, kwargs, options) in CASES.items():
        one_step = options.get("sampler") in ("one_step", "onestep") or original == "sid"
        row = dict(name=name, original=original, checkpoint=f"{name}.pt" if original == "cm" else f"{name}.pkl", seeds=f"0-{seeds - 1}")
        export = ["--kind", "one-step" if original in ("d2o", "sid") else "denoiser"]
        export += ["--sigma-max", "2.5"] if original == "sid" else []
        generate = []
        if original == "cm":
            (out / f"{name}.json").write_text(json.dumps(config_of_cm(name)))
            export += ["--config", f"{name}.json"]
            generate += ["--sampler", "consistency"] + ([] if one_step else ["--ts", "0,22,39", "--num-steps", "40"])
            generate += ["--latents", f"{name}.npz"] if kwargs["class_cond"] else []
        for option, value in options.items():
            if option in NAMES:
                generate += [NAMES[option], str(value)]
        row.update(export=export, generate=generate)
        rows.append(row)
    (out / "cases.json").write_text(json.dumps(rows, indent=1))


def levels(orig):
    """Noise levels and times of five steps of EDM's `ablation_sampler`, for every discretization and schedule, as Rust."""
    sys.path.insert(0, str(orig / "edm"))
    import torch
    import generate

    class Network:
        sigma_min, sigma_max, label_dim = 0, float("inf"), 0

        def round_sigma(self, sigma):
            self.asked.append(torch.as_tensor(sigma).clone())
            return torch.as_tensor(sigma)

        def __call__(self, x, sigma, labels):
            return 0 * x

    print("// Made by tests/data/gen/generate.py --levels: noise levels and times of five steps.")
    print('#[allow(clippy::unreadable_literal, clippy::excessive_precision, clippy::approx_constant, reason = "printed by NumPy")]')
    print("const ABLATION: [(Discretization, Schedule, [f64; 5], [f64; 5]); 12] = [")
    for disc in ["vp", "ve", "iddpm", "edm"]:
        for schedule in ["vp", "ve", "linear"]:
            net = Network()
            net.asked = []
            times = []
            cat = torch.cat
            torch.cat = lambda parts: times.append(parts[0].clone()) or cat(parts)
            try:
                generate.ablation_sampler(net, torch.zeros(1, 3, 2, 2), num_steps=5, discretization=disc, schedule=schedule)
            finally:
                torch.cat = cat
            show = lambda t: "[" + ", ".join(repr(float(v)) for v in t) + "]"
            print(f"    (Discretization::{disc.title()}, Schedule::{schedule.title()}, {show(net.asked[0])}, {show(times[0])}),")
    print("];")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--orig", type=Path, required=True)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--only", help="run the cases of this original, in this process")
    args = parser.parse_args()
    if args.levels:
        return levels(args.orig.resolve())
    out, orig = args.out.resolve(), args.orig.resolve()
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.seeds)
    if not args.only:
        for original in ["edm", "d2o", "sid"] + ([] if args.golden else ["cm"]):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", original], check=True)
        if not args.golden:
            manifest(out, args.seeds)
        return None
    if args.only == "cm":
        return run_cm({n: c[1:] for n, c in CASES.items() if c[0] == "cm"}, out, orig, seeds)
    if args.golden:
        files = {n: args.golden.resolve() / f"{c[1]}.safetensors" for n, c in GOLDEN.items() if c[0] == args.only}
        cases = {n: (*golden_config(f), GOLDEN[n][2]) for n, f in files.items()}
    else:
        files = None
        cases = {n: (c[1], dict(img_resolution=16, img_channels=3, **c[2]), c[3]) for n, c in CASES.items() if c[0] == args.only}
    return run_edm_family(args.only, cases, out, orig, files, seeds)


if __name__ == "__main__":
    main()
