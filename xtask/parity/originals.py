"""Runs one original tool on the images and weights of a parity run and prints what it finds, as JSON.

python originals.py prepare DIR          draws the networks' weights
python originals.py folders DIR          draws the images
python originals.py vgg16 DIR            draws the weights of VGG16
python originals.py features DIR         features of torch-fidelity's Inception for the tools that take any detector
python originals.py matrices DIR         d2o's features beside them
python originals.py TOOL DIR [CHECKOUT]  torch-fidelity, pytorch-fid, clean-fid, torchmetrics, prdc, edm, stylegan3, guided-diffusion

Tools without a package are run from a checkout of their sources. Everything is seeded; nothing is downloaded.
"""
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import sys
import types

import numpy as np

# Seed, number, and side; None for sides drawn from 16 to 90.
SETS = {
    "real-32": (0, 110, 32), "fake-32": (1, 100, 32), "real-64": (2, 24, 64), "fake-64": (3, 20, 64),
    "real-mixed": (4, 30, None), "fake-mixed": (5, 26, None),
}
# Sets of JPEGs made of the sets of 32, and their quality.
JPEGS = {"jpeg75": 75, "jpeg95": 95}
# Sets with images of one size, for which features are saved.
TABLED = [f"{kind}-{which}" for which in ("32", "64", *JPEGS) for kind in ("real", "fake")]
SUBSETS, SUBSET_SIZE = 100, 50


def images(name):
    """Smooth waves, an edge and noise, u8 [H, W, 3] each; fakes have twice the noise and are 4 levels brighter."""
    seed, count, side = SETS[name]
    rng = np.random.RandomState(seed)
    for _ in range(count):
        height, width = rng.randint(16, 91, 2) if side is None else (side, side)
        y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
        c = rng.rand(4, 3)
        wave = np.sin(9 * c[0] * x[..., None] + 7 * c[1] * y[..., None] + 6 * c[2])
        edge = (x * rng.rand() + y * rng.rand() > 0.45)[..., None] * c[3]
        noise = rng.randn(height, width, 3) * (6 + 6 * (seed % 2))
        yield np.clip(128 + 70 * wave + 60 * (edge - 0.5) + noise + 4 * (seed % 2), 0, 255).astype(np.uint8)


def folders(folder):
    from PIL import Image

    for name in SETS:
        kind, which = name.split("-")
        jpegs = JPEGS if which == "32" else {}
        for target in (which, *jpegs):
            os.makedirs(f"{folder}/{kind}-{target}", exist_ok=True)
        for i, pixels in enumerate(images(name)):
            image = Image.fromarray(pixels)
            image.save(f"{folder}/{name}/{i:05d}.png")
            for target, quality in jpegs.items():
                image.save(f"{folder}/{kind}-{target}/{i:05d}.jpg", quality=quality, subsampling="4:2:0")
    return []


def prepare(folder):
    import torch

    inception = fidelity_inception(None)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in inception.state_dict().items():
        normal = torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        if key.endswith("conv.weight"):
            value = normal * (2.0 / value[0].numel()) ** 0.5
        elif key.endswith("running_var"):
            value = 0.75 + 0.5 * torch.rand(value.shape, generator=generator)
        elif key.endswith("bn.weight"):
            value = torch.ones_like(value)
        elif key.startswith("fc.weight"):
            value = normal * 0.05
        elif value.is_floating_point():
            value = normal * 0.1
        state[key] = value
    torch.save(state, f"{folder}/inception.pth")
    torch.manual_seed(1)
    tower = clip_tower()
    torch.save({f"visual.{k}": v for k, v in tower.state_dict().items()}, f"{folder}/clip.pth")
    return []


def vgg16(folder):
    """torchvision's VGG16 with its own initialisation, seeded."""
    import torch
    import torchvision

    torch.manual_seed(2)
    torch.save(torchvision.models.vgg16(weights=None).state_dict(), f"{folder}/vgg16.pth")
    return []


def clip_tower():
    import open_clip

    return open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).visual.eval()


def load_clip(folder):
    import torch

    tower = clip_tower()
    state = torch.load(f"{folder}/clip.pth")
    tower.load_state_dict({k.removeprefix("visual."): v for k, v in state.items()})
    return tower


