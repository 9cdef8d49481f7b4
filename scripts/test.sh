#!/usr/bin/env bash
# Runs every test (unit, property, snapshot, end to end) and ends with the line
# `N passed, N failed`. End-to-end tests drive the real binary in throw-away roots; the
# last check is that nothing of ours is left on the machine.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp "${TMPDIR:-/tmp}/corten-test.XXXXXX")
trap 'rm -f "$log"' EXIT

if [ "$(id -u)" -ne 0 ]; then
  echo "The end-to-end tests isolate real processes: run 'make test' as root." >&2
  exit 1
fi

cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

passed=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
failed=$(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$log")
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
  failed=1 # it did not build, or a test program crashed
fi

left=$(scripts/leftovers.sh)
if [ -n "$left" ]; then
  printf 'Left behind by the tests:\n%s\n' "$left"
  failed=$((failed + 1))
else
  passed=$((passed + 1))
fi
[ "$failed" -eq 0 ] || grep -E '^(test .* FAILED|error(\[|:))' "$log" | sort -u
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
