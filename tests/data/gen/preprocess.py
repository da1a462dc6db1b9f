"""Prints the constants of evaluations/src/preprocess.rs: python tests/data/gen/preprocess.py (numpy, torch, pillow 12)."""
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image


def image(h, w):
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing="ij")
    return ((y * 37 + x * 71 + c * 113 + y * x * 5) % 256).astype(np.uint8)


def tensorflow(a, size):
    """TensorFlow 1's resize_bilinear (align_corners=False), each step in float32."""
    f = np.float32

    def axis(n, out):
        s = np.arange(out, dtype=f) * f(f(n) / f(out))
        lo = np.floor(s).astype(int)
        return lo, np.minimum(lo + 1, n - 1), (s - lo.astype(f)).astype(f)

    a = a.astype(f)
    y0, y1, fy = axis(a.shape[0], size[0])
    x0, x1, fx = axis(a.shape[1], size[1])
    fx, fy = fx[None, :, None], fy[:, None, None]
    top = a[y0][:, x0] + (a[y0][:, x1] - a[y0][:, x0]) * fx
    bottom = a[y1][:, x0] + (a[y1][:, x1] - a[y1][:, x0]) * fx
    return top + (bottom - top) * fy


def bilinear(a, size):
    t = torch.from_numpy(a.astype(np.float32)).permute(2, 0, 1)[None]
    return F.interpolate(t, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def pil_float(a, size):
    planes = [np.asarray(Image.fromarray(a[:, :, i].astype(np.float32)).resize(size[::-1], Image.BICUBIC)) for i in range(3)]
    return np.stack(planes, 2).clip(0, 255)


def pil_bytes(a, size, resample=Image.BICUBIC):
    return np.asarray(Image.fromarray(a).resize(size[::-1], resample))


def checksum(a):
    """Sum of (i + 1)·v over all values, modulo 2^32."""
    flat = a.reshape(-1).astype(np.uint64)
    return int((flat * np.arange(1, flat.size + 1, dtype=np.uint64)).sum() % (1 << 32))


def clip(a, size):
    h, w = a.shape[:2]
    short, long = min(h, w), max(h, w)
    longer = int(size * long / short)
    a = pil_bytes(a, (size, longer) if h <= w else (longer, size))
    top, left = (int(round((n - size) / 2.0)) for n in a.shape[:2])
    return a[top : top + size, left : left + size]


def thin(a, step):
    return a.reshape(-1)[::step]


up, down = image(7, 5), image(30, 40)
constants = {
    "TF_UP": thin(tensorflow(up, (11, 13)), 41),
    "TF_DOWN": thin(tensorflow(down, (9, 11)), 37),
    "TORCH_UP": thin(bilinear(up, (11, 13)), 41),
    "TORCH_DOWN": thin(bilinear(down, (9, 11)), 37),
    "TORCH_UNIT": thin(2 * bilinear(up.astype(np.float32) / np.float32(255), (11, 13)) - 1, 41),
    "PILF_UP": thin(pil_float(up, (11, 13)), 41),
    "PILF_DOWN": thin(pil_float(down, (9, 11)), 37),
    "PILF_WIDE": thin(pil_float(up, (7, 8)), 13),
    "PIL8_UP": thin(pil_bytes(up, (11, 13)), 13),
    "PIL8_DOWN": thin(pil_bytes(down, (9, 11)), 11),
    "LANCZOS_UP": thin(pil_bytes(up, (11, 13), Image.LANCZOS), 13),
    "CLIP_A": thin(clip(image(13, 20), 16), 53),
    "CLIP_B": thin(clip(image(29, 16), 16), 53),
    "CLIP_C": thin(clip(image(16, 16), 16), 53),
}
for name, values in constants.items():
    print(name, "[" + ", ".join(str(v) for v in values) + "]")

# Pillow 12 and before filter rows first. Pillow 13 filters columns first where that is cheaper, which moves u8 results by up to 4 levels: the last size.
assert int(PIL.__version__.split(".")[0]) <= 12, PIL.__version__
SIZES = [((7, 5), (11, 13)), ((30, 40), (9, 11)), ((101, 67), (32, 32)), ((33, 65), (64, 64)), ((16, 17), (16, 5)), ((19, 16), (7, 16)),
         ((240, 321), (64, 48)), ((1, 9), (4, 4)), ((128, 128), (1, 1)),
         ((97, 65), (48, 64))]
for size, to in SIZES:
    for name, resample in [("Bicubic", Image.BICUBIC), ("Lanczos", Image.LANCZOS)]:
        a = image(*size)
        sums = checksum(pil_bytes(a, to, resample)), checksum(pil_bytes(a[:, :, 1], to, resample))
        print(f"({list(size)}, {list(to)}, {name}, {sums[0]}, {sums[1]}),")
