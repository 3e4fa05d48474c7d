# The image for any platform, with a container engine: docker buildx build --platform linux/amd64,linux/arm64 .
# BASE is pinned by its release; give a digest (python:...@sha256:...) for one that never moves.
ARG BASE=python:3.13.9-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY nri_dranet nri_dranet
RUN python -m venv /opt/nri-dranet \
 && /opt/nri-dranet/bin/pip install --no-cache-dir --only-binary=:all: . \
 && /opt/nri-dranet/bin/pip uninstall --yes pip

FROM ${BASE}
COPY --from=build /opt/nri-dranet /opt/nri-dranet
ENV PATH=/opt/nri-dranet/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1
# The DaemonSet runs as root with named capabilities, everything else as nobody in particular.
USER 65532:65532
ENTRYPOINT ["/opt/nri-dranet/bin/nri-dranet"]
CMD ["run"]
