#!/usr/bin/env bash
# Builds the targets with libFuzzer's instrumentation and feeds them. Nothing but the stable toolchain and a C++ compiler is
# needed: the instrumentation is a pass of LLVM's own.
#
#   TARGET   one target (default: all, one after the other)
#   SECONDS_EACH   how long each (default: 60)
#   FUZZ_DIR   where what is found is kept (default: .run/fuzz)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
kept=${FUZZ_DIR:-$root/.run/fuzz}
seconds=${SECONDS_EACH:-60}
host=$(rustc -vV | sed -n 's/^host: //p')

# One input may take so long, in seconds, and all of the program so much memory, in MiB.
longest=10
memory=1024

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

build() {
    local llvm="-C llvm-args=-sanitizer-coverage"
    RUSTFLAGS="-C passes=sancov-module $llvm-level=4 $llvm-inline-8bit-counters $llvm-pc-table $llvm-trace-compares" \
        "${CARGO:-cargo}" build --quiet --manifest-path "$root/Cargo.toml" --target "$host" --target-dir "$root/target/fuzz" \
        --profile fuzz -p keylime-mqtt-fuzz --features libfuzzer --bin keylime-mqtt-fuzz
}

# feed TARGET: fails when an input does.
feed() {
    mkdir -p "$kept/$1" "$kept/failed"
    say "$1 for $seconds s"
    FUZZ_TARGET=$1 "$root/target/fuzz/$host/fuzz/keylime-mqtt-fuzz" "$kept/$1" "$here/corpus/$1" \
        -max_total_time="$seconds" -timeout="$longest" -rss_limit_mb="$memory" -malloc_limit_mb="$memory" \
        -artifact_prefix="$kept/failed/$1-" -print_final_stats=1 2>"$kept/$1.log" ||
        { tail -40 "$kept/$1.log" >&2; say "$1 failed: see $kept/failed"; return 1; }
    sed -n 's/^stat::/  /p' "$kept/$1.log"
}

build
if [ -n "${TARGET:-}" ]; then
    feed "$TARGET"
else
    failed=0
    for corpus in "$here"/corpus/*/; do
        feed "$(basename "$corpus")" || failed=1
    done
    exit $failed
fi
