# Builds the container image. This needs only Docker:
#
#     docker build --tag app:metrics .
#
# If the build image cannot be pulled, the same image can be built from a static binary that is the only
# file in a directory (`make static-image` does this):
#
#     docker build --tag app:metrics --target prebuilt --file Dockerfile DIRECTORY

# The version in rust-toolchain.toml. Can be any image whose cargo has the musl target for its architecture.
ARG BUILDER=rust:1.95-alpine@sha256:606fd313a0f49743ee2a7bd49a0914bab7deedb12791f3a846a34a4711db7ed2

# The image without the binary. In the final image, /tiny-probe is the only file: there is no shell, no
# library and no user database.
FROM scratch AS service
LABEL org.opencontainers.image.title="tiny-probe" \
      org.opencontainers.image.description="A very small HTTP service that is instrumented for Prometheus and survives its clients" \
      org.opencontainers.image.source="https://github.com/OWNER/tiny-probe" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0"
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# The health check uses the address in the variable LISTEN. It does not see a --listen flag.
HEALTHCHECK --interval=10s --timeout=5s CMD ["/tiny-probe", "healthcheck"]
ENTRYPOINT ["/tiny-probe"]

FROM service AS prebuilt
COPY . /

FROM ${BUILDER} AS build
# --no-default-features leaves out tiny_http.
ARG CARGO_OPTIONS=
WORKDIR /build
# Build the dependencies in a separate layer, which stays cached while only the sources change.
COPY Cargo.toml Cargo.lock ./
COPY bounded-http/Cargo.toml bounded-http/
RUN mkdir src bounded-http/src && \
    echo '//! Empty.' | tee bounded-http/src/lib.rs src/lib.rs >src/main.rs && echo 'fn main() {}' >>src/main.rs && \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" ${CARGO_OPTIONS}
COPY bounded-http/src bounded-http/src
COPY src src
# What `tiny-probe --version` prints; `make image` passes it.
ARG TINY_PROBE_COMMIT
# cargo compares modification times, and the copied files can be older than the placeholders above.
RUN touch bounded-http/src/lib.rs src/lib.rs src/main.rs && \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" ${CARGO_OPTIONS}

FROM service
COPY --from=build /build/target/*/release/tiny-probe /
