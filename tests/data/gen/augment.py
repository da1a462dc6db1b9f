"""Writes tests/data/augment.json: augmented images, their labels and gradients as the originals' code computes them, torch on the CPU.

python tests/data/gen/augment.py --orig DIR > tests/data/augment.json
(torch 2.11.0, numpy 2.4; DIR holds Zyriix/D2O at 9f8124d as `D2O` and NVlabs/edm at 008a4e5 as `edm`)

`ada` is D2O's `AugmentPipe`, `edm` EDM's, `diff` D2O's `DiffAugment`, each after `torch.manual_seed(seed)`; images are drawn from a name by the
generator of converters/src/weights.rs. Of images and of gradients with respect to the images (of the sum of the result times values drawn from
a name) the norm is kept, the product with values drawn from a name, and some values; labels are kept whole. `diff` also has the gradient of the
square of its gradient, which R1 takes. `networks` are golden networks of this folder with `augment_dim` 9 and drawn weights of
`map_augment`: what they compute with augmentation labels, and the gradient with respect to those weights.
"""
import argparse
import contextlib
import importlib
import json
import struct
import sys
import types
from pathlib import Path

import numpy as np
import recipe
import torch

# Values kept of each tensor.
SAMPLES = 8


def uniform(name, dims, bound=1.0):
    return recipe.single(recipe.uniform(name, dims, bound))


def rounded(value):
    return float(f"{float(value):.9g}")


def summary(tensor):
    flat = tensor.detach().double().reshape(-1)
    along = uniform("along", [flat.numel()]).double()
    # Places all over the tensor.
    values = [flat[i * 7919 % flat.numel()] for i in range(1, SAMPLES + 1)]
    return {"norm": rounded(flat.norm()), "along": rounded(flat @ along), "values": [rounded(v) for v in values]}


@contextlib.contextmanager
def imported(root, *names):
    """Modules of a repository. Those of the other have the same names."""
    try:
        import pkg_resources
    except ImportError:
        # Gone from new setuptools.
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        sys.modules["pkg_resources"].parse_version = __import__("packaging.version").version.parse
    sys.path.insert(0, str(root))
    yield [importlib.import_module(name) for name in names]
    sys.path.pop(0)
    for name in list(sys.modules):
        if name.split(".")[0] in ("training", "torch_utils", "dnnlib"):
            del sys.modules[name]


def case(seed, dims, augment, **about):
    images = uniform("images", dims).requires_grad_(True)
    torch.manual_seed(seed)
    found = augment(images)
    out, labels = found if isinstance(found, tuple) else (found, None)
    direction = uniform("direction", list(out.shape))
    result = {"seed": seed, "dims": dims, **about, "images": summary(out)}
    if labels is not None:
        result["labels"] = [[rounded(v) for v in row] for row in labels.tolist()]
        result["gradient"] = summary(torch.autograd.grad((out * direction).sum(), images)[0])
    else:
        (gradient,) = torch.autograd.grad((out.square() * direction).sum(), images, create_graph=True)
        result["gradient"] = summary(gradient)
        result["second"] = summary(torch.autograd.grad(gradient.square().sum(), images)[0])
    return result


SQUARES = [[4, 3, 16, 16], [4, 3, 32, 32], [4, 3, 64, 64]]
TALL = [3, 3, 24, 40]
# From 16 values on libtorch draws normal values in another way.
MANY = [18, 3, 16, 16]
GREY = [4, 1, 16, 16]
GOLDEN = ["edm-ncsnpp-uncond", "edm-ddpmpp-cond", "edm-adm-cond"]
COLOURS = ["brightness", "contrast", "lumaflip", "hue", "saturation"]


