#!/usr/bin/env bash
# A Ray cluster of two nodes on this machine, to try jobs on: reached over loopback only, with a token, beside any other
# Ray that runs here.
#
#   cluster/local.sh up [CPUS [GPUS]]    start it; CPUS and GPUS of each node (half of this machine's CPUs, no GPU)
#   eval "$(cluster/local.sh env)"       from then on `ray` and `python jobs/NAME.py` of this shell use it
#   cluster/local.sh status              nodes and what they have
#   cluster/local.sh down                end it and all that runs on it
#
# JANUS_LOCAL names its folder (/tmp/janus-local-UID; keep it short, sockets lie below it), JANUS_LOCAL_PORT the first of
# the six ports that it takes (26379).
set -euo pipefail

readonly folder=${JANUS_LOCAL:-/tmp/janus-local-$UID} port=${JANUS_LOCAL_PORT:-26379}
readonly mark=JANUS_LOCAL_NODE=$folder wait_s=200

environment() {
    cat <<END
export RAY_ADDRESS=127.0.0.1:$port
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$((port + 1))
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$folder/token
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
END
}

# start_node NAME ARGUMENT...: in the background, in a process group and a folder of its own.
# Ray takes 127.0.0.1 for the machine's address on its network and listens on all interfaces, but where clusters are
# switched off; there a second node is refused. So they are off, and this code lets a second node in.
start_node() {
    local name=$1
    shift
    env -u RAY_ADDRESS "$mark" setsid python -W ignore - start --block --temp-dir="$folder/$name" \
        --node-ip-address=127.0.0.1 --min-worker-port=0 --max-worker-port=0 --disable-usage-stats --log-color=false \
        "$@" >"$folder/$name.log" 2>&1 <<'END' &
from ray._private import ray_constants, services
from ray.scripts.scripts import main

ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
main()
END
    started=$!
}

# Processes of the cluster: those that it started carry its mark in their environment.
processes() {
    local environ
    for environ in /proc/[0-9]*/environ; do
        if tr '\0' '\n' 2>/dev/null <"$environ" | grep -qxF "$mark"; then basename "$(dirname "$environ")"; fi
    done
}

# One line a node.
nodes() {
    python -W ignore - <<'END'
import ray

ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
for node in ray.nodes():
    if node["Alive"]:
        print(node["NodeManagerAddress"], node["NodeID"][:8], *(f"{k}: {node['Resources'].get(k, 0):g}" for k in ("CPU", "GPU")))
END
}

up() {
    local cpus=${1:-$((($(nproc) + 1) / 2))} gpus=${2:-0}
    [ -z "$(processes)" ] || { echo "$folder: a cluster runs already: eval \"\$(cluster/local.sh env)\" uses it, cluster/local.sh down ends it" >&2; exit 6; }
    [ -O "$folder" ] || mkdir -m 700 "$folder"    # not one that someone else laid there
    [ -e "$folder/token" ] || [ -z "$(ls -A "$folder")" ] || { echo "$folder holds other things: give JANUS_LOCAL a folder of its own" >&2; exit 2; }
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$folder/token")
    eval "$(environment)"
    start_node head --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) \
        --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3)) \
        --num-cpus="$cpus" --num-gpus="$gpus"
    local began=$SECONDS
    echo "starting a head and a second node, half a minute in all"
    until ray health-check --address="127.0.0.1:$port" >/dev/null 2>&1; do still_starting "$began"; done
    start_node worker --address="127.0.0.1:$port" --dashboard-agent-listen-port=$((port + 4)) \
        --num-cpus="$cpus" --num-gpus="$gpus"
    until [ "$(nodes 2>/dev/null | wc -l)" = 2 ]; do still_starting "$began"; done
    echo "two nodes, each with CPUs: $cpus, GPUs: $gpus; dashboard: http://127.0.0.1:$((port + 1)) (asks for $folder/token)"
    echo "eval \"\$(cluster/local.sh env)\" makes this shell use them"
}

still_starting() {
    if ((SECONDS - $1 > wait_s)) || ! kill -0 "$started" 2>/dev/null; then
        tail -n 20 "$folder"/*.log >&2
        down
        echo "the cluster did not start" >&2
        exit 6
    fi
    sleep 1
}

down() {
    local found signal
    for signal in TERM '' '' '' KILL ''; do  # asked, given time, made to
        found=$(processes)
        [ -n "$found" ] || break
        # shellcheck disable=SC2086 # one argument a process
        [ -z "$signal" ] || kill -s "$signal" $found 2>/dev/null || true
        sleep 1
    done
    rm -rf "$folder"/{head,worker,head.log,worker.log,token}    # nothing that it did not make
    rmdir "$folder" 2>/dev/null || true
    echo "no cluster is left; a shell that used it: unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN_PATH RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
}

# is_up: or it says so and fails
is_up() {
    [ -e "$folder/token" ] || { echo "no cluster runs here; cluster/local.sh up starts one" >&2; return 6; }
}

case ${1:-} in
    up) up "${@:2}" ;;
    env) is_up && environment ;;
    status) is_up && eval "$(environment)" && nodes ;;    # `ray status` counts nodes by address, and these share one
    down) down ;;
    *) sed -n 's/^# \{0,1\}//; 2,/^set /{/^set /!p}' "$0" >&2; exit 2 ;;
esac
