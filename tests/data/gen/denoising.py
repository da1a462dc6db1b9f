"""Writes tests/data/denoising.json: EDM's, VP's and VE's losses of golden networks, and the norm of their gradients, as NVlabs/edm computes them.

python tests/data/gen/denoising.py --orig DIR > tests/data/denoising.json
(torch 2.11.0, numpy; DIR is NVlabs/edm at 008a4e5)

Images are drawn from their name as in recipe.py; noise levels and noise are those of torch's CPU generator under the seed below. Without dropout and
augmentation, in f32.
"""
import argparse
import json
import sys
from pathlib import Path

import recipe
import torch

BATCH = 3
CASES = [("edm-ddpmpp-cond", "EDM"), ("vp-ddpmpp", "VP"), ("ve-ncsnpp", "VE")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orig", type=Path, required=True)
    orig = parser.parse_args().orig.resolve()
    here = Path(__file__).parent
    sys.path.insert(0, str(orig))
    from training import loss, networks

    cases = []
    for name, kind in CASES:
        tensors, meta = recipe.golden(here.parent / "golden" / f"{name}.safetensors")
        kwargs = dict(json.loads(meta["init_kwargs"]), dropout=0.0)
        net = getattr(networks, meta["class"])(**kwargs)
        net.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
        dims = [BATCH, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"]]
        images = recipe.single(recipe.uniform("images", dims, 1.0))
        classes = kwargs.get("label_dim", 0)
        labels = torch.eye(classes)[torch.arange(BATCH) * 3 % classes] if classes else None
        torch.manual_seed(recipe.SEED)
        elements = getattr(loss, f"{kind}Loss")()(net, images, labels)
        total = elements.sum() / BATCH
        total.backward()
        square = sum(float(p.grad.double().square().sum()) for p in net.parameters() if p.grad is not None)
        cases.append({"golden": name, "loss": total.item(), "elements": elements.double().mean().item(), "gradients": square**0.5})
    print("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]")


main()
