#!/usr/bin/env python3
"""Writes ../decode.zip: small images of every kind, and expected.json with what Pillow reads from them.

    python gen/decode.py [--cjpeg CJPEG]        (Pillow 13.0.0, NumPy 2, libjpeg-turbo's cjpeg 2.1.5)

expected.json, for each file: `size` [H, W] and `rgb`, the SHA-256 of `convert("RGB")`'s bytes; `mode` and `pixels`, the SHA-256 in
the mode that keeps grey and alpha; or `error`, the exception that Pillow raises; or `refused`, what this crate says of an
image that Pillow reads. `pillow_reads` beside `refused` tells a refusal of Pillow's from one of this crate's own.
"""
import argparse, hashlib, io, json, os, pathlib, re, struct, subprocess, sys, warnings, zipfile, zlib

import numpy as np
import PIL
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent.parent
assert PIL.__version__ == "13.0.0", PIL.__version__
warnings.simplefilter("ignore")
parser = argparse.ArgumentParser()
parser.add_argument("--cjpeg", default="cjpeg")
ARGS = parser.parse_args()
FILES, REFUSED, ERRORS = {}, {}, {}
SIZES = [(1, 1), (7, 5), (16, 16), (47, 33), (33, 47)]  # width, height
ODD = (47, 33)


def photo(size, channels=3, seed=0):
    """Gradients, an edge and noise, u8 [H, W, channels]."""
    w, h = size
    r = np.random.default_rng(seed * 1000 + w * 64 + h)
    y, x = np.mgrid[0:h, 0:w].astype(float)
    out = np.stack([127 + 90 * np.sin(x / (5 + 3 * c) + y / (9 - 2 * c) + c) for c in range(channels)], -1)
    out[(x - w / 3) ** 2 + (y - h / 2) ** 2 < (h / 3) ** 2] = r.uniform(0, 255, channels)
    return np.clip(np.rint(out + r.normal(0, 8, out.shape)), 0, 255).astype(np.uint8)


def image(size, mode="RGB", seed=0):
    if mode == "1":
        return Image.fromarray(photo(size, 1, seed)[..., 0] > 120)
    if mode == "P":
        return Image.fromarray(photo(size, 3, seed)).quantize(61)
    if mode == "L":
        return Image.fromarray(photo(size, 1, seed)[..., 0])
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.frombytes(mode, size, photo(size, channels, seed).tobytes())


def saved(im, kind, **options):
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def add(name, data, refused=None, error=False):
    assert name not in FILES, name
    FILES[name] = data.encode() if isinstance(data, str) else bytes(data)
    if refused:
        REFUSED[name] = refused
    if error:
        ERRORS[name] = True


def label(size):
    return "%dx%d" % size


def run(program, data, *options):
    return subprocess.run([program, *options], input=data, stdout=subprocess.PIPE, check=True).stdout


# ---------------------------------------------------------------- JPEG

def segments(data):
    """(marker, from, to) of the segments before the first scan."""
    at, out = 2, []
    while data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack(">H", data[at + 2:at + 4])[0]
        out.append((data[at + 1], at, end))
        at = end
    return out, at


def without(data, marker):
    for code, begin, end in segments(data)[0]:
        if code == marker:
            return data[:begin] + data[end:]
    raise ValueError(marker)


def with_adobe_transform(data, value):
    at = data.index(b"Adobe")
    return data[:at + 11] + bytes([value]) + data[at + 12:]


for size in SIZES:
    ppm = saved(image(size), "PPM")
    pgm = saved(image(size, "L"), "PPM")
    n = label(size)
    for sampling in ["1x1", "2x1", "2x2", "1x2", "4x1", "4x2"]:
        add(f"jpeg/{sampling}-{n}.jpg", run(ARGS.cjpeg, ppm, "-quality", "80", "-sample", sampling))
    add(f"jpeg/grey-{n}.jpg", run(ARGS.cjpeg, pgm, "-quality", "80"))
    add(f"jpeg/progressive-{n}.jpg", run(ARGS.cjpeg, ppm, "-quality", "80", "-progressive"))
    add(f"jpeg/arithmetic-{n}.jpg", run(ARGS.cjpeg, ppm, "-quality", "80", "-arithmetic"))
    add(f"jpeg/restart-{n}.jpg", run(ARGS.cjpeg, ppm, "-quality", "80", "-restart", "1B"))
    add(f"jpeg/rgb-{n}.jpg", run(ARGS.cjpeg, ppm, "-quality", "80", "-rgb"))
    add(f"jpeg/cmyk-{n}.jpg", saved(image(size, "CMYK"), "JPEG", quality=80))
    add(f"jpeg/q95-{n}.jpg", saved(image(size), "JPEG", quality=95, subsampling=0))
