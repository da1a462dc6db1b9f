"""Writes tests/data/openai/*.pt: small state dicts with the names and shapes of guided-diffusion's and consistency_models' `UNetModel`.

All tensors are views of one f16 and one f32 storage of normal numbers, so the files are small. Run with torch 2.15 and numpy 2:
`python tests/data/gen/openai_unet.py tests/data/openai`; `originals_unet.py` computes what the originals make of them.
"""
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

# Arguments of `UNetModel`, and around it `consistency` (None for guided-diffusion, else the `distillation` of `KarrasDenoiser`).
CASES = {
    "cm-cond": dict(consistency=True, mult=(1, 2), blocks=1, attention=(2,), classes=5, head=32, scale_shift=True, updown=True),
    "edm-uncond": dict(consistency=False, mult=(1, 1), blocks=2, attention=(1, 2), head=16, scale_shift=False, updown=False),
    "guided-legacy": dict(consistency=None, mult=(1, 1), blocks=1, attention=(2,), head=8, scale_shift=True, updown=True, out=6),
    "guided-new": dict(consistency=None, mult=(1, 1), blocks=1, attention=(1,), classes=3, head=8, scale_shift=True, updown=False, out=6),
}
MODEL = 32
SIZE = 16


def shapes(c):
    """(name, shape) of every tensor, in the original's order."""
    emb, extra = 4 * MODEL, [1] if c["consistency"] is None else [1, 1]
    out = []

    def layer(name, *shape):
        out.append((f"{name}.weight", list(shape)))
        out.append((f"{name}.bias", [shape[0]]))

    def res(name, cin, cout):
        layer(f"{name}.in_layers.0", cin)
        layer(f"{name}.in_layers.2", cout, cin, 3, 3)
        layer(f"{name}.emb_layers.1", cout * (2 if c["scale_shift"] else 1), emb)
        layer(f"{name}.out_layers.0", cout)
        layer(f"{name}.out_layers.3", cout, cout, 3, 3)
        if cin != cout:
            layer(f"{name}.skip_connection", cout, cin, 1, 1)

    def attention(name, ch):
        layer(f"{name}.norm", ch)
        layer(f"{name}.qkv", 3 * ch, ch, *extra)
        layer(f"{name}.proj_out", ch, ch, *extra)

    layer("time_embed.0", emb, MODEL)
    layer("time_embed.2", emb, emb)
    if c.get("classes"):
        out.append(("label_emb.weight", [c["classes"], emb]))
    ch = MODEL * c["mult"][0]
    layer("input_blocks.0.0", ch, 3, 3, 3)
    skips, at, rate, first = [ch], 1, 1, ch
    for level, m in enumerate(c["mult"]):
        for _ in range(c["blocks"]):
            res(f"input_blocks.{at}.0", ch, MODEL * m)
            ch = MODEL * m
            if rate in c["attention"]:
                attention(f"input_blocks.{at}.1", ch)
            skips.append(ch)
            at += 1
        if level + 1 < len(c["mult"]):
            if c["updown"]:
                res(f"input_blocks.{at}.0", ch, ch)
            else:
                layer(f"input_blocks.{at}.0.op", ch, ch, 3, 3)
            skips.append(ch)
            at, rate = at + 1, rate * 2
    res("middle_block.0", ch, ch)
    attention("middle_block.1", ch)
    res("middle_block.2", ch, ch)
    at = 0
    for level, m in reversed(list(enumerate(c["mult"]))):
        for i in range(c["blocks"] + 1):
            res(f"output_blocks.{at}.0", ch + skips.pop(), MODEL * m)
            ch, k = MODEL * m, 1
            if rate in c["attention"]:
                attention(f"output_blocks.{at}.1", ch)
                k = 2
            if level and i == c["blocks"]:
                if c["updown"]:
                    res(f"output_blocks.{at}.{k}", ch, ch)
                else:
                    layer(f"output_blocks.{at}.{k}.conv", ch, ch, 3, 3)
                rate //= 2
            at += 1
    layer("out.0", ch)
    layer("out.2", c.get("out", 3), first, 3, 3)
    return out


def state(c):
    named = shapes(c)
    numel = lambda shape: int(np.prod(shape))
    random = np.random.RandomState(0)
    matrices = [numel(s) for _, s in named if len(s) > 1]
    big = torch.from_numpy(0.05 * random.randn(max(matrices))).half()
    small = torch.from_numpy(random.randn(4096)).float()
    tensors = OrderedDict()
    for name, shape in named:
        scalars = len(shape) == 1
        source = small if scalars else big
        offset = 37 * sum(name.encode()) % (len(source) - numel(shape) + 1)
        tensors[name] = source[offset:offset + numel(shape)].view(shape)
    return tensors


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, c in CASES.items():
        torch.save(state(c), out / f"{name}.pt")
