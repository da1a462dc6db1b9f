"""Writes tests/data/manifold.json: neighbourhood metrics and FD-infinity of seeded features by the original tools' own code.

python tests/data/gen/manifold.py tests/data/manifold.json prdc
python tests/data/gen/manifold.py tests/data/manifold.json guided-diffusion DIR     (a checkout; TensorFlow 2)
python tests/data/gen/manifold.py tests/data/manifold.json stylegan3 DIR            (a checkout; torch)
python tests/data/gen/manifold.py tests/data/manifold.json dgm-eval DIR             (a checkout; scikit-learn)

Each call replaces its own part of the file. `evaluations/tests/golden.rs` draws the same features.
"""
import contextlib
import importlib.util
import io
import json
import os
import sys
import types
from pathlib import Path

import numpy as np


def draw(seed, count):
    """SplitMix64 of a counter: its upper 24 bits."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))) >> np.uint64(40)


def uniform(seed, rows, dims, scale):
    values = draw(seed, rows * dims).astype(np.float32) / np.float32(1 << 24)
    return (values * np.float32(scale)).reshape(rows, dims)


def coarse(seed, rows, dims, shortest, lengths, scale):
    """Features whose sums of products are exact in f32 whatever the order, and whose lengths differ from row to row: only the order of f16
    roundings is left to tell implementations apart."""
    values = 2 + draw(seed, rows * dims).reshape(rows, dims) % np.uint64(5)
    factors = shortest + draw(seed + 1000, rows)[:, None] % np.uint64(lengths)
    return (values * factors).astype(np.float32) * np.float32(scale)


# name: (seed, samples, reference, dims, shortest, lengths, scale)
COARSE = {
    # Squared lengths about as Inception's; the order of operands shows.
    "unequal": (19, 120, 100, 256, 6, 20, 2.0**-6),
    "wide": (19, 120, 100, 512, 10, 30, 2.0**-7),
    # Doubled products overflow f16: -inf, which the maximum with 0 turns into a distance of 0.
    "clamped": (37, 60, 64, 280, 20, 3, 2.0**-3),
    # Norms overflow too: inf - inf, so the block is f32.
    "overflowing": (41, 60, 64, 280, 20, 3, 2.0**-2),
}


def coarse_sets(name):
    seed, samples, reference, *how = COARSE[name]
    return coarse(seed, samples, *how), coarse(seed + 1, reference, *how)


def bits(flags):
    return "".join("1" if flag else "0" for flag in np.asarray(flags).reshape(-1))


def prdc_sets():
    """name: (samples, reference)."""
    real, fake = uniform(1, 150, 64, 1.0), uniform(2, 180, 64, 1.05)
    eight = np.repeat(real[:30], 8, axis=0)
    wide = uniform(3, 80, 700, 1.0)
    return {
        "plain": (fake, real),
        "wide": (uniform(4, 100, 700, 1.02), wide),
        "identical": (real, real.copy()),
        "every row eight times": (eight, eight.copy()),
        "collapsed": (np.repeat(fake[:1], 180, axis=0), real),
        "collapsed onto a reference image": (np.repeat(real[:1], 180, axis=0), real),
        "every other row": (real[::2].copy(), real),
        "thousandths": (fake * np.float32(1e-3), real * np.float32(1e-3)),
        "far from the origin": (fake + np.float32(1000), real + np.float32(1000)),
    }


def prdc():
    from prdc import compute_prdc

    out = {}
    for name, (samples, reference) in prdc_sets().items():
        with contextlib.redirect_stdout(io.StringIO()):
            found = compute_prdc(reference, samples, 5)
        out[name] = {metric: float(found[metric]) for metric in ("density", "coverage")}
    return out


def guided_diffusion(checkout):
    """The untouched evaluator but for one thing: `reduce_sum` of f16 adds in f32, as on a GPU; TensorFlow's CPU rounds partial sums to f16."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    plain = tf.reduce_sum
    tf.reduce_sum = lambda x, axis: tf.cast(plain(tf.cast(x, tf.float32), axis), x.dtype)
    sys.path.insert(0, str(Path(checkout) / "evaluations"))
    evaluator = importlib.import_module("evaluator")
    estimator = evaluator.ManifoldEstimator(tf.Session())
    out = {}
    for name in COARSE:
        samples, reference = coarse_sets(name)

        def flags(first, second):
            """Flags of both sets, as `evaluate_pr(first, ..., second, ...)` collects them."""
            radii = [estimator.manifold_radii(x) for x in (first, second)]
            return estimator.distance_block.less_thans(first, radii[0], second, radii[1])

        reference_inside, sample_inside = flags(reference, samples)
        precision, recall = estimator.evaluate_pr(
            reference, estimator.manifold_radii(reference), samples, estimator.manifold_radii(samples)
        )
        assert (float(precision[0]), float(recall[0])) == (sample_inside.mean(), reference_inside.mean())
        if name in ("unequal", "wide"):
            swapped = flags(samples, reference)
            assert bits(swapped[0]) != bits(sample_inside) or bits(swapped[1]) != bits(reference_inside), name
        out[name] = {"samples": bits(sample_inside), "reference": bits(reference_inside)}
    return out


