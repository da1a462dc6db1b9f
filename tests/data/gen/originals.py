"""Checkpoints of full size, written by the original projects' own code with random weights, and what that code computes with them.

    python originals.py --list
    python originals.py OUT --orig DIR --case NAME
    python originals.py OUT --orig DIR --case NAME --bench GRAPH.onnx [--threads N]
    python originals.py --measure COMMAND...

DIR holds checkouts `edm` (008a4e5), `D2O` (9f8124d), `SiD` (01fbb13), `consistency_models` (e32b69e), `stylegan3` (c233a91), `dinov2` (b8931f7),
`stylegan2-ada-pytorch` (d72cc7d).
A case writes OUT/NAME.<ending>, OUT/NAME.npz with inputs and outputs, and OUT/NAME.json: the file, what it is, d2o's options for it, and
which array is which input and output of the graph. `--bench` runs d2o's graph of an unconditional denoiser and PyTorch's own export of the same
network on ONNX Runtime in turns, and prints images per second. `--measure` runs a command and prints its seconds, those of the processor, peak memory (KiB) and exit code.
"""
import argparse
import importlib
import json
import pickle
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock


def measure(command):
    start = time.perf_counter()
    code = subprocess.run(command, stdout=sys.stderr).returncode
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_kib": used.ru_maxrss, "code": code}))


if sys.argv[1:2] == ["--measure"]:
    measure(sys.argv[2:])
    sys.exit()

import numpy as np
import torch

torch.set_num_threads(1)
# Fourier features are drawn as the network is built.
torch.manual_seed(0)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def randomise(net):
    """Every tensor counts: none stays zero, none stays one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, t in [*net.named_parameters(), *net.named_buffers()]:
            leaf = name.rpartition(".")[2]
            if not t.is_floating_point() or leaf in ("resample_filter", "freqs", "u", "sigma_min", "sigma_max"):
                continue
            noise = torch.randn(t.shape, generator=generator)
            ones = leaf in ("running_var", "var", "gamma") or (leaf == "weight" and t.dim() == 1)
            t.copy_(noise * t[0].numel() ** -0.5 if t.dim() > 1 else 0.1 * noise + (1 if ones else 0))
            if leaf in ("running_var", "var"):
                t.clamp_(min=0.5)
    return net.eval().requires_grad_(False)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


# Denoisers of the EDM family.

SONG = {
    "ncsnpp": dict(model_type="SongUNet", embedding_type="fourier", encoder_type="residual", decoder_type="standard",
                   channel_mult_noise=2, resample_filter=[1, 3, 3, 1], model_channels=128),
    "ddpmpp": dict(model_type="SongUNet", embedding_type="positional", encoder_type="standard", decoder_type="standard",
                   channel_mult_noise=1, resample_filter=[1, 1], model_channels=128),
}
ADM = dict(model_type="DhariwalUNet", model_channels=192, channel_mult=[1, 2, 3, 4])
CIFAR = dict(img_resolution=32, channel_mult=[2, 2, 2])
FFHQ = dict(img_resolution=64, channel_mult=[1, 2, 2, 2])
IMAGENET64 = dict(img_resolution=64, label_dim=1000)


def denoiser(repository, precond, title, snapshot, sigma_max=80.0, **kwargs):
    def make(orig, out, name):
        sys.path.insert(0, str(orig / repository))
        networks = importlib.import_module("training.networks")
        arguments = dict(dict(img_channels=3, label_dim=0), **kwargs)
        net = randomise(getattr(networks, precond)(**arguments))
        with open(out / f"{name}.pkl", "wb") as file:
            pickle.dump(snapshot(net), file)
        size, classes = arguments["img_resolution"], arguments["label_dim"]
        random = np.random.RandomState(1)
        arrays = {"z": random.randn(1, 3, size, size).astype(np.float32)}
        labels = None
        if classes:
            arrays["labels"] = np.eye(classes, dtype=np.float32)[random.randint(classes, size=1)]
            labels = torch.from_numpy(arrays["labels"])
        z = torch.from_numpy(arrays["z"])
        with torch.no_grad():
            arrays["one_step"] = net(z * sigma_max, torch.full([1], sigma_max), labels).numpy()
        inputs = dict({"latents": "z"}, **({"class_labels": "labels"} if classes else {}))
        return dict(file=f"{name}.pkl", kind="pickle", network=title, parameters=parameters(net), options=["--sigma-max", str(sigma_max)],
                    inputs=inputs, outputs={"images": "one_step"}), arrays

    return make


def edm_snapshot(net):
    return dict(ema=net, loss_fn=None, augment_pipe=None, dataset_kwargs={})


def d2o_snapshot(net):
    return dict(net=net, ema=net, augment_pipe=None, dataset_kwargs={})


def song(arch, data, precond="EDMPrecond", repository="edm", snapshot=edm_snapshot, title="EDM", sigma_max=80.0, **more):
    name = {"ncsnpp": "NCSN++", "ddpmpp": "DDPM++"}[arch] + (", conditional" if more.get("label_dim") else "")
    return denoiser(repository, precond, f"{title} {data['img_resolution']}×{data['img_resolution']}, {name}", snapshot, sigma_max, **dict(SONG[arch], **data, **more))


# Feature networks.


def standardised(images, mean, std):
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def images(size):
    """A smooth picture and noise."""
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = [127.5 + 100 * np.sin(9 * x + 5 * y * (c + 1) + c) for c in range(3)]
    noise = np.random.RandomState(2).randint(0, 256, size=(size, size, 3))
    return np.stack([np.stack(smooth, -1), noise]).astype(np.uint8)


def features(make):
    def run(orig, out, name):
        facts, pictures, outputs = make(orig, out, name)
        facts = dict(dict(options=[]), **facts, inputs={"images_u8": "images"}, outputs={k: k for k in outputs})
        return facts, dict({k: v.numpy() for k, v in outputs.items()}, images=pictures)

    return run


def saved(net, out, name, kind, title, write, options=()):
    """`write` puts the file NAME.<kind's ending> there."""
    ending = {"torch.save": "pth", "safetensors": "safetensors", "TorchScript": "pt", "pickle": "pkl", "GraphDef": "pb"}[kind]
    write(out / f"{name}.{ending}")
    return dict(file=f"{name}.{ending}", kind=kind, network=title, parameters=parameters(net), options=list(options))


