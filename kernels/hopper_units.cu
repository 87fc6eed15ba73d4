// Units of work, and numbers of the factors and scales.

// From another lane, so that the compiler knows that it is the same for a warp.
__device__ inline int warp_number() { return __shfl_sync(~0u, (int)threadIdx.x >> 5, 0); }

// Units of work in one order: chain, slice, segment, tile of rows.
struct Unit {
    int chain, slice, segment, tile, segments, tiles;
    __device__ void enter(const Args& a) { segments = counts_of(a, chain)[1], tiles = tiles_of(a, chain); }
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
    __device__ const i64* row(const Args& a) const { return line_of(a, chain, segment); }
    // Which Z that is: segments with the same V share it.
    __device__ i64 z(const Args& a) const { return ((i64)chain * a.capacity + row(a)[SHARED]) * a.slices + slice; }
};

// Two columns of a factor, so many bytes apart, as float16 in a word; zeros in the place of what is not there.
__device__ inline u32 load_pair(const u8* from, int apart, bool bytes, bool first, bool second) {
    u32 low = 0, high = 0;
    if (first) low = bytes ? wide(from[0]) & 0xffff : *(const u16*)from;
    if (second) high = bytes ? wide(from[apart]) & 0xffff : *(const u16*)(from + apart);
    return low | high << 16;
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
// What they are.
template <int COUNT> __device__ inline void word_values(const u32 (&words)[COUNT], int type, float (&out)[COUNT]) {
    if (type == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) out[i] = __uint_as_float(words[i]);
    } else if (type == 1) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) out[i] = half_value((u16)words[i]);
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++) out[i] = bfloat_value((u16)words[i]);
    }
}
