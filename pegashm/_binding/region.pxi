# A region mapped into this process: its header and tables, as Python sees them.

cdef class _PayloadView:
    """Buffer over payload bytes; keeps the mapping alive."""
    cdef object owner
    cdef void* address
    cdef Py_ssize_t size
    cdef int readonly

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.address, self.size, self.readonly, flags)


cdef class Region:
    cdef Mapping control_map
    cdef Mapping payload_map
    cdef View view
    cdef readonly bint writable
    cdef readonly bint closed
    cdef int users  # clients and payload views that hold addresses: the mapping outlives close() until they go
    cdef object disowned  # why this process may not use it, when it was inherited by fork
    cdef object __weakref__

    def __init__(self, int control_fd, arena_fds, *, bint writable=True):
        cdef int fds[16]
        cdef uint64_t sizes[16]
        cdef uint64_t file_bytes = os.fstat(control_fd).st_size
        cdef int i, error
        self.closed = True
        self.writable = writable
        if file_bytes < sizeof(Header):
            raise ArenaNotReadyError("the control region is empty: its creator has not finished")
        error = map_one(control_fd, file_bytes, writable, self.control_map)
        if error:
            raise ResourceError(f"cannot map the control region of {file_bytes} bytes: {os.strerror(error)}")
        self.closed = False
        self.view.control = self.control_map.address
        self.view.payload = NULL
        verdict, reason = _judge(<const Header*>self.view.control, file_bytes, &self.view.geometry)
        if verdict != 0:
            self.close()
            raise (ArenaNotReadyError if verdict == 1 else FormatError)(f"the control region {reason}")
        if not arena_fds:
            return
        try:
            self._check_arenas(arena_fds, sizes)
        except BaseException:
            self.close()
            raise
        for i in range(len(arena_fds)):
            fds[i] = arena_fds[i]
        error = map_together(fds, sizes, <uint32_t>len(arena_fds), writable, self.payload_map)
        if error:
            self.close()
            raise ResourceError(f"cannot map the payload arenas: {os.strerror(error)}")
        self.view.payload = self.payload_map.address

    cdef _check_arenas(self, object arena_fds, uint64_t* sizes):
        cdef Header* header = &self.view.header()
        cdef uint64_t total = 0
        if len(arena_fds) != header.arena_count or len(arena_fds) > arena_count_max:
            raise FormatError(f"the region has {header.arena_count} arenas, {len(arena_fds)} were opened")
        for i, fd in enumerate(arena_fds):
            sizes[<int>i] = header.arenas[<int>i].bytes
            total += sizes[<int>i]
            if <uint64_t>os.fstat(fd).st_size < sizes[<int>i]:
                raise FormatError(f"arena {i} has {os.fstat(fd).st_size} bytes, the header says {sizes[<int>i]}")
        if total != self.view.geometry.payload_bytes:
            raise FormatError("the arenas' sizes in the header changed while it was read")

    def close(self):
        self.closed = True
        if self.users == 0:
            self._unmap()

    def disown(self, str why):
        # Stays mapped: a view made before the fork may still be looked at, and what was mapped is gone at exec or exit.
        self.disowned = why
        self.closed = True
        self.users += 1

    cdef _unmap(self):
        unmap(self.control_map)
        unmap(self.payload_map)
        self.view.control = NULL
        self.view.payload = NULL

    def __dealloc__(self):
        unmap(self.control_map)
        unmap(self.payload_map)

    cdef View* mapped(self) except NULL:
        if self.closed:
            raise ValueError(self.disowned or "the region is closed")
        return &self.view

    cdef View* mapped_writable(self) except NULL:
        if not self.writable:
            raise ValueError("the region is mapped read-only")
        return self.mapped()

    @property
    def header(self):
        return _header_dict(&self.mapped().header())

    @property
    def payload_address(self):
        return <uintptr_t>self.mapped().payload

    @property
    def payload_bytes(self):
        return self.mapped().geometry.payload_bytes

    cdef uint8_t* payload_at(self, uint64_t offset, uint64_t nbytes) except NULL:
        cdef View* view = self.mapped()
        cdef uint64_t total = view.geometry.payload_bytes
        if view.payload == NULL:
            raise ValueError("the arenas are not mapped")
        if nbytes > total or offset > total - nbytes:
            raise ValueError(f"{nbytes} bytes at {offset} lie outside the arenas of {total} bytes")
        return view.payload + offset

    def payload(self, uint64_t offset, uint64_t nbytes):
        cdef _PayloadView out = _PayloadView()
        out.address = self.payload_at(offset, nbytes)
        out.size = <Py_ssize_t>nbytes
        out.readonly = not self.writable
        out.owner = _MappingUser(self)
        return memoryview(out)

    # supervisor side

    def set_segments_ready(self, uint64_t count):
        cdef View* view = self.mapped_writable()
        if count > view.geometry.segment_count:
            raise ValueError(f"{count} segments ready of {view.geometry.segment_count}")
        if count > load_acquire(view.header().segments_ready):
            store_release(view.header().segments_ready, count)

    def set_eviction(self, str name):
        cdef View* view = self.mapped_writable()
        if name not in EVICTIONS:
            raise ValueError(f"eviction must be one of {', '.join(EVICTIONS)}, got {name!r}")
        core_set_eviction(view[0], <CEviction><int>EVICTIONS.index(name))

    def set_draining(self, uint64_t since_ns):
        cdef View* view = self.mapped_writable()
        store_release(view.header().draining_since_ns, (since_ns & ~<uint64_t>0xFFFF) | draining_mark if since_ns else 0)

    def set_supervisor(self, uint64_t pid, uint64_t started_at_ns):
        cdef View* view = self.mapped_writable()
        store_release(view.header().supervisor_pid, pid)
        store_release(view.header().supervisor_started_at_ns, started_at_ns)

    def set_transport(self, str path, uint64_t pid, uint64_t started_at_ns):
        cdef View* view = self.mapped_writable()
        cdef Header* header = &view.header()
        cdef bytes text = os.fsencode(path)
        if len(text) > TRANSPORT_PATH_BYTES:
            raise ValueError(f"a socket's path has at most {TRANSPORT_PATH_BYTES} bytes, got {len(text)}: {path}")
        header.transport_path_bytes = 0
        memcpy(header.transport_path, PyBytes_AS_STRING(text), len(text))
        header.transport_path_bytes = <uint32_t>len(text)
        header.transport_pid = pid
        header.transport_started_at_ns = started_at_ns

    def populate(self, uint64_t offset, uint64_t nbytes):
        cdef uint8_t* address = self.payload_at(offset, nbytes)
        cdef int error
        cdef object keep = _MappingUser(self)
        with nogil:
            error = populate_pages(address, nbytes)
        return error

    def lock(self, uint64_t offset, uint64_t nbytes):
        cdef uint8_t* address = self.payload_at(offset, nbytes)
        cdef int error
        cdef object keep = _MappingUser(self)
        with nogil:
            error = lock_pages(address, nbytes)
        return error

    def bind(self, uint64_t offset, uint64_t nbytes, uint32_t numa_node):
        return bind_pages(self.payload_at(offset, nbytes), nbytes, numa_node)

    def huge(self, uint64_t offset, uint64_t nbytes):
        return advise_huge(self.payload_at(offset, nbytes), nbytes)

    # registration

    def register_namespace(self, bytes fingerprint, *, str label, reserved_bytes=0, maximum_bytes=0,
                           now_ns, in_use=(), bytes facts=b""):
        cdef NamespaceRequest request
        cdef uint64_t facts_[6]
        cdef bytes label_ = label.encode()
        cdef uint32_t ids[128]
        cdef int i
        if len(fingerprint) != 32:
            raise ValueError(f"a fingerprint is 32 bytes, got {len(fingerprint)}")
        for i in range(min(len(in_use), 128)):
            ids[i] = in_use[i]
        request.fingerprint = <const uint8_t*>PyBytes_AS_STRING(fingerprint)
        request.label = label_
        request.label_bytes = len(label_)
        request.reserved_bytes = reserved_bytes
        request.maximum_bytes = maximum_bytes
        request.now_ns = now_ns
        request.in_use = ids
        request.in_use_count = min(len(in_use), 128)
        request.facts = NULL
        if facts:
            if len(facts) != sizeof(facts_):
                raise ValueError(f"facts are {sizeof(facts_)} bytes, got {len(facts)}")
            memcpy(facts_, PyBytes_AS_STRING(facts), sizeof(facts_))
            request.facts = facts_
        return c_register_namespace(self.mapped_writable()[0], request)

    def drop_reserve(self, uint32_t namespace_id):
        cdef View* view = self.mapped_writable()
        if is_live_namespace(view[0], namespace_id):
            c_drop_reserve(view.name_space(namespace_id & 0xFFFF))

    def attach_client(self, uint32_t slot, *, pid, started_at, now_ns, namespace_id, mode,
                      bytes engine_id, str label):
        cdef ClientRequest request
        cdef bytes label_ = label.encode()
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        request.pid = pid
        request.started_at = started_at
        request.now_ns = now_ns
        request.namespace_id = namespace_id
        request.mode = mode
        request.engine_id = engine_id
        request.engine_id_bytes = len(engine_id)
        request.label = label_
        request.label_bytes = len(label_)
        return c_attach_client(self.mapped_writable()[0], slot, request)

    def set_client_namespace(self, uint32_t slot, uint32_t namespace_id):
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        enter_namespace(self.mapped_writable()[0], slot, namespace_id)

    def client_incarnation(self, uint32_t slot):
        cdef uint64_t state
        if slot >= client_count:
            return 0
        state = load_acquire(self.mapped().client(slot).state)
        return client_incarnation(state) if client_attached(state) else 0

    def reap_client(self, uint32_t slot):
        cdef View* view = self.mapped_writable()
        cdef Repaired done
        cdef object keep = _MappingUser(self)
        if slot >= client_count:
            raise ValueError(f"client slots are 0 to {client_count - 1}, got {slot}")
        with nogil:
            done = c_reap_client(view[0], slot)
        return {"claims": done.claims, "evictions": done.evictions, "pins": done.pins,
                "segments": done.segments}

    def repair(self):
        cdef View* view = self.mapped_writable()
        cdef Repaired done
        cdef object keep = _MappingUser(self)
        with nogil:
            done = rebuild_hints(view[0])
        return {"free_bits": done.free_bits, "touches": done.touches}

    def count(self, str counter, uint64_t amount=1):
        cdef uint32_t index = _COUNTER_INDEX[counter]
        c_count(self.mapped_writable().counter_value(index).value, amount)

    def set_gauge(self, str counter, uint64_t value):
        cdef uint32_t index = _COUNTER_INDEX[counter]
        store_release(self.mapped_writable().counter_value(index).value, value)

    def count_asked(self, keys, uint32_t namespace_id, *, uint64_t at_s=0):
        cdef View* view = self.mapped_writable()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t tick = reuse_tick_of(at_s) if at_s else reuse_tick_now()
        with nogil:
            c_count_asked(view[0], batch.keys, batch.count, tick)

    def count_served(self, uint64_t amount, *, uint64_t at_s=0):
        c_count_served(self.mapped_writable()[0], amount, reuse_tick_of(at_s) if at_s else reuse_tick_now())

    # reading

    def clients(self):
        cdef View* view = self.mapped()
        cdef ClientSlot* client
        cdef uint64_t state
        cdef uint32_t slot
        found = []
        for slot in range(client_count):
            client = &view.client(slot)
            state = load_acquire(client.state)
            if not client_attached(state):
                continue
            found.append({
                "slot": slot,
                "incarnation": client_incarnation(state),
                "pid": client.pid,
                "started_at": client.started_at,
                "attached_at_ns": client.attached_at_ns,
                "namespace_id": client.namespace_id,
                "mode": client.mode,
                "engine_id": _text(client.engine_id, 64),
                "label": _text(client.label, 64),
            })
        return found

    def namespaces(self, *, bint counted=True):
        cdef View* view = self.mapped()
        cdef NamespaceEntry* entry
        cdef uint64_t state
        cdef uint32_t slot
        per_id = {}
        if counted:
            ids, counts = np.unique(self.blocks()["namespace_id"], return_counts=True)
            per_id = dict(zip(ids.tolist(), counts.tolist(), strict=True))
        found = []
        for slot in range(namespace_count):
            entry = &view.name_space(slot)
            state = load_acquire(entry.state)
            if not namespace_live(state):
                continue
            id_ = c_namespace_id(namespace_generation(state), slot)
            found.append({
                "id": id_,
                "fingerprint": <bytes>(<char*>entry.fingerprint)[:32],
                "label": _text(entry.label, 128),
                "reserved_bytes": entry.reserved_bytes,
                "maximum_bytes": entry.maximum_bytes,
                "resident_bytes": c_resident_bytes(entry[0]),
                "created_at_ns": entry.created_at_ns,
                "attached_at_ns": entry.attached_at_ns,
                "facts": <bytes>(<char*>entry.facts)[:48],
                "blocks": per_id.get(id_, 0),
            })
        return found

    def ghosts(self, keys, uint32_t namespace_id):
        cdef View* view = self.mapped()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        return [is_ghost(view[0], batch.keys[i]) for i in range(batch.count)]

    def segments(self):
        cdef View* view = self.mapped()
        cdef uint64_t state, stride
        cdef uint32_t index, i, capacity, first
        cdef int tallies[4]
        found = []
        for index in range(view.geometry.segment_count):
            state = load_acquire(view.segment(index).state)
            stride = segment_stride(state)
            capacity = segment_capacity(view.geometry, index, stride) if stride else 0
            first = view.first_record(index)
            memset(tallies, 0, sizeof(tallies))
            for i in range(capacity):
                tallies[load_acquire(view.block(first + i).state) & 3] += 1
            found.append({
                "index": index,
                "state": ("unassigned", "assigned", "changing", "damaged")[min(state & 0xFF, <uint64_t>3)],
                "owner": segment_owner(state),
                "stride_bytes": stride,
                "blocks": capacity,
                "free": tallies[0],
                "claimed": tallies[1],
                "ready": tallies[2],
                "evicting": tallies[3],
            })
        return found

    def blocks(self):
        cdef View* view = self.mapped()
        cdef uint32_t record, count = 0, size = view.geometry.record_count
        cdef uint64_t state
        out = np.zeros(size, dtype=BLOCK_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for record in range(size):
            state = load_acquire(view.block(record).state)
            if (state & 0xFF) == 0:
                continue
            _fill_row(view, record, state, <BlockRow*>&raw[count * sizeof(BlockRow)])
            count += 1
        return out[:count].copy()

    def describe(self, handles):
        cdef View* view = self.mapped()
        cdef const uint64_t[::1] handles_ = _words(handles)
        cdef uint64_t state
        cdef uint32_t i, record
        out = np.zeros(handles_.shape[0], dtype=BLOCK_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for i in range(<uint32_t>handles_.shape[0]):
            if not life_holds(view[0], handles_[i]):
                continue
            record = <uint32_t>(handles_[i] & (record_count_max - 1))
            state = load_acquire(view.block(record).state)
            if block_generation(state) == handles_[i] >> 24:
                _fill_row(view, record, state, <BlockRow*>&raw[i * sizeof(BlockRow)])
        return out

    def room(self):
        cdef View* view = self.mapped()
        cdef uint64_t state, stride
        cdef uint32_t index, capacity, unassigned = 0
        sizes = {}
        for index in range(view.segments_ready()):
            state = load_acquire(view.segment(index).state)
            stride = segment_stride(state)
            if (state & 0xFF) != 1 or stride == 0:
                unassigned += (state & 0xFF) == 0
                continue
            capacity = segment_capacity(view.geometry, index, stride)
            had, had_free = sizes.get(stride, (0, 0))
            sizes[stride] = (had + capacity, had_free + free_in_segment(view[0], index, capacity))
        return unassigned, [
            {"stride_bytes": stride_, "capacity": both[0], "free": both[1]} for stride_, both in sizes.items()]

    def spilled(self):
        cdef View* view = self.mapped()
        cdef uint32_t index, count = 0, size = view.geometry.spill_record_count
        cdef Spilled block
        out = np.zeros(size, dtype=SPILL_FIELDS)
        cdef uint8_t[::1] raw = out.view(np.uint8)
        for index in range(size):
            if not is_listed(view[0], index):
                continue
            read_spilled(view[0], index, block)
            _fill_spill_row(&block, <SpillRow*>&raw[count * sizeof(SpillRow)])
            count += 1
        return out[:count].copy()

    def remote_hosts(self):
        cdef View* view = self.mapped()
        cdef RemoteHost* host
        cdef uint32_t number
        cdef bint usable
        found = []
        if view.geometry.remote_bucket_count == 0:
            return found
        for number in range(remote_host_count):
            host = &view.remote_hosts().hosts[number]
            usable = host_usable(view[0], number)
            if not usable and host.heard_at_ns == 0:
                continue
            found.append({
                "number": number,
                "usable": usable,
                "host_id": (<bytes>(<const char*>host.host_id)[:16]),
                "incarnation": (<bytes>(<const char*>host.incarnation)[:16]),
                "address": _text(host.address, min(host.address_bytes, 56)),
                "sequence": host.sequence,
                "events": host.events,
                "hints": host.hints,
                "heard_at_ns": host.heard_at_ns,
            })
        return found

    def tally(self):
        cdef View* view = self.mapped()
        cdef uint64_t state
        cdef uint32_t record, index
        cdef uint64_t tallies[5]
        cdef uint64_t capacity = 0
        memset(tallies, 0, sizeof(tallies))
        for record in range(view.geometry.record_count):
            state = load_acquire(view.block(record).state) & 0xFF
            tallies[state if state < 4 else 4] += 1
        for index in range(view.geometry.segment_count):
            state = load_acquire(view.segment(index).state)
            if (state & 0xFF) in (1, 2) and segment_stride(state):
                capacity += segment_capacity(view.geometry, index, segment_stride(state))
        return {"free": tallies[0], "claimed": tallies[1], "ready": tallies[2], "evicting": tallies[3],
                "damaged": tallies[4], "record_count": view.geometry.record_count, "capacity": capacity}

    def why_missing(self, keys, uint32_t namespace_id):
        cdef View* view = self.mapped()
        cdef _Keys batch = _Keys(keys, namespace_id)
        cdef uint32_t i
        return [WHY_NAMES[<int>why_missing(view[0], batch.keys[i])] for i in range(batch.count)]

    def survey(self, *, uint32_t pins_max=65536):
        cdef View* view = self.mapped()
        cdef uint32_t count = view.geometry.segment_count
        cdef Survey out
        cdef SurveyRoom room
        cdef object keep = _MappingUser(self)
        segments = np.zeros(count, dtype=SURVEY_SEGMENT_FIELDS)
        parts = np.zeros(count * survey_parts_max, dtype=SURVEY_PART_FIELDS)
        pins = np.zeros(pins_max + 1, dtype=SURVEY_PIN_FIELDS)
        clients = np.zeros(client_count, dtype=SURVEY_CLIENT_FIELDS)
        namespaces = np.zeros(namespace_count + 1, dtype=SURVEY_NAMESPACE_FIELDS)
        cdef uint8_t[::1] segments_ = segments.view(np.uint8)
        cdef uint8_t[::1] parts_ = parts.view(np.uint8)
        cdef uint8_t[::1] pins_ = pins.view(np.uint8)
        cdef uint8_t[::1] clients_ = clients.view(np.uint8)
        cdef uint8_t[::1] namespaces_ = namespaces.view(np.uint8)
        room.segments = <SurveySegment*>&segments_[0]
        room.parts = <SurveyPart*>&parts_[0]
        room.pins = <SurveyPin*>&pins_[0]
        room.pins_max = pins_max
        with nogil:
            survey_region(view[0], room, out)
        memcpy(&clients_[0], out.clients, sizeof(out.clients))
        memcpy(&namespaces_[0], out.namespaces, sizeof(out.namespaces))
        return {
            "tally": {"free": out.tally[0], "claimed": out.tally[1], "ready": out.tally[2],
                      "evicting": out.tally[3], "damaged": out.tally[4]},
            "capacity": out.capacity,
            "pinned": out.pinned,
            "pinned_bytes": out.pinned_bytes,
            "damaged": out.damaged,
            "summed": out.summed,
            "oldest_ready_ns": out.oldest_ready_ns,
            "segments": segments,
            "parts": parts[:out.part_count].copy(),
            "clients": clients,
            "namespaces": namespaces,
            "pins": pins[:out.pin_count].copy(),
        }

    def counters(self):
        cdef View* view = self.mapped()
        cdef CounterLabel* label
        cdef uint32_t index
        found = []
        for index in range(counter_count):
            label = &view.counter_label(index)
            if label.type not in (1, 2):
                continue
            key = _text(label.key, min(label.key_bytes, 56))
            found.append({"key": key, "type": "counter" if label.type == 1 else "gauge",
                          "label": key.replace("_", " "),
                          "value": load_acquire(view.counter_value(index).value)})
        return found

    def reuse(self, uint64_t seconds, *, uint64_t at_s=0):
        cdef View* view = self.mapped()
        cdef ReuseWindow window
        cdef uint32_t tick = reuse_tick_of(at_s) if at_s else reuse_tick_now()
        cdef uint32_t i, ticks
        ticks = <uint32_t>min(max(seconds // reuse_tick_seconds, <uint64_t>1), <uint64_t>0xFFFFFFFF)
        read_reuse(view[0], tick, ticks, window)
        return {"asked": window.asked, "served": window.served,
                "seconds": (tick - window.first_tick + 1) * reuse_tick_seconds if window.first_tick else 0,
                "ranks": [window.ranks[i] for i in range(reuse_rank_count + 1)]}

    def journal(self, uint64_t after, limit=1024):
        cdef View* view = self.mapped()
        cdef JournalEntry entry
        cdef uint64_t head = load_acquire(view.header().journal_head)
        cdef uint64_t size = view.geometry.journal_entry_count
        cdef uint64_t sequence = after
        found = []
        if head > size and sequence < head - size:
            sequence = head - size
        while sequence < head and len(found) < limit:
            sequence += 1
            if not read_event(view[0], sequence, entry):
                continue
            found.append({
                "sequence": sequence,
                "event": {1: "publish", 2: "evict", 3: "spill", 4: "forget"}.get(entry.what & 0xFF, "unknown"),
                "namespace_id": entry.what >> 32,
                "group": entry.what >> 16 & 0xFFFF,
                "key": _key_bytes(entry.key, entry.what >> 8 & 0xFF),
                "handle": entry.handle,
            })
        return sequence, found


cdef class _MappingUser:
    """Holds a region mapped while somebody else's address points into it."""
    cdef Region region

    def __cinit__(self, Region region):
        self.region = region
        region.users += 1

    def __dealloc__(self):
        self.region.users -= 1
        if self.region.users == 0 and self.region.closed:
            self.region._unmap()
