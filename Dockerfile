# Only the service: no PyTorch, no compiler, no package manager.

FROM python:3.11-slim AS build
WORKDIR /src
# Every package has a wheel for x86-64. On ARM64, pysqlite3 has none and is built with Debian's SQLite.
RUN if [ "$(uname -m)" != x86_64 ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libsqlite3-dev; \
    fi
COPY requirements/uv.txt requirements/service.txt requirements/
RUN python -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
        --require-hashes -r requirements/uv.txt \
    && uv venv --python "$(command -v python)" /opt/diptych \
    && VIRTUAL_ENV=/opt/diptych uv pip install --no-cache --compile-bytecode --require-hashes \
        -r requirements/service.txt
COPY requirements/dev.txt requirements/
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY training training
# docker build --build-arg EXTRAS=heic,openvino,tracing .
ARG EXTRAS=
RUN VIRTUAL_ENV=/opt/diptych uv pip install --no-cache --compile-bytecode --no-deps . \
    && { [ -z "$EXTRAS" ] || VIRTUAL_ENV=/opt/diptych uv pip install --no-cache --compile-bytecode \
        --constraint requirements/dev.txt ".[$EXTRAS]"; } \
    # Tests and sources of the packages are a tenth of the whole.
    && find /opt/diptych/lib -path '*/site-packages/*' -type d -name tests -prune -exec rm -rf {} + \
    && find /opt/diptych/lib -path '*/site-packages/*' -type f \( -name '*.c' -o -name '*.pyx' -o -name '*.pyi' \) -delete

FROM python:3.11-slim
COPY --from=build /opt/diptych /opt/diptych
# A number and not a name, so that an orchestrator that forbids root can see that this is not root.
RUN mkdir /data && chown 10001:10001 /data
USER 10001:10001
WORKDIR /data
ENV PATH=/opt/diptych/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    DIPTYCH_HOST=0.0.0.0 \
    DIPTYCH_PORT=8000 \
    DIPTYCH_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"DIPTYCH_PORT\"]}/readyz', timeout=2)"]
ENTRYPOINT ["diptych"]
CMD ["serve"]
