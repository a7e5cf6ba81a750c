# Stoa's image: the gateway, its engine processes, and what a Ray node of the fleet runs. docs/containers.md tells how
# to build and run it. Stages: base -> dependencies (torch and friends) -> wheel (C kernels) -> the image, which has
# no compiler and no pip. Code and dependencies are layers of their own: a new commit moves a few megabytes.

ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 stoa \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/stoa --no-create-home --shell /usr/sbin/nologin stoa

FROM base AS dependencies
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
# TORCH_BUILD: the local version of the wheel, +cpu or (CUDA, as the usual index has it) nothing.
# TORCH_INDEX: an index that has it, where pip's own does not.
ARG TORCH_BUILD=+cpu
ARG TORCH_INDEX=
ARG EXTRAS=postgresql,redis,cluster
COPY pyproject.toml constraints.txt scripts/containers/requirements.py /source/
RUN python3 /source/requirements.py /source --extras "${EXTRAS}" --torch-build "${TORCH_BUILD}" > /source/requirements.txt
# Whoever installs from an index of their own gives its pip.conf as a build secret; no trace of it stays.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/stoa \
    && /opt/pip/bin/pip --python /opt/stoa/bin/python install --no-cache-dir --constraint /source/constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --requirement /source/requirements.txt \
    && /opt/stoa/bin/python /source/requirements.py --trim

FROM dependencies AS wheel
RUN apt-get install -y --no-install-recommends gcc libc6-dev
COPY pyproject.toml setup.py README.md LICENSE /source/
COPY src /source/src
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source \
    && /opt/pip/bin/pip --python /opt/stoa/bin/python install --no-cache-dir --no-deps --no-index --prefix /app /wheels/*.whl
# Without a compiler the install would succeed and the engine be slow; here that is an error.
RUN PYTHONPATH="$(echo /app/lib/python3*/site-packages)" PYTHONDONTWRITEBYTECODE=1 /opt/stoa/bin/python -c \
    'import stoa.engine.engine; from stoa.engine.kernels import available_isas as a; assert a(), a()'

FROM base
COPY --from=dependencies /opt/stoa /opt/stoa
COPY --from=wheel /app /opt/stoa
# A new volume takes owner and mode from the folder that it covers.
RUN mkdir --parents /var/lib/stoa/adapters /models && chown -R stoa:stoa /var/lib/stoa /models
# Within a container every interface is the container's own; strangers are refused until there is a key.
ENV PATH=/opt/stoa/bin:$PATH \
    HOME=/var/lib/stoa \
    HF_HOME=/var/lib/stoa/hub \
    STOA_HOME=/var/lib/stoa \
    STOA_HOST=0.0.0.0 \
    STOA_PORT=8000 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/stoa
VOLUME /var/lib/stoa
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"STOA_PORT\"]}/health', timeout=2)"]
ENTRYPOINT ["stoa"]
CMD ["serve"]
