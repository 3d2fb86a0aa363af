#!/usr/bin/env bash
# For a node that is about to be taken away: ask the run to save and stop, then wait until it has.
#
#   cluster/leave.sh NOTICE_FILE [LIMIT_S]     in preStop hooks, and where a provider announces the end of a node
#
# Ranks look at NOTICE_FILE (`cluster.notice_file` of the recipe) between steps; a driver on this node is sent SIGTERM.
# Either way all ranks stop behind the same step, save it, and the job ends with 75. Ends with 0 when neither is left on
# this node, with 6 when one still is after LIMIT_S seconds (600).
set -euo pipefail

readonly notice=${1:?NOTICE_FILE is missing} limit_s=${2:-600}
readonly ranks='^ray::.*RayTrainWorker' drivers='^[^ ]*python[0-9.]* (-[A-Za-z]+ )*([^ ]*cluster/wait\.py )?[^ ]*jobs/stage[123]\.py'

touch "$notice"
pkill -TERM -f "$drivers" || true
began=$SECONDS
while pgrep -f "$ranks|$drivers" >/dev/null; do
    if ((SECONDS - began >= limit_s)); then
        echo "$0: still running after $limit_s s: $(pgrep -f "$ranks|$drivers" | tr '\n' ' ')" >&2
        exit 6
    fi
    sleep 1
done
