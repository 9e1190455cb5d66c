# The training image, in a CPU and a CUDA variant. `make build` calls it with the right arguments; see image/build.
#
#   python-base -> builder -> app           what is installed, and what is ours: /venv and /app, copied to /
#   python-base -> compiler-* -> efa-* -> variant-* -> runtime
#
# It is written for the oldest BuildKit in use, Debian 12's: no syntax line, no heredocs, no COPY --link.

ARG BASE_IMAGE=debian:bookworm-slim
# cpu or cuda: which of requirements/*.lock is installed.
ARG VARIANT=cpu
# 0 leaves out the C++ compiler, which torch.compile needs.
ARG COMPILER=1
# 1 adds EFA, for hosts that have it; CUDA only.
ARG EFA=0
# An image with wheels in its root, for machines that do not reach an index with every one of the lock.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels


FROM ${BASE_IMAGE} AS python-base
ARG DEBIAN_FRONTEND=noninteractive
# Nothing here needs to become another user: setuid and setgid bits go.
RUN missing=""; \
    python3 -c 'import ctypes, lzma, sqlite3, ssl' 2>/dev/null || missing="$missing python3"; \
    test -e /etc/ssl/certs/ca-certificates.crt || missing="$missing ca-certificates"; \
    if [ -n "$missing" ]; then \
        apt-get update -q && apt-get install -y -q --no-install-recommends $missing && \
        apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/*.log; \
    fi; \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +


FROM python-base AS builder
# sagemaker-training is published as source with one C file.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends gcc libc6-dev python3-dev python3-venv
COPY requirements/build.lock /build/
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \
    python3 -m venv /build/venv && . /build/venv/bin/activate && \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi && \
    if [ -s /run/secrets/index ]; then PIP_INDEX_URL=$(cat /run/secrets/index) && export PIP_INDEX_URL; fi && \
    pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /build/build.lock
COPY image/install-locked /build/
ARG VARIANT
# An index beside PyPI, where the CPU build of torch is published.
ARG TORCH_INDEX=
# 1: nothing that an earlier build downloaded or made is used.
ARG CLEAN=0
COPY requirements/${VARIANT}.lock /build/image.lock
RUN --mount=type=secret,id=ca --mount=type=secret,id=index \
    --mount=type=cache,target=/root/.cache/uv --mount=from=wheels,target=/wheels \
    /build/install-locked /build/image.lock /opt/venv && \
    mkdir -p /venv/opt && mv /opt/venv /venv/opt/ && ln -s /venv/opt/venv /opt/venv && touch --date=@1577836800 /venv/opt


FROM builder AS app
COPY pyproject.toml README.md LICENSE /build/moorage/
COPY container /build/moorage/container
RUN /build/venv/bin/uv pip install --quiet --offline --no-cache --no-deps --no-build-isolation \
        --python /build/venv/bin/python --target /opt/moorage/lib /build/moorage && \
    rm -rf /opt/moorage/lib/bin /opt/moorage/lib/.lock && \
    find /opt/moorage/lib \( -name direct_url.json -o -name uv_cache.json \) -delete && \
    sed -i '/direct_url.json,/d; /uv_cache.json,/d' /opt/moorage/lib/*.dist-info/RECORD
COPY train serve* image/healthcheck /opt/moorage/bin/
# The interpreter by its path: an image made FROM this one may put another Python first.
RUN printf '#!/opt/venv/bin/python3\nimport sys\nfrom moorage.cli import main\nsys.exit(main())\n' >/opt/moorage/bin/moorage && \
    sed -i '1s|.*|#!/opt/venv/bin/python3|' /opt/moorage/bin/* && chmod 755 /opt/moorage/bin/* && \
    find /opt/moorage -exec touch --date=@1577836800 {} + && \
    /opt/venv/bin/python -m compileall -q --invalidation-mode timestamp /opt/moorage/lib && \
    mkdir -p /app/opt && mv /opt/moorage /app/opt/ && \
    find /app \( -type d -o -name '*.pyc' \) -exec touch --date=@1577836800 {} +


FROM python-base AS compiler-0

FROM python-base AS compiler-1
ARG DEBIAN_FRONTEND=noninteractive
# Without what torch.compile has no use for: link-time optimisation, sanitizers, Python as a static library.
RUN apt-get update -q && apt-get install -y -q --no-install-recommends g++ libpython3-dev && \
    apt-get clean && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/*.log \
        /usr/lib/gcc/*/*/lto1 /usr/lib/gcc/*/*/lib[alt]*san* /usr/lib/gcc/*/*/libubsan* /usr/lib/*/lib[alt]san.so.* \
        /usr/lib/*/libubsan.so.* /usr/lib/python3*/config-*/*.a && \
    find / -xdev -type f -perm /6000 -exec chmod a-s {} +


FROM compiler-${COMPILER} AS efa-0

FROM compiler-${COMPILER} AS efa-1
# A copy of AWS's installer elsewhere, or another version of it.
ARG EFA_URL=
ARG EFA_SHA256=
COPY image/install-efa /tmp/install-efa
RUN --mount=type=secret,id=ca /tmp/install-efa && rm /tmp/install-efa


FROM efa-${EFA} AS variant-cpu

FROM efa-${EFA} AS variant-cuda
# What NVIDIA's container runtime is to bring in from the host.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# EFA's plugin for NCCL opens libcudart.so; torch brings libcudart.so.13 alone. The loader always looks into /usr/lib.
RUN python=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])') && \
    ln -s "/opt/venv/lib/$python/site-packages/nvidia/cu13/lib/libcudart.so.13" /usr/lib/libcudart.so


FROM variant-${VARIANT} AS runtime
# With the folder above, whose time would else be now: equal content is an equal layer, whoever built it.
COPY --from=builder /venv /
COPY --from=app /app /
ENV PATH=/opt/moorage/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
# `train` is PID 1 itself: no shell, no init between the platform's SIGTERM and the one who answers it.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --retries=3 CMD ["healthcheck"]
CMD ["train"]
ARG VARIANT
ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="moorage" \
      org.opencontainers.image.description="SageMaker training and inference with PyTorch, $VARIANT variant" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port="true"