def fidelity_inception(weights):
    """torch-fidelity's network; None for one without trained weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    layers = ["2048", "logits_unbiased"]
    if weights is None:
        module.load_state_dict_from_url = lambda *a, **k: {}
        module.FeatureExtractorInceptionV3.load_state_dict = lambda self, *a, **k: None
    return module.FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=weights).eval()


def read(folder, name):
    from PIL import Image

    files = sorted(os.listdir(f"{folder}/{name}"))
    return np.stack([np.asarray(Image.open(f"{folder}/{name}/{f}").convert("RGB")) for f in files])


def key(image):
    """SHA-256 of an image, u8 [3, S, S]."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def features(folder):
    import h5py
    import torch

    net = fidelity_inception(f"{folder}/inception.pth")
    taken = []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: taken.append(out))
    for name in TABLED:
        rows = {"pool": [], "logits": [], "spatial": [], "key": []}
        x = torch.from_numpy(read(folder, name)).permute(0, 3, 1, 2).contiguous()
        for part in x.split(20):
            with torch.no_grad():
                pool, logits = net(part)
            rows["pool"].append(pool.numpy())
            rows["logits"].append(logits.numpy())
            # guided-diffusion keeps the first seven channels of this branch and flattens NHWC
            rows["spatial"].append(taken.pop()[:, :7].permute(0, 2, 3, 1).flatten(1).numpy())
            rows["key"].append(np.array([key(i) for i in part.numpy()]))
        rows = {k: np.concatenate(v) for k, v in rows.items()}
        np.savez(f"{folder}/features-{name}.npz", **rows)
        for file, pool in (("pool", rows["pool"]), ("unequal", unequal(name.split("-")[0], rows["pool"]))):
            with h5py.File(f"{folder}/{file}-{name}.h5", "w") as h5:
                h5["features"] = pool
    return []


