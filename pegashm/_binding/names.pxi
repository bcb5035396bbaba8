# Numbers of the core under names that Python uses.

FORMAT_MAJOR = format_major
FORMAT_MINOR = format_minor
LAYOUT_SIGNATURE = layout_signature
CLIENT_COUNT = client_count
NAMESPACE_COUNT = namespace_count
HEADER_BYTES = sizeof(Header)
SUM_COUNT = sum_count
SPILL_FILE_COUNT = spill_file_count
TRANSPORT_PATH_BYTES = 104
REMOTE_HOST_COUNT = remote_host_count
REMOTE_HASH_VERSION = remote_hash_version
REMOTE_COPIES = copies_max
TIER_MEMORY, TIER_SSD = 1, 2
REUSE_TICK_SECONDS = reuse_tick_seconds
REUSE_RANK_COUNT = reuse_rank_count
REUSE_REGISTER_COUNT_MAX = reuse_register_count_max
EVICTIONS = ("lru", "adaptive")  # by the header's number

OK, MISSING, PENDING, EXISTS, NO_SPACE, QUOTA, TOO_LARGE, INDEX_FULL, PINNED, INCOMPLETE, SPILLED, REMOTE, DRAINING = range(13)
STATUS_NAMES = {
    OK: "ok", MISSING: "missing", PENDING: "pending", EXISTS: "exists", NO_SPACE: "no_space", QUOTA: "quota",
    TOO_LARGE: "too_large", INDEX_FULL: "index_full", PINNED: "pinned", INCOMPLETE: "incomplete",
    SPILLED: "spilled", REMOTE: "remote", DRAINING: "draining",
}

_MAGIC = int.from_bytes(b"PEGASHM1", "little")
_COPY_METHODS = {"auto": 0, "memcpy": 1, "streaming": 2, "rep_movsb": 3}
# Names of `_core/missing.hpp`'s Why.
WHY_NAMES = ("never_stored", "evicted", "other_namespace", "not_yet", "refused", "damaged", "present", "spilled")
_COUNTER_INDEX = {counter_keys[i].decode(): i for i in range(counters_used)}
