"""Writes tests/data/iterations.json: parameters, averages and second moments after three whole iterations of D2O's training, as the original computes them.

python tests/data/gen/iterations.py --orig DIR > tests/data/iterations.json
(torch 2.11.0, timm 1.0.31, numpy; DIR holds Zyriix/D2O at 9f8124d)

As recipe.py, in f64: the original's modules, `D2OLoss`, `InfiniteSampler` and torch's Adam, in the order of its `training_loop.py`, one process without DDP. The
summary that its first process prints, which advances spectral norm's vectors once, is left out; d2o has none. Images are bytes drawn from their name,
noise is that of torch's CPU generator under the seeds that d2o derives for a stage. R1 is due in the third iteration.

Of each tensor the norm and the product with uniform values drawn from its name are kept. The biases before batch norms have gradients of rounding noise,
1e-14, of which Adam's ε of 1e-8 makes updates of 1e-10: they are trained as the others are, and nothing else depends on them.
"""
import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import recipe
import torch

GOLDEN = "d2o-ncsnpp-uncond"
IMAGES, BATCH, ITERATIONS = 7, 2, 3
LR, DLR, GAMMA, INTERVAL = 1e-4, 2e-4, 0.01, 2
EMA_KIMG, EMA_RAMPUP = 500, 1.0


def summary(kind, tensors):
    found = {}
    for name, tensor in tensors:
        values = tensor.detach().double().numpy()
        found[name] = [float(np.linalg.norm(values)), float((values * recipe.uniform(f"{kind}.{name}", list(values.shape), 1.0)).sum())]
    return found


def training(orig):
    loss_module, networks = orig[2:]
    from torch_utils import misc

    net, kwargs = recipe.network(networks, GOLDEN)
    net.train()
    features, critic = recipe.adversary(orig, (recipe.LITE0,), False)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    loss = loss_module.D2OLoss(g=net, d=critic, lpips_net=None, feature_net=features, score_net=None, loss_type="ns", r1_gamma=GAMMA)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR, betas=[0.0, 0.99], eps=1e-8)
    lazy = INTERVAL / (INTERVAL + 1)
    d_optimizer = torch.optim.Adam(critic.parameters(), lr=DLR * lazy, betas=[0.0, 0.99**lazy], eps=1e-8)
    # New versions of torch refuse its call of their constructor.
    sampler = misc.InfiniteSampler.__new__(misc.InfiniteSampler)
    sampler.__dict__.update(dataset=range(IMAGES), rank=0, num_replicas=1, shuffle=True, seed=recipe.SEED, window_size=0.5)
    order = iter(sampler)
    side = kwargs["img_resolution"]
    pixels = np.floor(recipe.units("pixels", IMAGES * side * side * 3) * 256).reshape(IMAGES, side, side, 3)
    before = {name: p.detach().clone() for module in (net, critic) for name, p in module.named_parameters()}

    cur_nimg = 0
    for batch_idx in range(ITERATIONS):
        chosen = pixels[[next(order) for _ in range(BATCH)]].transpose(0, 3, 1, 2)
        # In f32, as training reads them.
        images = recipe.single(chosen.astype(np.float32) / np.float32(127.5) - np.float32(1))
        stages = [("generator", loss_module.DO_GMAIN, optimizer, net, 1), ("discriminator", loss_module.DO_DMAIN, d_optimizer, critic, 1)]
        if batch_idx != 0 and batch_idx % INTERVAL == 0:
            stages.append(("r1", loss_module.DO_DR1, d_optimizer, critic, INTERVAL))
        for name, stage, opt, module, gain in stages:
            torch.manual_seed(int(recipe.words(f"iteration{batch_idx}.{name}.rank0", 1)[0]) >> 1)
            opt.zero_grad(set_to_none=True)
            loss.accumulate_gradients(images=images, class_labels=None, stage=stage, gain=gain)
            for param in module.parameters():
                if param.grad is not None:
                    torch.nan_to_num(param.grad, nan=0, posinf=1e5, neginf=-1e5, out=param.grad)
            opt.step()
        half_life = min(EMA_KIMG * 1000, cur_nimg * EMA_RAMPUP)
        decay = 0.5 ** (BATCH / max(half_life, 1e-8))
        with torch.no_grad():
            for p_ema, p_net in zip(ema.parameters(), net.parameters()):
                p_ema.copy_(p_net.detach().lerp(p_ema, decay))
        cur_nimg += BATCH

    def second(module, opt):
        return [(name, opt.state[p]["exp_avg_sq"]) for name, p in module.named_parameters() if p in opt.state]

    moved = lambda module: [(name, p.detach() - before[name]) for name, p in module.named_parameters()]
    return {
        "golden": GOLDEN,
        "seed": recipe.SEED,
        "images": IMAGES,
        "batch": BATCH,
        "iterations": ITERATIONS,
        "options": {"lr": LR, "dlr": DLR, "r1-gamma": GAMMA, "r1-interval": INTERVAL, "ema": EMA_KIMG / 1000, "ema-warmup": EMA_RAMPUP},
        "generator": summary("generator", net.named_parameters()),
        "average": summary("average", ema.named_parameters()),
        "generator-moved": summary("generator-moved", moved(net)),
        "generator-second": summary("generator-second", second(net, optimizer)),
        "discriminator": summary("discriminator", critic.named_parameters()),
        "discriminator-moved": summary("discriminator-moved", moved(critic)),
        "discriminator-second": summary("discriminator-second", second(critic, d_optimizer)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orig", type=Path, required=True)
    args = parser.parse_args()
    result, sys.stdout = sys.stdout, sys.stderr
    orig = recipe.original_modules(args.orig.resolve())
    print(json.dumps(recipe.double(training, orig)), file=result)


if __name__ == "__main__":
    main()