def clip_openai(orig, out, name):
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    net = CLIPVisual(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32)
    # OpenAI's archive keeps these sizes as tensors.
    for key, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
        net.register_buffer(key, torch.tensor(value))
    net.forward = lambda x: net.visual(x)
    randomise(net)
    pictures = images(224)
    x = standardised(pictures, *CLIP)
    write = lambda path: torch.jit.trace(net, x[:1], check_trace=False).save(str(path))
    return saved(net, out, name, "TorchScript", "CLIP ViT-B/32, OpenAI", write), pictures, {"features": net.visual(x)}


def clip_huggingface(orig, out, name):
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    net = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=512)))
    pictures = images(224)
    result = net(pixel_values=standardised(pictures, *CLIP)).image_embeds
    write = lambda path: save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    options = ["--activation", "quick-gelu"]
    return saved(net, out, name, "safetensors", "CLIP ViT-B/32, Hugging Face", write, options), pictures, {"features": result}


def clip_open_clip(orig, out, name):
    import open_clip

    net = randomise(open_clip.create_model("ViT-B-32", pretrained=None))
    pictures = images(224)
    result = net.encode_image(standardised(pictures, *CLIP))
    write = lambda path: torch.save(net.state_dict(), path)
    facts = saved(net.visual, out, name, "torch.save", "CLIP ViT-B/32, open_clip, exact GELU", write, ["--activation", "gelu"])
    return facts, pictures, {"features": result}


def lite0(orig, out, name):
    import timm

    net = randomise(timm.create_model("tf_efficientnet_lite0"))
    pictures = images(224)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    write = lambda path: torch.save(net.state_dict(), path)
    outputs = {"features": net.forward_head(net.forward_features(x), pre_logits=True), "logits": net(x)}
    return saved(net, out, name, "torch.save", "EfficientNet-Lite0, timm", write), pictures, outputs


