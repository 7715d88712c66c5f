# The CPU image: the service, its locked dependencies and a demo model.
#
#   docker build --tag gatehouse .
#   docker run --publish 8000:8000 gatehouse
#
# It needs no capability and no writable root file system:
#
#   docker run --publish 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL gatehouse
#
# Artifacts of your own take the demo's place: --volume "$PWD/store:/store:ro"

FROM python:3.12-slim-bookworm AS base
# The official image leaves out the standard library's bytecode. Every start, and every probe of
# HEALTHCHECK, would compile it anew, as there is nowhere to keep it.
RUN python -m compileall -q /usr/local/lib


FROM base AS build
# Where packages come from, if not from pip's own default. The published torch wheel brings
# gigabytes of CUDA libraries that this image never loads; an index of CPU-only wheels, given as
# PIP_EXTRA_INDEX_URL, leaves them out. Neither reaches the final image or its history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.lock ./
RUN pip install --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
# Beside the environment and not into it, so that a change of the sources makes a small layer.
RUN pip install --no-deps --root /install .


FROM build AS demo
RUN python -m models train --config models/configs/demo.toml --store /store --quiet


FROM base
LABEL org.opencontainers.image.title="Gatehouse" \
      org.opencontainers.image.description="Online ranking: one user, hundreds of candidates, in milliseconds." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /install /
COPY --from=demo --chown=10001:10001 /store /store
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
ENV GATEHOUSE_HOST=0.0.0.0 GATEHOUSE_PORT=8000 GATEHOUSE_STORE=/store
VOLUME /store
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Not urllib: it would ask the proxy that Docker may set in the environment. Change the port by
# GATEHOUSE_PORT and not by a flag, which the probe cannot see.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, ssl, sys; address = {'host': '127.0.0.1', 'port': int(os.environ['GATEHOUSE_PORT']), 'timeout': 2}; connection = http.client.HTTPSConnection(**address, context=ssl._create_unverified_context()) if os.environ.get('GATEHOUSE_TLS_CERT') else http.client.HTTPConnection(**address); connection.request('GET', '/livez'); sys.exit(connection.getresponse().status != 200)"]
CMD ["gatehouse", "serve"]
