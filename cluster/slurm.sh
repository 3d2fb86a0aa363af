#!/usr/bin/env bash
#SBATCH --job-name=janus
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=72
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=janus-%j.log
#SBATCH --signal=B:USR1@600
# A stage on a Ray cluster of its own, which starts and ends with the allocation. From the repository's folder:
#
#   sbatch [--nodes=N ...] cluster/slurm.sh jobs/stage2.py RECIPE.yaml ... [key.path=value ...]
#
# Ten minutes before the time is up (USR1, above) the run is asked to save and stop. It is requeued when it ends with 75
# (stopped; what is whole stays), with 143 where it was asked so before it had begun, or with 6 (the cluster failed),
# and with nothing else (docs/errors.md); 6 at most JANUS_REQUEUES times (10) in a job's life, counted in
# janus-JOB.failures. `scancel --signal=TERM --batch JOB` saves and ends the job for good.
#
# The first node takes ranks too. JANUS_VENV is the virtual environment (.venv), on a disk that all nodes see. Ray's ports
# are open on the nodes' network, hence the token.
set -euo pipefail

readonly job=${1:?JOB is missing: jobs/stage1.py, jobs/stage2.py or jobs/stage3.py} id=${SLURM_JOB_ID:?run it by sbatch}
PATH=$(realpath "${JANUS_VENV:-.venv}")/bin:$PATH
export PATH
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun=(srun --overlap --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK")

RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
# Four ports of this job alone: above those of Ray's workers (10002 to 19999), below those that the system gives out
# (32768 on); jobs whose numbers differ by a multiple of 3000 share them.
port=$((20000 + id % 3000 * 4))
readonly client_port=$((port + 1)) dashboard_port=$((port + 2)) agent_port=$((port + 3))
head_address=$(getent ahostsv4 "${nodes[0]}" | awk '$1 !~ /^127\./ {print $1; exit}' || true)
readonly address=${head_address:-${nodes[0]}}:$port
export RAY_AUTH_MODE RAY_AUTH_TOKEN

ending='' driver='' head=''
# shellcheck disable=SC2329    # called by the traps
stop() {    # stop SIGNAL ENDING: the run saves and stops, and the script goes on where it waits for it
    ending=$2
    echo "$1: asking the run to save and stop; the job has $(time_left) left"
    [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true
}
# shellcheck disable=SC2329    # called by the traps
time_left() {
    local left
    left=$(squeue --noheader --jobs="$id" --format=%L 2>/dev/null) || left=''
    echo "${left:-an unknown time}"
}
trap 'stop USR1 stopped' USR1    # from Slurm ten minutes before the end, or by hand
trap 'stop TERM cancelled' TERM    # scancel, preemption or a requeue
trap 'kill $(jobs -p) 2>/dev/null && wait || true' EXIT

# The head on the first node, then the others; false when the head does not come up.
start_ray() {
    local ray_start=(ray start --block --disable-usage-stats --temp-dir="/tmp/ray-$id"
        --dashboard-agent-listen-port="$agent_port"
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
    "${srun[@]}" --nodes=1 --nodelist="${nodes[0]}" "${ray_start[@]}" --head --port="$port" \
        --ray-client-server-port="$client_port" --dashboard-port="$dashboard_port" --dashboard-host=127.0.0.1 &
    head=$!
    until ray health-check --address="$address" >/dev/null 2>&1; do
        kill -0 "$head" 2>/dev/null || return 1
        sleep 2
    done
    if ((${#nodes[@]} > 1)); then
        "${srun[@]}" --nodes=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" "${ray_start[@]}" --address="$address" &
    fi
}

# The driver's exit code; 6 when the head ends before it, for which a driver might wait for a quarter of an hour.
wait_for_driver() {
    while kill -0 "$driver" 2>/dev/null && kill -0 "$head" 2>/dev/null; do
        wait -n "$driver" "$head" || true    # a trap ends `wait` before either
    done
    if kill -0 "$driver" 2>/dev/null; then
        echo "the head of Ray ended: the job is given ${JANUS_HEAD_GRACE_S:-60} s to end" >&2
        for ((waited = 0; waited < ${JANUS_HEAD_GRACE_S:-60}; waited++)); do
            kill -0 "$driver" 2>/dev/null || break
            sleep 1
        done
        kill -KILL "$driver" 2>/dev/null || true
        wait "$driver" || true
        return 6
    fi
    wait "$driver"
}

code=75
if ! start_ray; then
    echo "the head of Ray ended" >&2
    code=6
elif [ -z "$ending" ]; then
    RAY_ADDRESS=$address python cluster/wait.py "$@" &
    driver=$!
    wait_for_driver && code=0 || code=$?
fi

# Slurm's own count of restarts is also that of each time that was up.
readonly failures=janus-$id.failures
if [ "$code" = 6 ]; then echo "$(date -Is) $job ended with 6" >>"$failures"; fi
failed=$(wc -l 2>/dev/null <"$failures" || echo 0)
echo "$job ended with $code; the cluster has failed $failed times"
case $code in
    75) again=yes ;;
    143) again=${ending:+yes} ;;
    6) ((failed > ${JANUS_REQUEUES:-10})) || again=yes ;;
esac
if [ "$ending" != cancelled ] && [ "${again:-}" = yes ]; then
    scontrol requeue "$id"
else
    rm -f "$failures"
fi
exit "$code"
