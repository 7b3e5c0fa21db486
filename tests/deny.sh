#!/usr/bin/env bash
# Dependencies: licences, bans and sources always; advisories where their database can be reached. See deny.toml.
#
#   ADVISORY_DB   https URL of another copy of the database
set -euo pipefail

root=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
cargo=${CARGO:-cargo}
version=0.20

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

cd "$root"
if ! "$cargo" deny --version >/dev/null 2>&1; then
    say "installing cargo-deny $version, which takes some minutes and is done once"
    "$cargo" install --quiet --locked "cargo-deny@^$version"
fi
"$cargo" deny --log-level error check licenses bans sources

config=deny.toml
if [ -n "${ADVISORY_DB:-}" ]; then
    mkdir -p .run
    config=.run/deny.toml
    awk -v db="$ADVISORY_DB" '{ print } /^\[advisories\]/ { print "db-urls = [\"" db "\"]" }' deny.toml >"$config"
fi
if "$cargo" deny --log-level off --config "$config" fetch db 2>/dev/null; then
    "$cargo" deny --log-level error --config "$config" check advisories
else
    say "the database of advisories cannot be reached from here: advisories were NOT checked"
fi
