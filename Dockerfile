# saelab with everything, for a CPU; --build-arg TORCH=cu128 makes the image for CUDA 12.8.
FROM python:3.12-slim AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /dist .

FROM python:3.12-slim
ARG TORCH=cpu
# A C compiler is what Triton builds its launchers with.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
RUN version="$(sed -n 's/^torch==//p' /tmp/constraints.txt)" \
    && pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" "torch==${version}"
COPY --from=wheel /dist /tmp/dist
# Triton's version is that of torch for CUDA; a CPU needs none.
RUN grep -v '^triton' /tmp/constraints.txt > /tmp/pins \
    && wheel="$(echo /tmp/dist/*.whl)" \
    && pip install --no-cache-dir -c /tmp/pins "${wheel}[app,explain,hub,lm]" \
    && rm -rf /tmp/dist
RUN useradd --create-home saelab && mkdir /work && chown saelab /work
USER saelab
WORKDIR /work
EXPOSE 8501
ENTRYPOINT ["saelab"]
CMD ["--help"]
