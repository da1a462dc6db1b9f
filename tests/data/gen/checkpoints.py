"""Writes tests/data/checkpoints/: small files of each container in the layouts of the published ones, with empty `module_src`.

Element i of the tensor called `name` is ((37 i + sum of the name's bytes) mod 97 - 48) / 64, exact in f16 and bf16.
Run with torch 2.11 and numpy 2: `python tests/data/gen/checkpoints.py tests/data/checkpoints`.
"""
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from stylegan2 import EasyDict, package, reconstruct

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)

package("torch_utils")
package("torch_utils.persistence", _reconstruct_persistent_obj=reconstruct)
package("dnnlib")
package("dnnlib.util", EasyDict=EasyDict)


def fill(name, shape, dtype=torch.float32):
    count = int(np.prod(shape, dtype=np.int64))
    i = torch.arange(count, dtype=torch.int64)
    return (((37 * i + sum(name.encode())) % 97 - 48).to(torch.float64) / 64).to(dtype).reshape(shape)


class Persistent(torch.nn.Module):
    def __init__(self, kind, args=(), **kwargs):
        super().__init__()
        self._init_args, self._init_kwargs, self.kind = args, EasyDict(kwargs), kind

    def __reduce__(self):
        meta = dict(type="class", version=6, module_src="", class_name=self.kind, state=self.__dict__)
        return reconstruct, (meta,)


def leaf(kind, path, **shapes):
    m = Persistent(kind)
    for name, shape in shapes.items():
        full = f"{path}.{name}"
        if name in ("resample_filter", "freqs"):
            m.register_buffer(name, fill(full, shape))
        else:
            m.register_parameter(name, torch.nn.Parameter(fill(full, shape), requires_grad=False))
    return m


def conv(path, cin, cout, k, resample=False):
    shapes = dict(weight=[cout, cin, k, k], bias=[cout]) if k else {}
    if resample:
        shapes["resample_filter"] = [1, 1, 2, 2]
    return leaf("Conv2d", path, **shapes)


def block(path, cin, cout, emb, resample=False, attention=False):
    b = Persistent("UNetBlock", in_channels=cin, out_channels=cout)
    b.skip_scale = np.sqrt(0.5)
    b.norm0 = leaf("GroupNorm", f"{path}.norm0", weight=[cin], bias=[cin])
    b.conv0 = conv(f"{path}.conv0", cin, cout, 3, resample)
    b.affine = leaf("Linear", f"{path}.affine", weight=[cout, emb], bias=[cout])
    b.norm1 = leaf("GroupNorm", f"{path}.norm1", weight=[cout], bias=[cout])
    b.conv1 = conv(f"{path}.conv1", cout, cout, 3)
    b.skip = None
    if resample or cin != cout:
        b.skip = conv(f"{path}.skip", cin, cout, 1, resample)
    if attention:
        b.norm2 = leaf("GroupNorm", f"{path}.norm2", weight=[cout], bias=[cout])
        b.qkv = conv(f"{path}.qkv", cout, 3 * cout, 1)
        b.proj = conv(f"{path}.proj", cout, cout, 1)
    return b


def song_unet(R=8, M=8, labels=2):
    """DDPM++ with two levels of one block each."""
    E = 4 * M
    net = Persistent("SongUNet", img_resolution=R)
    net.map_noise = Persistent("PositionalEmbedding", num_channels=M)
    net.map_label = leaf("Linear", "model.map_label", weight=[M, labels], bias=[M])
    net.map_augment = None
    net.map_layer0 = leaf("Linear", "model.map_layer0", weight=[E, M], bias=[E])
    net.map_layer1 = leaf("Linear", "model.map_layer1", weight=[E, E], bias=[E])
    enc, dec, half = {}, {}, R // 2
    at = lambda d, n: f"model.{d}.{n}"
    enc[f"{R}x{R}_conv"] = conv(at("enc", f"{R}x{R}_conv"), 3, M, 3)
    enc[f"{R}x{R}_block0"] = block(at("enc", f"{R}x{R}_block0"), M, M, E)
    enc[f"{half}x{half}_down"] = block(at("enc", f"{half}x{half}_down"), M, M, E, resample=True)
    enc[f"{half}x{half}_block0"] = block(at("enc", f"{half}x{half}_block0"), M, M, E)
    dec[f"{half}x{half}_in0"] = block(at("dec", f"{half}x{half}_in0"), M, M, E, attention=True)
    dec[f"{half}x{half}_in1"] = block(at("dec", f"{half}x{half}_in1"), M, M, E)
    for i in range(2):
        dec[f"{half}x{half}_block{i}"] = block(at("dec", f"{half}x{half}_block{i}"), 2 * M, M, E)
    dec[f"{R}x{R}_up"] = block(at("dec", f"{R}x{R}_up"), M, M, E, resample=True)
    for i in range(2):
        dec[f"{R}x{R}_block{i}"] = block(at("dec", f"{R}x{R}_block{i}"), 2 * M, M, E)
    dec[f"{R}x{R}_aux_norm"] = leaf("GroupNorm", at("dec", f"{R}x{R}_aux_norm"), weight=[M], bias=[M])
    dec[f"{R}x{R}_aux_conv"] = conv(at("dec", f"{R}x{R}_aux_conv"), M, 3, 3)
    net.enc, net.dec = torch.nn.ModuleDict(enc), torch.nn.ModuleDict(dec)
    return net


