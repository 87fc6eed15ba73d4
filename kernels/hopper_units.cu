// Units of work, and what a program does when all units of a tile are done.

// Units of work in one order: chain, slice, segment, tile of rows. Neighbours that share Z are a group.
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
    __device__ void next(const Args& a) {
        if (++tile < tiles) return;
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
};

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

// Four rows of a tile that nobody adds to any more.
__device__ inline void finish(const Args& a, int there, int quarter, int slots) {
    const int chain = there / a.tiles, tile = there - chain * a.tiles, r = tile * TILE + quarter * 4, n_rows = rows_of(a, chain);
    const int n_slots = a.counts[2 * chain] * a.slices, dense = a.counts[2 * chain + 1] * a.slices;
    const i64 m = (i64)chain * a.chain_rows + r;
    u32 scale[4] = {0, 0, 0, 0}, bias[4] = {0, 0, 0, 0};
    load_four(a.row_scale, m, n_rows - r, a.row_type, scale);
    if (a.bias) load_four(a.bias, m, n_rows - r, a.bias_type, bias);
    for (int t = 0; t < TOKENS; t++) {
        const float4* sums = (const float4*)(a.partial + ((i64)there * slots * TOKENS + t) * TILE) + quarter;
        float4 total = {0.f, 0.f, 0.f, 0.f};
#pragma unroll 8
        for (int s = 0; s < dense; s++) {
            const float4 v = __ldcg(sums + s * TOKENS * TILE / 4);
            total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
        }
        for (int s = dense; s < n_slots; s += a.slices) {
            const float4 v = __ldcg(sums + s * TOKENS * TILE / 4);
            total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
        }
        const float all[4] = {total.x, total.y, total.z, total.w};
        u16* y = a.y + (i64)t * a.rows + m;
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (r + i < n_rows) y[i] = narrow(all[i] * word_value(scale[i], a.row_type) + word_value(bias[i], a.bias_type));
    }
}
