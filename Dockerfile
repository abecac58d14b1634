# One NVIDIA GPU:  docker build -t grpo-ao .
#                  docker run --gpus all -v "$PWD/runs:/app/runs" -e OPENROUTER_API_KEY grpo-ao train
FROM python:3.12-slim

# Captured decoding compiles a decoder layer, for which torch needs a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY grpo_ao grpo_ao
# torch's wheels for Linux bring CUDA.
RUN pip install --no-cache-dir '.[4bit,wandb]'

WORKDIR /app
ENTRYPOINT ["grpo-ao"]
CMD ["--help"]