def unequal(kind, pool):
    """Rows times factors from 1/4 to 6: norms differ, and every term fits into f16. Keeps 7 of 10 fakes.

    With these seeds, precision and recall of the sets of 32 depend on the order of operands and on f16.
    """
    if kind == "fake":
        pool = pool[: len(pool) * 7 // 10]
    factors = np.exp(np.random.RandomState({"real": 6, "fake": 106}[kind]).uniform(np.log(0.25), np.log(6), len(pool)))
    return pool * factors.astype(np.float32)[:, None]


def matrices(folder):
    """Features that `d2o refs make` keeps beside those of torch-fidelity's Inception: largest difference over the largest value."""
    out = []
    for protocol in ("edm", "adm"):
        ours = np.load(f"{folder}/ours-{protocol}.npz")["features"]
        theirs = np.load(f"{folder}/features-real-32.npz")["pool"]
        assert ours.shape == theirs.shape
        out.append(dict(protocol=protocol, shape=list(ours.shape), relative=float(np.abs(ours - theirs).max() / np.abs(theirs).max())))
    return out


def detector(folder):
    """A module that looks up the saved features of an image by its pixels, for tools that accept any detector."""
    import torch

    table = {}
    for name in TABLED:
        saved = np.load(f"{folder}/features-{name}.npz")
        for k, pool, logits in zip(saved["key"], saved["pool"], saved["logits"]):
            table[str(k)] = (pool, logits)

    class Detector(torch.nn.Module):
        num_features = 2048

        def forward(self, x, return_features=False, no_output_bias=False):
            rows = [table[key(i)] for i in x.to(torch.uint8).numpy()]
            pool = torch.from_numpy(np.stack([r[0] for r in rows]))
            if no_output_bias:
                return torch.from_numpy(np.stack([r[1] for r in rows])).softmax(1)
            return pool

    return Detector()


def row(protocol, metric, value, which=32, **more):
    """`which` images: of 32 or 64 pixels, jpeg75, jpeg95 or mixed."""
    return dict(protocol=protocol, metric=metric, images=str(which), value=float(value), **more)


def read_rows(folder, name):
    import h5py

    with h5py.File(f"{folder}/{name}") as h5:
        return h5["features"][:]


def version(package):
    return f"{package} {importlib.metadata.version(package)}"


def torch_fidelity(folder):
    from torch_fidelity import calculate_metrics

    out, tool = [], version("torch-fidelity")
    for size in (32, 64):
        kid = size == 32
        found = calculate_metrics(
            input1=f"{folder}/fake-{size}", input2=f"{folder}/real-{size}", cuda=False, isc=True, fid=True, kid=kid, prc=True,
            kid_subset_size=SUBSET_SIZE, kid_subsets=SUBSETS, feature_extractor="inception-v3-compat", feature_layer_prc="2048",
            feature_extractor_weights_path=f"{folder}/inception.pth", cache=False, verbose=False, batch_size=20,
        )
        names = {
            "fid": "frechet_inception_distance", "is": "inception_score_mean", "is std": "inception_score_std",
            "kid": "kernel_inception_distance_mean", "kid std": "kernel_inception_distance_std", "precision": "precision",
            "recall": "recall",
        }
        # The tool's f32 kernels cancel to few digits. A later row is the same function on the same features in f64.
        short = lambda m: dict(tool=f"{tool}, f32 sums", known=True) if m == "kid" else dict(tool=tool)
        out += [row("torch-fidelity", m, found[n], size, **short(m)) for m, n in names.items() if n in found]
    # Images of different sizes go through the tool one by one.
    for which in (*JPEGS, "mixed"):
        found = calculate_metrics(
            input1=f"{folder}/fake-{which}", input2=f"{folder}/real-{which}", cuda=False, fid=True,
            feature_extractor_weights_path=f"{folder}/inception.pth", cache=False, verbose=False,
            batch_size=1 if which == "mixed" else 20,
        )
        out.append(row("torch-fidelity", "fid", found["frechet_inception_distance"], which, tool=tool))
    found = calculate_metrics(
        input1=f"{folder}/fake-32", input2=f"{folder}/real-32", cuda=False, prc=True, feature_extractor="vgg16",
        feature_extractor_weights_path=f"{folder}/vgg16.pth", cache=False, verbose=False, batch_size=20,
    )
    more = dict(tool=f"{tool}, VGG16 (its default)", extractor="vgg16.onnx")
    out += both("torch-fidelity", [found["precision"], found["recall"]], 32, **more)
    from torch_fidelity.metric_kid import kid_features_to_metric
    import torch

    sets = [torch.from_numpy(np.load(f"{folder}/features-{kind}-32.npz")["pool"]).double() for kind in ("fake", "real")]
    found = kid_features_to_metric(*sets, kid_subset_size=SUBSET_SIZE, kid_subsets=SUBSETS, verbose=False)
    out.append(row("torch-fidelity", "kid", found["kernel_inception_distance_mean"], 32, tool=f"{tool}, its function on f64 features"))
    return out


def pytorch_fid(folder):
    import torch
    from pytorch_fid import fid_score, inception

    state = torch.load(f"{folder}/inception.pth")
    inception.load_state_dict_from_url = lambda *a, **k: state
    out = []
    for which in (32, 64, *JPEGS, "mixed"):
        paths = [f"{folder}/fake-{which}", f"{folder}/real-{which}"]
        batch = 1 if which == "mixed" else 20
        value = fid_score.calculate_fid_given_paths(paths, batch, "cpu", 2048, num_workers=0)
        out.append(row("pytorch-fid", "fid", value, which, tool=version("pytorch-fid")))
    stats = f"{folder}/stats-pytorch-fid.npz"
    with contextlib.suppress(FileNotFoundError):
        os.remove(stats)  # the tool does not replace it
    fid_score.save_fid_stats([f"{folder}/real-32", stats], 20, "cpu", 2048, num_workers=0)
    return out


def clean_fid(folder):
    import torch

    clip = sys.modules["clip"] = types.ModuleType("clip")
    from cleanfid import clip_features, fid

    tool = version("clean-fid")
    body = fidelity_inception(f"{folder}/inception.pth")

    def network(x):
        """Resized values 0 to 255 to pool3: clean-fid hands them to the layers behind Inception's own resize."""
        with torch.no_grad():
            return bypass(body, x)

    out = []
    for which in (32, 64, *JPEGS, "mixed"):
        how = dict(mode="clean", num_workers=0, batch_size=20, device=torch.device("cpu"), verbose=False, use_dataparallel=False)
        sets = [f"{folder}/fake-{which}", f"{folder}/real-{which}"]
        value = fid.compute_fid(*sets, custom_feat_extractor=network, **how)
        out.append(row("clean", "fid", value, which, tool=tool))
        if which in (*JPEGS, "mixed"):
            continue
        if which == 32:
            fake, real = (fid.get_folder_features(s, model=network, num_workers=0, batch_size=20, device=torch.device("cpu"),
                                                  mode="clean", verbose=False) for s in sets)
            np.savez_compressed(f"{folder}/stats-clean.npz", mu=np.mean(real, axis=0), sigma=np.cov(real, rowvar=False))
            # samples are drawn first: they are clean-fid's second set
            np.random.seed(0)
            value = fid.kernel_distance(real, fake, num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE)
            out.append(row("clean", "kid", value, which, tool=tool))
        tower = load_clip(folder)
        model = types.SimpleNamespace(encode_image=tower, eval=lambda: None)
        clip.load = lambda *a, **k: (model, None)
        extractor = clip_features.CLIP_fx("ViT-B/32", device="cpu")
        rows = [
            fid.get_folder_features(s, model=extractor, num_workers=0, batch_size=20, device=torch.device("cpu"), mode="clean",
                                    custom_fn_resize=clip_features.img_preprocess_clip, verbose=False)
            for s in sets
        ]
        stats = [(np.mean(r, axis=0), np.cov(r, rowvar=False)) for r in rows]
        out.append(row("clean", "clip_fid", fid.frechet_distance(*stats[0], *stats[1]), which, tool=tool))
        # consistency models' evaluator: the same images and tower without its projection
        tower.proj = None
        rows = [
            fid.get_folder_features(s, model=extractor, num_workers=0, batch_size=20, device=torch.device("cpu"), mode="clean",
                                    custom_fn_resize=clip_features.img_preprocess_clip, verbose=False)
            for s in sets
        ]
        stats = [(np.mean(r, axis=0), np.cov(r, rowvar=False)) for r in rows]
        out.append(row("adm", "clip_fid", fid.frechet_distance(*stats[0], *stats[1]), which, tool=f"{tool}, tower without `proj`"))
    return out


def bypass(net, x):
    """torch-fidelity's layers on resized values."""
    x = (x - 128) / 128
    for name in ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
                 "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
                 "Mixed_7b", "Mixed_7c", "AvgPool"]:
        x = getattr(net, name)(x)
    return x.flatten(1)


