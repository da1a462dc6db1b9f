"""Writes tests/data/recipe.json: one step of D2O's training as the original code computes it, from drawn weights.

python tests/data/gen/recipe.py --orig DIR > tests/data/recipe.json
python tests/data/gen/recipe.py --orig DIR --time FOLDER [--vgg]    # speed on CIFAR-10's network; FOLDER gets what d2o's side needs
(torch 2.15.0 or 2.11.0, torchvision 0.29.2 or 0.26.0, timm 1.0.31, numpy; DIR holds Zyriix/D2O at 9f8124d, with pg_modules and feature_networks)

The generator is a golden network of this folder without dropout. Every other tensor is drawn from its name by the generator of
converters/src/weights.rs under the seed below, with the distribution d2o's layers ask for. The original's modules and its `D2OLoss` then run the
generator's, the discriminator's and R1's stage one after another, without updates between them, so that spectral norm's vectors advance as
in training. Of each gradient the norm is kept, and its product with uniform values drawn from its name, computed in f64. The network is piecewise
linear: where rounding puts one activation on the other side of a kink its gradient jumps, so that f32 and f64 differ by more than
rounding. `single` says by how much the original's own f32 is off; feature networks beside Lite0 are run in
f64 alone.
"""
import argparse
import contextlib
import json
import os
import pickle
import re
import struct
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import torch

SEED = 7
BATCH = 3
# Norm of a gradient that is zero but for rounding.
VANISHES = 1e-9
LITE0, VGG, DEIT = "tf_efficientnet_lite0", "vgg16_bn", "deit_base_distilled_patch16_224"
# Random convolutions that the original keeps beside a transformer's weights.
ADAPTER = re.compile(DEIT + r"\.pretrained\.layer\d\.\d\.")


def words(name, count):
    mask, h = (1 << 64) - 1, 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & mask
    with np.errstate(over="ignore"):
        z = np.uint64(h ^ SEED) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def units(name, count):
    return (words(name, count) >> np.uint64(40)).astype(np.float64) / (1 << 24)


def uniform(name, dims, bound):
    return (units(name, int(np.prod(dims))) * 2 - 1).reshape(dims) * bound


def normal(name, dims, std):
    u = units(name, 2 * int(np.prod(dims)))
    return (np.sqrt(-2 * np.log(1 - u[0::2])) * np.cos(2 * np.pi * u[1::2])).reshape(dims) * std


def single(values):
    """Values of f32 in the type of the run."""
    return torch.from_numpy(values.astype(np.float32)).to(torch.get_default_dtype())


def golden(path):
    """Tensors and metadata of a safetensors file of f32."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body, tensors = data[8 + length :], {}
    meta = header.pop("__metadata__")
    for name, info in header.items():
        start, end = info["data_offsets"]
        tensors[name] = torch.from_numpy(np.frombuffer(body[start:end], np.float32).reshape(info["shape"]).copy())
    return tensors, meta


def lite0():
    """timm's network with the trunk's weights drawn: He's normal for convolutions, norms as they begin."""
    import timm

    net = timm.models.efficientnet.tf_efficientnet_lite0(pretrained=False)
    # Newer versions of timm have the first activation inside bn1.
    net.act1 = torch.nn.Identity()
    return drawn(net, lambda name, dims: normal(name, dims, np.sqrt(2 / np.prod(dims[1:]))) if len(dims) == 4 else None)


def vgg(*_, batch_norm=True, **__):
    """torchvision's network without its classifier, with drawn weights, as d2o initialises them."""
    import torchvision

    net = torch.nn.Module()
    net.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=batch_norm)
    return drawn(net, lambda name, dims: normal(name, dims, np.sqrt(2 / (dims[0] * 9))) if len(dims) == 4 else None)