ppm = saved(image(ODD), "PPM")
plain = run(ARGS.cjpeg, ppm, "-quality", "80", "-sample", "2x2")
cmyk = FILES["jpeg/cmyk-47x33.jpg"]
add("jpeg/q5-16-bit-tables.jpg", run(ARGS.cjpeg, ppm, "-quality", "1"))
add("jpeg/progressive-grey.jpg", run(ARGS.cjpeg, saved(image(ODD, "L"), "PPM"), "-progressive"))
add("jpeg/progressive-arithmetic.jpg", run(ARGS.cjpeg, ppm, "-progressive", "-arithmetic"))
add("jpeg/progressive-restart.jpg", run(ARGS.cjpeg, ppm, "-progressive", "-restart", "2"))
add("jpeg/uneven-sampling.jpg", run(ARGS.cjpeg, ppm, "-sample", "3x1,1x1,1x1"))
add("jpeg/chroma-larger.jpg", run(ARGS.cjpeg, ppm, "-sample", "1x1,2x2,1x1"))
add("jpeg/ycck.jpg", with_adobe_transform(cmyk, 2))
add("jpeg/cmyk-unknown-transform.jpg", with_adobe_transform(cmyk, 7))
add("jpeg/cmyk-no-adobe.jpg", without(cmyk, 0xEE))
rgb = without(run(ARGS.cjpeg, ppm, "-rgb"), 0xEE)
add("jpeg/rgb-by-component-names.jpg", rgb)
add("jpeg/ycbcr-no-jfif.jpg", without(plain, 0xE0))
adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
add("jpeg/adobe-ycbcr.jpg", plain[:2] + adobe + b"\x01" + without(plain, 0xE0)[2:])
add("jpeg/adobe-rgb.jpg", plain[:2] + adobe + b"\x00" + without(plain, 0xE0)[2:])
add("jpeg/adobe-unknown-transform.jpg", plain[:2] + adobe + b"\x05" + without(plain, 0xE0)[2:])
add("jpeg/jfif-revision-9.jpg", plain[:11] + b"\x09" + plain[12:])
exif = Image.Exif()
exif[0x0112] = 6
add("jpeg/exif-orientation.jpg", saved(image(ODD), "JPEG", exif=exif))
add("jpeg/icc-broken.jpg", plain[:20] + b"\xff\xe2\0\x10ICC_PROFILE\0\x09\x02" + plain[20:])
add("jpeg/comment.jpg", plain[:20] + b"\xff\xfe\0\x08\xff\xd9\xff\xda\xff\xc0" + plain[20:])
add("jpeg/fill-bytes.jpg", plain[:20] + b"\xff\xff\xff" + plain[20:])
add("jpeg/junk-between-segments.jpg", plain[:20] + b"junk\xff\x00junk" + plain[20:])
add("jpeg/after-end.jpg", plain + b"anything" * 9)
add("jpeg/two-images.jpg", plain + plain)
add("jpeg/mpo.jpg", saved(image(ODD), "MPO", save_all=True, append_images=[image(ODD, seed=1)]))
# Damaged but complete: libjpeg warns, and every reader built on it goes on.
scan = segments(plain)[1]
for i, at in enumerate([scan + 60, scan + 200, scan + 400, len(plain) - 40]):
    add(f"jpeg/damaged-{i}.jpg", plain[:at] + bytes([plain[at] ^ 0x5A]) + plain[at + 1:])
add("jpeg/damaged-cut-then-end.jpg", plain[:int(len(plain) * 0.6)] + b"\xff\xd9")
add("jpeg/damaged-marker-in-scan.jpg", plain[:scan + 150] + b"\xff\xfe\0\x04ab" + plain[scan + 150:])
restart = FILES["jpeg/restart-47x33.jpg"]
at = restart.index(b"\xff\xd3")
add("jpeg/damaged-restart-lost.jpg", restart[:at] + restart[at + 2:])
add("jpeg/damaged-restart-wrong.jpg", restart[:at] + b"\xff\xd6" + restart[at + 2:])
add("jpeg/damaged-extra-bytes.jpg", plain[:-2] + b"\x12\x34\x56" + plain[-2:])
progressive = FILES["jpeg/progressive-47x33.jpg"]
at = segments(progressive)[1]
add("jpeg/damaged-progressive.jpg", progressive[:at + 90] + b"\x55\xaa" + progressive[at + 92:])
add("jpeg/damaged-progressive-scans-lost.jpg", progressive[:progressive.index(b"\xff\xda", at + 20)] + b"\xff\xd9")
for name in ["2x2", "1x1", "progressive", "arithmetic", "cmyk"]:
    data = FILES[f"jpeg/{name}-47x33.jpg"]
    add(f"jpeg/cut-60-percent-{name}.jpg", data[:int(len(data) * 0.6)], error=True)
    add(f"jpeg/cut-end-marker-{name}.jpg", data[:-2], error=True)
    add(f"jpeg/cut-header-{name}.jpg", data[:90], error=True)
add("jpeg/empty.jpg", b"", error=True)
add("jpeg/only-header.jpg", plain[:scan + 14], error=True)
add("jpeg/no-frame.jpg", without(plain, 0xC0), error=True)
add("jpeg/bad-table-length.jpg", plain[:22] + b"\x00\x20" + plain[24:], error=True)
add("jpeg/12-bits.jpg", plain.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), error=True)
add("jpeg/two-components.jpg", plain.replace(b"\xff\xc0\x00\x11\x08\x00\x21\x00\x2f\x03", b"\xff\xc0\x00\x11\x08\x00\x21\x00\x2f\x02"), error=True)
add("jpeg/height-0.jpg", plain.replace(b"\x08\x00\x21\x00\x2f\x03", b"\x08\x00\x00\x00\x2f\x03"), error=True)
add("jpeg/marker-unknown.jpg", plain[:20] + b"\xff\x05" + plain[20:], error=True)
add("jpeg/huffman-table-left-out.jpg", without(plain, 0xC4))


# ---------------------------------------------------------------- PNG

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(size, bits, colour, rows, before=b"", interlace=0):
    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed(samples, bits):
    """Rows with filter 0, samples of `bits` from the highest bit on."""
    h, w = samples.shape
    bit = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(bit.reshape(h, w * bits).astype(np.uint8), axis=1)
    return b"".join(b"\0" + r.tobytes() for r in rows)