def torchmetrics(folder):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    fid = FrechetInceptionDistance(feature=detector(folder))
    for name, real in (("real-32", True), ("fake-32", False)):
        for part in torch.from_numpy(read(folder, name)).permute(0, 3, 1, 2).split(20):
            fid.update(part, real=real)
    return [row("torch-fidelity", "fid", fid.compute(), tool=version("torchmetrics") + ", Inception without antialiasing")]


def prdc(folder):
    from prdc import compute_prdc

    out, tool = [], version("prdc")
    for which, file in ((32, "pool"), (64, "pool"), (32, "unequal")):
        files = [f"{file}-{kind}-{which}.h5" for kind in ("real", "fake")]
        found = compute_prdc(*(read_rows(folder, f) for f in files), nearest_k=5)
        told = tool + (", rows of unequal norms" if file == "unequal" else "")
        more = dict(tool=told, reference=files[0], samples=files[1])
        out += [row("edm", metric, found[metric], which, **more) for metric in ("density", "coverage")]
    return out


def edm(folder, checkout):
    import torch

    sys.path.insert(0, checkout)
    import dnnlib
    import fid

    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29517")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    net = detector(folder)
    dnnlib.util.open_url = lambda *a, **k: contextlib.nullcontext(io.BytesIO())
    fid.pickle = types.SimpleNamespace(load=lambda f: net)
    how = dict(num_workers=0, prefetch_factor=None, device=torch.device("cpu"))
    out, stats = [], {}
    for which in (32, 64, *JPEGS):
        for kind in ("real", "fake"):
            name = f"{kind}-{which}"
            count = SETS[f"{kind}-32" if which in JPEGS else name][1]
            stats[name] = fid.calculate_inception_stats(f"{folder}/{name}", num_expected=count, **how)
        value = fid.calculate_fid_from_inception_stats(*stats[f"fake-{which}"], *stats[f"real-{which}"])
        out.append(row("edm", "fid", value, which, tool="EDM fid.py"))
    mu, sigma = stats["real-32"]
    np.savez(f"{folder}/stats-edm.npz", mu=mu, sigma=sigma)
    mine = f"{folder}/ours-edm.npz"
    if os.path.exists(mine):
        ref = dict(np.load(mine))
        value = fid.calculate_fid_from_inception_stats(*stats["fake-32"], ref["mu"], ref["sigma"])
        out.append(row("edm", "fid", value, 32, tool="EDM fid.py, reference by d2o refs make"))
    return out


