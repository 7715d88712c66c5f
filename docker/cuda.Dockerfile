# The GPU image: the service, its locked dependencies with their CUDA libraries, and a demo model.
#
#   docker build --file docker/cuda.Dockerfile --tag gatehouse:cuda .
#   docker run --gpus 1 --publish 8000:8000 gatehouse:cuda
#
# The host needs NVIDIA's driver and container toolkit, and nothing else of CUDA. The image needs no
# capability and no writable root file system:
#
#   docker run --gpus 1 --publish 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL gatehouse:cuda
#
# Artifacts of your own take the demo's place: --volume "$PWD/store:/store:ro"

# Not nvidia/cuda: the published torch wheel depends on the CUDA libraries that it was built with,
# each pinned exactly, so that an image with others would hold them twice, and Python besides.
FROM python:3.12-slim-bookworm AS base
# The official image leaves out the standard library's bytecode. Every start, and every probe of
# HEALTHCHECK, would compile it anew, as there is nowhere to keep it.
RUN python -m compileall -q /usr/local/lib


FROM base AS build
# Where packages come from, if not from pip's own default; it must have torch wheels with CUDA.
# Neither reaches the final image or its history.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.lock ./
RUN pip install --requirement requirements.lock \
    && python -c "import torch; assert torch.version.cuda, 'this torch has no CUDA: wrong index'"
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
# Beside the environment and not into it, so that a change of the sources makes a small layer.
RUN pip install --no-deps --root /install .


FROM build AS demo
RUN python -m models train --config models/configs/demo.toml --store /store --quiet


FROM base
LABEL org.opencontainers.image.title="Gatehouse" \
      org.opencontainers.image.description="Online ranking: one user, hundreds of candidates, in milliseconds; on a GPU." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /install /
COPY --from=demo --chown=10001:10001 /store /store
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1
# What the container toolkit gives: every GPU that was asked for, the driver's part of CUDA, nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Not auto: without a GPU it should say so and end, and not serve slowly.
ENV GATEHOUSE_DEVICE=cuda
ENV GATEHOUSE_HOST=0.0.0.0 GATEHOUSE_PORT=8000 GATEHOUSE_STORE=/store
VOLUME /store
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Not urllib: it would ask the proxy that Docker may set in the environment. Change the port by
# GATEHOUSE_PORT and not by a flag, which the probe cannot see. With several processes, one of them
# answers. Loading CUDA and capturing a graph for each size of batch may take a while at the start.
HEALTHCHECK --interval=5s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import http.client, os, ssl, sys; address = {'host': '127.0.0.1', 'port': int(os.environ['GATEHOUSE_PORT']), 'timeout': 2}; connection = http.client.HTTPSConnection(**address, context=ssl._create_unverified_context()) if os.environ.get('GATEHOUSE_TLS_CERT') else http.client.HTTPConnection(**address); connection.request('GET', '/livez'); sys.exit(connection.getresponse().status != 200)"]
CMD ["gatehouse", "serve"]