def deit(orig, out, name):
    import timm

    net = randomise(timm.create_model("deit_base_distilled_patch16_224"))
    pictures = images(224)
    x = standardised(pictures, *IMAGENET)
    write = lambda path: torch.save({"model": net.state_dict()}, path)
    outputs = {"features": net.forward_features(x)[:, 0], "logits": net(x)}
    return saved(net, out, name, "torch.save", "DeiT-B distilled, timm", write), pictures, outputs


def vgg(build, title):
    def make(orig, out, name):
        import torchvision

        net = randomise(getattr(torchvision.models, build)())
        pictures = images(224)
        x = standardised(pictures, *IMAGENET)
        write = lambda path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
        outputs = {"features": net.classifier[:6](torch.flatten(net.avgpool(net.features(x)), 1)), "logits": net(x)}
        return dict(saved(net, out, name, "torch.save", title, write), kind="torch.save, legacy"), pictures, outputs

    return make


def dinov2(orig, out, name):
    sys.path.insert(0, str(orig / "dinov2"))
    from dinov2.models.vision_transformer import vit_large

    # The arguments of the published dinov2_vitl14.
    net = vit_large(patch_size=14, img_size=518, init_values=1.0, ffn_layer="mlp", block_chunks=0, interpolate_antialias=False,
                    interpolate_offset=0.1)
    randomise(net)
    pictures = images(224)
    write = lambda path: torch.save(net.state_dict(), path)
    return saved(net, out, name, "torch.save", "DINOv2 ViT-L/14", write), pictures, {"features": net(standardised(pictures, *IMAGENET))}


# Inception-2015-12-05 in its layouts, all of the same values.


def inception_net(orig):
    sys.path.insert(0, str(orig / "consistency_models" / "evaluations"))
    return randomise(importlib.import_module("inception_v3").InceptionV3())


def inception_outputs(net, pictures):
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 128) / 128
    middle = net.layers[:-6](x)
    spatial = net.layers[-6].conv(middle)[:, :7].permute(0, 2, 3, 1).reshape(-1, 2023)
    pool3 = net.layers[-6:](middle).reshape(-1, 2048)
    return {"pool3": pool3, "spatial": spatial, "logits": torch.nn.functional.linear(pool3, net.output.weight)}


def inception(kind, title, write):
    def make(orig, out, name):
        net = inception_net(orig)
        pictures = images(299)
        facts = saved(net, out, name, kind, f"Inception-2015-12-05, {title}", lambda path: write(orig, net, path))
        outputs = inception_outputs(net, pictures)
        if "module in memory" in title:
            del outputs["logits"]
        return facts, pictures, outputs

    return make


def nvidia_pickle(orig, net, path):
    sys.path.insert(0, str(orig / "stylegan3"))
    persistence = importlib.import_module("torch_utils.persistence")
    module = sys.modules["inception_v3"]
    for name in ["Conv2dLayer", "InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE", "InceptionV3"]:
        setattr(module, name, persistence.persistent_class(getattr(module, name)))
    persistent = module.InceptionV3()
    persistent.load_state_dict(net.state_dict())
    with open(path, "wb") as file:
        pickle.dump(persistent.eval(), file)


def nvidia_script(orig, net, path):
    class Pool3(torch.nn.Module):
        """`layers` and `output` at the top, as in the published archive."""

        def __init__(self):
            super().__init__()
            self.layers, self.output = net.layers, net.output

        def forward(self, x):
            return self.output(self.layers(x).reshape(-1, 2048))

    torch.jit.trace(Pool3(), torch.zeros(1, 3, 299, 299), check_trace=False).save(str(path))


def nvidia_state(orig, net, path):
    torch.save(net.state_dict(), path)


def tensors_of(net):
    """(path below `layers`, leaf, tensor) of every convolution, and the head."""
    for key, value in net.state_dict().items():
        head, _, leaf = key.rpartition(".")
        yield head.removeprefix("layers."), leaf, value


