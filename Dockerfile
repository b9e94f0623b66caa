# saelab with everything. torch is the package index's own, which brings CUDA along; for a CPU alone,
# or another CUDA, give the index that https://pytorch.org/get-started names:
#     docker build --build-arg TORCH_INDEX=URL .
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /dist .

FROM python:3.12-slim
ARG TORCH_INDEX=""
# Triton builds its launchers with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
RUN version="$(sed -n 's/^torch==//p' /tmp/constraints.txt)" \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${version}"
COPY --from=wheel /dist /tmp/dist
# Triton comes with torch for CUDA, in its version; a CPU needs none. pip also makes the bytecode,
# for which the user below may not write here.
RUN grep -v '^triton' /tmp/constraints.txt > /tmp/pins \
    && wheel="$(echo /tmp/dist/*.whl)" \
    && pip install --no-cache-dir -c /tmp/pins "${wheel}[app,explain,hub,lm]"
RUN useradd --create-home saelab && mkdir /data && chown saelab /data
USER saelab
WORKDIR /data
EXPOSE 8501
ENTRYPOINT ["saelab"]
CMD ["--help"]
