# What callers pass and what is handed back, converted.

cdef object _zeros = np.zeros
cdef object _WORD = np.dtype(np.uint64)
cdef object _BYTE = np.dtype(np.uint8)


cdef class _Keys:
    """A sequence of engine keys in the core's form."""
    cdef Key* keys
    cdef uint32_t count

    def __cinit__(self, object keys, uint32_t namespace_id):
        cdef Py_ssize_t i, size, length
        cdef const uint8_t* data
        cdef PyObject** items
        keys = PySequence_Fast(keys, "keys are a sequence of bytes")
        items = PySequence_Fast_ITEMS(keys)  # borrowed; nothing below runs Python code before it fails
        size = PySequence_Fast_GET_SIZE(keys)
        if size >= 0x7FFFFFFF:
            raise ValueError(f"a batch holds at most 2^31 keys, got {size}")
        self.count = <uint32_t>size
        self.keys = <Key*>malloc((size if size > 0 else 1) * sizeof(Key))
        if self.keys == NULL:
            raise MemoryError()
        for i in range(size):
            if not PyBytes_Check(<object>items[i]):
                raise TypeError(
                    f"a key is bytes (block hash + 4 bytes of group), got {type(<object>items[i]).__name__}")
            length = PyBytes_GET_SIZE(<object>items[i]) - 4
            if length < 1 or length > 32:
                raise ValueError(f"a key has 1 to 32 bytes of hash and 4 of group, got {length + 4} in all")
            data = <const uint8_t*>PyBytes_AS_STRING(<object>items[i])
            if data[length] != 0 or data[length + 1] != 0:
                raise ValueError("the KV-cache group of a key must be below 65536")
            if length == 32:  # what engines send: a size known to the compiler is four moves, not a call
                memcpy(self.keys[i].words, data, 32)
            else:
                memset(self.keys[i].words, 0, 32)
                memcpy(self.keys[i].words, data, length)
            self.keys[i].identity = make_identity(
                namespace_id, <uint16_t>(data[length + 2] << 8 | data[length + 3]), <uint8_t>length)

    def __dealloc__(self):
        free(self.keys)


cdef const uint64_t[::1] _words(object array):
    return np.ascontiguousarray(array, dtype=np.uint64).reshape(-1)


cdef bytes _key_bytes(const uint64_t* words, uint64_t length):
    return PyBytes_FromStringAndSize(<const char*>words, <Py_ssize_t>min(length, <uint64_t>32))


cdef str _text(const char* field, uint64_t size):
    return (<bytes>field[:size]).split(b"\0", 1)[0].decode("utf-8", "replace")