def pytorch_state(net):
    from pytorch_fid import inception as pytorch_fid
    import torchvision

    # The published weights are neither fetched nor loaded: only the module is wanted.
    fetch = mock.patch.object(pytorch_fid, "load_state_dict_from_url", return_value={})
    with fetch, mock.patch.object(torchvision.models.Inception3, "load_state_dict"):
        theirs = pytorch_fid.fid_inception_v3().eval()
    wrapped = mock.patch.object(pytorch_fid, "fid_inception_v3", return_value=theirs)
    # Same convolutions in the same order in both modules, by shape too.
    ours = [(p, v) for p, leaf, v in tensors_of(net) if leaf == "weight" and p != "output"]
    state = dict(theirs.state_dict())
    names = [k.removesuffix(".conv.weight") for k in state if k.endswith(".conv.weight")]
    names = sorted(names, key=order_of)
    ours.sort(key=lambda t: NVIDIA_ORDER.index(t[0]))
    assert len(names) == len(ours) == 94
    for theirs_name, (path, weight) in zip(names, ours):
        assert state[f"{theirs_name}.conv.weight"].shape == weight.shape, (theirs_name, path)
        leaves = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var"}
        for new, old in leaves.items():
            state[f"{theirs_name}.{new}"] = net.state_dict()[f"layers.{path}.{old}"]
        state[f"{theirs_name}.bn.weight"] = torch.ones(len(weight))
    state["fc.weight"], state["fc.bias"] = net.output.weight, net.output.bias
    theirs.load_state_dict(state)
    with wrapped:
        blocks = pytorch_fid.InceptionV3([3], resize_input=False, normalize_input=False)
    return theirs.state_dict(), blocks.state_dict()


