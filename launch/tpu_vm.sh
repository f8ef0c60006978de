#!/usr/bin/env bash
# A jaxlm run on the VMs of a Cloud TPU slice, got through a queued resource: tpu_vm.sh start|watch SETTINGS
#
# start: request the slice if there is none (again if it was preempted or failed), wait for it, and start training on every
#        worker where it does not run yet. Safe to repeat.
# watch: start, then look every minute until the run is complete: request the slice again when it is preempted, start again
#        when training died; delete the slice when the run is complete or its configuration is at fault.
#
# SETTINGS is a file of shell assignments, as `jaxlm launch --on tpu-vm` writes it (RUN/launch/tpu_vm.env):
# TPU_NAME, TPU_ZONE, TPU_TYPE (v5litepod-16), TPU_VERSION (v2-alpha-tpuv5-lite), TPU_PROJECT and TPU_SPOT (may be empty),
# JAXLM_RUN_DIR (on the workers, on a file system that all of them mount), JAXLM_STEPS, JAXLM_PYTHON (empty: the code in
# JAXLM_SOURCE is installed on each worker), JAXLM_TRAIN_ARGS, JAXLM_RESTARTS. Beside it lie config.json and tpu_worker.sh.
set -euo pipefail
action=$1 settings=$(realpath "$2")
source "$settings"
folder=$(dirname "$settings")
where=(--zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"})
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)

# The state of the queued resource, NONE where there is none.
state() {
  local said
  if said=$("${queue[@]}" describe "$TPU_NAME" "${where[@]}" --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$said"
  elif grep -q NOT_FOUND <<<"$said"; then
    echo NONE
  else
    echo "$said" >&2
    return 1
  fi
}

on_workers() {  # WORKERS COMMAND
  "${vm[@]}" ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

delete() {
  "${queue[@]}" delete "$TPU_NAME" "${where[@]}" --force --quiet
}

get() {
  local now
  while true; do
    now=$(state)
    echo "$TPU_NAME: $now"
    case $now in
      ACTIVE) return ;;
      SUSPENDED | FAILED)
        delete
        sleep "${TPU_PAUSE:-30}"
        ;;
      NONE)
        if [ -e "$folder/cancelled" ]; then
          echo "$TPU_NAME was cancelled"
          exit 0
        fi
        "${queue[@]}" create "$TPU_NAME" --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" \
          --runtime-version="$TPU_VERSION" ${TPU_SPOT:+--spot} "${where[@]}"
        ;;
      *) sleep "${TPU_PAUSE:-30}" ;;
    esac
  done
}

start() {
  local files=("$settings" "$folder/config.json" "$folder/tpu_worker.sh")
  get
  if [ -z "$JAXLM_PYTHON" ]; then
    tar -czf "$folder/source.tar.gz" --exclude=__pycache__ -C "$JAXLM_SOURCE" pyproject.toml README.md LICENSE jaxlm launch
    files+=("$folder/source.tar.gz")
  fi
  on_workers all "mkdir -p jaxlm-$TPU_NAME"
  "${vm[@]}" scp "${files[@]}" "$TPU_NAME:jaxlm-$TPU_NAME/" "${where[@]}" --worker=all
  on_workers all "bash jaxlm-$TPU_NAME/tpu_worker.sh start"
}

# Start again in a shell of its own: what fails there, a copy that a preemption cut off, say, is tried again at the next look.
start_again() {
  JAXLM_AGAIN=yes bash "$0" start "$settings" || echo "$TPU_NAME: not started, trying again" >&2
}

watch() {
  local left=$JAXLM_RESTARTS now training
  start_again
  while sleep "${TPU_PAUSE:-60}"; do
    if [ -e "$folder/cancelled" ]; then
      echo "$TPU_NAME was cancelled"
      return
    fi
    now=$(state) || continue  # the network may be away for a while
    if [ "$now" != ACTIVE ]; then
      start_again
      continue
    fi
    training=$(on_workers 0 "bash jaxlm-$TPU_NAME/tpu_worker.sh state" | tail -n 1) || continue
    echo "$TPU_NAME: $training"
    case $training in
      complete)
        delete
        return
        ;;
      running) ;;
      "ended with exit status 2")
        delete
        echo "the configuration is at fault: see $JAXLM_RUN_DIR/launch" >&2
        return 2
        ;;
      *)
        if [ "$left" -eq 0 ]; then
          echo "training died once more than JAXLM_RESTARTS allows; the slice $TPU_NAME still stands, and costs" >&2
          return 1
        fi
        left=$((left - 1))
        on_workers all "bash jaxlm-$TPU_NAME/tpu_worker.sh restart" || true
        ;;
    esac
  done
}

if [ -z "${JAXLM_AGAIN:-}" ]; then rm -f "$folder/cancelled"; fi
"$action"
