#!/usr/bin/env bash
# Start SkyRL's Tinker server on this machine's CPU (JAX backend), serving the bundled model ptl/tiny.
#
#   tools/skyrl_cpu.sh CHECKOUT [PORT] [STATE]
#
# CHECKOUT is a folder of SkyRL's repository. Its packages come from the environment that SKYRL_VENV
# names (default: CHECKOUT/.venv), made once by
#
#   cd CHECKOUT && uv venv --python 3.12 && uv pip install -e '.[tinker,jax]' aiohttp
#
# STATE (default: ./skyrl-state) gets the server's database and checkpoints, and links that make the
# served name and the folder of the model the same. The server is ready when
# http://127.0.0.1:PORT/api/v1/healthz answers; Ctrl-C ends it. SKYRL_SLOTS (8) adapters fit, one of
# which is the base model's.
set -euo pipefail

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  sed -n '2,16s/^# \{0,1\}//p' "$0"
  exit 2
fi
checkout=$(cd "$1" && pwd)
port=${2:-8123}
state=${3:-skyrl-state}
venv=${SKYRL_VENV:-$checkout/.venv}
model=$(cd "$(dirname "$0")/.." && pwd)/posttrain_recipes/models/tiny

if [ ! -d "$checkout/skyrl/tinker" ]; then
  echo "error: $checkout is no checkout of SkyRL: it has no skyrl/tinker" >&2
  exit 2
fi
if [ ! -x "$venv/bin/python" ]; then
  echo "error: there is no Python environment at $venv; make it, or name one by SKYRL_VENV:" >&2
  echo "  cd $checkout && uv venv --python 3.12 && uv pip install -e '.[tinker,jax]' aiohttp" >&2
  exit 2
fi
export PATH=$venv/bin:$PATH
if ! command -v uv > /dev/null; then
  echo "error: SkyRL starts its engine by 'uv', which is not installed: pip install uv" >&2
  exit 2
fi

mkdir -p "$state/ptl" "$state/site"
state=$(cd "$state" && pwd)
ln -sfn "$model" "$state/ptl/tiny"
paths=$checkout
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
  # Pydantic takes no TypedDict of typing's before Python 3.12, and SkyRL defines some.
  printf 'import typing, typing_extensions\ntyping.TypedDict = typing_extensions.TypedDict\n' \
    > "$state/site/sitecustomize.py"
  paths=$state/site:$checkout
fi

cd "$state"
export VIRTUAL_ENV=$venv PYTHONPATH=$paths UV_NO_PROJECT=1 UV_PYTHON=$venv/bin/python JAX_PLATFORMS=cpu
# The API server starts its engine with the flags that it finds on the command line of 'uv run'.
exec uv run --no-project -m skyrl.tinker.api \
  --base-model ptl/tiny --backend jax \
  --backend-config "{\"max_lora_adapters\": ${SKYRL_SLOTS:-8}, \"max_lora_rank\": 32, \"train_micro_batch_size\": 8, \"sample_max_num_sequences\": 64}" \
  --checkpoints-base "$state/checkpoints" --database-url "sqlite:///$state/tinker.db" \
  --host 127.0.0.1 --port "$port"
