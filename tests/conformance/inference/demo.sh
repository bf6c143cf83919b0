#!/usr/bin/env bash
# Confidential inference from one end to the other, on the emulated platform, and a search for plain text in everything that the
# operator's side handled: see demo.py. Everything made goes into the target folder; packages come from PyPI, strace from Debian.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/setup.sh"
exec "$python" "$here/demo.py" "$target/debug/enclos" "$root/services/inference/enclave" "$models" "$work"
