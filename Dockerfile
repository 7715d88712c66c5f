# The CPU image: the service, its locked dependencies, and a demo model with its tables.
#
#   docker build --tag gatehouse .
#   docker run --publish 8000:8000 gatehouse
#
# It runs without capabilities and with a read-only root file system:
#
#   docker run --publish 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL gatehouse
#
# To serve your own models instead of the demo: --volume "$PWD/store:/store:ro"

FROM python:3.12-slim-bookworm AS base
# The official image has no bytecode of the standard library. Without this line every start would
# compile it again, because the container cannot store it.
RUN python -m compileall -q /usr/local/lib


FROM base AS build
# The package indexes, if they are not the defaults. TORCH_INDEX must have CPU-only wheels of torch.
# None of the three arguments reaches the final image or its history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.lock requirements-torch.lock requirements-data.lock requirements-otel.lock ./
RUN pip install --no-deps --require-hashes --requirement requirements.lock
# The torch wheel of pip's default index brings gigabytes of CUDA libraries that this image never
# loads. uv knows the index of the CPU wheels; a mirror of it can be given as TORCH_INDEX.
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" --requirement requirements-torch.lock; \
    else \
        python -m venv /opt/uv && /opt/uv/bin/pip install uv==0.13.9 \
        && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --no-cache --no-deps \
            --torch-backend cpu --requirement requirements-torch.lock; \
    fi \
    && python -c "import torch; assert not torch.version.cuda, 'this torch has CUDA: wrong index'"
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
      org.opencontainers.image.description="Online ranking: one user, hundreds of candidates, in milliseconds." \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12-slim-bookworm"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /install /
COPY docker/healthcheck /usr/local/bin/healthcheck
COPY --from=demo --chown=10001:10001 /store /store
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
ENV GATEHOUSE_HOST=0.0.0.0 GATEHOUSE_PORT=8000 GATEHOUSE_STORE=/store
VOLUME /store
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Change the port with GATEHOUSE_PORT, because the health check does not see command line options.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["healthcheck"]
CMD ["gatehouse", "serve"]
# Last, because they change with every commit: --build-arg REVISION=$(git rev-parse HEAD)
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
