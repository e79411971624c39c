#!/bin/sh
# Fills a directory with what a stage needs: a virtual environment with the pins of a lock and this package, and no Airflow.
#
#   docker/install-stage.sh PREFIX VARIANT [framework|dependencies|package]...
#
# VARIANT is cpu or cuda. Without parts all three are installed, in this order; an image makes a layer of each, so that a change of the code
# sends a few megabytes and not TensorFlow again. PYTHON names the interpreter, which must have pip; PREFIX gets none. Whatever breaks on the
# way, the same command may be given again: it goes on with what is missing.
set -eu
unset CDPATH PYTHONPATH  # cd would print, and pip take what lies there for installed

here=$(cd "$(dirname "$0")" && pwd)
test $# -ge 2 || { echo "usage: $0 PREFIX cpu|cuda [framework|dependencies|package]..." >&2; exit 2; }
prefix=$1 lock=$here/stage-$2.lock python=${PYTHON:-python3}
shift 2
test -f "$lock" || { echo "$lock does not exist; the variants are cpu and cuda." >&2; exit 2; }
test $# -gt 0 || set -- framework dependencies package
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || {
    echo "$python is $("$python" --version 2>&1); the locks are for Python 3.11, 3.12 or 3.13. Name one: PYTHON=python3.12 $0 ..." >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pip() {
    "$python" -m pip --python "$prefix/bin/python" --disable-pip-version-check install --quiet --no-cache-dir --no-deps "$@"
}

# What is large and seldom changes is in the lock like everything else; 1 takes it, 0 leaves it out. The versions fit: the lock was resolved as a whole.
pins() {
    awk -v large="$1" '
        /^[a-z0-9]/ { taken = ($0 ~ /^(tensorflow|tensorflow-cpu|nvidia-[a-z0-9-]+|keras|libclang|numpy|scipy|pyarrow|onnx|onnxruntime|pandas)==/) == large }
        !/^ *#/ && taken
    ' "$lock" > "$work/pins.txt"
    pip --require-hashes --only-binary :all: --requirement "$work/pins.txt"
}

# Built in a copy, since setuptools leaves its own files beside the sources, and what an earlier build left would be installed too. setuptools comes from
# the lock.
package() {
    (cd "$here/.." && cp -r setup.cfg pyproject.toml README.md LICENSE airflow_mlops "$work")
    pip --no-build-isolation "$work"
}

for part in "$@"; do
    case $part in
        # TensorFlow's headers, a fifth of it, are for who compiles operations of his own.
        framework) "$python" -m venv --without-pip "$prefix"; pins 1; rm -rf "$prefix"/lib/python*/site-packages/tensorflow/include ;;
        dependencies) pins 0 ;;
        package) package ;;
        *) echo "there is no part $part; expected framework, dependencies or package." >&2; exit 2 ;;
    esac
done
