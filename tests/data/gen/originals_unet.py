"""What guided-diffusion, consistency_models and StyleGAN2-ADA compute: a checkpoint and an .npz of inputs and outputs for each case.

    python originals_unet.py OUT --orig DIR [--case NAME ...]

DIR holds checkouts `guided-diffusion` (22e0df8), `consistency_models` (e32b69e) and `stylegan2-ada-pytorch` (d72cc7d). Small cases take their
weights from `openai_unet.py` and `stylegan2.py`, full-size ones draw them. Arrays: `z`, `x`, `sigma`, `labels` (one-hot, if conditional), `denoised`, `unclipped` (the same before its limitation
to [-1, 1]), `one_step`; of StyleGAN2 `truncated`
(psi 0.7, cutoff 3) and `quiet` (no noise) as well. Attention is computed in f32: the `.half()` of consistency_models' path without FlashAttention is taken out, and so is FlashAttention.
"""
import argparse
import contextlib
import importlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

import openai_unet
import stylegan2

# Full-size networks: arguments of `create_model_and_diffusion` in scripts/launch.sh, of `Generator` in train.py's cfg_specs.
FULL = {
    "cd_imagenet64_l2": dict(image_size=64, num_channels=192, num_res_blocks=3, class_cond=True, use_scale_shift_norm=True),
    "cd_bedroom256_l2": dict(image_size=256, num_channels=256, num_res_blocks=2, class_cond=False, use_scale_shift_norm=False),
}

