# d2o for CPUs. In the root of the checkout: docker build -f xtask/docker/cpu.Dockerfile -t d2o .

FROM python:3.13.5-slim-bookworm AS packages
RUN pip install --no-cache-dir --no-deps --target /packages cmake==4.4.4 onnxruntime==1.32.0

FROM rust:1.95.0-bookworm AS build
COPY --from=packages /packages/cmake/data /opt/cmake
ENV CMAKE=/opt/cmake/bin/cmake
WORKDIR /d2o
COPY . .
RUN cargo build --release --locked --package d2o

FROM debian:12.11-slim
COPY --from=build /d2o/target/release/d2o /opt/d2o/bin/d2o
COPY --from=build /d2o/LICENSE-APACHE /d2o/LICENSE-MIT /opt/d2o/
# d2o looks in the folder lib beside its own.
COPY --from=packages /packages/onnxruntime/capi/libonnxruntime.so.1.32.0 /opt/d2o/lib/
COPY --from=packages /packages/onnxruntime/LICENSE /packages/onnxruntime/ThirdPartyNotices.txt /opt/d2o/onnxruntime/
RUN ln -s /opt/d2o/bin/d2o /usr/local/bin/d2o \
    && useradd --create-home --uid 10001 d2o
USER 10001
WORKDIR /work
ENTRYPOINT ["d2o"]