def adam7(samples, bits):
    out = b""
    for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = samples[y0::dy, x0::dx]
        if part.size:
            out += packed(part, bits) if part.ndim == 2 else b"".join(b"\0" + r.tobytes() for r in part)
    return out


palette = photo((16, 16), 3, 5).reshape(-1, 3)
for size in [(1, 1), (7, 5), ODD]:
    n = label(size)
    for mode in ["1", "L", "LA", "RGB", "RGBA", "P"]:
        add(f"png/{mode}-{n}.png", saved(image(size, mode), "PNG"))
    grey = photo(size, 1)[..., 0]
    for bits in [1, 2, 4, 8]:
        samples = grey >> (8 - bits)
        add(f"png/grey-{bits}-{n}.png", png(size, bits, 0, packed(samples, bits)))
        add(f"png/palette-{bits}-{n}.png", png(size, bits, 3, packed(samples, bits), chunk(b"PLTE", palette[:1 << bits].tobytes())))
        add(f"png/interlaced-grey-{bits}-{n}.png", png(size, bits, 0, adam7(samples, bits), interlace=1))
    add(f"png/interlaced-rgb-{n}.png", png(size, 8, 2, adam7(photo(size), 8), interlace=1))
nibbles = photo(ODD, 1)[..., 0] >> 4
add("png/palette-alpha.png", png(ODD, 4, 3, packed(nibbles, 4), chunk(b"PLTE", palette[:16].tobytes()) + chunk(b"tRNS", bytes(range(0, 200, 20)))))
add("png/palette-one-transparent.png", saved(image(ODD, "P"), "PNG", transparency=3))
add("png/palette-short.png", png(ODD, 4, 3, packed(nibbles, 4), chunk(b"PLTE", palette[:5].tobytes())))
add("png/grey-colour-key.png", saved(image(ODD, "L"), "PNG", transparency=130))
add("png/rgb-colour-key.png", saved(image(ODD), "PNG", transparency=tuple(int(v) for v in photo(ODD)[3, 3])))
add("png/gamma.png", png(ODD, 8, 2, b"".join(b"\0" + r.tobytes() for r in photo(ODD)), chunk(b"gAMA", struct.pack(">I", 100000))))
add("png/exif-orientation.png", saved(image(ODD), "PNG", exif=exif))
add("png/animated.png", saved(image(ODD), "PNG", save_all=True, append_images=[image(ODD, seed=1)]))
whole = saved(image(ODD), "PNG")
add("png/no-end-chunk.png", whole[:-12])
add("png/after-end.png", whole + b"anything")
at = whole.index(b"IDAT")
add("png/text-crc-wrong.png", whole[:33] + chunk(b"tEXt", b"a\0b")[:-1] + b"?" + whole[33:], error=True)
add("png/no-end-crc.png", whole[:-4])
add("png/data-crc-wrong.png", whole[:-13] + b"?" + whole[-12:])
add("png/data-crc-missing.png", whole[:-14])
stream = zlib.compress(b"".join(b"\0" + r.tobytes() for r in photo(ODD)))
head = whole[:33]
add("png/data-adler-wrong.png", head + chunk(b"IDAT", stream[:-1] + b"?") + whole[-12:], error=True)
add("png/data-adler-missing.png", head + chunk(b"IDAT", stream[:-4]) + whole[-12:])
add("png/data-in-parts.png", head + b"".join(chunk(b"IDAT", stream[i:i + 100]) for i in range(0, len(stream), 100)) + whole[-12:])
add("png/data-cut-between-parts.png", head + b"".join(chunk(b"IDAT", stream[i:i + 100]) for i in range(0, 900, 100)) + whole[-12:], error=True)
add("png/cut-60-percent.png", whole[:int(len(whole) * 0.6)], error=True)
add("png/cut-header.png", whole[:20], error=True)
add("png/no-data.png", whole[:33] + whole[-12:], error=True)
add("png/damaged.png", whole[:at + 300] + b"\x55\xaa" + whole[at + 302:], error=True)
deep = np.random.default_rng(3).integers(0, 65536, (5, 7, 4), dtype=np.uint16)
for name, colour, channels in [("grey", 0, 1), ("grey-alpha", 4, 2), ("rgb", 2, 3), ("rgba", 6, 4)]:
    rows = b"".join(b"\0" + r.astype(">u2").tobytes() for r in deep[..., :channels])
    add(f"png/16-bit-{name}.png", png((7, 5), 16, colour, rows), refused="16-bit PNG")

# ---------------------------------------------------------------- GIF


def lzw(indices):
    """GIF's image data of 8-bit indices without compression: a clear code before the table grows."""
    codes, bits, out = [256], "", b""
    for i, v in enumerate(indices):
        codes.append(int(v))
        if i % 200 == 199:
            codes.append(256)
    codes.append(257)
    for c in codes:
        bits += format(c, "09b")[::-1]
    bits += "0" * (-len(bits) % 8)
    raw = bytes(int(bits[i:i + 8][::-1], 2) for i in range(0, len(bits), 8))
    for i in range(0, len(raw), 255):
        out += bytes([len(raw[i:i + 255])]) + raw[i:i + 255]
    return b"\x08" + out + b"\0"


def gif(screen, at, indices, colours=None, local=None, transparent=None):
    h, w = indices.shape
    table = lambda c: b"" if c is None else c.tobytes()
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0xF7 if colours is not None else 0x70, 0, 0) + table(colours)
    if transparent is not None:
        out += b"!\xf9\x04" + bytes([1, 0, 0, transparent]) + b"\0"
    out += b"," + struct.pack("<HHHHB", *at, w, h, 0x87 if local is not None else 0) + table(local)
    return out + lzw(indices.ravel()) + b";"


