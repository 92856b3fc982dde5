# ptl on the CPU; with CUDA: docker build --build-arg TORCH=cu128 -t ptl .
#
#   docker run --rm -v ptl-runs:/runs -v "$PWD":/work ptl run recipe.yaml
#
# Recipes and data are read from /work, runs are kept in /runs.
FROM python:3.11-slim

ARG TORCH=cpu
ARG TORCH_VERSION=2.13.0

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PTL_HOME=/runs \
    HF_HOME=/runs/huggingface

# torch first: it is the largest layer, and changes least.
RUN python -m pip install "torch==${TORCH_VERSION}" --index-url "https://download.pytorch.org/whl/${TORCH}"

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY posttrain_recipes posttrain_recipes
COPY recipes recipes
COPY schemas schemas
COPY docs/effects.md docs/effects.md
RUN python -m pip install -c constraints.txt '.[export,gguf]'

RUN useradd --create-home --uid 1000 ptl \
    && mkdir -p /runs /work \
    && chown ptl:ptl /runs /work
USER 1000
WORKDIR /work
VOLUME ["/runs"]
EXPOSE 8765

ENTRYPOINT ["ptl"]
CMD ["--help"]
