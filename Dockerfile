# The broker in an image: no compiler, no root, its data in the volume /data.
#
#   docker build -t penstock .
#   docker run --rm -v penstock:/data penstock penstock key create --role admin --data /data
#   docker run -d -v penstock:/data -p 4567:4567 -p 127.0.0.1:4568:4568 --stop-timeout 30 penstock
#
# The second line comes first for a reason: the broker listens on all addresses of its container here, and there it
# refuses to start until an access key exists (or --insecure accepts that everybody can do everything).

FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/penstock \
    && /opt/penstock/bin/pip install --no-cache-dir '.[all]'

FROM python:3.11-slim
# tini reaps what is orphaned and passes SIGTERM and SIGHUP on; as process 1 Python would do neither by itself.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid penstock --home-dir /data --no-create-home --shell /usr/sbin/nologin penstock \
    && install -d -o penstock -g penstock -m 0700 /data
COPY --from=build /opt/penstock /opt/penstock
# Metrics and health are readable from outside the container; publish port 4568 only where that is wanted.
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONSAFEPATH=1 \
    PENSTOCK_METRICS=0.0.0.0:4568 \
    PENSTOCK_LOG_FORMAT=json
USER penstock
WORKDIR /data
VOLUME /data
EXPOSE 4567 4568
# SIGTERM (docker stop) drains for up to 10 s: give it more than Docker's own 10 (--stop-timeout 30).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-c", "\
import http.client, sys; \
connection = http.client.HTTPConnection('127.0.0.1', 4568, timeout=2); \
connection.request('GET', '/healthz'); \
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["penstock", "serve", "--listen", "0.0.0.0:4567", "--data", "/data"]