PYTORCH_BLOCKS = {
    "A": ["branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool"],
    "B": ["branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
    "C": ["branch1x1", "branch7x7_1", "branch7x7_2", "branch7x7_3", "branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4",
          "branch7x7dbl_5", "branch_pool"],
    "D": ["branch3x3_1", "branch3x3_2", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"],
    "E": ["branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b",
          "branch_pool"],
}
NVIDIA_BLOCKS = {
    "A": ["conv", "tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_2.conv"],
    "B": ["conv", "tower.conv", "tower.conv_1", "tower.conv_2"],
    "C": ["conv", "tower.conv", "tower.conv_1", "tower.conv_2", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_1.conv_3",
          "tower_1.conv_4", "tower_2.conv"],
    "D": ["tower.conv", "tower.conv_1", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2", "tower_1.conv_3"],
    "E": ["conv", "tower_conv", "tower_mixed_conv", "tower_mixed_conv_1", "tower_1_conv", "tower_1_conv_1", "tower_1_mixed_conv",
          "tower_1_mixed_conv_1", "tower_2_conv"],
}
KINDS = "AAABCCCCDEE"
PYTORCH_NAMES = ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"]
PYTORCH_ORDER = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"] + [
    f"{name}.{branch}" for name, kind in zip(PYTORCH_NAMES, KINDS) for branch in PYTORCH_BLOCKS[kind]]
NVIDIA_ORDER = ["conv", "conv_1", "conv_2", "conv_3", "conv_4"] + [
    f"mixed_{i}.{branch}".replace("mixed_0.", "mixed.") for i, kind in enumerate(KINDS) for branch in NVIDIA_BLOCKS[kind]]
order_of = PYTORCH_ORDER.index


def graph_def(orig, net, path):
    """The constants that classify_image_graph_def.pb has: filters HWIO, norms in four parts, the head transposed."""

    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    def field(number, content):
        return varint(number << 3 | 2) + varint(len(content)) + content

    def constant(file, name, tensor):
        shape = b"".join(field(2, b"\x08" + varint(d)) for d in tensor.shape)
        proto = b"\x08\x01" + field(2, shape) + field(4, tensor.contiguous().numpy().tobytes())
        attributes = field(5, field(1, b"dtype") + field(2, b"\x30\x01")) + field(5, field(1, b"value") + field(2, field(8, proto)))
        file.write(field(1, field(1, name.encode()) + field(2, b"Const") + attributes))

    def scope(path):
        block, _, conv = path.partition(".")
        if block not in ("mixed_9", "mixed_10"):
            return path.replace(".", "/")
        for new, old in [("tower_1_mixed_conv", "tower_1/mixed/conv"), ("tower_mixed_conv", "tower/mixed/conv"), ("tower_1_conv", "tower_1/conv"),
                         ("tower_2_conv", "tower_2/conv"), ("tower_conv", "tower/conv")]:
            if conv.startswith(new):
                return f"{block}/{old}{conv[len(new):]}"
        return f"{block}/{conv}"

    with open(path, "wb") as file:
        for at, leaf, value in tensors_of(net):
            if at == "output":
                constant(file, "softmax/weights" if leaf == "weight" else "softmax/biases", value.T if leaf == "weight" else value)
            elif leaf == "weight":
                constant(file, f"{scope(at)}/conv2d_params", value.permute(2, 3, 1, 0))
                constant(file, f"{scope(at)}/batchnorm/gamma", torch.ones(len(value)))
            else:
                name = {"beta": "beta", "mean": "moving_mean", "var": "moving_variance"}[leaf]
                constant(file, f"{scope(at)}/batchnorm/{name}", value)


CASES = {
    "cifar10-ncsnpp": song("ncsnpp", CIFAR, augment_dim=9),
    "cifar10-ncsnpp-cond": song("ncsnpp", CIFAR, augment_dim=9, label_dim=10),
    "cifar10-ddpmpp": song("ddpmpp", CIFAR, augment_dim=9),
    "cifar10-ddpmpp-cond": song("ddpmpp", CIFAR, augment_dim=9, label_dim=10),
    "ffhq64-ncsnpp": song("ncsnpp", FFHQ, augment_dim=9),
    "ffhq64-ddpmpp": song("ddpmpp", FFHQ, augment_dim=9),
    "imagenet64-adm": denoiser("edm", "EDMPrecond", "EDM 64×64, ADM, conditional", edm_snapshot, **dict(ADM, **IMAGENET64)),
    "baseline-vp": song("ddpmpp", dict(img_resolution=32), precond="VPPrecond", title="VP baseline"),
    "baseline-ve": song("ncsnpp", dict(img_resolution=32), precond="VEPrecond", title="VE baseline"),
    "baseline-iddpm": denoiser("edm", "iDDPMPrecond", "iDDPM baseline 64×64, ADM, conditional", edm_snapshot, **dict(ADM, **IMAGENET64)),
    "sid-cifar10": song("ddpmpp", CIFAR, repository="SiD", snapshot=lambda net: dict(ema=net), title="SiD", sigma_max=2.5, augment_dim=9),
    "d2o-cifar10": song("ncsnpp", CIFAR, precond="D2OPrecond", repository="D2O", snapshot=d2o_snapshot, title="D2O"),
    "d2o-imagenet64": denoiser("D2O", "D2OPrecond", "D2O 64×64, ADM, conditional", d2o_snapshot, **dict(ADM, **IMAGENET64)),
    "inception-nvidia-pickle": features(inception("pickle", "NVIDIA", nvidia_pickle)),
    "inception-nvidia-script": features(inception("TorchScript", "NVIDIA", nvidia_script)),
    "inception-nvidia-state": features(inception("torch.save", "consistency_models", nvidia_state)),
    "inception-pytorch": features(inception("torch.save", "pytorch-fid and torch-fidelity",
                                            lambda orig, net, path: torch.save(pytorch_state(net)[0], path))),
    "inception-blocks": features(inception("torch.save", "pytorch-fid's module in memory",
                                           lambda orig, net, path: torch.save(pytorch_state(net)[1], path))),
    "inception-tensorflow": features(inception("GraphDef", "TensorFlow", graph_def)),
    "clip-openai": features(clip_openai),
    "clip-huggingface": features(clip_huggingface),
    "clip-open_clip": features(clip_open_clip),
    "lite0": features(lite0),
    "deit-b": features(deit),
    "vgg16": features(vgg("vgg16", "VGG16, torchvision")),
    "vgg16-bn": features(vgg("vgg16_bn", "VGG16-BN, torchvision")),
    "dinov2-l": features(dinov2),
}


def consistency(name, title):
    """A case of originals_unet.py."""

    def make(orig, out, _):
        import originals_unet

        state, arrays = originals_unet.case(name)(orig)
        arrays = {k: arrays[k][:1] for k in ("z", "labels", "one_step") if k in arrays}
        torch.save(state, out / f"{name}.pt")
        inputs = dict({"latents": "z"}, **({"class_labels": "labels"} if "labels" in arrays else {}))
        return dict(file=f"{name}.pt", kind="torch.save", network=title, parameters=sum(t.numel() for t in state.values()), options=[],
                    inputs=inputs, outputs={"images": "one_step"}), arrays

    return make


CASES["cd_imagenet64_l2"] = consistency("cd_imagenet64_l2", "consistency distillation 64×64, conditional")


def stylegan2(title):
    """A case of originals_unet.py."""

    def make(orig, out, name):
        import originals_unet

        snapshot, arrays = originals_unet.case(name)(orig)
        arrays = {k: arrays[k][:1] for k in ("z", "labels", "one_step") if k in arrays}
        with open(out / f"{name}.pkl", "wb") as file:
            pickle.dump(snapshot, file)
        inputs = dict({"latents": "z"}, **({"class_labels": "labels"} if "labels" in arrays else {}))
        return dict(file=f"{name}.pkl", kind="pickle", network=title, parameters=parameters(snapshot["G_ema"]), options=[],
                    inputs=inputs, outputs={"images": "one_step"}), arrays

    return make


CASES["stylegan2-cifar10"] = stylegan2("StyleGAN2-ADA 32×32, conditional")
CASES["stylegan2-ffhq256"] = stylegan2("StyleGAN2-ADA 256×256")


def bench(orig, out, name, graph, threads, batch=8, rounds=12):
    """Images per second of d2o's graphs, plain and with --winograd, and of torch.onnx.export(dynamo=True), in turns; the median of the rounds."""
    import onnxruntime

    # Made before, and exported by d2o since.
    with open(out / f"{name}.pkl", "rb") as file:
        sys.path.insert(0, str(orig / "edm"))
        net = pickle.load(file)["ema"].eval()

    class OneStep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, latents):
            return self.net(latents * 80.0, torch.full([1], 80.0))

    latents = torch.from_numpy(np.random.RandomState(3).randn(batch, 3, net.img_resolution, net.img_resolution).astype(np.float32))
    theirs = out / f"{name}-torch.onnx"
    # PyTorch's graph with the batch fixed, its default, and with any batch, as d2o's has.
    theirs = {"torch": None, "torch_dynamic": {"latents": {0: torch.export.Dim("N")}}}
    for kind, shapes in theirs.items():
        path = str(out / f"{name}-{kind}.onnx")
        torch.onnx.export(OneStep().eval(), (latents,), path, dynamo=True, dynamic_shapes=shapes, input_names=["latents"], output_names=["images"], external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    ours = {"d2o": graph, "d2o_winograd": graph.with_name(f"{name}-winograd.onnx")}
    sessions = ours | {kind: out / f"{name}-{kind}.onnx" for kind in theirs}
    sessions = {k: onnxruntime.InferenceSession(str(v), options, providers=["CPUExecutionProvider"]) for k, v in sessions.items()}
    run = {k: lambda s=s: s.run(["images"], {"latents": latents.numpy()})[0] for k, s in sessions.items()}
    results = {k: f() for k, f in run.items()}
    difference = max(float(np.abs(results[d] - results[k]).max() / np.abs(results[k]).max()) for d in ours for k in theirs)
    assert difference < 2e-5, difference
    speeds = {k: [] for k in run}
    for i in range(rounds):
        for k in sorted(run, reverse=i % 2 == 1):
            start = time.perf_counter()
            run[k]()
            speeds[k].append(batch / (time.perf_counter() - start))
    speeds = {k: float(np.median(v)) for k, v in speeds.items()}
    ratios = {f"{d}/{k}": speeds[d] / speeds[k] for d in ours for k in theirs}
    print(json.dumps(dict(speeds, ratios=ratios, difference=difference, batch=batch, threads=threads, rounds=rounds)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--orig", type=Path)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.list:
        print("\n".join(CASES))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.bench:
        with torch.no_grad():
            bench(args.orig.resolve(), args.out, args.case, args.bench, args.threads)
        return
    with torch.no_grad():
        facts, arrays = CASES[args.case](args.orig.resolve(), args.out, args.case)
    arrays = {k: v.detach() if torch.is_tensor(v) else v for k, v in arrays.items()}
    np.savez(args.out / f"{args.case}.npz", **arrays)
    (args.out / f"{args.case}.json").write_text(json.dumps(facts))


main()
