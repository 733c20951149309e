cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$cores MKL_NUM_THREADS=$cores OPENBLAS_NUM_THREADS=$cores
{{ time_left }}# In place of this shell, so that signals reach it.
exec "${command[@]}" task "$run" {{ stage }} --index "$SLURM_ARRAY_TASK_ID" --of {{ of }} --threads "$cores" --submission {{ submission }}{{ limits }}
