"""Generation: run all blocks for one token in a single launch of the threads.

Between two ordinary launches, the threads go to sleep, and waking them takes longer than most
matrix products for a single token. In this package, the threads are therefore started once per
token and run a *program* together. A program is a list of phases, each of which reads the results
of earlier phases. Each phase is divided into tasks. Threads draw tasks from the phase's counter and
continue with the next phase when all tasks are done. The modules are:

    tables.py           the kinds of phases and their parameters
    tasks.py            the computation of one task, for each kind of phase
    mixture_tasks.py    the tasks that occur only in models with experts
    mixer_tasks.py      the tasks that occur only in blocks without attention
    run.py              the kernel that runs the program

`nbllama.kernels.threads` provides the counters, and `nbllama.generation.token_program` builds the
program for a model. llama.cpp: `ggml_graph_compute_thread`, `ggml_barrier`.
"""
