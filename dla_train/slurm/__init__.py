"""Slurm: the resources that a run requests, the batch script that requests them, and its submission with `sbatch`."""
