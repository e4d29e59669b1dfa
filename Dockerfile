# The program `cke` in an image without a shell, run by a user without rights. Targets:
#
#   cke       the embedded store alone; the default
#   cke-fdb   FoundationDB too, with the client library of FoundationDB's own image
#
# They are built with BuildKit:
#
# docker build --tag cke .
# docker build --tag cke-fdb --target cke-fdb .

ARG RUST_VERSION=1.95
ARG FDB_VERSION=7.3.77

FROM rust:${RUST_VERSION}-slim-trixie AS toolchain
WORKDIR /src
# Functions keep their names in a backtrace, and the program is a third of the size.
ENV CARGO_PROFILE_RELEASE_DEBUG=none
# The image's directory for data is a copy of this one.
RUN mkdir /var/lib/cke

FROM toolchain AS build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin cke \
    && cp target/release/cke /usr/local/bin/

FROM foundationdb/foundationdb:${FDB_VERSION} AS foundationdb

FROM toolchain AS build-fdb
# With libclang the bindings of FoundationDB's client library are made from its header.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libclang-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=foundationdb /usr/lib/libfdb_c.so /usr/lib/
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin cke --features foundationdb \
    && cp target/release/cke /usr/local/bin/

FROM gcr.io/distroless/cc-debian13:nonroot AS runtime
# A volume takes its owner from the directory that it is mounted on.
COPY --from=toolchain --chown=nonroot:nonroot /var/lib/cke /var/lib/cke
# `serve` keeps its data in ./cke-data, `etcd` in ./default.etcd.
WORKDIR /var/lib/cke
USER nonroot:nonroot
# A published port comes from outside the container, but clients know it as the host's.
ENV CKE_LISTEN_HTTP=0.0.0.0:8080 \
    CKE_LISTEN_KUBERNETES=0.0.0.0:6443 \
    CKE_LISTEN_ETCD=0.0.0.0:2379 \
    ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 \
    ETCD_ADVERTISE_CLIENT_URLS=http://127.0.0.1:2379
EXPOSE 8080 6443 2379
STOPSIGNAL SIGTERM
# Materia etcd is a part of both commands, and well when it can read the store.
HEALTHCHECK --interval=3s --timeout=6s --start-period=30s CMD ["cke", "health"]
ENTRYPOINT ["cke"]
CMD ["serve"]

FROM runtime AS cke-fdb
COPY --from=foundationdb /usr/lib/libfdb_c.so /usr/lib/
COPY --from=build-fdb /usr/local/bin/cke /usr/local/bin/

FROM runtime AS cke
COPY --from=build /usr/local/bin/cke /usr/local/bin/