def stylegan3(checkout):
    """`compute_pr` untouched; features stand in for the datasets and the detector."""
    sys.path.insert(0, str(checkout))
    import torch

    package = types.ModuleType("metrics")
    package.__path__ = [str(Path(checkout) / "metrics")]
    sys.modules["metrics"] = package
    utils = types.ModuleType("metrics.metric_utils")
    sys.modules["metrics.metric_utils"] = package.metric_utils = utils
    module = importlib.import_module("metrics.precision_recall")
    out = {}
    for name in ("unequal", "wide"):
        samples, reference = coarse_sets(name)
        stats = lambda x: lambda **_: types.SimpleNamespace(get_all_torch=lambda: torch.from_numpy(x))
        utils.compute_feature_stats_for_dataset = stats(reference)
        utils.compute_feature_stats_for_generator = stats(samples)
        opts = types.SimpleNamespace(num_gpus=1, rank=0, device="cpu")
        precision, recall = module.compute_pr(opts, len(reference), len(samples), 3, 10000, 10000)
        out[name] = {"precision": precision, "recall": recall}
    return out


def dgm_eval(checkout):
    """`compute_FD_infinity` untouched; its unseeded generator is replaced by `RandomState(3)`."""
    from scipy import linalg

    state = np.random.RandomState(3)
    choose = lambda rows, size, replace: rows[state.choice(len(rows), size, replace=replace)]
    sqrtm = linalg.sqrtm
    # The option `disp` is gone from later releases of SciPy; with disp=False the function returned an error estimate too.
    linalg.sqrtm = lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0)
    source = Path(checkout) / "dgm_eval" / "metrics" / "fd.py"
    spec = importlib.util.spec_from_file_location("fd", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = types.SimpleNamespace(default_rng=lambda: types.SimpleNamespace(choice=choose))
    module.np = types.SimpleNamespace(**{**vars(np), "random": generator})
    samples, reference = uniform(1, 1200, 24, 1.0), uniform(2, 1100, 24, 1.1)
    found = module.compute_FD_infinity(reference.astype(np.float64), samples.astype(np.float64))
    return {"seed": 3, "fd_infinity": float(found)}


if __name__ == "__main__":
    path, part, *checkout = sys.argv[1:]
    path = Path(path)
    parts = {"prdc": prdc, "guided-diffusion": guided_diffusion, "stylegan3": stylegan3, "dgm-eval": dgm_eval}
    with contextlib.redirect_stdout(sys.stderr):
        found = parts[part](*checkout)
    golden = json.loads(path.read_text()) if path.exists() else {}
    golden[part] = found
    path.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
