"""Writes tests/data/dataset again: sources of `d2o dataset`, and what NVlabs/edm@008a4e5's dataset_tool.py makes of them.

    python tests/data/gen/dataset.py tests/data/dataset --edm CHECKOUT

Needs numpy, click, tqdm, lmdb, opencv-python-headless and pillow 12: pillow 13 filters columns before rows where that is cheaper, which moves results by
up to 4 levels.

sources.zip holds the sources; expected.json: for each case the source, the options of dataset_tool.py, the labels, and of each image the shape and the SHA-256 of its pixels.
"""
import argparse, gzip, hashlib, io, json, pathlib, struct, subprocess, sys, tarfile, tempfile, zipfile

import lmdb
import numpy as np
import PIL
from PIL import Image

assert int(PIL.__version__.split(".")[0]) <= 12, PIL.__version__


def picture(h, w, seed, channels=3):
    """Waves with noise, u8."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    planes = [127 + 100 * np.sin(x / (3 + k) + y / (4 + k)) + r.normal(0, 12, (h, w)) for k in range(channels)]
    a = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    return a[..., 0] if channels == 1 else a


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def cifar_batch(data, labels):
    """Protocol 2, as Python 2's cPickle wrote the published batches."""
    text = lambda t: b"U" + bytes([len(t)]) + t
    return b"".join([
        b"\x80\x02}q\x01(", text(b"batch_label"), text(b"training batch"),
        text(b"labels"), b"]q\x02(", b"".join(b"K" + bytes([l]) for l in labels), b"e",
        text(b"data"), b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85", text(b"b"), b"\x87R(K\x01",
        b"K", bytes([len(data)]), b"M", struct.pack("<H", 3072), b"\x86", b"cnumpy\ndtype\nq\x05", text(b"u1"), b"K\x00K\x01\x87R(K\x03", text(b"|"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T", struct.pack("<i", data.size), data.tobytes(), b"tb",
        text(b"filenames"), b"]q\x06(", b"".join(text(b"%d.png" % i) for i in range(len(data))), b"eu."])


def sources(root):
    for i, (h, w) in enumerate([(40, 57), (57, 40), (33, 32), (32, 32), (19, 64), (90, 71)]):
        save(root / f"mixed/p{i}.png", picture(h, w, i))
    save(root / "mixed/sub/grey.png", picture(41, 50, 10, 1))
    for i, name in enumerate(["a/x", "a/y", "a-b/x", "z/deep/x", "top"]):
        save(root / f"classes/{name}.png", picture(36, 40, 20 + i))
    with zipfile.ZipFile(root / "labelled.zip", "w") as z:
        for i in (3, 1, 0, 2):
            png = io.BytesIO()
            Image.fromarray(picture(34, 40 + i, 30 + i)).save(png, "png")
            z.writestr(zipfile.ZipInfo(f"d/{i}.png"), png.getvalue())
        rows = [[f"d/{i}.png", [0.5 * i, 1.0]] for i in range(4)]
        z.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": rows}))
    # 513×777 to 512 columns is where the order of the passes shows; here in small.
    for i, (h, w) in enumerate([(777 // 8, 65), (50, 100), (40, 63), (33, 64), (48, 64)]):
        save(root / f"wide/w{i}.png", picture(h, w, 40 + i))
    for i in range(2):
        save(root / f"grey/g{i}.png", picture(32, 32, 50 + i, 1))
    with gzip.GzipFile(root / "cifar-10-python.tar.gz", "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for b in (4, 1, 5, 2, 3):
            images = np.stack([picture(32, 32, 60 + 10 * b + i).transpose(2, 0, 1).reshape(-1) for i in range(2)])
            member = cifar_batch(images, [b % 10, (b + 5) % 10])
            info = tarfile.TarInfo(f"cifar-10-batches-py/data_batch_{b}")
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    digits = np.stack([picture(28, 28, 120 + i, 1) for i in range(3)])
    for name, header, body in [("images-idx3", (0x803, 3, 28, 28), digits.tobytes()), ("labels-idx1", (0x801, 3), bytes([7, 0, 9]))]:
        with gzip.GzipFile(root / f"train-{name}-ubyte.gz", "wb", mtime=0) as f:
            f.write(struct.pack(f">{len(header)}i", *header) + body)
    # Two levels of pages, values within pages and in overflow pages.
    with tempfile.TemporaryDirectory() as scratch:
        env = lmdb.open(scratch, map_size=1 << 24)
        with env.begin(write=True) as txn:
            for i in range(60):
                png = io.BytesIO()
                a = picture(40, 44, 200, 3) if i == 31 else np.full((8, 8 + i % 3, 3), i, np.uint8)
                Image.fromarray(a).save(png, "png")
                txn.put(hashlib.sha1(b"%d" % i).hexdigest().encode(), png.getvalue())
        env.close()
        (root / "cat_lmdb").mkdir()
        used = max(i for i, b in enumerate(pathlib.Path(scratch, "data.mdb").read_bytes()) if b) // 4096 + 1
        (root / "cat_lmdb/data.mdb").write_bytes(pathlib.Path(scratch, "data.mdb").read_bytes()[: used * 4096])


CASES = {
    "mixed": ("mixed", ["--transform=center-crop", "--resolution=32x32"]),
    "mixed enlarged": ("mixed", ["--transform=center-crop", "--resolution=64x64"]),
    "mixed, first three": ("mixed", ["--transform=center-crop", "--resolution=32x32", "--max-images=3"]),
    "classes": ("classes", ["--transform=center-crop", "--resolution=32x32"]),
    "vectors": ("labelled.zip", ["--transform=center-crop", "--resolution=16x16"]),
    "wide": ("wide", ["--transform=center-crop-wide", "--resolution=64x48"]),
    "stretched": ("wide", ["--resolution=32x32"]),
    "grey": ("grey", []),
    "cifar": ("cifar-10-python.tar.gz", []),
    "mnist": ("train-images-idx3-ubyte.gz", []),
    "mnist resized": ("train-images-idx3-ubyte.gz", ["--transform=center-crop", "--resolution=16x16"]),
    "lmdb": ("cat_lmdb", ["--transform=center-crop", "--resolution=8x8"]),
}


def expected(root, edm):
    found = {}
    # The tool insists on the sizes of the published sets.
    tool = pathlib.Path(edm, "dataset_tool.py").read_text()
    for published in ["images.shape == (50000, 32, 32, 3) and ", "images.shape == (60000, 32, 32) and ", "labels.shape == (50000,) and ",
                      "labels.shape == (60000,) and "]:
        assert published in tool
        tool = tool.replace(published, "")
    for line in ["assert np.min(images) == 0 and np.max(images) == 255", "assert np.min(labels) == 0 and np.max(labels) == 9"]:
        assert tool.count(line) == 2
        tool = tool.replace(line, "")
    with tempfile.TemporaryDirectory() as scratch:
        script = pathlib.Path(scratch, "tool.py")
        script.write_text(tool)
        for name, (source, options) in CASES.items():
            out = pathlib.Path(scratch, "out.zip")
            subprocess.run([sys.executable, script, "--source", root / source, "--dest", out, *options], check=True, capture_output=True)
            with zipfile.ZipFile(out) as z:
                arrays = [np.array(Image.open(io.BytesIO(z.read(n)))) for n in sorted(z.namelist()) if n.endswith(".png")]
                labels = json.loads(z.read("dataset.json"))["labels"]
            found[name] = {
                "source": source, "options": options, "labels": labels and [l for _, l in labels],
                "images": [[list(a.shape), hashlib.sha256(a.tobytes()).hexdigest()] for a in arrays]}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--edm", required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        sources(root)
        with zipfile.ZipFile(args.out / "sources.zip", "w", zipfile.ZIP_DEFLATED) as z:
            for file in sorted(f for f in root.rglob("*") if f.is_file()):
                z.writestr(zipfile.ZipInfo(str(file.relative_to(root))), file.read_bytes(), zipfile.ZIP_DEFLATED)
        (args.out / "expected.json").write_text(json.dumps(expected(root, args.edm), indent=1) + "\n")
