"""Writes tests/data/features.json: outputs of small feature networks, as the original classes compute them from drawn weights.

python tests/data/gen/features.py --dinov2 DIR > tests/data/features.json
(torch 2.15.0, torchvision 0.29.2, timm 1.0.31, transformers 5.24.0, open_clip_torch 3.3.0, torch-fidelity 0.4.0, pytorch-fid 0.3.0, numpy;
DIR holds facebookresearch/dinov2 at b8931f7)

Weights are no files: a tensor's values come from its name, by the generator of converters/src/weights.rs (SplitMix64 from the FNV-1a hash
of the name, top 24 bits of each word, u on [-1, 1)). Those of two or more axes are u·√(3/fan_in), fan_in the product of all axes but the
first; those of one axis are 0.1·u, plus 1 if they are scales or variances. Pixels are the top bytes of the words for "pixels".
"""
import argparse
import json
import sys
from unittest import mock

import numpy as np
import torch

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
    fan_in = int(np.prod(dims[1:]))
    values = u * np.sqrt(3 / fan_in) if len(dims) > 1 else 0.1 * u + (1 if scale else 0)
    return torch.from_numpy(values.astype(np.float32)).reshape(dims)


def is_scale(module, key):
    """Whether `key` is a norm's weight, a variance or a layer scale."""
    owner, _, leaf = key.rpartition(".")
    kind = type(module.get_submodule(owner)).__name__ if owner else ""
    return leaf in ("running_var", "gamma", "lambda1") or (leaf == "weight" and "Norm" in kind)


def fill(module, prefix="", stored=lambda key: key):
    """Draws all tensors of `module` and lists them: name in a file, dims, whether 1 is added."""
    state, listed = module.state_dict(), []
    for key, old in state.items():
        if key.endswith("num_batches_tracked") or key.endswith("position_ids"):
            continue
        name, dims, scale = prefix + stored(key), list(old.shape), is_scale(module, key)
        state[key] = drawn(name, dims, scale)
        listed.append([name, dims, scale])
    module.load_state_dict(state)
    module.eval()
    return listed


def pixels(size):
    images = (words("pixels", 2 * size * size * 3) >> np.uint64(56)).astype(np.uint8)
    return torch.from_numpy(images.reshape(2, size, size, 3)).permute(0, 3, 1, 2).float()


def standardised(x, mean, std):
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (mean, std))
    return (x / 255 - mean) / std


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def thin(values, keep=96):
    """Every k-th value of an output, and k."""
    flat = values.detach().reshape(-1)
    step = max(1, len(flat) // keep)
    return {"dims": list(values.shape), "step": step, "values": [float(np.float32(v)) for v in flat[::step]]}


def clip_openai():
    from torch_fidelity.feature_extractor_clip import VisionTransformer

    net = VisionTransformer(input_resolution=32, patch_size=8, width=128, layers=2, heads=2, output_dim=24)
    listed = fill(net, "visual.")
    return listed, 32, ["--activation", "quick-gelu"], {"features": net(standardised(pixels(32), *CLIP))}


def clip_open_clip():
    from open_clip.transformer import VisionTransformer

    net = VisionTransformer(image_size=32, patch_size=8, width=128, layers=2, heads=2, mlp_ratio=2.0, output_dim=24)
    listed = fill(net, "visual.")
    return listed, 32, ["--activation", "gelu"], {"features": net(standardised(pixels(32), *CLIP))}


def clip_huggingface():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=128, intermediate_size=96, projection_dim=24, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=8, hidden_act="gelu")
    net = CLIPVisionModelWithProjection(config)
    listed = fill(net)
    return listed, 32, ["--activation", "gelu"], {"features": net(pixel_values=standardised(pixels(32), *CLIP)).image_embeds}


def deit():
    from timm.models.deit import VisionTransformerDistilled

    net = VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=128, depth=12, num_heads=2, mlp_ratio=2, num_classes=10)
    listed = fill(net)
    x = standardised(pixels(32), *IMAGENET)
    taps, hooks = {}, []
    for i in (2, 5, 8, 11):
        keep = lambda _, __, out, i=i: taps.__setitem__(f"block_{i}", out[:, 2:].transpose(1, 2).reshape(2, 128, 4, 4))
        hooks.append(net.blocks[i].register_forward_hook(keep))
    logits = net(x)
    return listed, 32, ["--taps"], {"features": net.forward_features(x)[:, 0], "logits": logits, **taps}


