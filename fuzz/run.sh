#!/usr/bin/env bash
# Runs the fuzz targets, each on its corpus and seeds. Ends with a line "N passed, N failed"; crashing input stays in
# the target folder.
#
# Usage: run.sh [SECONDS | RUNSx] [TARGET...]     SECONDS for each target (default 4), or so many runs: 10000000x
# FUZZ_COMPARISONS=off builds without tracing comparisons: half the guidance, twice the runs, for long ones.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
built=${CARGO_TARGET_DIR:-$root/target}
target=$built/fuzz
quotes=${ENCLOS_QUOTES:-$root/../shared/quotes}
amount=${1:-4}
shift || true
targets=("$@")
if [ ${#targets[@]} = 0 ]; then targets=(quote collateral policy jws inspect frame image manifest sealed model jwe host_replies); fi
case $amount in *x) limit=-runs=${amount%x} ;; *) limit=-max_total_time=$amount ;; esac

# Flags of the environment would replace those of .cargo/config.toml, and nothing would guide the search.
flags=()
if [ "${FUZZ_COMPARISONS:-on}" = off ]; then
    target=$target-plain built=$target
    flags=("RUSTFLAGS=$(grep -o '"-[^"]*"' "$here/.cargo/config.toml" | grep -v trace-compares | tr -d '"' | paste -sd' ')")
fi
(cd "$here" && env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS "${flags[@]}" CARGO_TARGET_DIR="$built" cargo build -q --release --locked)

passed=0 failed=0
for name in "${targets[@]}"; do
    # New finds go to the first folder; what is committed is only read.
    found=$target/found/$name crashes=$target/crashes/$name
    mkdir -p "$found" "$crashes"
    folders=("$found" "$here/corpus/$name")
    case $name in
    quote | inspect)
        folders+=("$root/verifier/tests/data")
        for folder in "$quotes" "$quotes/mutants" "$quotes/ra-tls" "$quotes/snp"; do
            if [ -d "$folder" ]; then folders+=("$folder"); fi
        done
        ;;
    model) folders+=("$root/services/inference/tests/data") ;;
    esac
    options=(-timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -verbosity=1 -artifact_prefix="$crashes/")
    if [ -f "$here/$name.dict" ]; then options+=(-dict="$here/$name.dict"); fi
    log=$target/$name.log
    if "$built/x86_64-unknown-linux-gnu/release/$name" "${options[@]}" "$limit" "${folders[@]}" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "ok    $name: $runs runs, $(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -1)"
        # A search that sees no coverage is none.
        if grep -q 'cov: [1-9]' "$log"; then passed=$((passed + 1)); else
            echo "FAILED $name: no coverage was seen"
            failed=$((failed + 1))
        fi
    else
        failed=$((failed + 1))
        echo "FAILED $name: see $log"
        tail -40 "$log"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
