#!/bin/sh
# One task of the bare loop: a plain worktree, the CLI, a commit. xargs gives the task's code; the rest is environment.
set -eu
code=$1
place=$BENCH_WORK/$code
mkdir -p "$place/home" "$place/config" "$place/tmp"
git -C "$BENCH_REPO" worktree add --quiet -b "bare/$BENCH_ROUND/$code" "$place/code" main
cd "$place/code"
env -i PATH="$PATH" LANG=C.UTF-8 HOME="$place/home" TMPDIR="$place/tmp" CLAUDE_CONFIG_DIR="$place/config" \
    CLAUDE_CODE_TMPDIR="$place/tmp" ANTHROPIC_API_KEY="$ANTHROPIC_API_KEY" ANTHROPIC_BASE_URL="$ANTHROPIC_BASE_URL" \
    NO_PROXY=127.0.0.1 CLAUDE_CODE_DISABLE_AUTO_MEMORY=1 CLAUDE_CODE_DISABLE_BACKGROUND_TASKS=1 \
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 DISABLE_TELEMETRY=1 \
    "$BENCH_CLAUDE" --print --output-format stream-json --verbose --model "$BENCH_MODEL" --setting-sources '' \
    --strict-mcp-config --permission-mode dontAsk --tools Bash,Read,Edit,Write,Glob,Grep \
    --allowedTools 'Bash,Read,Glob,Grep,Edit(./**)' <"$BENCH_PROMPTS/$code" >"$place/out"
git add -A
git -c user.name=Bench -c user.email=bench@localhost commit --quiet --message "$code"
