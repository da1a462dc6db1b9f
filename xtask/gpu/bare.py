"""A bare ONNX Runtime session through the C API of the same library that d2o loads: the speed of a graph without d2o.

python bare.py GRAPH.onnx LIBRARY cpu|cuda IMAGES BATCH KEY=VALUE,...      a session for each set of the CUDA provider's options; one line of JSON

Python's onnxruntime may be a build without CUDA, so the library is called directly. `INDEX` has the places of the functions in `OrtApi`, which only grows
at its end.
"""
import ctypes
import json
import sys
import time

import numpy as np

INDEX = dict(
    GetErrorMessage=2, CreateEnv=3, CreateSession=7, Run=9, CreateSessionOptions=10, SetSessionGraphOptimizationLevel=23, SetIntraOpNumThreads=24,
    CreateTensorWithDataAsOrtValue=49, CreateCpuMemoryInfo=69, ReleaseValue=96, SessionOptionsAppendExecutionProvider_CUDA_V2=204,
    CreateCUDAProviderOptions=205, UpdateCUDAProviderOptions=206,
)
API_VERSION, ALL_OPTIMISATIONS = 17, 99
# ONNXTensorElementDataType.
FLOAT, UINT8 = 1, 2
POINTER = ctypes.c_void_p


class Ort:
    def __init__(self, library):
        self.library = ctypes.CDLL(library)
        self.library.OrtGetApiBase.restype = ctypes.POINTER(POINTER * 2)
        get_api, version = self.library.OrtGetApiBase().contents
        self.version = ctypes.CFUNCTYPE(ctypes.c_char_p)(version)().decode()
        api = ctypes.CFUNCTYPE(POINTER, ctypes.c_uint32)(get_api)(API_VERSION)
        self.table = ctypes.cast(api, ctypes.POINTER(POINTER))

    def call(self, name, *arguments):
        """Calls a function that returns a status. Pass numbers as ctypes; pointers and texts need no type."""
        status = ctypes.CFUNCTYPE(POINTER, *[type(a) for a in arguments])(self.table[INDEX[name]])(*arguments)
        if status:
            raise RuntimeError(f"{name}: {ctypes.CFUNCTYPE(ctypes.c_char_p, POINTER)(self.table[INDEX['GetErrorMessage']])(status).decode()}")

    def new(self, name, *arguments):
        """Calls a function that writes a handle through its last argument; returns the handle."""
        handle = POINTER()
        self.call(name, *arguments, ctypes.cast(ctypes.byref(handle), POINTER))
        return handle

    def release(self, value):
        ctypes.CFUNCTYPE(None, POINTER)(self.table[INDEX["ReleaseValue"]])(value)


def texts(values):
    return (ctypes.c_char_p * len(values))(*[v.encode() for v in values])


def pointer(array):
    return ctypes.cast(array, POINTER)


def session_of(ort, env, graph, device, options):
    settings = ort.new("CreateSessionOptions")
    ort.call("SetSessionGraphOptimizationLevel", settings, ctypes.c_int(ALL_OPTIMISATIONS))
    if device == "cuda":
        cuda = ort.new("CreateCUDAProviderOptions")
        keys, values = zip(*[o.split("=") for o in ("device_id=0", *options.split(","))])
        ort.call("UpdateCUDAProviderOptions", cuda, pointer(texts(keys)), pointer(texts(values)), ctypes.c_size_t(len(keys)))
        ort.call("SessionOptionsAppendExecutionProvider_CUDA_V2", settings, cuda)
    return ort.new("CreateSession", env, ctypes.c_char_p(graph.encode()), settings)


def main(graph, library, device, images, batch, *sets):
    import onnx

    model = onnx.load(graph, load_external_data=False).graph
    port, outputs = model.input[0], [o.name for o in model.output]
    shape = [int(batch)] + [d.dim_value for d in port.type.tensor_type.shape.dim[1:]]
    u8 = port.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    data = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8 if u8 else np.float32)
    rounds = -(-int(images) // int(batch))

    ort, found = Ort(library), {}
    env = ort.new("CreateEnv", ctypes.c_int(3), ctypes.c_char_p(b"bare"))
    host = ort.new("CreateCpuMemoryInfo", ctypes.c_int(1), ctypes.c_int(0))
    dims = (ctypes.c_int64 * len(shape))(*shape)
    names, wanted = texts([port.name]), texts(outputs)

    def run(session):
        value = ort.new("CreateTensorWithDataAsOrtValue", host, POINTER(data.ctypes.data), ctypes.c_size_t(data.nbytes), pointer(dims),
                        ctypes.c_size_t(len(shape)), ctypes.c_int(UINT8 if u8 else FLOAT))
        given, got = (POINTER * 1)(value), (POINTER * len(outputs))()
        ort.call("Run", session, POINTER(), pointer(names), pointer(given), ctypes.c_size_t(1), pointer(wanted), ctypes.c_size_t(len(outputs)), pointer(got))
        for v in (value, *got):
            ort.release(POINTER(v) if isinstance(v, int) else v)

    for options in sets:
        session = session_of(ort, env, graph, device, options)
        for _ in range(3 if device == "cuda" else 1):
            run(session)
        start = time.perf_counter()
        for _ in range(rounds):
            run(session)
        found[options] = rounds * int(batch) / (time.perf_counter() - start)
    print(json.dumps(dict(images_per_second=found, batch=int(batch), input=str(data.dtype), runtime=ort.version)))


main(*sys.argv[1:])
