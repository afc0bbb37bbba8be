# The gateway with its embedded engine on the CPU. From the repository's root:
#
#   docker build -f docker/gateway.Dockerfile -t farthing .
#   docker run --rm -p 127.0.0.1:8080:8080 farthing --no-auth
#
# There are no API keys yet. In a container the gateway must listen on every address, which it
# refuses to do without keys unless --no-auth says that something else guards the port; above,
# that is publishing it on 127.0.0.1 only.
FROM python:3.11-slim

WORKDIR /opt/farthing
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY routers routers
COPY policies policies
# The extra index has torch without CUDA, a tenth of the size.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c constraints.txt '.[embedded]' \
    && useradd --create-home --uid 10001 farthing

USER farthing
WORKDIR /home/farthing
RUN farthing models pull

EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health/ready', timeout=2)"]
ENTRYPOINT ["farthing", "serve", "--host", "0.0.0.0"]
