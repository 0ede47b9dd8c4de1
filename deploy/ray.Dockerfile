# The image of rayservice.yaml: this course with its extra `ray`, and the archive. From the course's folder:
#
#   docker build -f deploy/ray.Dockerfile -t localhost/torchserve-course-ray .
#
# podman: podman build --format docker --ignorefile deploy/ray.Dockerfile.dockerignore -f …

ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
# KubeRay's probes run bash and wget. Debian's security fixes are wanted, so its packages go unpinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates procps python3 python3-venv tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --uid 1000 --create-home --shell /usr/sbin/nologin server
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0

# What changes least comes first: torch, without CUDA (for a GPU: --build-arg TORCH_INDEX=, untried here).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /srv/course
COPY constraints.txt ./
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,mode=0444 \
    --mount=type=secret,id=ca,target=/run/ca.crt,mode=0444 \
    python -m pip install --no-cache-dir -c constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch numpy
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY tutorial_lib tutorial_lib
RUN --mount=type=secret,id=pipconf,target=/etc/pip.conf,mode=0444 \
    --mount=type=secret,id=ca,target=/run/ca.crt,mode=0444 \
    python -m pip install --no-cache-dir -c constraints.txt '.[ray]'

ARG MODEL_ARCHIVE=model_store/BERTweetSentimentAnalysis.mar
COPY --chmod=0444 $MODEL_ARCHIVE /models/

USER 1000
WORKDIR /home/server
# What KubeRay starts instead; this alone is a cluster of one host.
ENTRYPOINT ["tini", "--"]
CMD ["ray", "start", "--head", "--block"]
