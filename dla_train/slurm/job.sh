#!/usr/bin/env bash
# Trains @NAME@ with dla-train, and goes on by itself after time limits, preemption and failures.
# Written by `dla-train submit`. Submit it again by hand, if you must, with
#   @SUBMIT@
@DIRECTIVES@

set -u
export SLURM_TIME_FORMAT=standard  # of the times that are read below
cd -- @WORKING_DIRECTORY@ || exit 2
command=(@COMMAND@)
state_folder=@STATE_FOLDER@
requeue_limit=@REQUEUE_LIMIT@  # of failed starts; time limits and preemption are not counted

# A task of an array has an id of its own; the plain one may be that of the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { printf '%s slurm job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$job" "$*"; }

# Slurm's controller may be away for a moment: one call that is not answered must not end the job for good.
again() {
  local try
  for try in 1 2 3 4 5 6; do "$@" && return; sleep 5; done
  return 1
}
show_job() { slurm=$(scontrol --oneliner show job "$job" 2>&1) && [[ $slurm == *JobState=* ]]; }

# Back into the queue under the same job id; the next start goes on from the newest checkpoint.
requeue() {
  say "to be requeued: $1"  # said first: Slurm ends this script with the requeue, in its own time
  trap '' TERM              # and not scontrol, which inherits this, before that has worked
  again scontrol requeue "$job" || say "could NOT be requeued, because Slurm does not answer; submit the job again to go on"
}

# The same after a failure, unless there have been too many.
requeue_counted() {
  say "$1" >>"$state_folder/failures-$job"
  failures=$(wc -l <"$state_folder/failures-$job")
  if [ "$failures" -le "$requeue_limit" ]; then
    requeue "$1 (failure $failures, requeued after up to $requeue_limit)"
  else
    say "$1; not requeued: failure $failures, requeued after up to $requeue_limit"
  fi
}

# Slurm's signals go to the processes. One that was meant for this script is passed on; not by way of srun, which
# answers SIGTERM by killing all. bash runs traps only once a foreground command has ended, so srun is in the background.
received=
forward() { received=$1; scancel "--signal=$1" "$job" 2>/dev/null; }
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# The time limit would end the job for good. What is still there 10 s before has been warned, but did not come to the end
# of its step, or of saving it. Somebody may have changed the limit.
trap 'received=ALRM' ALRM
watch_the_clock() {
  local end left
  while :; do
    end=$(squeue --noheader --jobs="$job" --format=%e 2>/dev/null)
    [ -n "$end" ] || { nap 5 && continue; }  # no answer
    [[ $end == *T*:* ]] || return  # no limit
    left=$(($(date --date "$end" +%s) - $(date +%s) - 10))
    [ "$left" -gt 0 ] || { kill -ALRM $$ && return; }
    nap $((left < 600 ? left : 600))
  done
}
nap() { read -rt "$1" <> <(:) || :; }  # sleeps, without a process that would have to be ended
watch_the_clock &
trap "kill $! 2>/dev/null" EXIT

# The run writes here how it ends, where all processes agree on it: told to stop, refused, hung. A process of an earlier
# start, on a node that was given up for lost, has a file of its own.
restarts=${SLURM_RESTART_COUNT:-0}
export DLA_TRAIN_EXIT_CODE_FILE=$state_folder/exit-code-$job-$restarts
mkdir -p -- "$state_folder"
rm -f -- "$state_folder/exit-code-$job-"*

# What the job asks for each process srun does not ask by itself, since Slurm 22.05: each would be bound to one core.
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

say "start $((restarts + 1)) on ${SLURM_JOB_NODELIST:-?}"
# One process fails: the others have a minute to notice, say so and end by themselves. Ended by srun at once, they would
# look like processes that were told to stop.
# Ranks of a node must follow each other, whatever the cluster's default.
srun --distribution=block --kill-on-bad-exit=0 --wait=60 "${command[@]}" &
while :; do
  received=
  wait $!
  status=$?  # the highest exit code of all processes
  case $received in
    ALRM) status=124 && break ;;
    '') break ;;
  esac  # a signal ends `wait` early: wait again
done
said=
[ ! -s "$DLA_TRAIN_EXIT_CODE_FILE" ] || said=$(<"$DLA_TRAIN_EXIT_CODE_FILE")
status=${said:-$status}
slurm=
again show_job
# On a node that was given up for lost this may be the end of an earlier start: what is running is not its to requeue.
[[ $slurm =~ Restarts=([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -gt "$restarts" ] && slurm="begun anew: $slurm"

case $status,$said,$slurm in
  0,*) say "finished" ;;
  2,2,*) say "refused: recipe, data or folder are wrong (see above); not requeued" ;;
  *,"begun anew: "*JobState=RUNNING*)
    say "Slurm has begun this job anew meanwhile (exit code $status); not requeued by this script"
    ;;
  *JobState=RUNNING*)
    case $status,$said,$slurm in
      138,138,*) requeue "warned by SIGUSR1 (time limit, preemption or scancel --signal=USR1); saved what was trained" ;;
      130,130,* | 143,143,*) requeue "stopped by a signal (exit code $status); saved what was trained" ;;
      # Not agreed on: it came before the training, or after. Counted, or a start too long for its time limit would go
      # on for ever.
      138,,*PreemptTime=[0-9]* | 143,,*PreemptTime=[0-9]*) requeue "preempted while there was nothing to save" ;;
      138,,*) requeue_counted "warned by SIGUSR1 (time limit or scancel --signal=USR1) while there was nothing to save" ;;
      143,,*) requeue_counted "a process was ended by SIGTERM with nothing saved, as srun does where another has failed" ;;
      124,*PreemptTime=[0-9]*) requeue "preempted, and the grace time was too short for a step and its save" ;;
      124,*) requeue_counted "the time limit came before a step was done and saved; see --warn-seconds" ;;
      75,*) requeue_counted "a process hung (exit code 75; the stacks are in logs/hang-rank-*.txt)" ;;
      *) requeue_counted "a process failed with exit code $status" ;;
    esac
    ;;
  *JobState=*) say "ended from outside (scancel, scontrol requeue, time limit); not requeued by this script" ;;
  *) say "not requeued, because Slurm does not answer (exit code $status): $slurm" ;;
esac
exit "$status"