def deit():
    """timm's network with drawn weights, as d2o initialises them, without heads."""
    import timm

    net = timm.models.deit.deit_base_distilled_patch16_224(pretrained=False, num_classes=0)
    # Its fused kernel has no second derivatives.
    for block in net.blocks:
        block.attn.fused_attn = False

    def draw(name, dims):
        if ".norm" in name or name.startswith("norm"):
            return None
        if name.endswith(".qkv.bias"):
            return np.zeros(dims)
        if name.startswith("blocks.") and ".qkv." not in name:
            module = net.get_submodule(name.rpartition(".")[0])
            return uniform(name, dims, 1 / np.sqrt(module.in_features))
        return normal(name, dims, 0.02)

    return drawn(net, draw)


def drawn(net, draw):
    """The network with the values of `draw`, and norms as they begin where it gives none; in training mode."""
    state = net.state_dict()
    for name, old in state.items():
        values = draw(name, list(old.shape))
        if values is not None:
            state[name] = single(values)
        elif old.dim() == 1:
            state[name] = torch.ones_like(old) if name.endswith(("running_var", "weight")) else torch.zeros_like(old)
    net.load_state_dict(state)
    return net.train()


def original_modules(orig):
    """The original's discriminator and loss; what they import without need is left out."""
    sys.path.insert(0, str(orig))
    for name, members in {"feature_networks.clip": [], "lpips": ["ScalingLayer"]}.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
    try:
        import pkg_resources
    except ImportError:
        # Gone from new setuptools.
        packages = types.ModuleType("pkg_resources")
        packages.parse_version = __import__("packaging.version").version.parse
        sys.modules["pkg_resources"] = packages
    import feature_networks
    import timm

    feature_networks.clip = sys.modules["feature_networks.clip"]
    timm.create_model = lambda name, **_: {LITE0: lite0, DEIT: deit}[name]()
    from feature_networks import pretrained_builder

    pretrained_builder.zoomodels = types.SimpleNamespace(vgg16_bn=vgg)
    from pg_modules.discriminator import ProjectedDiscriminatorOnly, ProjectedFeatureOnly
    from training import loss, networks

    return ProjectedFeatureOnly, ProjectedDiscriminatorOnly, loss, networks


def fill(features, critic):
    """Draws the random projections and the heads as d2o initialises them."""
    for module, prefix in ((features, ""), (critic, "")):
        state = module.state_dict()
        for name, old in state.items():
            full, dims = prefix + name, list(old.shape)
            leaf = name.rpartition(".")[2]
            if (".pretrained." in name and not ADAPTER.search(name)) or leaf in ("running_mean", "running_var", "num_batches_tracked", "resample_filter"):
                continue
            owner = name[: -len(leaf) - 1]
            mixing = ".scratch." in name or ".pretrained." in name
            if mixing or leaf == "weight_orig":
                weight = state[owner + (".weight" if mixing else ".weight_orig")]
                drawn = uniform(full, dims, 1 / np.sqrt(np.prod(weight.shape[1:])))
            elif leaf in ("weight_u", "weight_v"):
                drawn = normal(full, dims, 1 / np.sqrt(dims[0]))
            elif owner.endswith(("embed", "embed_proj")):
                drawn = normal(full, dims, 1.0) if leaf == "weight" else np.zeros(dims)
            elif leaf == "bias" and owner + ".weight_orig" in state:
                drawn = uniform(full, dims, 1 / np.sqrt(np.prod(state[owner + ".weight_orig"].shape[1:])))
            else:
                drawn = np.full(dims, 1.0 if leaf == "weight" else 0.0)
            state[name] = single(np.asarray(drawn))
        module.load_state_dict(state)


def gradients(module):
    found = {}
    for name, p in module.named_parameters():
        if p.grad is not None:
            grad = p.grad.double().numpy()
            found[name] = [float(np.linalg.norm(grad)), float((grad * uniform("along." + name, list(grad.shape), 1.0)).sum())]
            p.grad = None
    return found


def off(found, expected):
    """By how much `found` is off: the loss relative to itself, the worst gradient relative to its norm."""
    loss = abs(found["loss"] / expected["loss"] - 1)
    pairs = [(found["gradients"][k], e) for k, e in expected["gradients"].items() if e[0] > VANISHES]
    return {"loss": loss, "gradients": max(abs(f[i] - e[i]) / e[0] for f, e in pairs for i in (0, 1))}


