"""Hostile ONNX graphs. python graphs.py OUTDIR, in a folder with `demo.onnx`; needs onnx and numpy."""
import os, struct, sys
import numpy as np, onnx
from onnx import TensorProto as TP, helper as H, numpy_helper as NH

OUT = sys.argv[1]
os.makedirs(OUT, exist_ok=True)


def save(name, data):
    if hasattr(data, "SerializeToString"):
        data = data.SerializeToString()
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)
    print(name, len(data))


def varint(n):
    b = b""
    while True:
        b += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n: return b


def field(no, data):
    return varint(no << 3 | 2) + varint(len(data)) + data


def model(graph, meta=None, opset=17, domains=()):
    m = H.make_model(graph, opset_imports=[H.make_opsetid("", opset)] + [H.make_opsetid(d, 1) for d in domains], ir_version=8)
    for k, v in (meta or {}).items():
        e = m.metadata_props.add(); e.key, e.value = k, v
    return m


V = H.make_tensor_value_info


def raw_model(graph_bytes):
    return b"\x08\x08" + field(8, field(1, b"") + b"\x10\x11") + field(7, graph_bytes)


out_value = V("y", TP.FLOAT, ["N", 2]).SerializeToString()


def quadratic(n_init, n_in):
    g = field(1, H.make_node("Identity", ["x"], ["y"]).SerializeToString()) + field(2, b"g")
    g += field(5, b"") * n_init + field(5, field(8, b"a"))
    g += field(11, field(1, b"a")) * n_in + field(11, V("x", TP.FLOAT, ["N", 2]).SerializeToString()) + field(12, out_value)
    return raw_model(g)


# b8: many empty initializers, inputs, nodes, metadata entries and attributes; shapes that overflow
save("b8-quadratic-20k.onnx", quadratic(20_000, 20_000))
save("b8-quadratic-100k.onnx", quadratic(100_000, 100_000))
save("b8-quadratic-1M.onnx", quadratic(1_600_000, 1_000_000))
base = field(2, b"g") + field(11, V("x", TP.FLOAT, ["N", 2]).SerializeToString()) + field(12, out_value)
save("b8-empty-initializers-25M.onnx", raw_model(base + field(5, b"") * 25_000_000))
save("b8-empty-nodes-25M.onnx", raw_model(base + field(1, b"") * 25_000_000))
save("b8-empty-metadata-25M.onnx", raw_model(base) + field(14, b"") * 25_000_000)
# attributes of one node: nested messages inside a node
save("b8-empty-attributes-25M.onnx", raw_model(base + field(1, field(5, b"") * 25_000_000)))
t = H.make_tensor("w", TP.FLOAT, [0], b"", raw=True)
def with_dims(dims):
    w = onnx.TensorProto(); w.name = "w"; w.data_type = TP.FLOAT; w.dims.extend(dims)
    return model(H.make_graph([H.make_node("Identity", ["x"], ["y"])], "g", [V("x", TP.FLOAT, ["N", 2])], [V("y", TP.FLOAT, ["N", 2])], [w]))
save("b8-dims-overflow.onnx", with_dims([2**32, 2**32, 2]))
save("b8-dims-max.onnx", with_dims([2**62, 2]))
save("b8-dims-negative.onnx", with_dims([-1, -5]))

# graphs that claim to be generators, with absurd sizes and metadata
def gen(shape, meta, out_shape=None, nodes=None):
    return model(H.make_graph(nodes or [H.make_node("Identity", ["latents"], ["images"])], "g", [V("latents", TP.FLOAT, shape)], [V("images", TP.FLOAT, out_shape or shape)]), meta)
M = {"kind": "one-step", "class": "D2OPrecond", "sigma_max": "80", "quantiser": "127.5 x + 128", "d2o_version": "0.1.0"}
save("gen-ok.onnx", gen(["N", 3, 8, 8], M))
save("gen-huge-image.onnx", gen(["N", 3, 1 << 20, 1 << 20], M))
save("gen-huge-overflow.onnx", gen(["N", 3, 1 << 40, 1 << 40], M))
save("gen-zero.onnx", gen(["N", 3, 0, 8], M))
save("gen-nan.onnx", model(H.make_graph([H.make_node("Constant", [], ["c"], value=H.make_tensor("c", TP.FLOAT, [1], [float("nan")])), H.make_node("Mul", ["latents", "c"], ["images"])], "g", [V("latents", TP.FLOAT, ["N", 3, 8, 8])], [V("images", TP.FLOAT, ["N", 3, 8, 8])]), M))
save("gen-wrong-shape.onnx", gen(["N", 3, 8, 8], M, ["N", 3, 16, 16]))
save("gen-fewer-rows.onnx", model(H.make_graph([H.make_node("Constant", [], ["i"], value=H.make_tensor("i", TP.INT64, [1], [0])), H.make_node("Gather", ["latents", "i"], ["images"], axis=0)], "g", [V("latents", TP.FLOAT, ["N", 3, 8, 8])], [V("images", TP.FLOAT, ["N", 3, 8, 8])]), M))
save("gen-sigma-nan.onnx", gen(["N", 3, 8, 8], dict(M, sigma_max="NaN")))
save("gen-sigma-text.onnx", gen(["N", 3, 8, 8], dict(M, sigma_max="1e999; rm -rf")))
save("gen-escape-meta.onnx", gen(["N", 3, 8, 8], dict(M, **{"class": "\x1b[2J\x1b]0;x\x07<script>alert(1)</script>", "\x1b[31m": "\n\n"})))

