"""What a graph that is cut for a step cache is made of; models/first_block.py says where it is cut, and why.

head.onnx has the first block and what it needs, tail.onnx the other blocks, end.onnx what is behind them. All three
read the data of model.onnx.
"""

#: in the order in which they run; also the files' names
PIECES = ("head", "tail", "end")
#: tensors that cross the cuts: x1 - x0 and x1 leave the head, x2 leaves the tail for the end
RESIDUAL, FIRST, LAST = "first_block_residual", "first_block_out", "last_block_out"
