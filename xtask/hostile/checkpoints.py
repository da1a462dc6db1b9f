"""Hostile checkpoints: pickles, torch.save archives, safetensors. python checkpoints.py OUTDIR [FUNCTION...], in a folder with `tests`."""
import io, json, os, struct, sys, zipfile

OUT = sys.argv[1]
ONLY = sys.argv[2:]
os.makedirs(OUT, exist_ok=True)
GOLD = "tests/data/golden/edm-ncsnpp-uncond.safetensors"
GOLD_SKIP = "tests/data/golden/edm-ddpmpp-cond.safetensors"
MADE = []


def make(f):
    if not ONLY or f.__name__ in ONLY:
        f()
    return f


def save(name, data):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)
    print(f"{name}: {len(data)} bytes")


# --- pickle pieces -------------------------------------------------------------------------------------------------
def T(s):
    b = s.encode() if isinstance(s, str) else s
    return b"X" + struct.pack("<I", len(b)) + b


def G(module, name):
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def I(n):
    if 0 <= n < 256: return b"K" + bytes([n])
    if 0 <= n < 65536: return b"M" + struct.pack("<H", n)
    if -2**31 <= n < 2**31: return b"J" + struct.pack("<i", n)
    return b"\x8a\x08" + struct.pack("<q", n)


def tup(*xs):
    return b"(" + b"".join(xs) + b"t"


def put(i):
    return b"q" + bytes([i]) if i < 256 else b"r" + struct.pack("<I", i)


def get(i):
    return b"h" + bytes([i]) if i < 256 else b"j" + struct.pack("<I", i)


def storage(key, count, kind="FloatStorage"):
    return tup(T("storage"), G("torch", kind), T(key), T("cpu"), I(count)) + b"Q"


def tensor(store, dims, strides, offset=0):
    return G("torch._utils", "_rebuild_tensor_v2") + tup(store, I(offset), tup(*map(I, dims)), tup(*map(I, strides)), b"\x89", G("collections", "OrderedDict") + b")R") + b"R"


def torch_zip(pickle, entries, root="archive/"):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", zipfile.ZIP_STORED) as z:
        z.writestr(root + "data.pkl", pickle)
        z.writestr(root + "version", "3\n")
        for k, v in entries.items():
            z.writestr(root + "data/" + k, v)
    return b.getvalue()


MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def legacy(obj, keys, stores):
    """obj: pickle body without protocol and STOP"""
    b = MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}" + T("little_endian") + b"\x88s."
    b += b"\x80\x02" + obj + b"." + b"\x80\x02](" + b"".join(T(k) for k in keys) + b"e."
    for count, raw in stores:
        b += struct.pack("<q", count) + raw
    return b


def st(header, data=b""):
    h = json.dumps(header).encode()
    return struct.pack("<Q", len(h)) + h + data


def persistent(class_name, state, src=None):
    meta = b"}(" + T("type") + T("class") + T("version") + I(6) + T("module_src") + (src or T("")) + T("class_name") + T(class_name) + T("state") + state + b"u"
    return G("torch_utils.persistence", "_reconstruct_persistent_obj") + b"(" + meta + b"tR"


# --- numbered cases; the file names begin with the number ----------------------------------------------------------
@make
def b1():
    for n, name in [(4096, "b1-stack-global-4096.pkl"), (400_000, "b1-stack-global-400k.pkl")]:
        body = b"\x80\x04" + T(b"a" * (1 << 20)) + put(0) + b"0" + (get(0) * 2 + b"\x93" + b"0") * n + b"N."
        save(name, body)


@make
def b2():
    for k, m in [(1000, 1000), (5000, 5000), (20000, 20000)]:
        D = b"}(" + T("w") + put(2) + tensor(storage("0", 1), [1], [1]) + put(3) + (get(2) + get(3)) * (k - 1) + b"u" + put(4) + b"0"
        # D is a child of the root dict: build it first, memoise and pop it, then build the root
        root = b"}(" + T("d") + put(5) + get(4) + (get(5) + get(4)) * (m - 1) + b"u"
        save(f"b2-state-dicts-{k}x{m}.pt", torch_zip(b"\x80\x02" + D + root + b".", {"0": b"\0\0\0\0"}))


