"""Runs on the CPU what Triton's compiler makes of a kernel for a GPU that this machine does not have.

Triton's own interpreter runs a kernel's Python and does not involve the compiler: neither its optimizations, nor the
loads that it moves ahead and waits for, nor bfloat16. Here a launch is compiled as for that GPU, down to the last
representation that is still about tensors (TTGIR: layouts chosen, loops pipelined, tensor cores named), and that is
executed. What remains unproven is the rest of the way, from TTGIR to machine code, and the timing between the programs
and threads of a launch; but asynchronous operations (copies, products of tensor cores) are completed here as late as
the code allows.

`translate.py` turns TTGIR into Python, operation by operation (`operations.py`); `values.py` has the arithmetic,
`memory.py` the tensors, `program.py` asynchronous operations; `launch.py` compiles and runs.
"""
