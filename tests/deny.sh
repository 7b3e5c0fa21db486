#!/usr/bin/env bash
# Dependencies: licences, bans and sources always; advisories where their database can be reached. See deny.toml.
# Fails when an exception there has no end, or its end has passed; `deny.sh dates` looks at these alone.
#
#   TODAY         another day than this one, as 2027-05-28
#   ADVISORY_DB   https URL of another copy of the database
set -euo pipefail

root=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
cargo=${CARGO:-cargo}
version=0.20

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }

# Days of this form compare as text.
dates() {
    awk -v today="${TODAY:-$(date -u +%F)}" '
        /^ *\{ crate = .* allow = / || /^ *\{ id = / || /^multiple-versions = "allow"/ {
            if (!match($0, /until [0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]/)) {
                print "deny.toml: this exception has no end: " $0; bad = 1
            } else if (substr($0, RSTART + 6, 10) < today) {
                print "deny.toml: the end of this exception has passed: " $0; bad = 1
            }
        }
        END { exit bad }' deny.toml
}

cd "$root"
dates
if [ "${1:-}" = dates ]; then
    exit 0
fi
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