def precond(kind):
    kwargs = dict(img_resolution=8, img_channels=3, label_dim=2, use_fp16=False, model_type="SongUNet",
                  embedding_type="positional", encoder_type="standard", decoder_type="standard", channel_mult_noise=1,
                  resample_filter=[1, 1], model_channels=8, channel_mult=[1, 1], num_blocks=1, attn_resolutions=[],
                  dropout=np.float64(0.125))
    net = Persistent(kind, **kwargs)
    net.sigma_data = 0.5
    net.model = song_unet()
    return net.eval()


def dump(name, value, protocol):
    (out / name).write_bytes(pickle.dumps(value, protocol=protocol))


dump("edm.pkl", dict(ema=precond("EDMPrecond"), loss_fn=Persistent("EDMLoss", P_mean=-1.2), augment_pipe=None,
                     dataset_kwargs=EasyDict(path="data.zip", use_labels=True)), 4)
shared = torch.nn.Parameter(fill("weight", [2, 3]), requires_grad=False)
for protocol in range(2, 6):
    pair = Persistent("Pair", size=2)
    pair.left, pair.right = Persistent("Linear"), Persistent("Linear")
    pair.left.weight = pair.right.weight = shared
    pair.register_buffer("rows", fill("weight", [2, 3]).t())
    pair.set = {1}
    dump(f"pair-protocol{protocol}.pkl", dict(ema=pair), protocol)

base = fill("base", [4, 6])
state = {
    "f32": fill("f32", [2, 3]), "f64": fill("f64", [3], torch.float64), "f16": fill("f16", [2, 2], torch.float16),
    "bf16": fill("bf16", [5], torch.bfloat16), "i64": torch.arange(-2, 2), "u8": torch.arange(3, dtype=torch.uint8),
    "bool": torch.tensor([True, False]), "scalar": fill("scalar", []), "empty": torch.zeros(0, 3),
    "base": base, "base.columns": base.t(), "base.part": base[1:3, 2:5], "base.even": base.reshape(-1)[4::2],
}
torch.save(state, out / "state.pt")
torch.save(state, out / "state-legacy.pth", _use_new_zipfile_serialization=False)
torch.save(dict(epoch=3, state_dict={f"module.{k}": v for k, v in state.items()}, optimizer=dict(state={}, param_groups=[])),
           out / "wrapped.pt")


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(fill("inner.weight", [3, 2]).half())
        self.register_buffer("mean", fill("inner.mean", [3]))

    def forward(self, x):
        return x @ self.weight.t().float() - self.mean


class Outer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
        for name, p in self.blocks.named_parameters():
            p.data = fill(f"blocks.{name}", list(p.shape))
        self.sizes = [1, 2, 3]

    def forward(self, x):
        return self.blocks(self.inner(x))


# Debug records name the folder this runs in, so they are left out.
saved = io.BytesIO()
torch.jit.save(torch.jit.script(Outer()), saved)
with zipfile.ZipFile(saved) as source, zipfile.ZipFile(out / "script.pt", "w") as target:
    for entry in source.infolist():
        if not entry.filename.endswith(".debug_pkl"):
            target.writestr(entry, source.read(entry))


def varint(n):
    parts = []
    while n > 127:
        parts.append(n & 127 | 128)
        n >>= 7
    return bytes(parts + [n])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def constant(name, kind, dims, payload):
    shape = b"".join(field(2, b"\x08" + varint(d)) for d in dims)
    tensor = b"\x08" + varint(kind) + field(2, shape) + payload
    entry = field(1, b"value") + field(2, field(8, tensor))
    return field(1, field(1, name.encode()) + field(2, b"Const") + field(5, entry))


hwio = fill("conv/conv2d_params", [2, 3, 4, 5])
graph = constant("conv/conv2d_params", 1, [2, 3, 4, 5], field(4, hwio.numpy().tobytes()))
graph += constant("sizes", 3, [2], field(7, varint(299) + varint(299)))
graph += constant("sub/y", 1, [], b"\x2d" + struct.pack("<f", 128.0))
graph += constant("image", 7, [], field(8, b"jpeg"))
graph += field(1, field(1, b"softmax") + field(2, b"Softmax") + field(3, b"logits"))
(out / "graph.pb").write_bytes(graph)