def stylegan3(folder, checkout):
    import torch

    sys.path.insert(0, checkout)
    from metrics import frechet_inception_distance, inception_score, kernel_inception_distance, metric_utils, precision_recall

    net = detector(folder)
    metric_utils.get_feature_detector = lambda *a, **k: net
    loader = dict(num_workers=0)

    def dataset(opts, detector_url, detector_kwargs, name="real-32", rel_lo=0, rel_hi=1, **kwargs):
        opts = metric_utils.MetricOptions(dataset_kwargs=source(name), num_gpus=1, rank=0, device=torch.device("cpu"), cache=False)
        return original(opts, detector_url, detector_kwargs, data_loader_kwargs=loader, **kwargs)

    def source(name):
        return dict(class_name="training.dataset.ImageFolderDataset", path=f"{folder}/{name}")

    original = metric_utils.compute_feature_stats_for_dataset
    metric_utils.compute_feature_stats_for_dataset = dataset
    # The generator's images are the fakes.
    metric_utils.compute_feature_stats_for_generator = lambda *a, **k: dataset(*a, name="fake-32", **k)
    opts = metric_utils.MetricOptions(dataset_kwargs=source("real-32"), num_gpus=1, rank=0, device=torch.device("cpu"), cache=False)
    count = SETS["fake-32"][1]
    tool = "StyleGAN3 metrics"
    out = [row("stylegan3", "fid", frechet_inception_distance.compute_fid(opts, None, count), tool=tool)]
    np.random.seed(0)
    kid = kernel_inception_distance.compute_kid(opts, None, count, SUBSETS, SUBSET_SIZE)
    mean, std = inception_score.compute_is(opts, count, 10)
    out += [row("stylegan3", m, v, tool=tool) for m, v in (("kid", kid), ("is", mean), ("is std", std))]
    precision, recall = precision_recall.compute_pr(opts, None, count, 3, 10000, 10000)
    out += [row("stylegan3", m, v, tool=tool + ", Inception features") for m, v in (("precision", precision), ("recall", recall))]
    return out


