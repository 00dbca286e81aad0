"""Compares two GGUF files with the reference reader: python compare_gguf.py OURS THEIRS.

Prints tensors and keys that differ. Needs the package gguf.
"""

import sys
import numpy
from gguf import GGUFReader


def main():
    """Exit code 1 if a tensor or key of the second file is missing or different in the first."""
    ours, theirs = GGUFReader(sys.argv[1]), GGUFReader(sys.argv[2])
    found = {tensor.name: tensor for tensor in ours.tensors}
    different = []
    for tensor in theirs.tensors:
        other = found.get(tensor.name)
        if other is None or other.tensor_type != tensor.tensor_type:
            different.append(f"{tensor.name}: {tensor.tensor_type.name}, "
                             f"ours {other and other.tensor_type.name}")
        elif list(other.shape) != list(tensor.shape) or not numpy.array_equal(other.data, tensor.data):
            different.append(f"{tensor.name}: other values")
    for key, field in theirs.fields.items():
        other = ours.fields.get(key)
        if not key.startswith("GGUF.") and (other is None or other.contents() != field.contents()):
            different.append(f"{key}: {str(field.contents())[:60]}, "
                             f"ours {str(other and other.contents())[:60]}")
    print("\n".join(different) or "no differences")
    print(f"{len(theirs.tensors)} tensors and {len(theirs.fields)} keys compared")
    sys.exit(bool(different))


main()
