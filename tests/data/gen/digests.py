"""Writes tests/data/digests.json: weights digests of the networks of tests/data/features.json.

python tests/data/gen/digests.py > tests/data/digests.json
python tests/data/gen/digests.py --lite0 efficientnet-lite0-57934424.pth      # the digests of that file, which needs torch
(numpy 2.4)

The digest is defined in converters/src/published.rs; the names, orders of axes and values here are written from that definition and from the
original projects' names, not from d2o's code. Weights are drawn as in features.py.
"""
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np


def words(name, count):
    mask, h = (1 << 64) - 1, 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & mask
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def drawn(name, dims, scale):
    u = (words(name, int(np.prod(dims))) >> np.uint64(40)).astype(np.float64) / (1 << 24) * 2 - 1
    values = u * np.sqrt(3 / int(np.prod(dims[1:]))) if len(dims) > 1 else 0.1 * u + (1 if scale else 0)
    return values.astype(np.float32).reshape(dims)


def digest(tensors):
    def line(name, values):
        values = np.ascontiguousarray(values, dtype="<f4")
        return f"{name} {list(values.shape)} {hashlib.sha256(values.tobytes()).hexdigest()}\n"

    return hashlib.sha256(("d2o weights 1\n" + "".join(sorted(line(n, v) for n, v in tensors))).encode()).hexdigest()


def split(block, leaf, values):
    return [(f"{block}.attn.{p}_proj.{leaf}", part) for p, part in zip("qkv", np.split(values, 3))]


def clip(name, values):
    name = name.removeprefix("visual.")
    packed = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name)
    return split(*packed.groups(), values) if packed else [(name, values)]


def clip_huggingface(name, values):
    if name == "visual_projection.weight":
        return [("proj", values.T)]
    for old, new in [
        ("vision_model.", ""), ("embeddings.patch_embedding", "conv1"), ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
        ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("self_attn", "attn"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ]:
        name = name.replace(old, new)
    return [(name, values)]


def timm(name, values):
    packed = re.fullmatch(r"(.*)\.attn\.qkv\.(weight|bias)", name)
    return [] if name == "mask_token" else split(*packed.groups(), values) if packed else [(name, values)]


def dino_huggingface(name, values):
    for old, new in [
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.position_embeddings", "pos_embed"), ("embeddings.", ""),
        ("encoder.layer.", "blocks."), ("layernorm", "norm"), ("attention.output.dense", "attn.proj"), ("attention.attention.query", "attn.q_proj"),
        ("attention.attention.key", "attn.k_proj"), ("attention.attention.value", "attn.v_proj"), ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ]:
        name = name.replace(old, new)
    return timm(name, values)


# Where NVIDIA's port keeps each module of pytorch-fid's, and what it calls the module's branches.
STEM = {"0.0": "conv", "0.1": "conv_1", "0.2": "conv_2", "1.0": "conv_3", "1.1": "conv_4"}
WIDE = dict(branch1x1="conv", branch5x5_1="tower.conv", branch5x5_2="tower.conv_1", branch3x3dbl_1="tower_1.conv",
            branch3x3dbl_2="tower_1.conv_1", branch3x3dbl_3="tower_1.conv_2", branch_pool="tower_2.conv")
FIRST = dict(branch3x3="conv", branch3x3dbl_1="tower.conv", branch3x3dbl_2="tower.conv_1", branch3x3dbl_3="tower.conv_2")
MIDDLE = dict(branch1x1="conv", branch7x7_1="tower.conv", branch7x7_2="tower.conv_1", branch7x7_3="tower.conv_2",
              branch7x7dbl_1="tower_1.conv", branch7x7dbl_2="tower_1.conv_1", branch7x7dbl_3="tower_1.conv_2",
              branch7x7dbl_4="tower_1.conv_3", branch7x7dbl_5="tower_1.conv_4", branch_pool="tower_2.conv")
SECOND = dict(branch3x3_1="tower.conv", branch3x3_2="tower.conv_1", branch7x7x3_1="tower_1.conv", branch7x7x3_2="tower_1.conv_1",
              branch7x7x3_3="tower_1.conv_2", branch7x7x3_4="tower_1.conv_3")
LAST = dict(branch1x1="conv", branch3x3_1="tower_conv", branch3x3_2a="tower_mixed_conv", branch3x3_2b="tower_mixed_conv_1",
            branch3x3dbl_1="tower_1_conv", branch3x3dbl_2="tower_1_conv_1", branch3x3dbl_3a="tower_1_mixed_conv",
            branch3x3dbl_3b="tower_1_mixed_conv_1", branch_pool="tower_2_conv")
BLOCKS = dict(zip([f"2.{i}" for i in range(8)] + [f"3.{i}" for i in range(3)],
                  zip(["mixed"] + [f"mixed_{i}" for i in range(1, 11)], [WIDE] * 3 + [FIRST] + [MIDDLE] * 4 + [SECOND] + [LAST] * 2)))
LEAVES = {"conv.weight": "weight", "bn.weight": "gamma", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}


def inception_blocks(name, values):
    at, rest = re.fullmatch(r"blocks\.(\d\.\d)\.(.*)", name).groups()
    if at in STEM:
        path, leaf = STEM[at], LEAVES[rest]
    else:
        block, branches = BLOCKS[at]
        branch, rest = rest.split(".", 1)
        path, leaf = f"{block}.{branches[branch]}", LEAVES[rest]
    return [] if leaf == "gamma" and (values == 1).all() else [(f"layers.{path}.{leaf}", values)]


def lite0(name, values):
    counts = [1, 2, 2, 3, 3, 4, 1]
    module, leaf = name.rsplit(".", 1)
    if leaf == "num_batches_tracked":
        return []
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    if module in top:
        return [(f"{top[module]}.{leaf}", values)]
    index, layer = re.fullmatch(r"_blocks\.(\d+)\.(.*)", module).groups()
    index, stage = int(index), 0
    while index >= counts[stage]:
        index, stage = index - counts[stage], stage + 1
    layers = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} if stage == 0 else {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    return [(f"blocks.{stage}.{index}.{layers[layer]}.{leaf}", values)]


NAMES = {"clip-huggingface": clip_huggingface, "clip": clip, "deit": timm, "dinov2-huggingface": dino_huggingface, "dinov2": timm,
         "vgg16": lambda n, v: [(n, v)], "inception": inception_blocks}
HEADS = {"deit": ("head.", "head_dist."), "vgg16": ("classifier.6.",)}


def pair(tensors, heads):
    trunk, head = ([t for t in tensors if t[0].startswith(heads) == is_head] for is_head in (False, True))
    return {"trunk": digest(trunk), "head": digest(head) if head else None}


def main():
    if sys.argv[1:2] == ["--lite0"]:
        import torch

        state = torch.load(sys.argv[2], map_location="cpu", weights_only=True)
        tensors = [t for n, v in state.items() for t in lite0(n, v.numpy())]
        json.dump(pair(tensors, ("classifier.",)), sys.stdout, indent=1)
        return
    cases = json.loads((Path(__file__).parent.parent / "features.json").read_text())
    out = {}
    for case, facts in cases.items():
        names = next(f for prefix, f in NAMES.items() if case.startswith(prefix))
        tensors = [t for n, dims, scale in facts["tensors"] for t in names(n, drawn(n, dims, scale))]
        out[case] = pair(tensors, next((h for p, h in HEADS.items() if case.startswith(p)), ("there is no head",)))
    json.dump(out, sys.stdout, indent=1)
    print()


main()