def both(orig, name, loss_type):
    """A step through Lite0 in f64, and how far one in f32 is from it."""
    rough = step(orig, name, loss_type, (LITE0,), BATCH)
    exact = double(step, orig, name, loss_type, (LITE0,), BATCH)
    for stage, values in exact["stages"].items():
        values["single"] = off(rough["stages"][stage], values)
    return exact


def double(compute, *case):
    """What `compute` gives in f64. The original asks for f32 by name."""
    f32 = torch.float32
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float64
    try:
        return compute(*case)
    finally:
        torch.float32 = f32
        torch.set_default_dtype(f32)


def network(networks, name):
    """A golden network of the original's class without dropout, and its arguments."""
    tensors, meta = golden(Path(__file__).parent.parent / "golden" / f"{name}.safetensors")
    kwargs = dict(json.loads(meta["init_kwargs"]), dropout=0.0)
    net = getattr(networks, meta["class"])(**kwargs)
    net.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    return net.to(torch.get_default_dtype()), kwargs


def adversary(orig, backbones, cond):
    """The original's feature networks and heads with drawn weights, in training mode."""
    features, critic = discriminator(orig, backbones, cond)
    # The class table comes from a file of f32, and what follows it would take its type.
    critic.to(torch.get_default_dtype())
    fill(features, critic)
    return features.train().requires_grad_(False), critic.train()


def step(orig, name, loss_type, backbones, batch):
    net, kwargs = network(orig[3], name)
    features, critic = adversary(orig, backbones, kwargs.get("label_dim", 0) > 0)
    loss = orig[2].D2OLoss(g=net.train(), d=critic, lpips_net=None, feature_net=features, score_net=None, loss_type=loss_type, r1_gamma=0.01)
    losses, logits = run(orig[2], loss, kwargs, batch, {"generator": net, "discriminator": critic, "r1": critic})
    return {"golden": name, "backbones": list(backbones), "loss_type": loss_type, "batch": batch, "logits_fake": logits, "stages": losses}


def run(loss_module, loss, kwargs, batch, trained):
    """Loss and gradients of each stage, by the network it trains, and the mean of the logits of generated images."""
    dims = [batch, kwargs["img_channels"], kwargs["img_resolution"], kwargs["img_resolution"]]
    images = single(uniform("images", dims, 1.0))
    classes = kwargs.get("label_dim", 0)
    labels = torch.eye(classes)[torch.arange(batch) * 3 % classes] if classes else None
    reported = {}
    loss_module.training_stats.report = lambda key, value: reported.setdefault(key, []).append(torch.as_tensor(value).detach()) or value
    backward, seen = torch.Tensor.backward, []
    torch.Tensor.backward = lambda self, *a, **k: (seen.append(self.item()), backward(self, *a, **k))[1]
    randn, stages = torch.randn, {}
    try:
        for stage, (name, network) in enumerate(trained.items()):
            torch.randn = lambda *_, stage=stage, **__: single(normal(f"noise.{stage}", dims, 1.0))
            loss.accumulate_gradients(images, labels, stage=stage)
            stages[name] = {"loss": seen[-1], "gradients": gradients(network)}
    finally:
        torch.Tensor.backward, torch.randn = backward, randn
    logits = [v.reshape(-1).double() for v in reported.get("Loss/logits/fake", [])]
    return stages, float(torch.cat(logits).mean()) if logits else None


def discriminator(orig, backbones, cond):
    """The original's feature networks and heads, for images below 224 pixels."""
    features_of, critic_of, *_ = orig
    options = {"cout": 64, "expand": True, "proj_type": 2, "num_discs": 4, "cond": int(cond), "im_res": 256}
    features = features_of(list(backbones), diffaug=False, interp224=True, backbone_kwargs=options)
    projected = [features.feature_networks[b] for b in backbones]
    channels, resolutions = [p.CHANNELS for p in projected], [p.RESOLUTIONS for p in projected]
    return features, critic_of(list(backbones), channels, resolutions, diffaug=False, interp224=True, backbone_kwargs=options)


