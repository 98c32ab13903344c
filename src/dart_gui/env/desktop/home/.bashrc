PS1='$ '
# The file says that a shell has come to its prompt and reads what is typed.
PROMPT_COMMAND=': > /tmp/.prompt'
