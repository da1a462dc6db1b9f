"""The other tools' side of `cargo xtask bench`. Each command prints one line of JSON.

python bench.py weights OUT.pth                     Inception-2015-12-05 with seeded weights, torch-fidelity's layout
python bench.py run -- COMMAND...                   seconds and peak memory of a command
python bench.py ort GRAPH.onnx IMAGES BATCH         a bare ONNX Runtime session on images in memory
python bench.py frechet DIMS                        pytorch-fid's distance (scipy's sqrtm) and Cholesky + eigenvalues in NumPy
python bench.py precision-recall ROWS DIMS          NumPy in f32, blocks of whole rows
python bench.py torch-fidelity SAMPLES REFERENCE WEIGHTS
python bench.py clean-fid SAMPLES REFERENCE WEIGHTS

numpy, scipy, torch, onnxruntime, torch-fidelity, pytorch-fid, clean-fid
"""
import json
import resource
import subprocess
import sys
import time


def report(start, **more):
    own, children = (resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": time.time() - start, "peak_mb": max(own, children) / 1024, **more}))


def weights(out):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(1)
    start = time.time()
    # The constructor loads weights: replace the functions it loads them with.
    load = torch.load
    FeatureExtractorInceptionV3.load_state_dict = lambda self, *_, **__: None
    torch.load = lambda *_, **__: {}
    net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=__file__)
    torch.load = load
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.fill_(1)
        elif name.endswith(("running_mean", "bn.bias", "fc.bias")):
            value.normal_(0, 0.1)
        elif name.endswith("bn.weight"):
            value.fill_(1)
        elif value.dim() > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    torch.save(net.state_dict(), out)
    report(start)


def run(command):
    start = time.time()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    report(start, code=done.returncode)


def ort(graph, images, batch):
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    rng = np.random.RandomState(0)
    if port.type == "tensor(uint8)":
        data = rng.randint(0, 256, (int(batch), *port.shape[1:])).astype(np.uint8)
    else:
        data = rng.standard_normal((int(batch), *port.shape[1:])).astype(np.float32)
    session.run(None, {port.name: data[:2]})
    start, done = time.time(), 0
    while done < int(images):
        session.run(None, {port.name: data})
        done += len(data)
    report(start, images=done)


def frechet(dims):
    import numpy as np
    from pytorch_fid.fid_score import calculate_frechet_distance
    from scipy import linalg

    dims, rng = int(dims), np.random.RandomState(0)
    x, y = rng.rand(2 * dims, dims) * 0.5, rng.rand(2 * dims, dims) * 0.6
    (m, s), (n, t) = ((v.mean(0), np.cov(v, rowvar=False)) for v in (x, y))
    start = time.time()
    factor = np.linalg.cholesky(s)
    root = np.sqrt(np.maximum(linalg.eigvalsh(factor.T @ t @ factor), 0)).sum()
    symmetric = ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * root
    cholesky = time.time() - start
    start = time.time()
    value = calculate_frechet_distance(m, s, n, t)
    report(start, cholesky_seconds=cholesky, value=value, symmetric=symmetric)


def precision_recall(rows, dims):
    import numpy as np

    rng = np.random.RandomState(0)
    a, b = (rng.rand(int(rows), int(dims)).astype(np.float32) for _ in range(2))

    def distances(u, v):
        return np.maximum((u * u).sum(1)[:, None] - 2 * (u @ v.T) + (v * v).sum(1)[None], 0)

    start = time.time()
    radius = lambda x: np.partition(distances(x, x), 3, axis=1)[:, 3]
    d, ra, rb = distances(a, b), radius(a), radius(b)
    precision, recall = (d <= rb[None]).any(1).mean(), (d <= ra[:, None]).any(0).mean()
    report(start, precision=float(precision), recall=float(recall))


def torch_fidelity(samples, reference, path):
    import torch_fidelity as tf

    start = time.time()
    numbers = tf.calculate_metrics(
        input1=samples, input2=reference, isc=True, fid=True, kid=True, prc=True, cuda=False, cache=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=path, verbose=False, batch_size=64,
    )
    report(start, **numbers)


def clean_fid(samples, reference, path):
    import numpy as np
    import torch
    from cleanfid import fid
    from pytorch_fid.inception import InceptionV3
    import pytorch_fid.inception

    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: torch.load(path)
    net = InceptionV3([3], resize_input=False, normalize_input=False).eval()
    model = lambda x: net((x - 128) / 128)[0].flatten(1)
    start = time.time()
    with torch.no_grad():
        a, b = (
            fid.get_folder_features(d, model, num_workers=0, batch_size=64, device=torch.device("cpu"), mode="clean", verbose=False)
            for d in (samples, reference)
        )
    value = fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    np.random.seed(0)
    report(start, fid=float(value), kid=float(fid.kernel_distance(a, b)))


if __name__ == "__main__":
    name, words = sys.argv[1], sys.argv[2:]
    if name == "run":
        run(words[1:])
    else:
        globals()[name.replace("-", "_")](*words)