def ada(module):
    def one(seed, dims, p, **settings):
        pipe = module.AugmentPipe(**settings)
        pipe.p.copy_(torch.as_tensor(p))
        return case(seed, dims, pipe, p=p, settings=settings)

    groups = ["xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", *COLOURS, "noise", "cutout"]
    cases = [one(10 + i, SQUARES[i % 2], p, **{group: 1}) for p in (1.0, 0.5) for i, group in enumerate(groups)]
    d2o = {group: 1 for group in groups[:-2]}
    for i, dims in enumerate([*SQUARES, TALL, MANY, GREY]):
        cases += [one(40 + i, dims, p, **d2o) for p in (1.0, 0.5)]
    others = {"xint_max": 0.3, "scale_std": 0.4, "rotate_max": 0.25, "aniso_std": 0.1, "xfrac_std": 0.25, "brightness_std": 0.5, "contrast_std": 0.2,
              "hue_max": 0.3, "saturation_std": 0.7, "noise_std": 0.3, "cutout_size": 0.3}
    multipliers = {group: round(0.9 - 0.04 * i, 2) for i, group in enumerate(groups)}
    return cases + [one(50, TALL, 0.9, **multipliers, **others)]


def edm(module):
    def one(seed, dims, p, **settings):
        return case(seed, dims, module.AugmentPipe(p=p, **settings), p=p, settings=settings)

    groups = ["xflip", "yflip", "rotate_int", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac", *COLOURS]
    cases = [one(60 + i, SQUARES[i % 2], p, **{group: 1}) for p in (1.0, 0.5) for i, group in enumerate(groups)]
    training = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
    for i, dims in enumerate([*SQUARES, TALL, MANY]):
        cases += [one(80 + i, dims, p, **training) for p in (1.0, 0.5, 0.12)]
    every = {group: 1 for group in groups}
    cases += [one(90, dims, p, **every) for dims in (SQUARES[1], GREY) for p in (1.0, 0.5)]
    others = {"translate_int_max": 0.3, "scale_std": 0.4, "rotate_frac_max": 0.25, "aniso_std": 0.1, "aniso_rotate_prob": 0.8,
              "translate_frac_std": 0.25}
    multipliers = {group: round(0.9 - 0.04 * i, 2) for i, group in enumerate(groups) if group != "rotate_int"}
    return cases + [one(91, TALL, 0.9, **multipliers, **others)]


def diff(module):
    return [case(100 + i, dims, lambda x: module.DiffAugment(x, policy="color,translation,cutout"))
            for i, dims in enumerate([*SQUARES, TALL, MANY, GREY])]


def golden(name):
    """Tensors and metadata of a safetensors file of f32."""
    data = (Path(__file__).parent.parent / "golden" / f"{name}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body, meta, tensors = data[8 + length :], header.pop("__metadata__"), {}
    for key, info in header.items():
        start, end = info["data_offsets"]
        tensors[key] = torch.from_numpy(np.frombuffer(body[start:end], np.float32).reshape(info["shape"]).copy())
    return tensors, json.loads(meta["init_kwargs"])


def network(module, name):
    tensors, kwargs = golden(name)
    net = module.EDMPrecond(**kwargs, augment_dim=9).eval()
    state = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    key = "model.map_augment.weight"
    net.load_state_dict(state | {key: uniform(key, list(net.state_dict()[key].shape))})
    labels = uniform("augment_labels", [2, 9], 2.0)
    out = net(tensors["input"], tensors["sigma"], tensors.get("labels"), augment_labels=labels)
    weight = net.get_parameter(key)
    (gradient,) = torch.autograd.grad((out * uniform("direction", list(out.shape))).sum(), weight)
    return {"golden": name, "denoised": summary(out), "gradient": summary(gradient)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orig", type=Path, required=True)
    root = parser.parse_args().orig.resolve()
    found = {}
    with imported(root / "D2O", "training.augment", "training.diffaug") as (augment, diffaug):
        found |= {"ada": ada(augment), "diff": diff(diffaug)}
    with imported(root / "edm", "training.augment", "training.networks") as (augment, networks):
        found |= {"edm": edm(augment), "networks": [network(networks, name) for name in GOLDEN]}
    parts = [f'"{key}": [\n' + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]" for key, cases in found.items()]
    print("{\n" + ",\n".join(parts) + "\n}")


main()
