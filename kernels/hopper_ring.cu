// What a program holds in shared memory, and how signs, U and Z come there.

struct Shared {
    i64 table[KNOWN * FIELDS];
    int counts[2 * KNOWN];
    int done[WARPS];  // units of each warp that are in `partial`
    int complete[LISTED], n_complete, n_taken, closed;  // tiles that nobody adds to any more
    u64 barriers[2 * STAGES + Z_BUFFERS * (HALVES + 1)];
};

// Where a program's barriers are: of the ring of signs, and of the buffers of Z.
struct Ring {
    u32 full, empty, z_full, z_empty;
    __device__ explicit Ring(const u64* barriers) {
        full = shared_address(barriers), empty = full + 8 * STAGES, z_full = empty + 8 * STAGES, z_empty = z_full + 8 * Z_BUFFERS * HALVES;
    }
    __device__ void init() const {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * JOBS);
        for (int i = 0; i < Z_BUFFERS * HALVES; i++) barrier_init(z_full + 8 * i, 1);
        for (int i = 0; i < Z_BUFFERS; i++) barrier_init(z_empty + 8 * i, WARPS);
        show_barriers();
    }
    __device__ u32 z_arrival(int z, int half) const { return z_full + 8 * (z % Z_BUFFERS * HALVES + half); }
    __device__ void wait_for_z(int z, int half) const { barrier_wait(z_arrival(z, half), z / Z_BUFFERS & 1); }
};

// Fills the ring with signs and rows of U, as soon as a stage is free. One thread.
__device__ inline void bring(const Args& a, const Ring& ring, Unit unit, int count, u8* stages, u8* factors) {
    int stage = 0, phase = 1;
    for (int i = 0, n; i < count; i += n, unit.next_run(a)) {
        n = unit.run(count - i);
        const i64* row = unit.row(a);
        const u8* map = a.maps + ((i64)unit.chain * a.capacity + unit.segment) * 128;
        acquire_map(map);
        const bool plain = row[PLAIN] != 0;
        const int rank_bytes = (int)row[RANK] * ((int)row[KIND] == SIGN8 ? 1 : 2), n_rows = rows_of(a, unit.chain), halves = halves_of(a, unit.slice);
        const u8* u = (const u8*)row[U];
        for (int tile = unit.tile; tile < unit.tile + n; tile++) {
            const int r = tile * TILE;
            const u8* from = (const u8*)((u64)(u + (i64)r * rank_bytes) & ~15ull);
            const int u_bytes = rank_bytes > 32 ? 0 : ((int)(u + (i64)min(r + TILE, n_rows) * rank_bytes - from) + 15) & ~15;
            const u32 arrival = ring.full + 8 * stage;
            barrier_wait(ring.empty + 8 * stage, phase);
            barrier_expect(arrival, halves * BOX + u_bytes);
            for (int h = 0; h < halves; h++)
                // Past the end of the rows the signs read as zeros: those of a block without any.
                copy_box(shared_address(stages + stage * STAGE + h * BOX), map, unit.slice * (SLICE / 8) + h * 128, plain ? 1 << 30 : r, arrival);
            if (u_bytes) bulk_copy(shared_address(factors + stage * U_BYTES), from, u_bytes, arrival);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }
}

// Where Z of a unit is: segments with the same V share it.
__device__ inline i64 z_of(const Args& a, const Unit& unit) { return ((i64)unit.chain * a.capacity + unit.row(a)[SHARED]) * a.slices + unit.slice; }

// Brings Z, when it has been made. One thread.
__device__ inline void bring_z(const Args& a, const Ring& ring, Unit unit, int count, u8* buffers) {
    i64 known = -1;
    int z = -1;
    wait_for_input();
    for (int i = 0; i < count; i += unit.run(count - i), unit.next_run(a)) {
        const i64 wanted = z_of(a, unit);
        if (wanted == known) continue;
        known = wanted, z++;
        barrier_wait(ring.z_empty + 8 * (z % Z_BUFFERS), z / Z_BUFFERS & 1 ^ 1);
        const u8* from = a.z + wanted * Z_ALL;
        const u32 to = shared_address(buffers + z % Z_BUFFERS * Z_SPACE);
        const int halves = halves_of(a, unit.slice);
        for (int h = 0; h < halves; h++) {
            const u32 arrival = ring.z_arrival(z, h);
            barrier_expect(arrival, Z_HALF + (h == 0 ? Z_TAIL : 0));
            if (h == 0) bulk_copy(to + Z_BYTES, from + Z_BYTES, Z_TAIL, arrival);
            bulk_copy(to + h * Z_HALF, from + h * Z_HALF, Z_HALF, arrival);
        }
        // A buffer's barriers all have the same number of phases.
        for (int h = halves; h < HALVES; h++) barrier_arrive(ring.z_arrival(z, h));
    }
}
