"""Runs on the CPU what Triton's compiler made of a kernel for a GPU that is not here.

Triton's own interpreter runs the Python of a kernel and knows nothing of the compiler: not its optimisations, nor the
loads it moves ahead and waits for, nor bfloat16. Here a launch is compiled as on that GPU, down to the last
representation that is still about tensors (TTGIR: layouts chosen, loops pipelined, tensor cores named), and that is
executed. What is left unproven is the rest of the way, from TTGIR to machine code, and how programs and threads of one
launch meet in time; but what is under way (copies, products of tensor cores) is done here as late as the code allows.

`translate.py` makes Python of TTGIR, `values.py` has the arithmetic, `program.py` memory and what is under way,
`launch.py` compiles and runs.
"""
