"""Weights and training states, in and out.

In, file by file, as `loading.load_weights` walks it:
    `files` finds the file and the weights in it (`spelling`, `formats`, `unpickling`, `numpy_readers`: its bytes),
    `schemes` gives the tensors m2f's names, `class_names` asks what the labels mean,
    `architecture` refuses another network, `adapting` and `rows` fit what differs, and the model is filled.
Out: `writing` (with `huggingface_files`; `huggingface_spec` is the way back). A run's own files: `checkpointer`. Both
write through `atomic`.
"""
