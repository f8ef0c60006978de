#!/usr/bin/env bash
# On one worker of a Cloud TPU slice, copied there by tpu_vm.sh: tpu_worker.sh start|restart|state
#
# start: install jaxlm where no Python is given, and train in the background, unless it does so already.
# restart: the same, after stopping what still runs: it may be dying of another worker's death.
# state: print complete, running, or how training ended.
set -euo pipefail
cd "$(dirname "$0")"
set -a
source tpu_vm.env
set +a

training() { [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; }

start() {
  if training; then
    echo "$(hostname): training already"
    return
  fi
  local python=$JAXLM_PYTHON
  if [ -z "$python" ]; then
    # The image's own Python may be older than jaxlm needs.
    rm -rf source && mkdir source && tar -xzf source.tar.gz -C source
    python3 -m pip install --user --quiet uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 venv
    python3 -m uv pip install --quiet --python venv/bin/python "./source[tpu]"
    python=$PWD/venv/bin/python
  fi
  mkdir -p "$JAXLM_RUN_DIR/launch"
  rm -f status
  # shellcheck disable=SC2016  # expanded by the inner shell
  JAXLM_CLUSTER=auto setsid nohup bash -c '
    "$1" -m jaxlm train config.json --run-dir "$JAXLM_RUN_DIR" $JAXLM_TRAIN_ARGS
    echo $? >status' train "$python" >>train.log 2>&1 </dev/null &
  echo $! >pid
  echo "$(hostname): training"
}

restart() {
  if training; then
    kill -TERM -- "-$(cat pid)" 2>/dev/null || true
    for _ in $(seq 60); do
      if ! training; then break; fi
      sleep 1
    done
    kill -KILL -- "-$(cat pid)" 2>/dev/null || true
    while training; do sleep 0.1; done
  fi
  start
}

state() {
  if training; then
    echo running
  elif [ -d "$JAXLM_RUN_DIR/checkpoints/$JAXLM_STEPS" ]; then
    echo complete
  elif [ -f status ]; then
    echo "ended with exit status $(cat status)"
  else
    echo "not started"
  fi
}

"$1"
