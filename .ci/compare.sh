#!/usr/bin/env bash
# What the GitHub Action runs (action.yml): compare OLD with NEW, the table into the job's summary. Exit codes are those of `compress compare`:
# 1 where an interval lies beyond a limit, 2 where the two cannot be compared. Inputs come as variables, so nothing in them is run.
set -euo pipefail
: "${OLD:?the benchmark.json to compare with}" "${NEW:?the benchmark.json of this change}"
PYTHON="${PYTHON:-python3}" HERE="${HERE:-$(cd "$(dirname "$0")/.." && pwd)}"

if ! "$PYTHON" -c "import compress.benchmarks" 2> /dev/null; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$HERE"
fi

arguments=("$OLD" "$NEW")
if [ -n "${SLOWER:-}" ]; then arguments+=(--fail-if-slower "$SLOWER"); fi
if [ -n "${LESS_ACCURATE:-}" ]; then arguments+=(--fail-if-less-accurate "$LESS_ACCURATE"); fi
if [ -n "${HTML:-}" ]; then arguments+=(--html "$HTML"); fi
if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then arguments+=(--markdown "$GITHUB_STEP_SUMMARY"); fi

code=0
told="$("$PYTHON" -m compress compare "${arguments[@]}" 2>&1)" || code=$?
printf '%s\n' "$told"
if [ "$code" -ge 2 ] && [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then # there is no table then
    printf '**The two results were not compared**\n\n```\n%s\n```\n' "$told" >> "$GITHUB_STEP_SUMMARY"
fi
exit "$code"
