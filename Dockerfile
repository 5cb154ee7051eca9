# docker build -t pillarbox . ; see docs/guides/run-with-docker.md
FROM python:3.13-slim AS build
COPY pyproject.toml README.md LICENSE /src/
COPY docs/man /src/docs/man
COPY src /src/src
RUN python -m venv /opt/pillarbox && /opt/pillarbox/bin/pip install --no-cache-dir "/src[testing]"

FROM python:3.13-slim
COPY --from=build /opt/pillarbox /opt/pillarbox
# No flags and no variables: they would win over the file that an operator mounts in place of this one.
COPY contrib/docker/pillarbox.toml /etc/pillarbox/pillarbox.toml
# A user of its own: ports below 1024 are for everybody within a container (net.ipv4.ip_unprivileged_port_start).
RUN useradd --system --uid 1025 --home-dir /var/lib/pillarbox --shell /usr/sbin/nologin pillarbox \
    && install -d -m 0700 -o pillarbox -g pillarbox /var/lib/pillarbox
ENV PATH=/opt/pillarbox/bin:$PATH PYTHONUNBUFFERED=1 PILLARBOX_DATA_DIR=/var/lib/pillarbox
USER pillarbox
VOLUME /var/lib/pillarbox
EXPOSE 25 587 465 1025 8025
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8025/healthz', timeout=3)"]
ENTRYPOINT ["pillarbox"]
CMD ["serve"]
