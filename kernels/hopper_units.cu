// Units of work, and what a program does when all units of a tile are done.

// Units of work in one order: chain, slice, segment, tile of rows.
struct Unit {
    int chain, slice, segment, tile, segments, tiles;
    __device__ void enter(const Args& a) { segments = a.counts[2 * chain + 1], tiles = tiles_of(a, chain); }
    __device__ void find(const Args& a, int u) {
        for (chain = 0;; chain++) {
            enter(a);
            const int here = segments * tiles * a.slices;
            if (u < here) break;
            u -= here;
        }
        const int one = segments * tiles;
        slice = u / one;
        u -= slice * one;
        segment = u / tiles;
        tile = u - segment * tiles;
    }
    // Units from here on that differ in their tile only, of `most`.
    __device__ int run(int most) const { return min(tiles - tile, most); }
    __device__ void next_run(const Args& a) {
        tile = 0;
        if (++segment < segments) return;
        segment = 0;
        if (++slice < a.slices) return;
        slice = 0;
        do {
            if (++chain >= a.n_chains) return;
            enter(a);
        } while (segments == 0);
    }
    __device__ i64 place(const Args& a) const { return (i64)chain * a.capacity + segment; }
    __device__ const i64* row(const Args& a) const { return a.table + place(a) * FIELDS; }
};

// Where the share of a program begins, of `total`, and how many there are in it.
__device__ inline int share(int total, int& count) {
    if (total == 0) return count = 0;
    const int programs = gridDim.x, program = blockIdx.x, each = (int)((u32)total / (u32)programs), more = total - each * programs;
    count = each + (program < more);
    return program * each + min(program, more);
}

// A tile of rows without signs, which one program finishes alone.
struct Tile {
    int chain, tile;
    __device__ void find_idle(const Args& a, int u) {
        for (chain = 0;; chain++) {
            if (a.counts[2 * chain + 1]) continue;
            if (u < tiles_of(a, chain)) {
                tile = u;
                return;
            }
            u -= tiles_of(a, chain);
        }
    }
};

// The tile that the i-th piece of a program belongs to, and how many pieces it has; 0 where nobody multiplies.
__device__ inline void find_tile(const Args& a, int i, int first, int units, int first_idle, int& there, int& needed) {
    Tile here;
    if (i < units) {
        Unit unit;
        unit.find(a, first + i);
        here.chain = unit.chain, here.tile = unit.tile;
    } else {
        here.find_idle(a, first_idle + i - units);
    }
    there = here.chain * a.tiles + here.tile;
    needed = a.counts[2 * here.chain + 1] * a.slices;
}

// Up to four numbers, as they are stored: converted later, so that all of them are on their way at once.
__device__ inline void load_four(const void* p, i64 at, int count, int type, u32 (&out)[4]) {
    if (type == 0) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) out[i] = ((const u32*)p)[at + i];
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (i < count) out[i] = ((const u16*)p)[at + i];
    }
}
__device__ inline float word_value(u32 w, int type) { return type == 0 ? __uint_as_float(w) : type == 1 ? half_value((u16)w) : bfloat_value((u16)w); }

// Which sum of 64 rows that is, of the sums of a tile for all segments, slices, columns of the factors and tokens.
__device__ inline i64 slot(const Args& a, int chain, int tile, int segment, int slice, int group, int token) {
    return ((((i64)(chain * a.tiles + tile) * a.capacity + segment) * a.slices + slice) * GROUPS + group) * TOKENS + token;
}
