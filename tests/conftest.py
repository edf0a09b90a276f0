"""What all tests share."""

import os

import torch as th

# On matrices as small as those of the tests, more threads are many times slower when the machine has other work.
# Processes that tests start inherit the variable
os.environ["OMP_NUM_THREADS"] = "1"
th.set_num_threads(1)
