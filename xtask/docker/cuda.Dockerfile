# d2o for CUDA 13. In the root of the checkout: docker build -f xtask/docker/cuda.Dockerfile -t d2o-cuda .
# Running it needs NVIDIA's container toolkit and a driver for CUDA 13: docker run --gpus all …

FROM python:3.13.5-slim-bookworm AS packages
RUN pip install --no-cache-dir --no-deps --target /packages cmake==4.4.4 onnxruntime-gpu==1.31.1

FROM rust:1.95.0-bookworm AS build
COPY --from=packages /packages/cmake/data /opt/cmake
ENV CMAKE=/opt/cmake/bin/cmake
WORKDIR /d2o
COPY . .
RUN cargo build --release --locked --package d2o

# CUDA and cuDNN, which the provider links to.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
COPY --from=build /d2o/target/release/d2o /opt/d2o/bin/d2o
COPY --from=build /d2o/LICENSE-APACHE /d2o/LICENSE-MIT /opt/d2o/
# d2o looks in the folder lib beside its own; ONNX Runtime looks for its provider beside itself.
COPY --from=packages /packages/onnxruntime/capi/libonnxruntime.so.1.31.1 /packages/onnxruntime/capi/libonnxruntime_providers_shared.so /packages/onnxruntime/capi/libonnxruntime_providers_cuda.so /opt/d2o/lib/
COPY --from=packages /packages/onnxruntime/LICENSE /packages/onnxruntime/ThirdPartyNotices.txt /opt/d2o/onnxruntime/
RUN ln -s /opt/d2o/bin/d2o /usr/local/bin/d2o \
    && useradd --create-home --uid 10001 d2o
USER 10001
WORKDIR /work
ENTRYPOINT ["d2o"]