def guided_diffusion(folder, checkout):
    import h5py
    import tensorflow.compat.v1 as tf

    sys.path.insert(0, f"{checkout}/evaluations")
    import evaluator

    tool = f"guided-diffusion evaluator.py, TensorFlow {tf.__version__}"

    class Softmax:
        """Replaces the session of the softmax graph: softmax of the saved logits of the same activations."""

        def run(self, _fetch, feed_dict):
            (rows,) = feed_dict.values()
            logits = np.stack([classes[r.tobytes()] for r in rows]).astype(np.float32)
            e = np.exp(logits - logits.max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

    out = []
    for size in (32, 64):
        real, fake = (dict(np.load(f"{folder}/features-{k}-{size}.npz")) for k in ("real", "fake"))
        classes = {p.tobytes(): l for s in (real, fake) for p, l in zip(s["pool"], s["logits"])}
        it = evaluator.Evaluator.__new__(evaluator.Evaluator)
        it.sess, it.softmax, it.softmax_input, it.softmax_batch_size = Softmax(), None, 0, 512
        with tf.Graph().as_default(), tf.Session() as session:
            it.manifold_estimator = evaluator.ManifoldEstimator(session)
            for name, features in (("fid", "pool"), ("sfid", "spatial")):
                value = it.compute_statistics(fake[features]).frechet_distance(it.compute_statistics(real[features]))
                out.append(row("adm", name, value, size, tool=tool))
            out.append(row("adm", "is", it.compute_inception_score(fake["pool"]), size, tool=tool))
            uneven = dict(zip(("reference", "samples"), (f"unequal-{kind}-{size}.h5" for kind in ("real", "fake"))))
            uneven_rows = [read_rows(folder, f) for f in uneven.values()]
            # TensorFlow's CPU rounds partial sums of f16 norms to f16, in an order that depends on the processor.
            pair = it.compute_prec_recall(real["pool"], fake["pool"])
            out += both("adm", pair, size, tool=f"{tool}, f16 sums of its CPU", known=True)
            pair = it.compute_prec_recall(*uneven_rows)
            out += both("adm", pair, size, tool=f"{tool}, rows of unequal norms, f16 sums of its CPU", **uneven)
            if size == 32:
                # Far apart, f16 overflows and the evaluator falls back to f32. Multiplying by 64 is exact.
                far = [s["pool"] * np.float32(64) for s in (real, fake)]
                files = [f"far-{kind}.h5" for kind in ("real", "fake")]
                for file, rows in zip(files, far):
                    with h5py.File(f"{folder}/{file}", "w") as h5:
                        h5["features"] = rows
                pair = it.compute_prec_recall(*far)
                out += both("adm", pair, size, tool=f"{tool}, f32 blocks (features × 64)", reference=files[0], samples=files[1])
                reference = f"{folder}/stats-adm.npz"
                stats, spatial = it.compute_statistics(real["pool"]), it.compute_statistics(real["spatial"])
                np.savez(reference, arr_0=read(folder, "real-32"), mu=stats.mu, sigma=stats.sigma, mu_s=spatial.mu, sigma_s=spatial.sigma)
                mine = f"{folder}/ours-adm.npz"
                if os.path.exists(mine):
                    with evaluator.open_npz_array(mine, "arr_0") as reader:
                        assert sum(len(b) for b in reader.read_batches(64)) == SETS["real-32"][1]
                    ours = it.read_statistics(mine, None)
                    for name, features, stat in (("fid", "pool", ours[0]), ("sfid", "spatial", ours[1])):
                        value = it.compute_statistics(fake[features]).frechet_distance(stat)
                        out.append(row("adm", name, value, size, tool=tool + ", reference by d2o refs make"))
        with tf.Graph().as_default(), tf.Session() as session:
            evaluator.tf = Wide(tf)
            it.manifold_estimator = evaluator.ManifoldEstimator(session)
            pair = it.compute_prec_recall(real["pool"], fake["pool"])
            out += both("adm", pair, size, tool=f"{tool}, f16 blocks, norms summed in f32")
            for sides in ((0, 0), (1, 1), (0, 1)):
                block = it.manifold_estimator.distance_block.pairwise_distances(*(uneven_rows[i] for i in sides))
                assert (block == block.astype(np.float16)).all(), "a block of f32"
            pair = it.compute_prec_recall(*uneven_rows)
            out += both("adm", pair, size, tool=f"{tool}, rows of unequal norms, norms summed in f32", **uneven)
            evaluator.tf = tf
    return out


class Wide:
    """TensorFlow with sums of f16 computed in f32 and rounded once, like its f16 products."""

    def __init__(self, tf):
        self.tf = tf

    def __getattr__(self, name):
        return getattr(self.tf, name)

    def reduce_sum(self, x, axis):
        wide = self.tf.reduce_sum(self.tf.cast(x, self.tf.float32), axis)
        return self.tf.cast(wide, x.dtype)


def both(protocol, pair, size, **more):
    return [row(protocol, m, v, size, **more) for m, v in zip(("precision", "recall"), pair)]


def main():
    tool, folder, *rest = sys.argv[1:]
    run = globals()[tool.replace("-", "_")]
    with contextlib.redirect_stdout(sys.stderr):
        found = run(folder, *rest)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