@make
def b3():
    # 1: constructor arguments: a list of references to one text of 1 MiB
    for n in (1000, 4000):
        state = b"}(" + T("_init_args") + b"](" + T(b"a" * (1 << 20)) + put(1) + get(1) * (n - 1) + b"e" + T("_init_kwargs") + b"}" + b"u"
        save(f"b3-args-{n}MiB.pkl", b"\x80\x04}(" + T("ema") + persistent("EDMPrecond", state) + b"u.")
    # 2: many references to one persistent object with a long source
    for n in (4000, 65000):
        src = T(b"x = 1\n" * 174_762) + put(9)
        obj = persistent("EDMPrecond", b"}(" + T("_init_args") + b")" + T("_init_kwargs") + b"}u", src) + put(10)
        save(f"b3-source-{n}MiB.pkl", b"\x80\x04}(" + T("k") + put(11) + obj + (get(11) + get(10)) * (n - 1) + b"u.")
    # 3: keys that are long sequences, printed with Debug
    n = 500_000
    seq = b"](" + I(1) + put(1) + get(1) * (n - 1) + b"e" + put(2)
    items = seq + b"N" + (get(2) + b"N") * 1000
    state = b"}(" + T("_init_args") + b")" + T("_init_kwargs") + b"}(" + items + b"u" + b"u"
    save("b3-debug-keys.pkl", b"\x80\x04}(" + T("ema") + persistent("EDMPrecond", state) + b"u.")


@make
def b4():
    big = legacy(b"}(" + T("w") + tensor(storage("0", 1_250_000), [1], [1]) + b"u", ["0"], [(1_250_000, b"\0" * 5_000_000)])
    # the nested object must be the storage itself: _load_from_bytes returns a storage
    inner = legacy(storage("0", 1_250_000), ["0"], [(1_250_000, b"\0" * 5_000_000)])
    text = inner.decode("latin1").encode("utf8")
    for n in (600, 60_000):
        enc = G("_codecs", "encode") + put(1) + b"0" + T(text) + put(2) + b"0" + T("latin1") + put(3) + b"0" + get(1) + get(2) + get(3) + b"\x86R" + put(4) + b"0"
        load = G("torch.storage", "_load_from_bytes") + put(5) + b"0"
        rebuild = G("torch._utils", "_rebuild_tensor_v2") + put(6) + b"0" + tup(I(1)) + put(7) + b"0" + G("collections", "OrderedDict") + b")R" + put(8) + b"0"
        items = b"".join(T(f"w{i}") + get(6) + b"(" + get(5) + get(4) + b"\x85R" + I(0) + get(7) + get(7) + b"\x89" + get(8) + b"tR" for i in range(n))
        save(f"b4-nested-latin1-{n}.pkl", b"\x80\x02" + enc + load + rebuild + b"}(" + items + b"u.")
    # BINBYTES costs time only: the pickle of the nested object is long
    pad = b"N" + put(99) + b"0" + (get(99) + b"0") * 1_660_000  # recalls add no value, so no bound counts them
    inner = legacy(pad + storage("0", 4), ["0"], [(4, b"\0" * 16)])
    for n in (100, 60_000):
        enc = b"B" + struct.pack("<I", len(inner)) + inner + put(4) + b"0"
        load = G("torch.storage", "_load_from_bytes") + put(5) + b"0"
        rebuild = G("torch._utils", "_rebuild_tensor_v2") + put(6) + b"0" + tup(I(1)) + put(7) + b"0" + G("collections", "OrderedDict") + b")R" + put(8) + b"0"
        items = b"".join(T(f"w{i}") + get(6) + b"(" + get(5) + get(4) + b"\x85R" + I(0) + get(7) + get(7) + b"\x89" + get(8) + b"tR" for i in range(n))
        save(f"b4-nested-bytes-{n}.pkl", b"\x80\x03" + enc + load + rebuild + b"}(" + items + b"u.")


KW = {"img_resolution": 8, "img_channels": 3, "model_type": "SongUNet"}


