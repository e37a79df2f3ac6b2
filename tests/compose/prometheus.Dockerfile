# Debian's Prometheus, where its own image cannot be pulled: the same flags, the same files.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus && mkdir -p /prometheus \
 && chown 65534:65534 /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
