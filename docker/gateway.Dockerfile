# The gateway with its embedded engine on the CPU. From the repository's root:
#
#   docker build -f docker/gateway.Dockerfile -t farthing .
#   docker run --rm -p 8080:8080 -v farthing:/home/farthing/.local/state/farthing farthing
#
# In a container the gateway listens on every address, and so it needs API keys. At its first start
# it makes one for an administrator and prints it, once; `docker exec CONTAINER farthing keys create
# NAME` makes others. The volume holds the SQLite ledger, the journal, and the secret that keys are
# hashed with; with FARTHING_LEDGER=postgresql://... set FARTHING_KEY_SECRET too. Where something
# else guards the port, `--no-auth` at the end of `docker run` does without keys.
FROM python:3.11-slim

WORKDIR /opt/farthing
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY routers routers
COPY policies policies
# The extra index has torch without CUDA, a tenth of the size.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt '.[embedded,otel]' \
    && useradd --create-home --uid 10001 farthing

USER farthing
WORKDIR /home/farthing
RUN farthing models pull && mkdir -p .local/state/farthing
VOLUME /home/farthing/.local/state/farthing

EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
ENTRYPOINT ["farthing", "serve", "--host", "0.0.0.0", "--first-key"]
