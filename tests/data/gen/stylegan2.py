"""Writes tests/data/stylegan2/*.pkl: small generators with the names, shapes and pickled form of StyleGAN2-ADA's, with empty `module_src`.

Run with torch 2.15 and numpy 2: `python tests/data/gen/stylegan2.py tests/data/stylegan2`; `originals_unet.py` computes what the
original makes of them.
"""
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

# Arguments of `Generator`: conditional with skips, and residual with a clamp that bites.
CASES = {
    "skip-cond": dict(z_dim=8, c_dim=3, w_dim=12, img_resolution=16, img_channels=3, mapping_kwargs=dict(num_layers=2),
                      synthesis_kwargs=dict(channel_base=128, channel_max=12, num_fp16_res=1, conv_clamp=256)),
    "resnet": dict(z_dim=8, c_dim=0, w_dim=8, img_resolution=8, img_channels=3, mapping_kwargs=dict(num_layers=3, layer_features=10),
                   synthesis_kwargs=dict(channel_base=64, channel_max=10, architecture="resnet", conv_clamp=1.5)),
}


def reconstruct(meta):
    raise NotImplementedError


class EasyDict(dict):
    pass


def package(name, **members):
    """A module of this name, so that its members pickle under it."""
    module = types.ModuleType(name)
    for key, member in members.items():
        member.__module__, member.__qualname__ = name, key
        setattr(module, key, member)
    sys.modules[name] = module
    return module


class Persistent(torch.nn.Module):
    def __init__(self, kind, **kwargs):
        super().__init__()
        self.kind, self._init_args, self._init_kwargs = kind, (), EasyDict(kwargs)

    def __reduce__(self):
        return reconstruct, (dict(type="class", version=6, module_src="", class_name=self.kind, state=self.__dict__),)


def tensors(c, random):
    """(name, tensor, whether it is a buffer) of the whole generator."""
    draw = lambda *shape: np.float32(random.randn(*shape))
    f = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64
    z, w, m, s = c["z_dim"], c["w_dim"], c["mapping_kwargs"], c["synthesis_kwargs"]
    r, colours = c["img_resolution"], c["img_channels"]
    width = lambda r: min(s["channel_base"] // r, s["channel_max"])
    skip = s.get("architecture", "skip") == "skip"
    out = []
    add = lambda name, value, buffer=False: out.append((name, value, buffer))

    def affine(name, channels):
        add(f"{name}.affine.weight", draw(channels, w))
        add(f"{name}.affine.bias", 1 + 0.1 * draw(channels))

    def layer(name, cin, cout, size):
        affine(name, cin)
        add(f"{name}.weight", draw(cout, cin, 3, 3))
        add(f"{name}.noise_strength", np.float32(0.3) * draw())
        add(f"{name}.bias", 0.2 * draw(cout))
        add(f"{name}.resample_filter", f, True)
        add(f"{name}.noise_const", draw(size, size), True)

    sizes = [2 ** i for i in range(2, r.bit_length())]
    for size in sizes:
        name, cin, cout = f"synthesis.b{size}", width(size // 2), width(size)
        if size == 4:
            add(f"{name}.const", draw(cout, 4, 4))
        add(f"{name}.resample_filter", f, True)
        if size > 4:
            layer(f"{name}.conv0", cin, cout, size)
        layer(f"{name}.conv1", cout, cout, size)
        if skip or size == r:
            affine(f"{name}.torgb", cout)
            add(f"{name}.torgb.weight", draw(colours, cout, 1, 1))
            add(f"{name}.torgb.bias", 0.1 * draw(colours))
        if size > 4 and not skip:
            add(f"{name}.skip.weight", draw(cout, cin, 1, 1))
            add(f"{name}.skip.resample_filter", f, True)
    if c["c_dim"]:
        add("mapping.embed.weight", draw(w, c["c_dim"]))
        add("mapping.embed.bias", 0.1 * draw(w))
    widths = [z + (w if c["c_dim"] else 0)] + [m.get("layer_features", w)] * (m["num_layers"] - 1) + [w]
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        add(f"mapping.fc{i}.weight", 100 * draw(b, a))
        add(f"mapping.fc{i}.bias", 10 * draw(b))
    add("mapping.w_avg", 0.3 * draw(w), True)
    return [(name, torch.from_numpy(np.asarray(value, np.float32)), buffer) for name, value, buffer in out]


def kind(name):
    leaf = name.rsplit(".", 1)[-1]
    kinds = dict(synthesis="SynthesisNetwork", mapping="MappingNetwork", torgb="ToRGBLayer", skip="Conv2dLayer", conv0="SynthesisLayer",
                 conv1="SynthesisLayer")
    return kinds.get(leaf, "SynthesisBlock" if leaf.startswith("b") else "FullyConnectedLayer")


def generator(c):
    root = Persistent("Generator", **{k: EasyDict(v) if isinstance(v, dict) else v for k, v in c.items()})
    for name, tensor, buffer in tensors(c, np.random.RandomState(0)):
        *path, leaf = name.split(".")
        at = root
        for i, part in enumerate(path):
            if part not in at._modules:
                at.add_module(part, Persistent(kind(".".join(path[:i + 1]))))
            at = at._modules[part]
        if buffer:
            at.register_buffer(leaf, tensor)
        else:
            at.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    root.synthesis.b4.conv1.act_gain = np.sqrt(2)
    return root.eval()


def state(c):
    return {name: tensor for name, tensor, _ in tensors(c, np.random.RandomState(0))}


if __name__ == "__main__":
    package("torch_utils")
    package("torch_utils.persistence", _reconstruct_persistent_obj=reconstruct)
    package("dnnlib")
    package("dnnlib.util", EasyDict=EasyDict)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, c in CASES.items():
        snapshot = dict(G_ema=generator(c), augment_pipe=None, training_set_kwargs=EasyDict(path="data.zip"))
        (out / f"{name}.pkl").write_bytes(pickle.dumps(snapshot, protocol=4))
