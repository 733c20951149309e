# In place of this shell, so that signals reach it.
exec "${command[@]}" submit "$run" --follow {{ submission }}
