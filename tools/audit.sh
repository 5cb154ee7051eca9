#!/bin/sh
# Asks the advisory database (pip-audit, in an environment of its own) about the installed versions of what we depend on.
# Exit 0: no known hole; 1: holes, printed; 2: the database or the package index cannot be reached, nothing was checked.
set -u
cd "$(dirname "$0")/.."
audit=.venv/audit
out=$(mktemp)
trap 'rm -f "$out" "$out.why"' EXIT
if [ ! -x "$audit/bin/pip-audit" ]; then
  python3 -m venv "$audit" && "$audit/bin/pip" install --quiet pip-audit || {
    rm -rf "$audit"
    echo "audit: pip-audit cannot be installed: nothing was checked" >&2
    exit 2
  }
fi
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$audit/bin/pip-audit" --path "$site" --skip-editable --progress-spinner off --format json --output "$out" 2>"$out.why"
code=$?
# It ends with 1 for a hole and for a fault; only with an answer is there a file with something in it.
if [ ! -s "$out" ]; then
  tail -n 1 "$out.why" >&2
  echo "audit: the advisory database cannot be asked: nothing was checked" >&2
  exit 2
fi
[ "$code" -eq 0 ] && echo "audit: no known hole in the installed versions" || cat "$out"
exit "$code"
