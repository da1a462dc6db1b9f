"""Writes tests/data/metrics.json: metrics of seeded features by the original tools.

python tests/data/gen/metrics.py > tests/data/metrics.json
(numpy, scipy, torch, torch-fidelity 0.4.0, pytorch-fid 0.3.0, clean-fid 0.1.35, torchmetrics 1.9.0)

guided-diffusion's evaluator is no package and needs TensorFlow 1: its formulae are written out here in NumPy.
"""
import contextlib
import json
import sys

import numpy as np
import torch
from scipy import linalg

N, M, D, K = 1200, 1100, 24, 10


def uniform(seed, count):
    """SplitMix64 of a counter; the upper 24 bits as a float32 in 0..1, exactly."""
    mask = (1 << 64) - 1
    out = np.empty(count, np.float32)
    for i in range(count):
        z = (seed + (i + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out[i] = np.float32((z ^ (z >> 31)) >> 40) / np.float32(1 << 24)
    return out


def features(seed, rows, scale):
    return (uniform(seed, rows * D) * np.float32(scale)).reshape(rows, D)


def adm_distances(u, v):
    with np.errstate(over="ignore", invalid="ignore"):
        h, w = u.astype(np.float16), v.astype(np.float16)
        nu = (h * h).astype(np.float32).sum(1).astype(np.float16)[:, None]
        nv = (w * w).astype(np.float32).sum(1).astype(np.float16)[None]
        uv = (h.astype(np.float32) @ w.astype(np.float32).T).astype(np.float16)
        d = np.maximum(nu - np.float16(2) * uv + nv, np.float16(0))
    if np.isfinite(d).all():
        return d.astype(np.float32)
    d = (u * u).sum(1)[:, None] - 2 * (u @ v.T) + (v * v).sum(1)[None]
    return np.maximum(d, 0)


def adm_precision_recall(ref, sample):
    radius = lambda x: np.partition(adm_distances(x, x), 3, axis=1)[:, 3]
    d = adm_distances(ref, sample)
    return float((d <= radius(ref)[:, None]).any(0).mean()), float((d <= radius(sample)[None]).any(1).mean())


def adm_score(logits, size):
    p = torch.from_numpy(logits).softmax(1).numpy()
    scores = []
    for i in range(0, len(p), size):
        part = p[i : i + size]
        kl = part * (np.log(part) - np.log(part.mean(0)[None]))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    return float(np.mean(scores))


def stats(x, ddof=1):
    return x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False, ddof=ddof)


def main():
    import cleanfid.fid as cleanfid
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    x, y = features(1, N, 1.0), features(2, M, 1.1)
    logits = uniform(3, N * K).reshape(N, K) * np.float32(6)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    (mx, sx), (my, sy) = stats(x), stats(y)
    kwargs = dict(verbose=False)
    fidelity = kid_features_to_metric(tx, ty, kid_subsets=100, kid_subset_size=1000, rng_seed=2020, **kwargs)
    isc = isc_features_to_metric(torch.from_numpy(logits), 10, True, 2020)
    precision, recall = calculate_precision_recall_full(tx, ty, 3, 10000)
    np.random.seed(7)
    # samples are drawn first: they are clean-fid's second set
    clean_kid = cleanfid.kernel_distance(y.astype(np.float64), x.astype(np.float64))
    sx32, sy32 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    m0, s0 = stats(x, 0)
    n0, t0 = stats(y, 0)
    root = linalg.sqrtm(s0 @ t0)
    stylegan = float(np.real(((m0 - n0) ** 2).sum() + np.trace(s0 + t0 - 2 * root)))
    half = adm_precision_recall(y, x)
    far = adm_precision_recall(y * np.float32(100), x * np.float32(100))
    t64 = lambda a: torch.from_numpy(np.asarray(a, np.float64))
    rng = np.random.RandomState(5)
    a, b = x[rng.choice(N, 500, replace=False)], y[rng.choice(M, 500, replace=False)]
    return {
        "torch-fidelity fid": fid_statistics_to_metric(
            fid_features_to_statistics(tx), fid_features_to_statistics(ty), False
        )["frechet_inception_distance"],
        "torch-fidelity kid": fidelity["kernel_inception_distance_mean"],
        "torch-fidelity kid std": fidelity["kernel_inception_distance_std"],
        "torch-fidelity is": isc["inception_score_mean"],
        "torch-fidelity is std": isc["inception_score_std"],
        "torch-fidelity precision": precision,
        "torch-fidelity recall": recall,
        "pytorch-fid fid": float(calculate_frechet_distance(mx, sx, my, sy)),
        "torchmetrics fid": float(_compute_fid(t64(mx), t64(sx), t64(my), t64(sy))),
        "torchmetrics kid of 500": float(poly_mmd(t64(a), t64(b))),
        "clean-fid fid": float(cleanfid.frechet_distance(np.mean(x, 0), sx32, np.mean(y, 0), sy32)),
        "clean-fid kid": clean_kid,
        "stylegan3 fid": stylegan,
        "adm precision": half[0],
        "adm recall": half[1],
        "adm precision far": far[0],
        "adm recall far": far[1],
        "adm is of 500": adm_score(logits, 500),
    }


with contextlib.redirect_stdout(sys.stderr):
    found = main()
print(json.dumps(found, indent=1))
