# The GPU image: the service, its locked dependencies with their CUDA libraries, and a demo model with
# its tables.
#
#   docker build --file docker/cuda.Dockerfile --tag gatehouse:cuda .
#   docker run --gpus 1 --publish 8000:8000 gatehouse:cuda
#
# The host needs NVIDIA's driver and container toolkit, but no other part of CUDA. The image runs
# without capabilities and with a read-only root file system:
#
#   docker run --gpus 1 --publish 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL gatehouse:cuda
#
# To serve your own models instead of the demo: --volume "$PWD/store:/store:ro"

# Not based on nvidia/cuda: the torch wheel installs the exact CUDA libraries that it was built with,
# so that image would hold CUDA twice, and has no Python.
FROM python:3.12-slim-bookworm AS base
# The official image has no bytecode of the standard library. Without this line every start would
# compile it again, because the container cannot store it.
RUN python -m compileall -q /usr/local/lib


FROM base AS build
# The package indexes, if they are not pip's default. They must have torch wheels with CUDA. Neither
# argument reaches the final image or its history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.lock requirements-torch.lock requirements-data.lock requirements-otel.lock ./
RUN pip install --no-deps --require-hashes --requirement requirements.lock
RUN pip install --requirement requirements-torch.lock \
    && python -c "import torch; assert torch.version.cuda, 'this torch has no CUDA: wrong index'"
# Extras of pyproject.toml that the image has, or none: `data` for recorded traffic and for publishing
# tables, `otel` for traces.
ARG EXTRAS="data otel"
RUN for extra in $EXTRAS; do \
        pip install --no-deps --require-hashes --requirement "requirements-$extra.lock" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
# Installed outside the virtual environment, so that a change of the sources makes a small layer.
RUN pip install --no-deps --root /install .


FROM build AS demo
ENV GATEHOUSE_STORE=/store
RUN python -m models train --config models/configs/demo.toml --store /store --quiet
# The tables of its items and users, as `make demo` publishes them: requests then send keys.
RUN pip install --no-deps --require-hashes --requirement requirements-data.lock \
    && python -m models tables --config models/configs/demo.toml --out build/tables \
    && python -m app items publish build/tables/items.jsonl --model feed --key item_id \
    && python -m app users publish build/tables/users.jsonl --model feed --key user_id


FROM base
LABEL org.opencontainers.image.title="Gatehouse" \
      org.opencontainers.image.description="Online ranking: one user, hundreds of candidates, in milliseconds; on a GPU." \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12-slim-bookworm"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /install /
COPY docker/healthcheck /usr/local/bin/healthcheck
COPY --from=demo --chown=10001:10001 /store /store
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# The container toolkit provides all requested GPUs, the driver's part of CUDA, and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Not `auto`: without a GPU the service exits with an error instead of serving slowly on the CPU.
ENV GATEHOUSE_DEVICE=cuda
ENV GATEHOUSE_HOST=0.0.0.0 GATEHOUSE_PORT=8000 GATEHOUSE_STORE=/store
VOLUME /store
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Change the port with GATEHOUSE_PORT, because the health check does not see command line options.
# Loading CUDA and capturing a graph for each batch size takes time at startup, hence the long start
# period.
HEALTHCHECK --interval=5s --timeout=3s --start-period=180s --retries=3 \
    CMD ["healthcheck"]
CMD ["gatehouse", "serve"]
# Last, because they change with every commit: --build-arg REVISION=$(git rev-parse HEAD)
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
