# longlora in a container, on a CPU or on NVIDIA GPUs:
#
#   docker build --tag longlora .
#   docker run --rm longlora demo
#   docker run --rm longlora plan Qwen/Qwen3-8B --context 65536
#   docker run --rm --gpus all --volume "$PWD:/runs" longlora train recipe.yaml
#
# pip's own torch for Linux brings CUDA and works without a GPU too. A smaller image for CPUs alone: give the index of
# torch's CPU build with --build-arg TORCH_INDEX=… .
FROM python:3.11-slim

ARG TORCH_INDEX=""
ARG EXTRAS="corpus,serve,web"

WORKDIR /opt/longlora
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

# Recipes, texts and runs; models from the hub stay in the volume that is mounted there.
WORKDIR /runs
ENV HF_HOME=/runs/.cache/huggingface XDG_CACHE_HOME=/runs/.cache
ENTRYPOINT ["longlora"]
CMD ["--help"]
