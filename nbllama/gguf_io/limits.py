"""Limits for GGUF files. A file that exceeds a limit is refused before memory is allocated.

Published models are well below the limits (Gemma 3: 262,144 tokens, 514,906 merges, 16 MB of
metadata; mixtures of experts with one tensor per expert: about 30,000 tensors). With these limits,
reading a header takes at most one second and 200 MB.
"""

from __future__ import annotations

HEADER_BYTES = 24  # magic u32, version u32, n_tensors u64, n_kv u64
MIN_KV_BYTES = 14  # key length u64, 1 byte of key, value type u32, 1 byte of value
MIN_TENSOR_BYTES = 33  # name length u64, 1 byte of name, n_dims u32, dim u64, type u32, offset u64

MAX_KV = 1 << 14
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_DIM = 1 << 31
MAX_COUNT = 1 << 31  # for a key that specifies a size
MAX_STRING_BYTES = 16 << 20
MAX_TEXT_BYTES = 16 << 20  # total size of keys and single strings in a file
MAX_METADATA_BYTES = 48 << 20
MAX_ARRAY_STRINGS = 1 << 21  # total number of elements in all string arrays

DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT = 8  # so that every float64 in the data section is aligned
MAX_ALIGNMENT = 1 << 20
