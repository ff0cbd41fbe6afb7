"""Generation: one token runs through all blocks in a single launch of the threads.

Between two ordinary launches, a thread falls asleep, and waking it takes longer than most products
of a single token. So in this package, the threads start once per token and run together through a
*program*: a list of phases, each of which reads the results of earlier ones. A phase is divided
into tasks. Threads draw tasks from the phase's counter and continue when all its tasks are done:

    tables.py   the kinds of phases and their parameters
    tasks.py    the computation of one task of each kind
    mixture_tasks.py, mixer_tasks.py    the same for experts, and for blocks without attention
    run.py      the kernel that runs the program

`nbllama.kernels.threads` provides the counters, and `nbllama.generation.token_program` writes the
program of a model.
llama.cpp: `ggml_graph_compute_thread`, `ggml_barrier`.
"""
