#!/usr/bin/env bash
# The main process of a pod: pod.sh COMMAND... trains, passes SIGTERM on, and tells a finished run from one that was stopped
# early and saved, which a scheduler is to start again (exit status 75). Needs JAXLM_RUN_DIR and JAXLM_STEPS.
trap 'kill -TERM "$train"' TERM
"$@" &
train=$!
status=0
wait "$train" || status=$?
while kill -0 "$train" 2>/dev/null; do  # the trap ended the wait, not the training
  status=0
  wait "$train" || status=$?
done
if [ "$status" -eq 0 ] && [ ! -d "$JAXLM_RUN_DIR/checkpoints/$JAXLM_STEPS" ]; then exit 75; fi
exit "$status"