indices = photo((9, 6), 1)[..., 0]
ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
for size in [(1, 1), (7, 5), ODD]:
    add(f"gif/plain-{label(size)}.gif", saved(image(size, "P"), "GIF"))
    add(f"gif/interlaced-{label(size)}.gif", saved(image(size, "P"), "GIF", interlace=1))
    add(f"gif/grey-{label(size)}.gif", saved(image(size, "L"), "GIF"))
add("gif/transparent.gif", saved(image(ODD, "P"), "GIF", transparency=3))
add("gif/animated.gif", saved(image(ODD, "P"), "GIF", save_all=True, append_images=[image(ODD, "P", seed=1)]))
add("gif/rgba.gif", saved(image(ODD, "RGBA"), "GIF"))
add("gif/frame-smaller.gif", gif((20, 15), (4, 3), indices, palette))
add("gif/frame-smaller-transparent.gif", gif((20, 15), (4, 3), indices, palette, transparent=7))
add("gif/frame-beyond-screen.gif", gif((5, 15), (4, 3), indices, palette))
add("gif/local-palette.gif", gif((9, 6), (0, 0), indices, ramp, palette))
add("gif/local-grey.gif", gif((9, 6), (0, 0), indices, palette, ramp))
add("gif/no-palette.gif", gif((9, 6), (0, 0), indices), refused="is not a readable image")
add("gif/grey-transparent.gif", gif((20, 15), (4, 3), indices, ramp, transparent=7))
data = saved(image(ODD, "P"), "GIF")
add("gif/cut-60-percent.gif", data[:int(len(data) * 0.6)], error=True)
add("gif/cut-header.gif", data[:9], error=True)
add("gif/no-image.gif", data[:13 + 3 * 64] + b";", error=True)

# ---------------------------------------------------------------- BMP


