"""What a GGUF file may ask for. Beyond any of these it is refused before memory is taken.

The largest published models use about 1/10 of each (Gemma 3: 262,144 tokens, 514,906 merges,
16 MB of metadata; unmerged mixtures of experts: some 30,000 tensors).
"""

from __future__ import annotations

HEADER_BYTES = 24  # magic u32, version u32, n_tensors u64, n_kv u64
MIN_KV_BYTES = 14  # key length u64, 1 byte of key, value type u32, 1 byte of value
MIN_TENSOR_BYTES = 33  # name length u64, 1 byte, n_dims u32, a dim u64, type u32, start u64

MAX_KV = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_DIM = 1 << 31
MAX_STRING_BYTES = 16 << 20
MAX_TEXT_BYTES = 24 << 20  # keys and single strings of one file together
MAX_METADATA_BYTES = 64 << 20
MAX_ARRAY_STRINGS = 1 << 22  # elements of all string arrays together

DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT = 8  # so that a float64 in the data section is always aligned
MAX_ALIGNMENT = 1 << 20
