#!/usr/bin/env bash
# Trains @NAMES@, each as a task of one job, with a script, a log and a fate of its own.
# Written by `dla-train submit`. Submit it again by hand, if you must, with
#   @SUBMIT@
@DIRECTIVES@
#SBATCH --array=0-@LAST@

set -u
scripts=(@SCRIPTS@)
script=${scripts[$SLURM_ARRAY_TASK_ID]}
exec bash "$script" >>"$(dirname "$script")/job-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.log" 2>&1
