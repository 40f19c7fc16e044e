#!/usr/bin/env bash
# Trains @NAME@ with dla-train, and goes on by itself after time limits, preemption and failures.
# Written by `dla-train submit`. Submit it again by hand, if you must, with
#   @SUBMIT@
@DIRECTIVES@

set -u
cd -- @WORKING_DIRECTORY@ || exit 2
command=(@COMMAND@)
state_folder=@STATE_FOLDER@
requeue_limit=@REQUEUE_LIMIT@  # of failed starts; time limits and preemption are not counted

# A task of an array has an id of its own; the plain one may be that of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf '%s slurm job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$job" "$*"; }

# Back into the queue under the same job id; the next start goes on from the newest checkpoint. A job that Slurm is
# ending already (COMPLETING: cancelled, requeued from outside, or past its time limit) is left alone.
requeue() {
  case "$(scontrol --oneliner show job "$job" 2>&1)" in
    *JobState=RUNNING*) say "requeued: $1" && scontrol requeue "$job" ;;
    *) say "ended from outside (scancel, scontrol requeue, time limit); not requeued by this script" ;;
  esac
}

# bash runs traps only once a foreground command has ended, so srun goes to the background and we wait for it.
received=
srun=
forward() { received=$1; [ -z "$srun" ] || kill "-$1" "$srun" 2>/dev/null; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# Rank 0 writes here how the run ends, while all processes are present. srun's own exit code may be that of a process
# that it ended on its way out.
export DLA_TRAIN_EXIT_CODE_FILE=$state_folder/exit-code-$job
mkdir -p -- "$state_folder"
rm -f -- "$DLA_TRAIN_EXIT_CODE_FILE"

say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on ${SLURM_JOB_NODELIST:-?}"
srun --kill-on-bad-exit=1 "${command[@]}" &
srun=$!
[ -z "$received" ] || forward "$received"  # it came before there was anyone to tell
while :; do
  received=
  wait "$srun"
  status=$?
  [ -n "$received" ] || break  # a signal ends `wait` early: wait again
done
[ ! -s "$DLA_TRAIN_EXIT_CODE_FILE" ] || status=$(<"$DLA_TRAIN_EXIT_CODE_FILE")

case $status in
  0) say "finished" ;;
  2) say "refused: recipe, data or folder are wrong (see above); not requeued" ;;
  138) requeue "warned by SIGUSR1 (time limit, preemption or scancel --signal=USR1); saved what was trained" ;;
  130 | 143) requeue "stopped by a signal (exit code $status)" ;;
  *)
    what="a process failed with exit code $status"
    [ "$status" -ne 75 ] || what="a process hung (exit code 75; the stacks are in logs/hang-rank-*.txt)"
    echo "exit code $status on ${SLURM_JOB_NODELIST:-?}" >>"$state_folder/failures-$job"
    failures=$(wc -l <"$state_folder/failures-$job")
    if [ "$failures" -le "$requeue_limit" ]; then
      requeue "$what (failure $failures, requeued after up to $requeue_limit)"
    else
      say "$what; not requeued: failure $failures, requeued after up to $requeue_limit"
    fi
    ;;
esac
exit "$status"
