"""Evidence from the raw input: what users get against what the original library gives for the same input.

`texts`, `pictures` make inputs that hurt; `cases` chooses those of a task; `served` answers them with what
will be served, or with what is; `agreement` compares; `measure` does all of it. docs/evidence.md says in
words what is compared with what.
"""
