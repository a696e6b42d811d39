"""Files from strangers: what is read is first found to be what it says, within limits, before memory is taken for it.

    files.py      sizes, names and links          documents.py  JSON and YAML
    tensors.py    safetensors and .npy headers    gguf.py       GGUF headers

Nothing here needs more than the standard library and PyYAML, so that every folder may ask.
"""
