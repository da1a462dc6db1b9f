"""Writes tests/data/distillation.json: steps of generators of several evaluations, and of instance distillation, as the original code computes them.

python tests/data/gen/distillation.py --orig DIR --lpips FOLDER > tests/data/distillation.json
(torch 2.11.0, torchvision 0.26.0, timm 1.0.31, numpy; DIR holds Zyriix/D2O at 9f8124d, FOLDER the unpacked wheel of lpips 0.1.4)

As recipe.py, in f64. The original gives its network two noise levels, of which `D2OPrecond` takes one; it is told the first, and the second is
dropped. The teacher is a golden network of EDM's class, LPIPS has drawn weights, and the positions of the noise levels are the ones below, in which
images of one batch take steps of the teacher and of the generator.
"""
import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import recipe
import torch

MAX_STEPS = 8
UNCOND, COND = "d2o-ncsnpp-uncond", "d2o-adm-cond"
# What is drawn for each rule: whole numbers by `torch.randint`, the others by the loss's own function; then the positions that follow.
DRAWN = {
    "pd": {"randint": [2, 1], "uniform": [[3, 1]], "t": [6, 4], "u": [5, 2], "s": [4, 0]},
    "cd": {"randint": [5, 2], "uniform": [], "t": [5, 2], "u": [4, 1], "s": [0, 0]},
    "ctm": {"randint": [8, 5], "uniform": [[7, 3], [1, 2]], "t": [8, 5], "u": [7, 3], "s": [1, 2]},
    "rcd": {"randint": None, "uniform": [[6, 1]], "t": [8, 8], "u": [7, 2], "s": [6, 1]},
}


def perceptual(folder):
    """The package's LPIPS with drawn weights."""
    sys.path.insert(0, str(folder))
    sys.modules.pop("lpips", None)
    # Code for training it, which imports more.
    sys.modules["lpips.trainer"] = types.ModuleType("lpips.trainer")
    import lpips
    from lpips import pretrained_networks

    pretrained_networks.tv = types.SimpleNamespace(vgg16=lambda **_: recipe.vgg(batch_norm=False))
    net = lpips.LPIPS(net="vgg", pretrained=False, verbose=False)
    for i, layer in enumerate(net.lins):
        name, weight = f"lin{i}.model.1.weight", layer.model[1].weight
        weight.data = recipe.single(recipe.uniform(name, list(weight.shape), 1 / np.sqrt(weight.shape[1])))
    return net.eval().requires_grad_(False)


def told_one_level(net):
    """The network with the second noise level it is given dropped."""
    forward = net.forward
    net.forward = lambda x, sigma, *_target, **labels: forward(x, sigma, **labels)
    return net


def step(orig, folder, name, case):
    loss_module, networks = orig[2:]
    net, kwargs = recipe.network(networks, name)
    told_one_level(net.train())
    only, rule = case.get("teacher_only", False), case.get("teacher_type", "none")
    features = critic = teacher = lpips = None
    if not only:
        features, critic = recipe.adversary(orig, (recipe.LITE0,), kwargs.get("label_dim", 0) > 0)
    if rule != "none":
        teacher = recipe.network(networks, case["teacher"])[0].eval().requires_grad_(False)
        lpips = perceptual(folder)
    options = {key: case[key] for key in ("multi_step_g", "middle_sigma") if key in case}
    loss = loss_module.D2OLoss(
        g=net, d=critic, lpips_net=lpips, feature_net=features, score_net=teacher, loss_type="ns", teacher_type=rule, teacher_only=only, max_steps=MAX_STEPS, **options
    )
    randint = torch.randint
    if rule != "none":
        drawn = DRAWN[rule]
        column = lambda values: torch.tensor(values, dtype=torch.get_default_dtype()).reshape(-1, 1, 1, 1)
        queue = list(drawn["uniform"])
        loss.randint_uniform = lambda low, high: column(queue.pop(0))
        torch.randint = lambda *_: column(drawn["randint"])
        case = {**case, "max_steps": MAX_STEPS, **{k: drawn[k] for k in "tus"}}
    distances = []
    if lpips is not None:
        # The original reports it; the report of `run` keeps logits alone.
        lpips.register_forward_hook(lambda _module, _inputs, output: distances.append(output.mean().item()))
    try:
        trained = {"generator": net} if only else {"generator": net, "discriminator": critic}
        stages, _ = recipe.run(loss_module, loss, kwargs, case["batch"], trained)
    finally:
        torch.randint = randint
    return {"golden": name, **case, "distance": distances[0] if distances else None, "stages": stages}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orig", type=Path, required=True)
    parser.add_argument("--lpips", type=Path, required=True)
    args = parser.parse_args()
    # The original prints as it goes.
    result, sys.stdout = sys.stdout, sys.stderr
    orig, folder = recipe.original_modules(args.orig.resolve()), args.lpips.resolve()
    plain, classes = {"teacher": "edm-ncsnpp-uncond"}, {"teacher": "edm-adm-cond"}
    cases = [
        (UNCOND, {"batch": 2, "multi_step_g": 2, "middle_sigma": 0.8}),
        (COND, {"batch": 2, "multi_step_g": 4}),
        (UNCOND, {"batch": 2, "teacher_type": "pd", "teacher_only": True, **plain}),
        (COND, {"batch": 2, "teacher_type": "cd", "teacher_only": True, **classes}),
        (UNCOND, {"batch": 2, "teacher_type": "ctm", "teacher_only": True, **plain}),
        (UNCOND, {"batch": 2, "teacher_type": "rcd", **plain}),
    ]
    with recipe.class_table():
        found = [recipe.double(step, orig, folder, name, case) for name, case in cases]
    print("[\n" + ",\n".join(map(json.dumps, found)) + "\n]", file=result)


if __name__ == "__main__":
    main()
