"""Writes a golden file: a preconditioned network of an original repository with random weights, and its outputs, PyTorch on the CPU.

`python tests/data/gen/golden.py REPO CLASS INIT_KWARGS OUT`, where REPO is a checkout whose `training/networks.py` defines CLASS and INIT_KWARGS is JSON.
Run with torch 2.11. The file has the weights as `weights.*`, and with a batch of two the inputs `z`, `input`, `sigma` (and `labels`) and the outputs
`denoised` (of `input` at `sigma`) and `one_step` (of 80 z at 80).
"""
import json
import sys

import torch
from safetensors.torch import save_file

repo, name, kwargs, out = sys.argv[1:]
sys.path.insert(0, repo)
from training import networks

torch.manual_seed(0)
kwargs = json.loads(kwargs)
net = getattr(networks, name)(**kwargs).eval().requires_grad_(False)
# EDM's zero-initialised layers would hide faults.
for parameter in net.parameters():
    parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.3))
shape = [2, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"]]
sigma = torch.tensor([0.5, 20.0])
tensors = {"z": torch.randn(shape), "sigma": sigma, "input": torch.randn(shape) * sigma.reshape(-1, 1, 1, 1)}
labels = None
if kwargs.get("label_dim", 0):
    labels = torch.eye(kwargs["label_dim"])[:2]
    tensors["labels"] = labels
with torch.no_grad():
    tensors["denoised"] = net(tensors["input"], sigma, labels)
    tensors["one_step"] = net(80.0 * tensors["z"], torch.full([2], 80.0), labels)
tensors |= {f"weights.{key}": value for key, value in net.state_dict().items()}
metadata = {"class": name, "init_kwargs": json.dumps(kwargs)}
save_file({key: value.contiguous() for key, value in sorted(tensors.items())}, out, metadata)