def bmp(size, bits, rows, compression=0, colours=b"", masks=b"", header=40, height=None, used=None, offset=None):
    w, h = size
    info = struct.pack("<IiiHHIIiiII", header, w, h if height is None else height, 1, bits, compression, len(rows), 0, 0,
                       len(colours) // 4 if used is None else used, 0)
    info += (masks if header > 40 else b"").ljust(header - 40, b"\0")
    info += masks if header == 40 else b""
    begin = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", begin + len(rows), 0, 0, begin if offset is None else offset) + info + colours + rows


def padded(rows):
    return b"".join(r.tobytes() + b"\0" * (-len(r.tobytes()) % 4) for r in rows)


for size in [(1, 1), (7, 5), ODD]:
    n = label(size)
    for mode in ["1", "L", "RGB", "P"]:
        add(f"bmp/{mode}-{n}.bmp", saved(image(size, mode), "BMP"))
    add(f"bmp/RGBA-{n}.bmp", saved(image(size, "RGBA"), "BMP"))
    words = np.random.default_rng(7).integers(0, 65536, size[::-1], dtype=np.uint16)
    add(f"bmp/16-bit-{n}.bmp", bmp(size, 16, padded(words)))
    add(f"bmp/16-bit-565-{n}.bmp", bmp(size, 16, padded(words), 3, masks=struct.pack("<III", 0xF800, 0x7E0, 0x1F)))
    grey = photo(size, 1)[..., 0]
    quads = np.concatenate([palette, palette[:, :1] * 0], 1).astype(np.uint8)
    for bits in [1, 4, 8]:
        bit = ((grey >> (8 - bits))[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = padded(np.packbits(bit.reshape(size[1], -1).astype(np.uint8), axis=1))
        add(f"bmp/palette-{bits}-{n}.bmp", bmp(size, bits, rows, colours=quads[:1 << bits].tobytes()))
pixels = photo(ODD, 4)
for name, masks in {"bgrx": (0xFF0000, 0xFF00, 0xFF, 0), "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0), "bgxr": (0xFF000000, 0xFF00, 0xFF, 0),
                    "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF), "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
                    "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000), "bgar": (0xFF000000, 0xFF00, 0xFF, 0xFF0000)}.items():
    add(f"bmp/32-bit-{name}.bmp", bmp(ODD, 32, padded(pixels[:9]), 3, masks=struct.pack("<IIII", *masks), header=56, height=9))
add("bmp/32-bit-raw.bmp", bmp(ODD, 32, padded(pixels[:9]), height=9))
add("bmp/24-bit-masks.bmp", bmp((7, 5), 24, padded(photo((7, 5))), 3, masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)))
add("bmp/top-down.bmp", bmp((7, 5), 24, padded(photo((7, 5))), height=-5))
add("bmp/header-124.bmp", bmp((7, 5), 24, padded(photo((7, 5))), header=124))
add("bmp/offset-at-palette.bmp", bmp((7, 5), 8, padded(photo((7, 5), 1)[..., 0]), colours=quads.tobytes(), offset=54))
add("bmp/palette-short.bmp", bmp((7, 5), 8, padded(photo((7, 5), 1)[..., 0]), colours=quads[:40].tobytes()))
core = struct.pack("<IHHHH", 12, 7, 5, 1, 24)
add("bmp/os2.bmp", b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + core + padded(photo((7, 5))))
runs = bytes([5, 9, 0, 4, 1, 2, 3, 4, 0, 0, 3, 7, 0, 0, 0, 2, 2, 1, 4, 5, 0, 0, 9, 2, 0, 1])
add("bmp/rle8.bmp", bmp((9, 5), 8, runs + bytes([9, 1] * 3), 1, colours=quads.tobytes()))
full = b"".join(bytes([4, 10 * y, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0]) for y in range(5))
add("bmp/rle8-full.bmp", bmp((9, 5), 8, full, 1, colours=quads.tobytes()))
add("bmp/rle8-delta.bmp", bmp((9, 5), 8, bytes([3, 4, 0, 2, 2, 1, 9, 6, 0, 0, 9, 8, 0, 0, 5, 5, 0, 0, 9, 3]), 1, colours=quads.tobytes()))
full = b"".join(bytes([4, 0x12 + y, 0, 5, 0x34, 0x56, 0x70, 0, 0, 0]) for y in range(5))
add("bmp/rle4-full.bmp", bmp((9, 5), 4, full, 2, colours=quads[:16].tobytes()))
data = saved(image(ODD), "BMP")
add("bmp/dib.dib", data[14:])
add("bmp/cut-60-percent.bmp", data[:int(len(data) * 0.6)], error=True)
add("bmp/cut-header.bmp", data[:30], error=True)
add("bmp/masks-unknown.bmp", bmp((7, 5), 16, padded(words[:5, :7]), 3, masks=struct.pack("<III", 0xF00, 0xF0, 0xF)), error=True)
add("bmp/grey-of-4-bits.bmp", bmp((7, 5), 4, padded(photo((4, 5), 1)[..., 0]), colours=b"".join(bytes([i, i, i, 0]) for i in range(16))), refused="a ramp of grey")

# ---------------------------------------------------------------- netpbm

for size in [(1, 1), (7, 5), ODD]:
    n = label(size)
    for mode, ending in [("1", "pbm"), ("L", "pgm"), ("RGB", "ppm")]:
        add(f"pnm/raw-{n}.{ending}", saved(image(size, mode), "PPM"))
grey, rgb = photo((7, 5), 1)[..., 0], photo((7, 5))
text = lambda a: "\n".join(" ".join(map(str, r)) for r in a.reshape(5, -1))
add("pnm/plain.pbm", "P1\n# a comment\n7 5\n" + text((grey > 120).astype(int)))
add("pnm/plain-dense.pbm", "P1 7 5\n" + text((grey > 120).astype(int)).replace(" ", "").replace("\n", ""))
add("pnm/plain.pgm", "P2 7 # width\n5\n255\n" + text(grey) + "\n")
add("pnm/plain.ppm", "P3\n7 5\n255\n" + text(rgb) + " ")
add("pnm/plain-comment-inside.ppm", "P3\n7 5\n255\n# first\n" + text(rgb).replace("\n", " # row\n") + "\n")
for maxval in [1, 15, 100, 254]:
    add(f"pnm/maxval-{maxval}.pgm", b"P5 7 5 %d\n" % maxval + (grey.astype(int) * maxval // 255).astype(np.uint8).tobytes())
    add(f"pnm/maxval-{maxval}.ppm", b"P6 7 5 %d\n" % maxval + (rgb.astype(int) * maxval // 255).astype(np.uint8).tobytes())
    add(f"pnm/plain-maxval-{maxval}.ppm", f"P3 7 5 {maxval}\n" + text(rgb.astype(int) * maxval // 255) + "\n")
add("pnm/beyond-maxval.pgm", b"P5 7 5 100\n" + grey.tobytes())
for maxval in [1000, 65535]:
    add(f"pnm/maxval-{maxval}.ppm", b"P6 7 5 %d\n" % maxval + (deep[..., :3].astype(int) % (maxval + 1)).astype(">u2").tobytes())
    add(f"pnm/plain-maxval-{maxval}.ppm", f"P3 7 5 {maxval}\n" + text(deep[..., :3].astype(int) % (maxval + 1)) + "\n")
    add(f"pnm/maxval-{maxval}.pgm", b"P5 7 5 %d\n" % maxval + (deep[..., 0].astype(int) % (maxval + 1)).astype(">u2").tobytes(), refused="16 bits")
add("pnm/cut.ppm", b"P6 7 5 255\n" + rgb.tobytes()[:-1], error=True)
add("pnm/cut.pbm", b"P4 9 5\n" + bytes(9), error=True)
add("pnm/cut-header.ppm", b"P6 7 ", error=True)
add("pnm/plain-more.ppm", ("P3 7 5 255\n" + text(rgb)) + " 7 8 9 ", refused="more after them")
add("pnm/plain-more.pbm", "P1 2 1 0 1 x", error=True)
add("pnm/plain-cut.ppm", ("P3 7 5 255\n" + text(rgb))[:-60].encode(), error=True)
add("pnm/plain-beyond-maxval.pgm", b"P2 2 1 100\n5 101\n", error=True)
add("pnm/plain-no-number.pgm", b"P2 2 1 100\n5 x\n", error=True)
add("pnm/maxval-0.pgm", b"P5 2 1 0\nab", error=True)
add("pnm/floats.pfm", b"Pf 2 1 -1\n" + struct.pack("<2f", 1, 2), refused="PBM, PGM or PPM")

# ---------------------------------------------------------------- TGA

for size in [(1, 1), (7, 5), ODD]:
    for mode in ["L", "LA", "RGB", "RGBA", "P"]:
        add(f"tga/{mode}-{label(size)}.tga", saved(image(size, mode), "TGA"))
        add(f"tga/rle-{mode}-{label(size)}.tga", saved(image(size, mode), "TGA", compression="tga_rle"))
add("tga/1.tga", saved(image(ODD, "1"), "TGA"))


def tga(kind, depth, size, body, flags=0x20, mapped=(0, 0, 0), ident=b""):
    return struct.pack("<BBBHHBHHHHBB", len(ident), int(mapped[1] > 0), kind, *mapped, 0, 0, *size, depth, flags) + ident + body


for flags in [0, 0x10, 0x20, 0x30]:
    add(f"tga/orientation-{flags:02x}.tga", tga(2, 24, (7, 5), rgb.tobytes(), flags, ident=b"name"))
    add(f"tga/16-bit-{flags:02x}.tga", tga(2, 16, (7, 5), deep[..., 0].tobytes(), flags))
add("tga/map-16.tga", tga(1, 8, (7, 5), deep.ravel()[:60].tobytes() + (grey % 60).tobytes(), mapped=(0, 60, 16)))
add("tga/map-32-first-20.tga", tga(1, 8, (7, 5), photo((6, 10), 4).tobytes() + (20 + grey % 60).tobytes(), mapped=(20, 60, 32)))
footer = struct.pack("<II", 18 + 140, 0) + b"TRUEVISION-XFILE.\0"
add("tga/no-alpha.tga", tga(2, 32, (7, 5), photo((7, 5), 4).tobytes()) + b"\0" * 495 + footer)
data = saved(image(ODD), "TGA")
add("tga/cut-60-percent.tga", data[:int(len(data) * 0.6)], error=True)
data = saved(image(ODD), "TGA", compression="tga_rle")
add("tga/rle-cut-60-percent.tga", data[:int(len(data) * 0.6)], error=True)

# ---------------------------------------------------------------- WebP

for size in [(1, 1), (7, 5), (16, 16), ODD]:
    n = label(size)
    for mode in ["RGB", "RGBA"]:
        add(f"webp/lossy-{mode}-{n}.webp", saved(image(size, mode), "WEBP", quality=70))
        add(f"webp/lossless-{mode}-{n}.webp", saved(image(size, mode), "WEBP", lossless=True))
add("webp/lossy-high.webp", saved(image((64, 48)), "WEBP", quality=98, method=6))
add("webp/lossy-low.webp", saved(image((64, 48)), "WEBP", quality=5))
add("webp/grey.webp", saved(image(ODD, "L"), "WEBP", lossless=True))
add("webp/palette.webp", saved(image(ODD, "P"), "WEBP", lossless=True))
add("webp/exif-orientation.webp", saved(image(ODD), "WEBP", exif=exif))
add("webp/animated.webp", saved(image(ODD), "WEBP", save_all=True, append_images=[image(ODD, seed=1)], lossless=True))
add("webp/animated-alpha.webp", saved(image(ODD, "RGBA"), "WEBP", save_all=True, append_images=[image(ODD, "RGBA", seed=1)], lossless=True))
for name in ["lossy", "lossless"]:
    data = FILES[f"webp/{name}-RGB-47x33.webp"]
    add(f"webp/cut-60-percent-{name}.webp", data[:int(len(data) * 0.6)], error=True)
    add(f"webp/cut-header-{name}.webp", data[:18], error=True)
    add(f"webp/cut-95-percent-{name}.webp", data[:int(len(data) * 0.95)], error=True)
data = FILES["webp/lossy-RGB-16x16.webp"]
for less in [1, 2, 4]:
    add(f"webp/cut-last-{less}-bytes.webp", data[:-less], error=True)
add("webp/cut-second-frame.webp", FILES["webp/animated.webp"][:-40], error=True)

# ---------------------------------------------------------------- TIFF


def tiff(size, tags, strips, big=False, order="<"):
    """A TIFF of these tags (number: short values or one long) and strips."""
    tags = {256: [size[0]], 257: [size[1]], 278: [size[1]], 259: [1], **tags}
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip
    tags.update({273: offsets, 279: [len(s) for s in strips]})
    entries, extra, at = b"", b"", 8 + len(body) + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        values = tags[tag]
        kind, code = (7, "B") if tag == 347 else (3, "H") if max(values) < 65536 else (4, "I")
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > 4:
            field, extra = struct.pack(order + "I", at + len(extra)), extra + packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + field
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    return head + body + struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0) + extra


for size in [(1, 1), (7, 5), ODD]:
    n = label(size)
    for mode in ["1", "L", "LA", "RGB", "RGBA", "CMYK", "P"]:
        add(f"tiff/{mode}-{n}.tif", saved(image(size, mode), "TIFF"))
    for compression in ["lzw", "adobe_deflate", "deflate", "packbits"]:
        add(f"tiff/{compression}-{n}.tif", saved(image(size), "TIFF", compression="tiff_" + compression if compression != "packbits" else compression))
    for mode in ["L", "RGB", "CMYK"]:
        add(f"tiff/jpeg-{mode}-{n}.tif", saved(image(size, mode), "TIFF", compression="jpeg", quality=80))
    for sampling, pair in [("1x1", [1, 1]), ("2x2", [2, 2]), ("2x1", [2, 1])]:
        tags = {258: [8] * 3, 262: [6], 277: [3], 259: [7], 530: pair}
        add(f"tiff/jpeg-ycbcr-{sampling}-{n}.tif", tiff(size, tags, [FILES[f"jpeg/{sampling}-{n}.jpg"]]))
    grey = photo(size, 1)[..., 0]
    for bits in [1, 2, 4]:
        rows = packed(grey >> (8 - bits), bits)
        stride = (size[0] * bits + 7) // 8 + 1
        strip = b"".join(rows[i + 1:i + stride] for i in range(0, len(rows), stride))
        for photometric in [0, 1]:
            add(f"tiff/grey-{bits}-{'white' if photometric == 0 else 'black'}-{n}.tif", tiff(size, {258: [bits], 262: [photometric]}, [strip]))
        add(f"tiff/palette-{bits}-{n}.tif", tiff(size, {258: [bits], 262: [3], 320: [int(v) * 257 for v in palette[:1 << bits].T.ravel()]}, [strip]))
for orientation in range(1, 9):
    add(f"tiff/orientation-{orientation}.tif", tiff((7, 5), {258: [8] * 3, 262: [2], 277: [3], 274: [orientation]}, [photo((7, 5)).tobytes()]))
parts = [run(ARGS.cjpeg, saved(Image.fromarray(photo(ODD)[y:y + 16]), "PPM"), "-quality", "70", "-sample", "2x2") for y in (0, 16, 32)]
tags = {258: [8] * 3, 262: [6], 277: [3], 259: [7], 530: [2, 2], 278: [16]}
add("tiff/jpeg-strips.tif", tiff(ODD, tags, parts))
tables = b"".join(parts[0][a:b] for code, a, b in segments(parts[0])[0] if code in (0xDB, 0xC4))
bare = []
for part in parts:
    for code in (0xDB, 0xDB, 0xC4, 0xC4, 0xC4, 0xC4, 0xE0):
        part = without(part, code)
    bare.append(part)
add("tiff/jpeg-tables.tif", tiff(ODD, {**tags, 347: list(b"\xff\xd8" + tables + b"\xff\xd9")}, bare))
info = {274: 6}
add("tiff/orientation-6-lzw.tif", saved(image(ODD), "TIFF", compression="tiff_lzw", tiffinfo=info))
add("tiff/lzw-predictor.tif", saved(image(ODD), "TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
add("tiff/group4.tif", saved(image(ODD, "1"), "TIFF", compression="group4"))
add("tiff/two-pages.tif", saved(image(ODD), "TIFF", save_all=True, append_images=[image((9, 9), seed=1)]))
add("tiff/big.tif", saved(image((7, 5)), "TIFF", big_tiff=True))
add("tiff/big-palette.tif", saved(image((7, 5), "P"), "TIFF", big_tiff=True))
four = photo((7, 5), 4)
for name, extra in {"rgbx": [0], "rgba": [2], "rgba-associated": [1], "rgba-unnamed": None}.items():
    tags = {258: [8] * 4, 262: [2], 277: [4]} | ({338: extra} if extra else {})
    add(f"tiff/{name}.tif", tiff((7, 5), tags, [four.tobytes()]))
five = np.concatenate([four, four[..., :1]], -1)
add("tiff/rgb-two-more.tif", tiff((7, 5), {258: [8] * 5, 262: [2], 277: [5], 338: [0, 0]}, [five.tobytes()]))
add("tiff/rgba-one-more.tif", tiff((7, 5), {258: [8] * 5, 262: [2], 277: [5], 338: [2, 0]}, [five.tobytes()]))
add("tiff/cmyk-one-more.tif", tiff((7, 5), {258: [8] * 5, 262: [5], 277: [5], 338: [0]}, [five.tobytes()]))
add("tiff/palette-alpha.tif", tiff((7, 5), {258: [8] * 2, 262: [3], 277: [2], 338: [2], 320: [int(v) * 257 for v in palette.T.ravel()]}, [four[..., :2].tobytes()]))
add("tiff/planar.tif", tiff((7, 5), {258: [8] * 3, 262: [2], 277: [3], 284: [2]}, [photo((7, 5))[..., c].tobytes() for c in range(3)]))
add("tiff/strips.tif", tiff((7, 5), {258: [8] * 3, 262: [2], 277: [3], 278: [2]}, [photo((7, 5))[i:i + 2].tobytes() for i in (0, 2, 4)]))
add("tiff/big-endian.tif", tiff((7, 5), {258: [8] * 3, 262: [2], 277: [3]}, [photo((7, 5)).tobytes()], order=">"))
add("tiff/white-is-zero.tif", tiff((7, 5), {258: [8], 262: [0]}, [photo((7, 5), 1).tobytes()]))
add("tiff/lab.tif", tiff((7, 5), {258: [8] * 3, 262: [8], 277: [3]}, [photo((7, 5)).tobytes()]), refused="Lab")
add("tiff/16-bit-grey.tif", tiff((7, 5), {258: [16], 262: [1]}, [deep[..., 0].tobytes()]), refused="16-bit TIFF")
add("tiff/16-bit-rgb.tif", tiff((7, 5), {258: [16] * 3, 262: [2], 277: [3]}, [deep[..., :3].tobytes()]), refused="16-bit TIFF")
add("tiff/floats.tif", saved(Image.fromarray(photo((7, 5), 1)[..., 0].astype(np.float32)), "TIFF"), refused="unsigned integers")
add("tiff/lowest-bit-first.tif", tiff((7, 5), {258: [8], 262: [1], 266: [2]}, [photo((7, 5), 1).tobytes()]), refused="FillOrder 2")
for name in ["RGB-47x33", "lzw-47x33", "jpeg-RGB-47x33"]:
    data = FILES[f"tiff/{name}.tif"]
    # Pillow writes the directory first.
    add(f"tiff/cut-60-percent-{name}.tif", data[:int(len(data) * 0.6)], error=True)
    add(f"tiff/cut-header-{name}.tif", data[:6], error=True)

# ---------------------------------------------------------------- JPEG 2000

def jp2(name, im, **options):
    add(f"jpeg2000/{name}.jp2", saved(im, "JPEG2000", **options))


layers = dict(irreversible=True, quality_mode="rates", quality_layers=[40, 20, 8])
for mode in ["L", "LA", "RGB", "RGBA"]:
    for size in SIZES:
        small = dict(num_resolutions=1) if min(size) < 8 else {}
        jp2(f"{mode}-{label(size)}", image(size, mode), **small)
    add(f"jpeg2000/{mode}.j2k", saved(image(ODD, mode), "JPEG2000", no_jp2=True))
    jp2(f"irreversible-{mode}", image(ODD, mode), irreversible=True)
    jp2(f"layers-{mode}", image(ODD, mode), **layers)
    jp2(f"tiles-{mode}", image((70, 52), mode), tile_size=(32, 24), num_resolutions=3, irreversible=mode == "RGB")
    jp2(f"offset-{mode}", image((70, 52), mode), offset=(3, 5), tile_size=(40, 40), num_resolutions=3, tile_offset=(2, 4))
for order in ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"]:
    jp2(f"order-{order}", image(ODD), progression=order, **layers)
jp2("no-transform", image(ODD), mct=0)
jp2("precincts", image((97, 83)), precinct_size=(64, 64), codeblock_size=(16, 16))
jp2("packet-lengths", image(ODD), plt=True)
jp2("comment", image(ODD), comment="a comment")
sixteen = Image.fromarray(photo(ODD, 1)[..., 0].astype(np.uint16) * 257)
add("jpeg2000/16-bits.jp2", saved(sixteen, "JPEG2000"), refused="16 bits")
add("jpeg2000/16-bits.j2k", saved(sixteen, "JPEG2000", no_jp2=True), refused="16 bits")
add("jpeg2000/ycbcr.jp2", saved(image(ODD).convert("YCbCr"), "JPEG2000"), refused="grey or RGB")
add("jpeg2000/cmyk.jp2", saved(image(ODD, "CMYK"), "JPEG2000"), refused="grey or RGB")
for name in ["RGB-47x33.jp2", "RGB.j2k", "tiles-RGB.jp2", "layers-RGB.jp2"]:
    data = FILES[f"jpeg2000/{name}"]
    for percent in [20, 50, 80, 95]:
        add(f"jpeg2000/cut-{percent}-percent-{name}", data[:len(data) * percent // 100], error=True)
    add(f"jpeg2000/cut-3-bytes-{name}", data[:-3], error=True)

# ---------------------------------------------------------------- others

add("other/icon.ico", saved(image((16, 16)), "ICO"), refused="ICO")
add("other/avif.avif", saved(image((16, 16)), "AVIF"), refused="AVIF")
add("other/page.png", b"<!DOCTYPE html><html></html>", error=True)
add("other/pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", error=True)
add("other/empty.png", b"", error=True)
add("other/zeros.png", bytes(4096), error=True)
add("other/text.png", b"hello, world, this is text", error=True)
add("other/jpeg-named.png", plain)
add("other/png-named.jpg", whole)


def read(data):
    with Image.open(io.BytesIO(data)) as im:
        im.load()
        rgb = im.convert("RGB")
        alpha = "transparency" in im.info or (im.palette is not None and im.palette.mode == "RGBA")
        # A GIF of mode L may have got a palette.
        kind = "P" if im.mode == "L" and im.palette is not None else im.mode
        mode = {"1": "L", "P": "RGBA" if alpha else "RGB", "CMYK": "RGB", "PA": "RGBA"}.get(kind, kind)
        kept = im.convert(mode)
    sha = lambda i: hashlib.sha256(i.tobytes()).hexdigest()
    return {"size": [rgb.height, rgb.width], "rgb": sha(rgb), "mode": mode, "pixels": sha(kept)}


# Pixels of damaged blocks overflow, differently with and without SIMD instructions: Pillow's for the lack of them, from a
# process that is told to use none.
script = "import hashlib, io, sys; from PIL import Image\n" \
    "print(hashlib.sha256(Image.open(io.BytesIO(sys.stdin.buffer.read())).convert('RGB').tobytes()).hexdigest())"
plain_c = {
    name: subprocess.run([sys.executable, "-c", script], input=data, stdout=subprocess.PIPE, check=True,
                         env={**os.environ, "JSIMD_FORCENONE": "1"}).stdout.decode().strip()
    for name, data in FILES.items() if name.startswith("jpeg/damaged-")
}
expected = {}
for name, data in FILES.items():
    try:
        found = read(data)
    except Exception as e:  # whatever Pillow raises is an error of the file
        text = re.sub(r" at 0x[0-9a-f]+", "", str(e))
        found = {"error": f"{type(e).__name__}: {text}"[:120]}
    if name in REFUSED:
        found = {"refused": REFUSED[name], "pillow_reads": "error" not in found}
    elif ("error" in found) != (name in ERRORS):
        print("unexpected:", name, found)
    if name in plain_c and plain_c[name] != found["rgb"]:
        found["rgb_without_simd"] = plain_c[name]
    expected[name] = found
with zipfile.ZipFile(HERE / "decode.zip", "w") as out:
    for name in sorted(FILES) + ["expected.json"]:
        data = FILES.get(name) or (json.dumps(expected, indent=0, sort_keys=True).encode() if name == "expected.json" else b"")
        out.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, 9)
print(len(FILES), "files,", sum(map(len, FILES.values())), "bytes,", (HERE / "decode.zip").stat().st_size, "packed")