GENERATORS = {
    "stylegan2-cifar10": dict(z_dim=512, c_dim=10, w_dim=512, img_resolution=32, img_channels=3, mapping_kwargs=dict(num_layers=2),
                              synthesis_kwargs=dict(channel_base=65536 // 2, channel_max=512, num_fp16_res=4, conv_clamp=256)),
    "stylegan2-ffhq256": dict(z_dim=512, c_dim=0, w_dim=512, img_resolution=256, img_channels=3, mapping_kwargs=dict(num_layers=8),
                              synthesis_kwargs=dict(channel_base=16384, channel_max=512, num_fp16_res=4, conv_clamp=256)),
}


def consistency_models(orig):
    """The package `cm`, without what it imports for training and for several GPUs."""
    sys.path.insert(0, str(orig / "consistency_models"))
    for name in ["piq", "blobfile", "mpi4py"]:
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
    sys.modules["mpi4py"].MPI = None
    sys.modules["piq"].LPIPS = lambda **kwargs: None
    unet = importlib.import_module("cm.unet")
    legacy = unet.AttentionBlock.__init__
    unet.AttentionBlock.__init__ = lambda self, *a, **k: legacy(self, *a, **{**k, "attention_type": "legacy"})
    return unet, importlib.import_module("cm.karras_diffusion"), importlib.import_module("cm.script_util")


@contextlib.contextmanager
def single_precision():
    half = torch.Tensor.half
    torch.Tensor.half = torch.Tensor.float
    try:
        yield
    finally:
        torch.Tensor.half = half


def arguments(c):
    return dict(
        image_size=openai_unet.SIZE, in_channels=3, model_channels=openai_unet.MODEL, out_channels=c.get("out", 3),
        num_res_blocks=c["blocks"], attention_resolutions=c["attention"], channel_mult=c["mult"], num_classes=c.get("classes"),
        num_head_channels=c["head"], use_scale_shift_norm=c["scale_shift"], resblock_updown=c["updown"],
    )


def inputs(shape, sigma, classes):
    random = np.random.RandomState(1)
    z, noise = random.randn(2, *shape).astype(np.float32)
    data = dict(z=z, x=(np.float32(0.5) * z + sigma[:, None, None, None] * noise).astype(np.float32), sigma=sigma)
    if classes:
        data["labels"] = np.eye(classes, dtype=np.float32)[random.randint(classes, size=shape[0])]
    return data


def karras(kd, model, diffusion, shape, sigma, classes, precision=single_precision):
    """`karras_sample`'s denoiser at `x`, `sigma`, and its one-step sampler on `z`."""
    data = inputs(shape, sigma, classes)
    t = {k: torch.from_numpy(v) for k, v in data.items()}
    kwargs = {"y": t["labels"].argmax(1)} if classes else {}

    class Latents:
        def randn(self, *size, **kwargs):
            return t["z"]

    with torch.no_grad(), precision():
        _, denoised = diffusion.denoise(model, t["x"], t["sigma"], **kwargs)
        one_step = kd.karras_sample(diffusion, model, shape, steps=40, sampler="onestep", generator=Latents(), model_kwargs=kwargs,
                                    device="cpu")
    return dict(data, denoised=denoised.clamp(-1, 1).numpy(), unclipped=denoised.numpy(), one_step=one_step.numpy())


def small_karras(orig, name, c):
    unet, kd, _ = consistency_models(orig)
    model = unet.UNetModel(**arguments(c)).eval()
    state = openai_unet.state(c)
    model.load_state_dict(state)
    diffusion = kd.KarrasDenoiser(distillation=c["consistency"])
    shape = (2, 3, openai_unet.SIZE, openai_unet.SIZE)
    return state, karras(kd, model, diffusion, shape, np.array([0.7, 12.5], np.float32), c.get("classes"))


def small_gaussian(orig, name, c):
    """`p_mean_variance`'s x_0 at two of the training's noise levels; a network that predicts noise has no one-step sampler."""
    sys.path.insert(0, str(orig / "guided-diffusion"))
    unet = importlib.import_module("guided_diffusion.unet")
    gd = importlib.import_module("guided_diffusion.gaussian_diffusion")
    new = name == "guided-new"
    model = unet.UNetModel(**arguments(c), use_new_attention_order=new).eval()
    state = openai_unet.state(c)
    model.load_state_dict(state)
    diffusion = gd.GaussianDiffusion(
        betas=gd.get_named_beta_schedule("linear" if new else "cosine", 1000), model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.LEARNED_RANGE, loss_type=gd.LossType.MSE)
    # x - sigma eps loses digits at high noise levels, whoever computes it.
    t = np.array([120, 400])
    bar = diffusion.alphas_cumprod[t]
    sigma = np.sqrt((1 - bar) / bar).astype(np.float32)
    data = inputs((2, 3, openai_unet.SIZE, openai_unet.SIZE), sigma, c.get("classes"))
    kwargs = {"y": torch.from_numpy(data["labels"]).argmax(1)} if c.get("classes") else {}
    x = (data["x"] * np.sqrt(bar)[:, None, None, None]).astype(np.float32)
    run = lambda clip: diffusion.p_mean_variance(
        model, torch.from_numpy(x), torch.from_numpy(t), clip_denoised=clip, model_kwargs=kwargs)["pred_xstart"].numpy()
    del data["z"]
    with torch.no_grad():
        return state, dict(data, denoised=run(True), unclipped=run(False))


def full_karras(orig, name, c):
    _, kd, util = consistency_models(orig)
    args = {**util.model_and_diffusion_defaults(), **c, "attention_resolutions": "32,16,8", "num_head_channels": 64, "resblock_updown": True}
    model, diffusion = util.create_model_and_diffusion(**args, distillation=True)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            # Zeroed and normalising tensors too, so that every one of them counts.
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (1.0 if p.dim() == 1 and p.mean() == 1 else 0.0))
    shape = (2, 3, c["image_size"], c["image_size"])
    classes = util.NUM_CLASSES if c["class_cond"] else None
    return model.state_dict(), karras(kd, model, diffusion, shape, np.array([0.7, 12.5], np.float32), classes)


def generator(orig, name, c):
    """`Generator.forward` in f32, and the object itself as the original pickles it."""
    sys.path.insert(0, str(orig / "stylegan2-ada-pytorch"))
    networks = importlib.import_module("training.networks")
    model = networks.Generator(**c).eval().requires_grad_(False)
    if name in stylegan2.CASES:
        model.load_state_dict(stylegan2.state(c))
    else:
        torch.manual_seed(0)
        for n, p in model.named_parameters():
            if p.dim() < 2 and "affine" not in n:
                p.copy_(torch.randn(p.shape) * 0.1)
        model.mapping.w_avg.copy_(torch.randn(model.w_dim))
    random = np.random.RandomState(1)
    data = dict(z=random.randn(2, c["z_dim"]).astype(np.float32))
    if c["c_dim"]:
        data["labels"] = np.eye(c["c_dim"], dtype=np.float32)[random.randint(c["c_dim"], size=2)]
    t = {k: torch.from_numpy(v) for k, v in data.items()}
    run = lambda **k: model(t["z"], t.get("labels"), **{"noise_mode": "const", "force_fp32": True, **k}).numpy()
    data.update(one_step=run(), truncated=run(truncation_psi=0.7, truncation_cutoff=3), quiet=run(noise_mode="none"))
    return dict(G_ema=model), data


def case(name):
    if name in stylegan2.CASES or name in GENERATORS:
        return lambda orig: generator(orig, name, {**stylegan2.CASES, **GENERATORS}[name])
    if name in FULL:
        return lambda orig: full_karras(orig, name, FULL[name])
    c = openai_unet.CASES[name]
    run = small_gaussian if c["consistency"] is None else small_karras
    return lambda orig: run(orig, name, c)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--orig", type=Path, required=True)
    parser.add_argument("--case", nargs="+", default=[*openai_unet.CASES, *stylegan2.CASES])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in args.case:
        state, arrays = case(name)(args.orig)
        if "G_ema" in state:
            (args.out / f"{name}.pkl").write_bytes(pickle.dumps(state))
        else:
            torch.save(state, args.out / f"{name}.pt")
        np.savez(args.out / f"{name}.npz", **arrays)
        print(name, {k: (v.shape, float(np.abs(v).max()), f"{np.mean(np.abs(v) < 1):.0%} inside") for k, v in arrays.items()})