def dino_original(size, extra):
    from dinov2.models.vision_transformer import DinoVisionTransformer

    net = DinoVisionTransformer(img_size=98, patch_size=14, embed_dim=128, depth=2, num_heads=2, mlp_ratio=2, init_values=1.0,
                                block_chunks=0, interpolate_offset=0.1, interpolate_antialias=False)
    listed = fill(net)
    return listed, size, extra, {"features": net(standardised(pixels(size), *IMAGENET))}


def dino_timm():
    import timm.models.vision_transformer as vit

    net = vit.VisionTransformer(img_size=224, patch_size=14, embed_dim=128, depth=1, num_heads=2, mlp_ratio=1, init_values=1.0, num_classes=0,
                                global_pool="token")
    listed = fill(net)
    return listed, 224, [], {"features": net(standardised(pixels(224), *IMAGENET))}


def dino_huggingface():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=128, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=224, patch_size=14)
    net = Dinov2Model(config)
    # transformers 5 renames these in memory only.
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}

    def stored(key):
        for new, old in names.items():
            key = key.replace(f".attention.{new}.", f".attention.{old}.")
        return key

    listed = fill(net, stored=stored)
    return listed, 224, [], {"features": net(pixel_values=standardised(pixels(224), *IMAGENET)).pooler_output}


def vgg(batch_norm):
    from torchvision.models.vgg import VGG, make_layers

    widths = [6, 4, "M", 8, 4, "M", 6, 8, 4, "M", 8, 6, 8, "M", 4, 8, 6, "M"]
    net = VGG(make_layers(widths, batch_norm=batch_norm))
    net.classifier[0] = torch.nn.Linear(6 * 49, 16)
    net.classifier[3] = torch.nn.Linear(16, 12)
    net.classifier[6] = torch.nn.Linear(12, 10)
    listed = fill(net)
    x = standardised(pixels(224), *IMAGENET)
    relus = [i for i, m in enumerate(net.features[:-1]) if isinstance(net.features[i + 1], torch.nn.MaxPool2d)]
    taps, h = {}, x
    for i, layer in enumerate(net.features):
        # torchvision's ReLUs work in place, on what the layer before gave.
        h = layer(h)
        if i in relus:
            taps[["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"][len(taps)]] = h.clone()
    fc2_relu = net.classifier[:6](torch.flatten(net.avgpool(h), 1))
    return listed, 224, ["--taps"], {"features": fc2_relu, "logits": net(x), **taps}


def inception_blocks():
    import torchvision
    from pytorch_fid import inception

    # The published weights are neither fetched nor loaded: only the module is wanted.
    fetch = mock.patch.object(inception, "load_state_dict_from_url", return_value={})
    with fetch, mock.patch.object(torchvision.models.Inception3, "load_state_dict"):
        net = inception.InceptionV3([3], resize_input=False, normalize_input=False)
    listed = fill(net)
    return listed, 299, [], {"pool3": net((pixels(299) - 128) / 128)[0][:, :, 0, 0]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dinov2", required=True)
    sys.path.insert(0, parser.parse_args().dinov2)
    cases = {
        "clip-openai": clip_openai, "clip-open_clip": clip_open_clip, "clip-huggingface": clip_huggingface, "deit-timm": deit,
        "dinov2-original": lambda: dino_original(224, []), "dinov2-original-own-grid": lambda: dino_original(98, ["--input-size", "98"]),
        "dinov2-timm": dino_timm, "dinov2-huggingface": dino_huggingface, "vgg16": lambda: vgg(False), "vgg16-bn": lambda: vgg(True),
        "inception-blocks": inception_blocks,
    }
    out = {}
    with torch.no_grad():
        for name, case in cases.items():
            listed, size, options, outputs = case()
            out[name] = {"size": size, "options": options, "tensors": listed, "outputs": {k: thin(v) for k, v in outputs.items()}}
            print(name, len(listed), {k: float(v.abs().max()) for k, v in outputs.items()}, file=sys.stderr)
    json.dump(out, sys.stdout, separators=(",", ":"))
    print()


main()
