"""Checkpoints with seeded weights and images, made on the spot: nothing large travels, nothing is downloaded.

python prepare.py lite0 OUT.pth | vgg16 OUT.pth | clip OUT.pt | dinov2 OUT.pth     feature networks of timm, torchvision and torch-fidelity
python prepare.py denoiser OUT.safetensors ORIG [small]                            CIFAR-10's NCSN++ (EDMPrecond) of the original code in ORIG
python prepare.py shaken OUT.safetensors SNAPSHOT.safetensors                      d2o's fresh network of that size with every tensor drawn
python prepare.py images OUT.npz COUNT SEED                                        smooth waves, an edge and noise, 32×32

Inception's weights come from ../peers/bench.py.
"""
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np

# The checkout: the current directory, or above this script, which may run from a copy.
ROOT = next(p for p in (Path.cwd(), *Path(__file__).resolve().parents) if (p / "tests/data/gen").is_dir())
# The network of the published CIFAR-10 checkpoints (56.4 M parameters), and a small one of the same kind.
NCSNPP = dict(img_resolution=32, img_channels=3, label_dim=0, model_type="SongUNet", embedding_type="fourier", encoder_type="residual",
              decoder_type="standard", channel_mult_noise=2, resample_filter=[1, 3, 3, 1], dropout=0.13)
SIZES = {"full": dict(model_channels=128, channel_mult=[2, 2, 2]), "small": dict(model_channels=32, channel_mult=[1, 2], num_blocks=1)}


def source(path):
    """The functions of a script of this repository, without its call of `main`."""
    module = types.ModuleType(Path(path).stem)
    module.__file__ = str(ROOT / path)
    exec(compile((ROOT / path).read_text().rsplit("\nmain()", 1)[0], module.__file__, "exec"), module.__dict__)
    return module


def randomise(net):
    return source("tests/data/gen/originals.py").randomise(net)


def stub(name, **members):
    """Registers a stand-in for a module that the originals import."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules.setdefault(name, module)


def networks(orig):
    """The original's `training.networks`."""
    for name in ("requests", "pkg_resources"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            stub(name, parse_version=__import__("packaging.version").version.parse)
    sys.path.insert(0, str(orig))
    from training import networks

    return networks


def lite0(out):
    """He's normal weights, drawn from the tensors' names as in tests/data/gen/recipe.py: the backbone of training."""
    import torch

    torch.save(source("tests/data/gen/recipe.py").lite0().state_dict(), out)


def vgg16(out):
    import torch
    import torchvision

    torch.manual_seed(2)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), out, _use_new_zipfile_serialization=False)


def clip(out):
    import torch
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    net = CLIPVisual(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32)
    # OpenAI's archive keeps these sizes as tensors.
    for key, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
        net.register_buffer(key, torch.tensor(value))
    net.forward = lambda x: net.visual(x)
    randomise(net)
    torch.jit.trace(net, torch.zeros(1, 3, 224, 224), check_trace=False).save(out)


def dinov2(out):
    import timm
    import torch

    net = randomise(timm.create_model("vit_small_patch14_dinov2", img_size=518))
    # timm omits the tensor that only training uses.
    torch.save(dict(net.state_dict(), mask_token=torch.zeros(1, net.embed_dim)), out)


def denoiser(out, orig, size="full"):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    kwargs = dict(NCSNPP, **SIZES[size])
    net = randomise(networks(orig).EDMPrecond(**kwargs))
    meta = {"class": "EDMPrecond", "init_kwargs": json.dumps(kwargs), "networks": '["ema"]', "images": "0"}
    save_file({f"ema.{k}": v.contiguous() for k, v in net.state_dict().items()}, out, meta)


def shaken(out, snapshot):
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    with safe_open(snapshot, "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in sorted(file.keys())}
    for name, t in tensors.items():
        if name.rpartition(".")[2] not in ("resample_filter", "freqs"):
            noise = torch.randn(t.shape, generator=generator)
            tensors[name] = noise * t[0].numel() ** -0.5 if t.dim() > 1 else 0.1 * noise + float(name.endswith("weight"))
    save_file(tensors, out, meta)


def images(out, count, seed):
    rng, side = np.random.RandomState(int(seed)), 32
    y, x = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    found = np.empty((int(count), side, side, 3), np.uint8)
    for i in range(len(found)):
        c = rng.rand(4, 3)
        wave = np.sin(9 * c[0] * x[..., None] + 7 * c[1] * y[..., None] + 6 * c[2])
        edge = (x * rng.rand() + y * rng.rand() > 0.45)[..., None] * c[3]
        found[i] = np.clip(128 + 70 * wave + 60 * (edge - 0.5) + rng.randn(side, side, 3) * (6 + 3 * (int(seed) % 2)), 0, 255)
    np.savez(out, arr_0=found)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"done": sys.argv[1]}))