# external data
def external(location, length=8, offset=0):
    w = onnx.TensorProto(); w.name = "w"; w.data_type = TP.FLOAT; w.dims.extend([2]); w.data_location = TP.EXTERNAL
    for k, v in [("location", location), ("offset", str(offset)), ("length", str(length))]:
        e = w.external_data.add(); e.key, e.value = k, v
    return model(H.make_graph([H.make_node("Add", ["x", "w"], ["y"])], "g", [V("x", TP.FLOAT, ["N", 2])], [V("y", TP.FLOAT, ["N", 2])], [w]))
os.makedirs(os.path.join(OUT, "sub"), exist_ok=True)
save("secret.bin", struct.pack("<2f", 1234.5, -9876.5))
for name, loc in [("parent", "../secret.bin"), ("absolute", os.path.join(OUT, "secret.bin")), ("passwd", "/etc/passwd"), ("dotdot", "../../../../../../etc/passwd"), ("devzero", "/dev/zero"), ("inside", "inside.bin"),
                  ("missing", "nowhere.bin"), ("stdin", "/dev/stdin"), ("link", "link.bin"), ("fifo", "fifo"), ("dir", "."), ("nul", "a\0b")]:
    save(f"sub/ext-{name}.onnx", external(loc))
save("sub/inside.bin", struct.pack("<2f", 1, 2))
save("sub/ext-short.onnx", external("inside.bin", 1 << 40))
save("sub/ext-offset.onnx", external("inside.bin", 8, 1 << 62))
save("sub/ext-negative.onnx", external("inside.bin", 8, -1))
for p, target in [("link.bin", "/etc/passwd")]:
    try: os.symlink(target, os.path.join(OUT, "sub", p))
    except FileExistsError: pass
try: os.mkfifo(os.path.join(OUT, "sub", "fifo"))
except FileExistsError: pass

# custom operators, contrib operators, control flow, local functions
X, Y = V("x", TP.FLOAT, ["N", 2]), V("y", TP.FLOAT, ["N", 2])
save("custom-op.onnx", model(H.make_graph([H.make_node("Evil", ["x"], ["y"], domain="evil.com")], "g", [X], [Y]), domains=["evil.com"]))
save("d2o-op.onnx", model(H.make_graph([H.make_node("Conv", ["x"], ["y"], domain="d2o")], "g", [X], [Y]), domains=["d2o"]))
trip = H.make_tensor("trip", TP.INT64, [], [1 << 40])
body = H.make_graph([H.make_node("Identity", ["c"], ["co"]), H.make_node("Add", ["s", "s"], ["so"])], "b", [V("i", TP.INT64, []), V("c", TP.BOOL, []), V("s", TP.FLOAT, None)], [V("co", TP.BOOL, []), V("so", TP.FLOAT, None)])
save("loop-forever.onnx", model(H.make_graph([H.make_node("Loop", ["trip", "", "x"], ["y"], body=body)], "g", [X], [Y], [trip])))
save("tile-bomb.onnx", model(H.make_graph([H.make_node("Tile", ["x", "r"], ["y"])], "g", [X], [V("y", TP.FLOAT, ["M", "K"])], [H.make_tensor("r", TP.INT64, [2], [1, 1 << 40])])))
save("expand-bomb-const.onnx", model(H.make_graph([H.make_node("ConstantOfShape", ["s"], ["z"]), H.make_node("ReduceSum", ["z"], ["r"], keepdims=0), H.make_node("Add", ["x", "r"], ["y"])], "g", [X], [Y], [H.make_tensor("s", TP.INT64, [1], [1 << 40])])))
save("no-outputs.onnx", model(H.make_graph([H.make_node("Identity", ["x"], ["y"])], "g", [X], [])))
save("cycle.onnx", model(H.make_graph([H.make_node("Add", ["x", "b"], ["a"]), H.make_node("Identity", ["a"], ["b"]), H.make_node("Identity", ["b"], ["y"])], "g", [X], [Y])))
g = H.make_graph([H.make_node("Identity", ["x"], ["y"])], "g", [X], [Y])
for _ in range(20):
    g = H.make_graph([H.make_node("If", ["c"], ["y"], then_branch=g, else_branch=H.make_graph([H.make_node("Identity", ["x"], ["y"])], "e", [], [Y]))], "g", [], [Y])
