// How signs and rows of U come to shared memory.

// Where a program's barriers are: of the ring, of the largest |x|, of the first V, and of x.
struct Ring {
    u32 full, empty, known, v_here, x_here;
    __device__ explicit Ring(const u64* barriers) { full = shared_address(barriers), empty = full + 8 * STAGES, known = empty + 8 * STAGES, v_here = known + 8, x_here = v_here + 8; }
    __device__ void init() const {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * JOBS);
        barrier_init(known, WARPS), barrier_init(v_here, 32 * WARPS), barrier_init(x_here, 1);
        show_barriers();
    }
};

// Fills the ring, as soon as a stage is free; but V, of which there is nothing to do without, comes first. One thread.
__device__ inline void bring(const Args& a, const Ring& ring, Unit unit, int count, u8* stages) {
    u8 *factors = stages + STAGES * STAGE, *values = factors + STAGES * U_BYTES;
    int stage = 0, phase = 1;
    for (int i = 0, n; i < count; i += n, unit.next_run(a)) {
        n = unit.run(count - i);
        const i64* row = unit.row(a);
        const u8* map = map_of(a, unit.chain, unit.segment);
        acquire_map(map);
        if (i == 0) barrier_wait(ring.v_here, 0);
        const bool plain = row[PLAIN] != 0;
        const int size = (int)row[KIND] == SIGN8 ? 1 : 2, rank_bytes = (int)row[RANK] * size, own_bytes = (int)row[WIDTH] * size;
        const int n_rows = rows_of(a, unit.chain), halves = halves_of(a, unit.slice);
        const float2* row_values = row_values_of(a, unit.chain);
        const u8* u = (const u8*)row[U];
        for (int tile = unit.tile; tile < unit.tile + n; tile++) {
            const int r = tile * TILE;
            const u8* from = (const u8*)((u64)(u + (i64)r * rank_bytes) & ~15ull);
            // Up to the last number of the last row that is the segment's: `u` may lie within a row. All of a piece of 16 bytes can be
            // read where a byte of it can.
            const int u_bytes = WIDE && rank_bytes > 32 ? 0 : ((int)(u + (i64)(min(r + TILE, n_rows) - 1) * rank_bytes + own_bytes - from) + 15) & ~15;
            const u32 arrival = ring.full + 8 * stage;
            barrier_wait(ring.empty + 8 * stage, phase);
            fence_proxies();
            barrier_expect(arrival, halves * BOX + u_bytes + ROW_BYTES);
            for (int h = 0; h < halves; h++)
                // Past the end of the rows the signs read as zeros: those of a block without any.
                copy_box(shared_address(stages + stage * STAGE + h * BOX), map, unit.slice * (SLICE / 8) + h * 128, plain ? 1 << 30 : r, arrival);
            bulk_copy(shared_address(values + stage * ROW_BYTES), (const u8*)(row_values + r), ROW_BYTES, arrival);
            if (u_bytes) bulk_copy(shared_address(factors + stage * U_BYTES), from, u_bytes, arrival);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }
}
