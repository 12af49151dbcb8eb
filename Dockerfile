# The service (docs/service.md) on a CPU, from the pinned requirements:
#   docker build -t mammoclip .
#   docker run --hostname mammoclip -p 127.0.0.1:8080:8080 -v mammoclip-spool:/spool -v $PWD/runs/demo:/model:ro \
#       -e MAMMOCLIP_TOKEN mammoclip
# For a GPU build with --build-arg EXTRAS=[cuda13] and run with --gpus=all.
FROM python:3.11-slim

ARG EXTRAS=

# What the requirements need: they come first, so that a change of the code does not install them again.
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY mammoclip_jax ./mammoclip_jax
RUN pip install --no-cache-dir ".${EXTRAS}"

# Nobody else's files, and no shell to log in with. The spool is the only place that is written to, beside /tmp.
RUN useradd --system --create-home --shell /usr/sbin/nologin mammoclip \
    && install -d -m 0700 -o mammoclip -g mammoclip /spool
USER mammoclip
WORKDIR /home/mammoclip
VOLUME /spool
EXPOSE 8080 11112

# Longer than the default --stop_seconds: `docker stop --time=30`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --start-period=300s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=5)"]

# It listens to all addresses of the container, and so asks for a token.
ENTRYPOINT ["python", "-m", "mammoclip_jax.serve", "--host=0.0.0.0", "--port=8080", "--spool=/spool"]
CMD ["--weights=/model"]
