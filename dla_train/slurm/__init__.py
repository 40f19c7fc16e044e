"""Slurm: what a run asks of the cluster, the batch script that says so, and handing it to `sbatch`."""
