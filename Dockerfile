# syntax=docker/dockerfile:1
# compress in a container, in two stages:
#
#   docker build --target base -t compress .          # benchmark, predict, verify, compare: numpy and ONNX Runtime, no torch
#   docker build --target train -t compress:train .   # everything
#   docker run --rm -v "$PWD:/work" compress:train run --model k49 --data digits
FROM python:3.12-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/compress
COPY . .
# hadolint ignore=DL3013
RUN pip install ".[pictures]" \
    && useradd --create-home --uid 1000 compress \
    && install -d -o compress /work
WORKDIR /work
USER 1000
ENTRYPOINT ["python", "-m", "compress"]
CMD ["--help"]

FROM base AS train
USER 0
# Torch comes with CUDA as a rule, some gigabytes of it; an index that has it for the CPU alone may be named here.
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "/opt/compress[train]"
USER 1000