@make
def b5():
    for n in (100_000, 3_000_000):
        meta = {"class": "EDMPrecond", "init_kwargs": json.dumps(KW), "networks": json.dumps([""] * n, separators=(",", ":"))}
        save(f"b5-networks-{n}.safetensors", st({"__metadata__": meta, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4))
    # many tensors and many names: O(n*m)
    n, m = 5000, 30_000
    meta = {"class": "EDMPrecond", "init_kwargs": json.dumps(KW), "networks": json.dumps(["w"] * n)}
    h = {"__metadata__": meta}
    for i in range(m):
        h[f"w.{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    save("b5-networks-5000-tensors-30000.safetensors", st(h))


def load_st(path):
    b = open(path, "rb").read()
    n = struct.unpack("<Q", b[:8])[0]
    return json.loads(b[8:8 + n]), b[8 + n:]


def weights_only(path):
    h, data = load_st(path)
    out, raw = {"__metadata__": h["__metadata__"]}, b""
    for k, v in h.items():
        if k.startswith("weights."):
            a, b = v["data_offsets"]
            out[k] = dict(v, data_offsets=[len(raw), len(raw) + b - a])
            raw += data[a:b]
    return out, raw


@make
def b6():
    # a: empty filter with zero-size tensors
    h, raw = weights_only(GOLD)
    kw = json.loads(h["__metadata__"]["init_kwargs"])
    kw["resample_filter"] = []
    h["__metadata__"] = {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}
    out, data = {"__metadata__": h["__metadata__"]}, b""
    for k, v in h.items():
        if k == "__metadata__": continue
        a, b = v["data_offsets"]
        piece = b"" if "resample_filter" in k else raw[a:b]
        shape = [1, 1, 0, 0] if "resample_filter" in k else v["shape"]
        out[k] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    save("b6-empty-filter.safetensors", st(out, data))
    # b: a sum of zero divides by zero and gives a kernel of NaN
    for name, filt in [("zero-sum", [1, -1]), ("huge", [1e308, 1e308]), ("odd", [1, 2, 1])]:
        h, raw = weights_only(GOLD)
        kw = json.loads(h["__metadata__"]["init_kwargs"])
        kw["resample_filter"] = filt
        t = len(filt)
        out, data = {"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}, b""
        for k, v in h.items():
            if k == "__metadata__": continue
            a, b = v["data_offsets"]
            piece, shape = raw[a:b], v["shape"]
            if "resample_filter" in k:
                piece, shape = struct.pack(f"<{t*t}f", *([0.25] * t * t)), [1, 1, t, t]
            out[k] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
            data += piece
        save(f"b6-filter-{name}.safetensors", st(out, data))
    # c: 1024 taps, 16384 channels, skip encoder: the kernel is tiled for every channel
    for taps, chans in [(256, 4096), (1024, 16384)]:
        kw = {"img_resolution": 2, "img_channels": chans, "label_dim": 0, "model_type": "SongUNet", "model_channels": 4, "channel_mult": [1, 1], "channel_mult_emb": 1, "num_blocks": 1,
              "attn_resolutions": [], "embedding_type": "positional", "channel_mult_noise": 1, "encoder_type": "skip", "decoder_type": "standard", "resample_filter": [1.0] * taps}
        h = {"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}
        data = bytearray()
        def add(name, *shape, share=None):
            n = 1
            for d in shape: n *= d
            h["weights.model." + name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [len(data), len(data) + n]}
            data.extend(b"\0" * n)
        c, e = 4, 4
        def lin(name, i, o): add(name + ".weight", o, i); add(name + ".bias", o)
        def conv(name, i, o, k, filt=False):
            if k: add(name + ".weight", o, i, k, k); add(name + ".bias", o)
            if filt: add(name + ".resample_filter", 1, 1, taps, taps)
        def norm(name, n): add(name + ".weight", n); add(name + ".bias", n)
        def block(name, i, o, resample=False, skip=None):
            norm(name + ".norm0", i); conv(name + ".conv0", i, o, 3, resample); lin(name + ".affine", e, o); norm(name + ".norm1", o); conv(name + ".conv1", o, o, 3)
            if skip if skip is not None else (i != o or resample): conv(name + ".skip", i, o, 1 if (i != o or resample) else 0, resample)
        lin("map_layer0", c, e); lin("map_layer1", e, e)
        conv("enc.2x2_conv", chans, c, 3)
        block("enc.2x2_block0", c, c)
        block("enc.1x1_down", c, c, True)
        conv("enc.1x1_aux_down", chans, chans, 0, True)
        conv("enc.1x1_aux_skip", chans, c, 1)
        block("enc.1x1_block0", c, c)
        save(f"b6-tiled-{taps}taps-{chans}channels.safetensors", st(h, bytes(data)))


@make
def b7():
    for key in ("augment_dim", "channel_mult_emb", "model_channels", "channel_mult_noise", "label_dim"):
        kw = dict(KW, **{key: 2**64 - 1})
        save(f"b7-{key}.safetensors", st({"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}))
    for key, v in [("num_blocks", 64), ("channel_mult", [64] * 4), ("attn_resolutions", list(range(1_000_00))), ("label_dim", 2**28), ("img_resolution", 4096)]:
        kw = dict(KW, **{key: v})
        save(f"b7-{key}-big.safetensors", st({"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}))
    # a huge augment_dim, with small values for the sizes that are used before it
    kw = dict(KW, model_channels=4, channel_mult=[1], num_blocks=1, augment_dim=2**64 - 1)
    save("b7-augment_dim-2.safetensors", st({"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}))
    kw = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet", "channel_mult_emb": 2**63}
    save("b7-dhariwal-emb.safetensors", st({"__metadata__": {"class": "EDMPrecond", "init_kwargs": json.dumps(kw)}}))


@make
def b9():
    for n in (20_000, 500_000):
        state = b"}(" + T("k") + put(1) + b"N" + (get(1) + b"N") * (n - 1) + b"u" + put(2) + b"0"
        obj = G("torch.nn", "Linear") + b")R" + get(2) + b"b" + put(3) + b"0"
        root = b"}(" + T("d") + put(5) + get(3) + (get(5) + get(3)) * (n - 1) + b"u."
        save(f"b9-modules-{n}.pkl", b"\x80\x02" + state + obj + root)
    for n in (20_000, 100_000):
        h = {}
        for k, shape in [("middle_block.1.qkv.weight", [3, 1, 1]), ("time_embed.0.weight", [4, 1]), ("input_blocks.0.0.weight", [1, 3, 3, 3])]:
            c = 1
            for d in shape: c *= d
            h[k] = (shape, c)
        head, data = {}, 0
        for k, (shape, c) in h.items():
            head[k] = {"dtype": "U8", "shape": shape, "data_offsets": [data, data + c]}
            data += c
        for i in range(n):
            head[f"output_blocks.{i}.x"] = {"dtype": "U8", "shape": [0], "data_offsets": [data, data]}
        save(f"b9-openai-{n}.safetensors", st(head, b"\0" * data))


# --- more ----------------------------------------------------------------------------------------------------------
@make
def deep():
    n = 200_000
    save("deep-list.pkl", b"\x80\x02" + b"]" * n + b"a" * (n - 1) + b".")
    save("deep-tuple.pkl", b"\x80\x02" + b")" + b"\x85" * n + b".")
    # a dict that contains itself, as state dict and as module
    save("self-dict.pkl", b"\x80\x02}" + put(1) + T("a") + get(1) + b"s.")
    state = b"}" + put(1) + T("_modules") + b"}" + put(2)
    save("self-module.pkl", b"\x80\x02" + G("torch.nn", "Module") + b")R" + put(3) + b"}" + T("_modules") + b"}" + put(2) + T("m") + get(3) + b"s" + b"sb.")
    save("evil-os-system.pkl", b"\x80\x02" + G("os", "system") + tup(T("touch executed")) + b"R.")
    save("evil-getattr.pkl", b"\x80\x02" + G("torch._utils", "_rebuild_tensor_v2/../../os.system") + tup(T("id")) + b"R.")
    save("recursion-parameter.pkl", b"\x80\x02" + G("torch._utils", "_rebuild_parameter") + put(1) + b"]" + put(2) + get(2) + b"aR.")
    save("empty.pkl", b"")
    save("one-byte.safetensors", b"\0")
    save("header-huge.safetensors", struct.pack("<Q", 100_000_000) + b"{")
    save("header-2e63.safetensors", struct.pack("<Q", 2**63) + b"{" + b" " * 64)
    save("json-deep.safetensors", struct.pack("<Q", 1_000_008) + b'{"a":' + b"[" * 1_000_003 + b"\0" * 8)
    save("dup-names.safetensors", struct.pack("<Q", 118) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(118) + b"\0" * 4)
    save("shape-overflow.safetensors", st({"a": {"dtype": "F32", "shape": [2**32, 2**32, 2**32], "data_offsets": [0, 0]}}))
    save("shape-zero-huge.safetensors", st({"a": {"dtype": "F32", "shape": [0, 2**63, 2**63], "data_offsets": [0, 0]}}))
    # names with control characters for terminals
    save("escape-names.safetensors", st({"\x1b[31m\x1b]0;title\x07<script>\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"class": "\x1b[2J", "init_kwargs": "{}"}}, b"\0" * 4))
    # strides: views that overlap, a huge zero-stride view
    save("zero-stride.pt", torch_zip(b"\x80\x02}" + T("w") + tensor(storage("0", 1), [2**30, 2**30], [0, 0]) + b"s.", {"0": b"\0" * 4}))
    save("zip-two-datapkl.pt", b"")
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w") as z:
        z.writestr("a/data.pkl", b"\x80\x02}."); z.writestr("b/data.pkl", b"\x80\x02}.")
    save("zip-two-datapkl.pt", b.getvalue())
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 50_000_000 + b"}.")
    save("zip-deflated-datapkl.pt", b.getvalue())
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w") as z:
        z.writestr("../../../..executed/data.pkl", b"\x80\x02}" + T("w") + tensor(storage("0", 1), [1], [1]) + b"s.")
        z.writestr("../../../..executed/data/0", b"\0" * 4)
    save("zip-traversal.pt", b.getvalue())
    save("memo-sparse.pkl", b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", i) for i in range(0, 1 << 22)) + b".")
    save("marks.pkl", b"\x80\x02" + b"(" * 5000 + b".")
    # a huge int
    save("long.pkl", b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\xff" * (1 << 20) + b".")