@contextlib.contextmanager
def class_table():
    """A folder in which a conditional head finds its class table, whose values are drawn afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        os.makedirs(f"{folder}/in_embeddings")
        with open(f"{folder}/in_embeddings/{LITE0}.pkl", "wb") as file:
            pickle.dump({"embed": torch.nn.Embedding(1000, 320)}, file)
        with contextlib.chdir(folder):
            yield


def stepper(orig, net, device="cpu", backbones=(LITE0,)):
    """The original's step of generator and discriminator for `net` on images about [-1, 1], updates and average included."""
    loss_module = orig[2]
    net = net.to(device).train()
    average = [p.detach().clone() for p in net.parameters()]
    features, critic = discriminator(orig, backbones, False)
    features, critic = features.to(device).train().requires_grad_(False), critic.to(device).train()
    loss = loss_module.D2OLoss(g=net, d=critic, lpips_net=None, feature_net=features, score_net=None, use_gp=False)
    adams = [torch.optim.Adam(m.parameters(), lr=1e-4, betas=(0.0, 0.99), eps=1e-8) for m in (net, critic)]

    def step(real):
        for stage, module, adam in ((loss_module.DO_GMAIN, net, adams[0]), (loss_module.DO_DMAIN, critic, adams[1])):
            adam.zero_grad(set_to_none=True)
            loss.accumulate_gradients(real, None, stage=stage)
            for p in module.parameters():
                if p.grad is not None:
                    torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            adam.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters()):
                a.copy_(p.detach().lerp(a, 0.999))

    return step


def timed(orig, folder, with_vgg, batch=8, rounds=5):
    """Images per second of the original's step: the median of the rounds."""
    backbones = (VGG, LITE0) if with_vgg else (LITE0,)
    if with_vgg:
        # The file is recognised by all of torchvision's layers; the classifier is not computed.
        classifier = {f"classifier.{i}.{name}": torch.zeros(dims) for i, n in ((0, 512 * 49), (3, 1), (6, 1)) for name, dims in (("weight", (1, n)), ("bias", (1,)))}
        torch.save(dict(vgg().state_dict(), **classifier), folder / "vgg16_bn.pth")
    images = np.random.RandomState(0).randint(0, 256, (8 * batch, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", arr_0=images)
    step = stepper(orig, orig[-1].D2OPrecond(
        img_resolution=32, img_channels=3, label_dim=0, model_type="SongUNet", embedding_type="fourier", encoder_type="residual",
        decoder_type="standard", channel_mult_noise=2, resample_filter=[1, 3, 3, 1], model_channels=128, channel_mult=[2, 2, 2], dropout=0.0), backbones=backbones)
    speeds = []
    for i in range(rounds + 1):
        real = torch.from_numpy(images[:batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
        start = time.perf_counter()
        step(real)
        if i > 0:
            speeds.append(batch / (time.perf_counter() - start))
    return {"images_per_second": float(np.median(speeds)), "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--orig", type=Path, required=True)
    parser.add_argument("--time", type=Path)
    parser.add_argument("--vgg", action="store_true")
    args = parser.parse_args()
    root = args.orig.resolve()
    folder = args.time.resolve() if args.time else None
    # The original prints as it goes.
    result, sys.stdout = sys.stdout, sys.stderr
    orig = original_modules(root / "D2O" if (root / "D2O").is_dir() else root)
    if folder:
        print(json.dumps(timed(orig, folder, args.vgg)), file=result)
        return
    uncond, cond = "d2o-ncsnpp-uncond", "d2o-adm-cond"
    with class_table():
        cases = [both(orig, uncond, "ns"), both(orig, cond, "ns"), both(orig, uncond, "hinge")]
        for golden, other in ((uncond, VGG), (cond, DEIT)):
            cases.append(double(step, orig, golden, "ns", (other, LITE0), 2))
    print("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]", file=result)


if __name__ == "__main__":
    main()
