"""One token through all blocks in one launch of the threads: how generation goes on.

Between two ordinary launches a thread falls asleep, and to wake it takes longer than most products
of a single token. So here the threads start once a token and walk together through a *program*: a
list of phases, each of which reads what earlier ones wrote. A phase is cut into tasks; threads draw
tasks from the phase's counter and go on when all its tasks are done:

    tables.py   what a phase can be, and the numbers it is told
    tasks.py    what one task of each kind computes
    run.py      the kernel that walks through the program

`nbllama.kernels.threads` has the counters, and `nbllama.generation.token_program` writes the
program of a model.
llama.cpp: `ggml_graph_compute_thread`, `ggml_barrier`.
"""
