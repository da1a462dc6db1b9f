"""Hostile npy, npz, zip and HDF5 files. python containers.py OUTDIR; needs numpy, h5py and Pillow."""
import io, json, os, struct, sys, zlib, zipfile
import numpy as np, h5py
from PIL import Image
OUT = sys.argv[1]
os.makedirs(OUT, exist_ok=True)
P = lambda n: os.path.join(OUT, n)
def header(descr, shape, fortran=False):
    t = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({''.join(str(s)+',' for s in shape)}), }}"
    t += " " * (63 - (10 + len(t)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(t)) + t.encode()
def save(n, b):
    with open(P(n), "wb") as f: f.write(b)
def npy(n, descr, shape, data=b"", fortran=False): save(n, header(descr, shape, fortran) + data)
class Zip:
    """Zip whose entries may be bombs of `zeros` after `head`."""
    def __init__(s, n): s.z = zipfile.ZipFile(P(n), "w", zipfile.ZIP_DEFLATED, compresslevel=9)
    def put(s, name, head, zeros=0, block=b"\0" * (1 << 20)):
        with s.z.open(name, "w", force_zip64=True) as f:
            f.write(head)
            while zeros > 0: f.write(block[:min(zeros, len(block))]); zeros -= len(block)
        return s
    def arr(s, name, descr, shape, data=b"", zeros=None, fortran=False):
        size = int(np.prod([int(x) for x in shape], dtype=object)) * int(descr[2:])
        return s.put(name + ".npy", header(descr, shape, fortran) + data, size - len(data) if zeros is None else zeros)
    def end(s): s.z.close()
imgs = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
def png(w=8, h=8, colour=0):
    b = io.BytesIO(); Image.new("RGB", (w, h), (colour % 256, 8, 7)).save(b, "PNG"); return b.getvalue()
G = 1 << 30
# --- npy
npy("npy-zero-axis-1e12.npy", "|u1", (10**12, 0))
npy("npy-zero-axis-image.npy", "|u1", (10**12, 0, 8, 3))
npy("npy-rows-1e12.npy", "|u1", (10**12, 8, 8, 3))
npy("npy-image-2.7G.npy", "|u1", (1, 30000, 30000, 3), b"\0" * 100)
npy("npy-fortran-huge.npy", "<f8", (1000, 1000, 1000, 3), b"\0" * 100, True)
npy("npy-f8-1e300.npy", "<f8", (2, 8, 8), np.full(128, 1e300).tobytes())
npy("npy-long-shape.npy", "|u1", (1,) * 3000)
# --- npz
Zip("npz-zero-axis-features.npz").arr("mu", "<f8", (0,)).arr("sigma", "<f8", (0, 0)).arr("features", "<f4", (10**12, 0)).end()
Zip("npz-zero-axis-features-2.npz").arr("mu", "<f8", (2,)).arr("sigma", "<f8", (2, 2)).arr("features", "<f4", (10**12, 0)).arr("labels", "<i8", (10**12, 0)).end()
Zip("npz-zero-axis-labels.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("arr_1", "<i8", (10**12, 0)).end()
Zip("npz-labels-one-hot-4G.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("arr_1", "|u1", (4, G)).end()
Zip("npz-labels-f8-2G.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("arr_1", "<f8", (4, 1 << 26)).end()
Zip("npz-label-1e300.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("arr_1", "<f8", (4,), np.array([0, 1, 1e300, 1]).tobytes()).end()
Zip("npz-label-2e63.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("arr_1", "<i8", (4,), np.array([0, 1, 2**63 - 1, 1]).tobytes()).end()
Zip("npz-mu-4G.npz").arr("mu", "<f8", (1 << 29,)).arr("sigma", "<f8", (2, 2)).end()
Zip("npz-sigma-2G.npz").arr("mu", "<f8", (16384,)).arr("sigma", "<f8", (16384, 16384)).end()
Zip("npz-sigma-u1-1G.npz").arr("mu", "|u1", (32768,)).arr("sigma", "|u1", (32768, 32768)).end()
Zip("npz-sigma-5700.npz").arr("mu", "<f8", (5700,)).arr("sigma", "<f8", (5700, 5700)).end()
r = np.random.default_rng(1).integers(0, 3, (3600, 3600)).astype("<f8"); r = r @ np.eye(3600) + r.T
Zip("npz-sigma-3600-dense.npz").arr("mu", "<f8", (3600,)).arr("sigma", "<f8", (3600, 3600), r.tobytes()).end()
Zip("npz-sigmas-5000-three.npz").arr("mu", "<f8", (5000,)).arr("sigma", "<f8", (5000, 5000)).arr("mu_s", "<f8", (5000,)).arr("sigma_s", "<f8", (5000, 5000)).arr("mu_clip", "<f8", (5000,)).arr("sigma_clip", "<f8", (5000, 5000)).end()
Zip("npz-features-4G.npz").arr("mu", "<f8", (2,)).arr("sigma", "<f8", (2, 2)).arr("features", "<f4", (1 << 29, 2)).end()
Zip("npz-features-fortran-2G.npz").arr("mu", "<f8", (2,)).arr("sigma", "<f8", (2, 2)).arr("features", "<f4", (1 << 28, 2), fortran=True).end()
Zip("npz-meta-2G.npz").arr("mu", "<f8", (2,)).arr("sigma", "<f8", (2, 2)).arr("d2o_meta", "|u1", (2 * G,)).end()
Zip("npz-meta-nodes.npz").arr("mu", "<f8", (2,)).arr("sigma", "<f8", (2, 2)).put("d2o_meta.npy", header("|u1", (400 << 20,)) + b"[0", 400 * (1 << 20) - 3, b",0" * (1 << 19)).end()
Zip("npz-record-2G.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).arr("d2o", "|u1", (2 * G,)).end()
Zip("npz-record-nodes.npz").arr("arr_0", "|u1", (4, 8, 8, 3), imgs.tobytes()).put("d2o.npy", header("|u1", (400 << 20,)) + b"[0", 400 * (1 << 20) - 3, b",0" * (1 << 19)).end()
Zip("npz-image-2.7G.npz").arr("arr_0", "|u1", (1, 30000, 30000, 3)).end()
Zip("npz-images-16G.npz").arr("arr_0", "|u1", (16384, 1024, 1024)).end()
Zip("npz-images-256-of-12M.npz").arr("arr_0", "|u1", (256, 2000, 2000, 3)).end()
Zip("npz-images-rgba-180M.npz").arr("arr_0", "|u1", (1, 13300, 13300, 4)).end()
Zip("npz-images-chw-180M.npz").arr("arr_0", "|u1", (1, 3, 13300, 13300)).end()
Zip("npz-images-f8.npz").arr("arr_0", "<f8", (16, 8000, 8000)).end()
Zip("npz-fortran-2G.npz").arr("arr_0", "|u1", (8, 9000, 9000, 3), fortran=True).end()
z = Zip("npz-100k-arrays.npz")
for i in range(100_000): z.z.writestr(zipfile.ZipInfo(f"a{i}.npy"), header("|u1", (2, 2)) + b"1234")
z.end()
# --- zip of images
def rows(n): return b'{"labels": [' 
z = Zip("zip-json-30M-rows.zip"); z.z.writestr("a.png", png()); z.put("dataset.json", b'{"labels": [["a.png", 1]', 30_000_000 * 13, b',["b.png",1]\n' * 80_000); z.end()
z = Zip("zip-json-30M-rows-ok.zip"); z.z.writestr("a.png", png())
with z.z.open("dataset.json", "w", force_zip64=True) as f:
    f.write(b'{"labels": [["a.png", 1]'); [f.write(b',["b.png", 1]' * 100_000) for _ in range(300)]; f.write(b"]}")
z.end()
z = Zip("zip-json-vector-label.zip"); z.z.writestr("a.png", png())
with z.z.open("dataset.json", "w", force_zip64=True) as f:
    f.write(b'{"labels": [["a.png", [1'); [f.write(b',0' * 1_000_000) for _ in range(200)]; f.write(b"]]]}")
z.end()
z = Zip("zip-json-d2o-nodes.zip"); z.z.writestr("a.png", png())
with z.z.open("dataset.json", "w", force_zip64=True) as f:
    f.write(b'{"labels": null, "d2o": {"x": [[]'); [f.write(b',[]' * 1_000_000) for _ in range(150)]; f.write(b"]}}")
z.end()
z = Zip("zip-json-other-key-nodes.zip"); z.z.writestr("a.png", png())
with z.z.open("dataset.json", "w", force_zip64=True) as f:
    f.write(b'{"labels": null, "other": [0'); [f.write(b',{}' * 1_000_000) for _ in range(150)]; f.write(b"]}")
z.end()
z = Zip("zip-class-2e63.zip"); z.z.writestr("a.png", png()); z.z.writestr("b.png", png()); z.z.writestr("dataset.json", json.dumps({"labels": [["a.png", 0], ["b.png", 2**63 - 2]]})); z.end()
z = Zip("zip-class-1e300.zip"); z.z.writestr("a.png", png()); z.z.writestr("dataset.json", '{"labels": [["a.png", 1e300]]}'); z.end()
z = Zip("zip-deep-json.zip"); z.z.writestr("a.png", png()); z.put("dataset.json", b'{"labels": ', 1 << 20, b"[" * (1 << 20)); z.end()
z = Zip("zip-64-of-255M.zip")
for i in range(64): z.put(f"{i:02}.png", png(colour=i), 255 << 20)
z.end()
z = Zip("zip-3-of-255M.zip")
for i in range(3): z.put(f"{i:02}.png", png(colour=i), 255 << 20)
z.end()
def bigpng(w, h, ctype=2):
    d = zlib.compressobj(9); out = []; n = h * (w * {0: 1, 2: 3, 6: 4}[ctype] + 1)
    while n > 0: out.append(d.compress(b"\0" * min(n, 1 << 20))); n -= 1 << 20
    chunk = lambda t, x: struct.pack(">I", len(x)) + t + x + struct.pack(">I", zlib.crc32(t + x))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, ctype, 0, 0, 0)) + chunk(b"IDAT", b"".join(out) + d.flush()) + chunk(b"IEND", b"")
huge = bigpng(13370, 13370)
save_dir = lambda n: os.makedirs(P(n), exist_ok=True) or P(n)
z = Zip("zip-1-png-179M.zip"); z.z.writestr("a.png", huge); z.end()
z = Zip("zip-16-png-179M.zip")
for i in range(16): z.z.writestr(f"{i}.png", huge)
z.end()
z = Zip("zip-256-png-4M.zip"); mid = bigpng(2000, 2000)
for i in range(256): z.z.writestr(f"{i}.png", mid)
z.end()
z = Zip("zip-rgba-179M.zip"); z.z.writestr("a.png", bigpng(13370, 13370, 6)); z.end()
for n, k in (("folder-8-png-179M", 8), ("folder-1-png-179M", 1)):
    d = save_dir(n)
    for i in range(k): open(os.path.join(d, f"{i}.png"), "wb").write(huge)
# overlapping entries: every central header points at one local header
def overlap(name, entry, payload, count):
    comp = zlib.compressobj(9, zlib.DEFLATED, -15); data = comp.compress(payload) + comp.flush(); crc = zlib.crc32(payload)
    loc = struct.pack("<IHHHHHIIIHH", 0x04034b50, 20, 0, 8, 0, 0, crc, len(data), len(payload), len(entry), 0) + entry + data
    cen = []
    for i in range(count):
        n = b"%06d.png" % i
        cen.append(struct.pack("<IHHHHHHIIIHHHHHII", 0x02014b50, 20, 20, 0, 8, 0, 0, crc, len(data), len(payload), len(n), 0, 0, 0, 0, 0, 0) + n)
    c = b"".join(cen)
    save(name, loc + c + struct.pack("<IHHHHIIH", 0x06054b50, 0, 0, count & 0xffff, count & 0xffff, len(c), len(loc), 0))
overlap("zip-overlap-60k-of-64M.zip", b"000000.png", png() + b"\0" * (64 << 20), 60_000)
overlap("zip-overlap-200k-of-80K.zip", b"000000.png", png() + b"\0" * 80_000, 200_000)
overlap("zip-overlap-200k-small.zip", b"000000.png", png(), 200_000)
# --- HDF5
def h5(n): return h5py.File(P(n), "w")
def good(f, n=4): f["images"] = imgs[:n]
T = 10**12
def full(f, name, shape, dtype, chunks, **k):
    """A dataset whose every chunk holds gzipped zeros, written raw."""
    d = f.create_dataset(name, shape, dtype, chunks=chunks, **k); return d
with h5("h5-labels-huge.h5") as f: good(f); f.create_dataset("labels", (T,), "i8", chunks=(1 << 20,))
with h5("h5-labels-width-huge.h5") as f: good(f); f.create_dataset("labels", (4, T // 4), "u1", chunks=(4, 1 << 20))
with h5("h5-labels-gzip-2G.h5") as f:
    good(f); d = f.create_dataset("labels", (4, 1 << 26), "u1", chunks=(4, 1 << 26), compression="gzip"); d.id.write_direct_chunk((0, 0), zlib.compress(b"\0" * (4 << 26), 9))
with h5("h5-features-gzip-labels.h5") as f:
    f["features"] = np.ones((4, 8), "f4"); d = f.create_dataset("labels", (4, 1 << 26), "u1", chunks=(4, 1 << 26), compression="gzip"); d.id.write_direct_chunk((0, 0), zlib.compress(b"\0" * (4 << 26), 9))
with h5("h5-image-3T.h5") as f: f.create_dataset("images", (1, 1000000, 1000000, 3), "u1", chunks=(1, 1000, 1000, 3))
with h5("h5-image-3T-contiguous.h5") as f:
    f.create_dataset("images", (1, 1000000, 1000000, 3), "u1")
with h5("h5-images-1e12-rows-contiguous.h5") as f: f.create_dataset("images", (T, 8, 8, 3), "u1")
with h5("h5-chunk-unallocated.h5") as f:
    d = f.create_dataset("images", (4, 8, 8, 3), "u1", chunks=(4, 8, 8, 3), maxshape=(None, 8, 8, 3)); 
with h5("h5-chunk-4G-b.h5") as f:
    d = f.create_dataset("images", (1 << 24, 8, 8, 3), "u1", chunks=(1 << 24, 8, 8, 1), compression="gzip")
    for c in range(3): d.id.write_direct_chunk((0, 0, 0, c), zlib.compress(b"\0" * (1 << 30), 9))
with h5("h5-chunk-3G-bomb.h5") as f:
    d = f.create_dataset("images", (1 << 24, 8, 8, 3), "u1", chunks=(1 << 24, 8, 8, 3), compression="gzip")
    c = zlib.compressobj(9); b = b"".join(c.compress(b"\0" * (1 << 20)) for _ in range(3 << 10)) + c.flush(); d.id.write_direct_chunk((0, 0, 0, 0), b)
def bomb(n):
    c = zlib.compressobj(9); return b"".join(c.compress(b"\0" * (1 << 20)) for _ in range(n)) + c.flush()
B4 = bomb(4096)
with h5("h5-gzip-bomb-4G.h5") as f:
    d = f.create_dataset("images", (4, 8, 8, 3), "u1", chunks=(4, 8, 8, 3), compression="gzip"); d.id.write_direct_chunk((0, 0, 0, 0), B4)
with h5("h5-gzip-bomb-labels.h5") as f:
    good(f); d = f.create_dataset("labels", (4,), "i8", chunks=(4,), compression="gzip"); d.id.write_direct_chunk((0,), B4)
with h5("h5-gzip-bomb-features.h5") as f:
    d = f.create_dataset("features", (4, 8), "f4", chunks=(4, 8), compression="gzip"); d.id.write_direct_chunk((0, 0), B4)
with h5("h5-gzip-bomb-many.h5") as f:
    d = f.create_dataset("images", (64, 8, 8, 3), "u1", chunks=(1, 8, 8, 3), compression="gzip"); b = bomb(200)
    for i in range(64): d.id.write_direct_chunk((i, 0, 0, 0), b)
with h5("h5-gzip-double.h5") as f:
    d = f.create_dataset("images", (4, 8, 8, 3), "u1", chunks=(4, 8, 8, 3), compression="gzip"); d.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(b"\0" * 768 + b"x" * 5000, 9))
with h5("h5-images-gzip-8G.h5") as f:
    d = f.create_dataset("images", (2048, 2048, 2048), "u1", chunks=(16, 2048, 2048), compression="gzip"); b = zlib.compress(b"\0" * (16 << 22), 9)
    for i in range(128): d.id.write_direct_chunk((16 * i, 0, 0), b)
with h5("h5-band-reinflate.h5") as f:
    d = f.create_dataset("images", (16384, 128, 128), "u1", chunks=(16384, 64, 64), compression="gzip"); b = zlib.compress(b"\0" * (1 << 26), 9)
    for y in (0, 64):
        for x in (0, 64): d.id.write_direct_chunk((0, y, x), b)
with h5("h5-features-absurd-width.h5") as f: f.create_dataset("features", (1, 1 << 40), "f4", chunks=(1, 1 << 20))
with h5("h5-features-width-1e9-gzip.h5") as f:
    d = f.create_dataset("features", (2, 1 << 26), "f4", chunks=(1, 1 << 26), compression="gzip"); b = zlib.compress(b"\0" * (4 << 26), 9)
    for i in range(2): d.id.write_direct_chunk((i, 0), b)
with h5("h5-features-width-200k.h5") as f: f["features"] = np.ones((4, 200_000), "f4"); f["logits"] = np.ones((4, 200_000), "f4"); f["spatial"] = np.ones((4, 200_000), "f4")
with h5("h5-features-width-16k.h5") as f: f["features"] = np.ones((4, 16384), "f4")
with h5("h5-features-width-4096.h5") as f: f["features"] = np.random.default_rng(0).normal(size=(900, 4096)).astype("f4")
with h5("h5-features-zero-width.h5") as f: f.create_dataset("features", (T, 0), "f4")
with h5("h5-features-gzip-4G.h5") as f:
    d = f.create_dataset("features", (1 << 20, 1024), "f4", chunks=(1 << 14, 1024), compression="gzip"); b = zlib.compress(b"\0" * (1 << 26), 9)
    for i in range(64): d.id.write_direct_chunk((i << 14, 0), b)
with h5("h5-digests-huge.h5") as f: f["features"] = np.ones((4, 8), "f4"); f.create_dataset("image_sha256", (4, T), "u1", chunks=(4, 1 << 20))
with h5("h5-meta-huge.h5") as f: f["features"] = np.ones((4, 8), "f4"); f.create_dataset("d2o_meta", (T,), "u1", chunks=(1 << 20,))
with h5("h5-record-gzip-bomb.h5") as f: good(f); d = f.create_dataset("d2o", (100,), "u1", chunks=(100,), compression="gzip"); d.id.write_direct_chunk((0,), B4)
with h5("h5-many-members-200k.h5") as f:
    f["images"] = imgs
    for i in range(200_000): f[f"m{i:06}"] = f["images"]
with h5("h5-members-20k-datasets.h5") as f:
    for i in range(20_000): f.create_dataset(f"m{i:06}", data=np.uint8(1))
with h5("h5-big-attribute.h5", ) as f: good(f); f["images"].attrs.create("a", np.zeros(7000, "f8"))
with h5("h5-string-1G.h5") as f: f.create_dataset("images", (4,), "S1000000000"); f.create_dataset("labels", (4,), "S1000000000")
with h5("h5-vlen.h5") as f: d = f.create_dataset("images", (4,), h5py.string_dtype()); d[0] = "x" * 1000
with h5("h5-soft-cycle.h5") as f: f["images"] = h5py.SoftLink("/a"); f["a"] = h5py.SoftLink("/b"); f["b"] = h5py.SoftLink("/a")
with h5("h5-group-cycle.h5") as f: g = f.create_group("g"); g["up"] = f["/"]; f["images"] = h5py.SoftLink("/g/up/g/up/g/up/x")
fifo = P("fifo")
if not os.path.exists(fifo): os.mkfifo(fifo)
if not os.path.exists(P("fifo.h5")): os.mkfifo(P("fifo.h5"))
for e in ("npz", "npy", "zip", "png", "svg"):
    if not os.path.exists(P("pipe." + e)): os.mkfifo(P("pipe." + e))
with h5("h5-external-link-fifo.h5") as f: f["images"] = h5py.ExternalLink("fifo", "x"); f["labels"] = h5py.ExternalLink("fifo", "x")
with h5("h5-external-link-fifo-features.h5") as f: f["features"] = h5py.ExternalLink("fifo", "x"); f["images"] = h5py.ExternalLink(os.path.abspath(fifo), "x")
with h5("h5-soft-to-external.h5") as f: f["e"] = h5py.ExternalLink("fifo", "/"); f["images"] = h5py.SoftLink("/e/x")
with h5("secret.h5") as f: f["x"] = imgs
os.makedirs(P("elsewhere"), exist_ok=True)
with h5py.File(P("elsewhere/secret.h5"), "w") as f: f["x"] = imgs
with h5("h5-external-link-outside.h5") as f: f["images"] = h5py.ExternalLink(os.path.abspath(P("elsewhere/secret.h5")), "x")
with h5("h5-external-storage-fifo.h5") as f: f.create_dataset("images", (4, 8, 8, 3), "u1", external=[(os.path.abspath(fifo), 0, 768)])
with h5("h5-external-storage-passwd.h5") as f: f.create_dataset("images", (1, 8, 8, 3), "u1", external=[("/etc/passwd", 0, 192)])
with h5("h5-external-storage-dev.h5") as f: f.create_dataset("images", (4, 8, 8, 3), "u1", external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])
def vds(n, src, shape=(4, 8, 8, 3), name="x"):
    with h5(n) as f:
        l = h5py.VirtualLayout(shape, "u1"); l[:] = h5py.VirtualSource(src, name, shape); f.create_virtual_dataset("images", l)
vds("h5-virtual-fifo.h5", os.path.abspath(fifo)); vds("h5-virtual-fifo-rel.h5", "fifo"); vds("h5-virtual-outside.h5", os.path.abspath(P("elsewhere/secret.h5"))); vds("h5-virtual-self.h5", ".", name="images")
vds("h5-virtual-bomb.h5", "h5-gzip-bomb-4G.h5", name="images")
with h5("h5-virtual-4000.h5") as f:
    l = h5py.VirtualLayout((4000, 8, 8, 3), "u1")
    for i in range(4000): l[i] = h5py.VirtualSource("secret.h5", "x", (4, 8, 8, 3))[0]
    f.create_virtual_dataset("images", l)
with h5("h5-gcol-everywhere.h5") as f:
    l = h5py.VirtualLayout((4, 8, 8, 3), "u1"); l[:] = h5py.VirtualSource(".", "src", (4, 8, 8, 3)); f["src"] = imgs; f.create_virtual_dataset("images", l)
    f["noise"] = np.frombuffer((b"GCOL\x01\0\0\0" + struct.pack("<Q", 1 << 27)) * 500_000, "u1")
with h5("h5-scaleoffset.h5") as f: f.create_dataset("images", data=imgs, chunks=(4, 8, 8, 3), scaleoffset=0)
with h5("h5-nested-type.h5") as f:
    t = np.dtype("u1")
    for i in range(200): t = np.dtype([("a", t)])
    f.create_dataset("images", (4,), t); f.create_dataset("labels", (4,), t)
src = open(P("h5-gzip-double.h5"), "rb").read(); rg = np.random.default_rng(7)
with h5("flip-base.h5") as f:
    f.create_dataset("images", data=imgs, chunks=(2, 8, 8, 3), compression="gzip"); f["labels"] = np.arange(4); f.create_dataset("features", data=np.ones((4, 8), "f4"), chunks=(2, 8), fletcher32=True)
src = open(P("flip-base.h5"), "rb").read(); os.makedirs(P("flips"), exist_ok=True)
for i in range(150):
    b = bytearray(src)
    for _ in range(rg.integers(1, 6)): b[rg.integers(8, 4000)] = rg.choice([0, 255, rg.integers(0, 256)])
    open(P(f"flips/f{i:03}.h5"), "wb").write(b)
# directories named like files
for e in ("npz", "h5", "zip", "npy", "svg"): os.makedirs(P("dir." + e), exist_ok=True)
