# The service in an image of its own, built with Docker alone:
#
#     docker build --tag app:metrics .
#
# Where the build image cannot be pulled, the same image is made of a static binary that lies alone
# in a directory (`make static-image` does that):
#
#     docker build --tag app:metrics --target prebuilt --file Dockerfile DIRECTORY

ARG RUST_VERSION=1.95
# Any image whose cargo has the musl target of its architecture.
ARG BUILDER=rust:${RUST_VERSION}-alpine

# All but the binary. /tiny-probe is the only file: no shell, no libraries, no user names.
FROM scratch AS service
LABEL org.opencontainers.image.title="tiny-probe" \
      org.opencontainers.image.description="A very small HTTP service that is instrumented for Prometheus and survives its clients" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# Asks where the variable LISTEN says; a --listen flag is not known to it.
HEALTHCHECK --interval=10s --timeout=5s CMD ["/tiny-probe", "healthcheck"]
ENTRYPOINT ["/tiny-probe"]

FROM service AS prebuilt
COPY . /

FROM ${BUILDER} AS build
WORKDIR /build
# The dependencies in a layer of their own, which stays cached while only the sources change.
COPY Cargo.toml Cargo.lock ./
COPY bounded-http/Cargo.toml bounded-http/
RUN mkdir src bounded-http/src && \
    echo '//! Empty.' | tee bounded-http/src/lib.rs src/lib.rs >src/main.rs && echo 'fn main() {}' >>src/main.rs && \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl"
COPY bounded-http/src bounded-http/src
COPY src src
# Touched, because cargo goes by time and the files may be older than their stand-ins were.
RUN touch bounded-http/src/lib.rs src/lib.rs src/main.rs && \
    cargo build --release --locked --target "$(uname -m)-unknown-linux-musl"

FROM service
COPY --from=build /build/target/*/release/tiny-probe /