save("nested-if.onnx", model(g))
b = b""
for _ in range(20_000): b = b  # depth by raw nesting of attributes: graph(6) in attribute in node(1)
inner = b""
for _ in range(3000):
    inner = field(1, field(5, field(6, inner)))
save("deep-proto.onnx", raw_model(inner + base))
save("truncated.onnx", open("demo.onnx", "rb").read()[:3_000_000])
big = bytearray(open("demo.onnx", "rb").read())
for i in range(100_000, 7_000_000, 65_537): big[i] ^= 0xff
save("bitflips.onnx", bytes(big))
# a4: graphs of another tool with outputs that depend on the whole batch, with and without a metadata key `kind`
A = [V("images_u8", TP.UINT8, ["N", 4, 4, 3])]
m = model(H.make_graph([H.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), H.make_node("Sub", ["x", "m"], ["y"])], "g", [X], [Y]), {"kind": "minibatch statistics of somebody else"}, opset=13)
save("a4-kind-batch-mean.onnx", m)
m = model(H.make_graph([H.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), H.make_node("Sub", ["x", "m"], ["y"])], "g", [X], [Y]), {}, opset=13)
save("a4-nokind-batch-mean.onnx", m)
# a feature network with features that depend on the whole batch
def feat(meta, width=16):
    rng = np.random.default_rng(0)
    w = NH.from_array(rng.normal(size=(48, width)).astype(np.float32), "w")
    return model(H.make_graph([H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Flatten", ["f"], ["v"]), H.make_node("MatMul", ["v", "w"], ["p"]),
        H.make_node("ReduceMean", ["p"], ["m"], axes=[0], keepdims=1), H.make_node("Sub", ["p", "m"], ["features"])], "g", A, [V("features", TP.FLOAT, ["N", width])], [w]), meta, opset=13)
save("a4-features-kind.onnx", feat({"kind": "features", "extractor": "theirs"}))
# a feature network that calls itself Inception
save("fake-inception.onnx", feat({"kind": "features", "extractor": "inception-2015-12-05"}))
# feature networks with hostile widths
save("feat-huge-width.onnx", model(H.make_graph([H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Flatten", ["f"], ["features"])], "g", [V("images_u8", TP.UINT8, ["N", 32, 32, 3])], [V("features", TP.FLOAT, ["N", 1 << 40])]), {"kind": "features"}))
save("feat-lies-width.onnx", model(H.make_graph([H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Flatten", ["f"], ["features"])], "g", [V("images_u8", TP.UINT8, ["N", 32, 32, 3])], [V("features", TP.FLOAT, ["N", 17])]), {"kind": "features"}))
save("feat-zero-width.onnx", model(H.make_graph([H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Flatten", ["f"], ["features"])], "g", [V("images_u8", TP.UINT8, ["N", 32, 32, 3])], [V("features", TP.FLOAT, ["N", 0])]), {"kind": "features"}))
# a valid small one: mean colours of 16 patches of 8×8, and logits
def small(width=48, meta=None, name="features"):
    nodes = [H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]), H.make_node("AveragePool", ["t"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
             H.make_node("Flatten", ["p"], [name]), H.make_node("MatMul", [name, "w"], ["logits"])]
    w = NH.from_array((np.random.default_rng(1).normal(size=(48, 10)) / 50).astype(np.float32), "w")
    return model(H.make_graph(nodes, "g", [V("images_u8", TP.UINT8, ["N", 32, 32, 3])], [V(name, TP.FLOAT, ["N", 48]), V("logits", TP.FLOAT, ["N", 10])], [w]), meta if meta is not None else {"kind": "features", "extractor": "patches"}, opset=13)
save("small-features.onnx", small())
def tiny(size, pool, name, classes=10):
    c = (size // pool) ** 2 * 3
    nodes = [H.make_node("Cast", ["images_u8"], ["f"], to=TP.FLOAT), H.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]), H.make_node("AveragePool", ["t"], ["p"], kernel_shape=[pool, pool], strides=[pool, pool]),
             H.make_node("Flatten", ["p"], ["features"]), H.make_node("MatMul", ["features", "w"], ["logits"])]
    w = NH.from_array((np.random.default_rng(1).normal(size=(c, classes)) / 50).astype(np.float32), "w")
    save(name, model(H.make_graph(nodes, "g", [V("images_u8", TP.UINT8, ["N", size, size, 3])], [V("features", TP.FLOAT, ["N", c]), V("logits", TP.FLOAT, ["N", classes])], [w]), {"kind": "features", "extractor": f"patches-{size}"}, opset=13))
tiny(8, 2, "tiny8.onnx")
tiny(32, 8, "tiny32.onnx")
