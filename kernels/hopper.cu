// y = x·Wᵀ for one or two tokens on NVIDIA GPUs of compute capability 9.0, where a matrix product of single bits runs on
// the tensor cores as fast as one of bytes does, and takes eight times the columns.
//
// Signs stay the bits that they are in the file. Z = diag(x·col_scale)·V becomes whole numbers of BITS bits, which share a
// step in a slice of columns and a column of V; each of their bits is a column of the right factor. The product counts
// where both bits are set; the counts, times the values of the bits, make Σ Z over the set signs, exactly.
//
// `scale_input` makes Z. `multiply` begins while it runs, and brings signs to shared memory before there is any Z. Its
// programs take units of work, tiles of rows of a segment in a slice of columns. The last one that adds to a tile of rows
// sums what all of them left, in one order, so that the same input gives the same bits.
//
// `hopper.py` prepends: BITS, RANKS (8 or 16 columns of the factors), TOKENS (1 or 2), BFLOAT (x and y are bfloat16, not
// float16), STAGES (of the ring of signs), Z_BUFFERS, SIGN8 and the fields of a
// row of the table, and WGMMA.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define N (BITS * RANKS)
#define SLICE 2048             // columns
#define HALVES 2               // of a slice: 1024 columns, of which 64 rows of signs are a stage of the ring
#define TILE 64                // rows
#define STAGE (TILE * 128)     // bytes
#define Z_TILE (N * 128)       // bytes of Z of half a slice and a token
#define Z_HALF (TOKENS * Z_TILE)
#define Z_BYTES (HALVES * Z_HALF)
// After the bits: the step of each column of V, and the sums of the whole numbers of each 128 columns.
#define PARTS (SLICE / 128)
#define Z_TAIL (4 * TOKENS * RANKS * (1 + PARTS))
#define Z_ALL (Z_BYTES + Z_TAIL)
#define Z_SPACE ((Z_ALL + 1023) / 1024 * 1024)
#define V_GROUPS (SLICE / 256) // of columns, of which the largest of V is known
#define SCALERS (128 * RANKS / 4)
#define U_BYTES (TILE * 32 + 16)
#define U_SLOTS 8
#define TOP ((float)((1 << (BITS - 1)) - 1))
#define CONSUMERS 256
#define THREADS 384
#define STEP (TOKENS == 1 ? 2 : 1)
#define KNOWN 32               // rows of the table that are kept in shared memory

struct Args {
    const u16* x;
    const void* row_scale;
    const void* col_scale;
    const void* bias;
    const i64* table;
    const int* counts;
    const u8* maps;
    u8* z;
    float* partial;
    int* arrived;
    u16* y;
    int rows, chain_rows, columns, col_stride, n_chains, capacity, tiles, slices;
    int row_type, col_type, bias_type;
};

__device__ inline float half_value(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
__device__ inline float bfloat_value(u16 h) { return __uint_as_float((u32)h << 16); }
__device__ inline float narrow_value(u16 h) { return BFLOAT ? bfloat_value(h) : half_value(h); }
__device__ inline u16 narrow(float f) {
    u16 h;
    if (BFLOAT) asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    else asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
// Two float8_e4m3 as two float16.
__device__ inline u32 wide(u16 bytes) { u32 both; asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(both) : "h"(bytes)); return both; }
__device__ inline float byte_value(u8 b) { return half_value((u16)wide(b)); }
// TYPE: 0 float32, 1 float16, 2 bfloat16.
__device__ inline float typed_value(const void* p, i64 at, int type) {
    if (type == 0) return ((const float*)p)[at];
    const u16 h = ((const u16*)p)[at];
    return type == 1 ? half_value(h) : bfloat_value(h);
}

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ inline void barrier_init(u32 b, int n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(b), "r"(n)); }
__device__ inline void barrier_arrive(u32 b) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(b) : "memory"); }
__device__ inline void barrier_expect(u32 b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(u32 b, u32 phase) {
    asm volatile("{\n.reg .pred p;\nAGAIN:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@p bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(b), "r"(phase)
                 : "memory");
}
__device__ inline void wait_for_input() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void bulk_copy(u32 to, const u8* from, int bytes, u32 b) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(b)
                 : "memory");
}

__device__ inline int rows_of(const Args& a, int chain) { return min(a.chain_rows, a.rows - chain * a.chain_rows); }
__device__ inline int tiles_of(const Args& a, int chain) { return (rows_of(a, chain) + TILE - 1) / TILE; }
__device__ inline int halves_of(const Args& a, int slice) { return min(HALVES, (a.columns - slice * SLICE + 1023) / 1024); }
// Where the share of a program begins, and how many there are in it.
__device__ inline int share(int total, int& count) {
    if (total == 0) return count = 0;
    const int programs = gridDim.x, program = blockIdx.x, each = (int)((u32)total / (u32)programs), more = total - each * programs;
    count = each + (program < more);
    return program * each + min(program, more);
}

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

__device__ inline u64 described(u32 address) {
    // Rows of 128 bytes, swizzled; eight rows are 1024 bytes.
    return (u64)((address & 0x3ffff) >> 4) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Transpose 32 by 32 bits: bit i of lane j becomes bit j of lane i.
__device__ inline u32 transposed(u32 word, int lane) {
    u32 mask = 0x0000ffff;
#pragma unroll
    for (int shift = 16; shift; shift >>= 1) {
        const u32 other = __shfl_xor_sync(~0u, word, shift);
        word = lane & shift ? (word & ~mask) | (other >> shift & mask) : (word & mask) | (other << shift & ~mask);
        mask ^= mask << (shift >> 1);
    }
    return word;
}

// The largest |x · col_scale| of each 256 columns of a slice, as a whole number, in which what is no number is larger than
// all others.
template <int TYPE> __device__ inline void find_largest(const Args& a, const u16* x, i64 own, int first, u32* most) {
    u32 found[SLICE / SCALERS];
#pragma unroll
    for (int i = 0; i < SLICE / SCALERS; i++) {
        const int column = first + i * SCALERS + (int)threadIdx.x;
        found[i] = column < a.columns ? __float_as_uint(fabsf(narrow_value(x[column]) * typed_value(a.col_scale, own + column, TYPE))) : 0;
    }
#pragma unroll
    for (int i = 0; i < SLICE / SCALERS; i++) {
        const u32 m = __reduce_max_sync(~0u, found[i]);
        if ((threadIdx.x & 31) == 0) atomicMax(&most[(i * SCALERS + threadIdx.x) / 256], m);
    }
}

// What the entries of a tile of rows of a sparse block add: eight lanes for a row, four entries of each at a time.
__device__ inline void sum_entries(const Args& a, const i64* row, int chain, int tile, int token, float* out) {
    const int lane = threadIdx.x & 31, n_rows = rows_of(a, chain);
    const int* starts = (const int*)row[FIRST];
    const bool brief = row[WIDTH] == 2;
    const int count = (int)row[RANK];
    const u16* indices = (const u16*)row[V];
    const u8* values = (const u8*)row[STRIDE];
    const i64 own = (i64)chain * a.col_stride;
    const float size = *(const float*)row[SCALE];
    const u16* x = a.x + (i64)token * a.columns;
    for (int within = (threadIdx.x >> 3); within < TILE; within += SCALERS / 8) {
        int at[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int r = tile * TILE + within + e;
            at[e] = r >= n_rows ? count : starts[r >> 6] + (brief ? (int)((const u16*)row[U])[r] : ((const int*)row[U])[r]);
        }
        float total = 0.f;
        for (int e = at[0] + (lane & 7); e < at[1]; e += 32) {
            int columns[4];
            u8 codes[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int i = e + k * 8;
                columns[k] = i < at[1] ? indices[i] : 0;
                codes[k] = i < at[1] ? values[i] : 0;
            }
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (e + k * 8 < at[1])
                    total += narrow_value(x[columns[k]]) * typed_value(a.col_scale, own + columns[k], a.col_type) * byte_value(codes[k]);
        }
        for (int d = 1; d < 8; d <<= 1) total += __shfl_xor_sync(~0u, total, d);
        if ((lane & 7) == 0) out[within] = total * size;
    }
}

// Z of 128 columns of a slice for one segment of one chain: each thread has four columns of the factors at one column of W,
// and each bit of the numbers is a row of a tile, as the tensor cores read it. Programs (128 columns · segments, chain); the
// further ones add up the single entries of a tile of rows.
extern "C" __global__ void __launch_bounds__(SCALERS) scale_input(const __grid_constant__ Args a) {
    // What came before is done, and `multiply` may begin.
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;");
    __shared__ u32 most[V_GROUPS];
    __shared__ float inverse[RANKS];
    __shared__ int sums[4][RANKS];
    __shared__ __align__(16) u32 bits[N * 4];
    const int chunks = a.slices * PARTS, segment = blockIdx.x / chunks, chain = blockIdx.y;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, k = (thread >> 7) * 4;
    if (segment >= a.capacity) {
        const int tile = blockIdx.x - chunks * a.capacity;
        if (tile >= tiles_of(a, chain)) return;
        for (int s = a.counts[2 * chain + 1]; s < a.counts[2 * chain]; s++)
            for (int t = 0; t < TOKENS; t++)
                sum_entries(a, a.table + ((i64)chain * a.capacity + s) * FIELDS, chain, tile, t,
                            a.partial + (((i64)(chain * a.tiles + tile) * a.capacity + s) * a.slices * TOKENS + t) * TILE);
        return;
    }
    if (segment == 0)
        for (int i = blockIdx.x * SCALERS + thread; i < a.tiles; i += chunks * SCALERS) a.arrived[chain * a.tiles + i] = 0;
    const int chunk = blockIdx.x % chunks, slice = chunk / PARTS, part = chunk % PARTS, first = slice * SLICE;
    const int column = first + part * 128 + (thread & 127);
    const bool inside = column < a.columns;
    const i64 place = (i64)chain * a.capacity + segment, own = (i64)chain * a.col_stride;
    const i64* row = a.table + place * FIELDS;
    const bool wanted = segment < a.counts[2 * chain + 1] && row[SHARED] == segment;
    const float c = inside ? typed_value(a.col_scale, own + column, a.col_type) : 0.f;
    if (!wanted) return;
    const int width = (int)row[WIDTH], rank = (int)row[RANK], kind = (int)row[KIND];
    const bool bytes = kind == SIGN8;
    const u8* v = (const u8*)row[V];
    const i64 at = (i64)column * rank + k;
    u32 pairs[2] = {0, 0};
    if (inside && k + 4 <= width && !((u64)v & 7) && !(rank & 3)) {
        if (bytes) {
            const u32 q = *(const u32*)(v + at);
            pairs[0] = wide((u16)q), pairs[1] = wide((u16)(q >> 16));
        } else {
            const uint2 q = *(const uint2*)(v + 2 * at);
            pairs[0] = q.x, pairs[1] = q.y;
        }
    } else if (inside) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (k + i < width) pairs[i / 2] |= (u32)(bytes ? (u16)wide(v[at + i]) : ((const u16*)v)[at + i]) << 16 * (i % 2);
    }
    float v_max[V_GROUPS];
    if (thread < RANKS) {
#pragma unroll
        for (int g = 0; g < V_GROUPS; g++)
            v_max[g] = thread < width && first + g * 256 < a.columns ? ((const float*)row[V_MAX])[(first / 256 + g) * RANKS + thread] : 0.f;
    }
    u8* z = a.z + (place * a.slices + slice) * Z_ALL;
    for (int t = 0; t < TOKENS; t++) {
        const u16* x = a.x + (i64)t * a.columns;
        const float xc = inside ? narrow_value(x[column]) * c : 0.f;
        if (thread < V_GROUPS) most[thread] = 0;
        if (thread < 4 * RANKS) sums[thread / RANKS][thread % RANKS] = 0;
        __syncthreads();
        if (a.col_type == 0) find_largest<0>(a, x, own, first, most);
        else if (a.col_type == 1) find_largest<1>(a, x, own, first, most);
        else find_largest<2>(a, x, own, first, most);
        __syncthreads();
        if (thread < RANKS) {
            float bound = 0;
            bool odd = false;
#pragma unroll
            for (int g = 0; g < V_GROUPS; g++) {
                const float b = __uint_as_float(most[g]) * v_max[g];
                odd |= !(b < __uint_as_float(0x7f800000u));
                bound = fmaxf(bound, b);
            }
            const bool some = bound > 1e-30f && !odd;
            inverse[thread] = some ? TOP / bound : 0.f;
            if (part == 0) ((float*)(z + Z_BYTES))[t * RANKS + thread] = odd ? __uint_as_float(0x7fc00000u) : some ? bound / TOP : 0.f;
        }
        __syncthreads();
        int numbers[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Not a number becomes zero; the step says what it was.
            const float value = half_value((u16)(pairs[i / 2] >> 16 * (i % 2))) * xc * inverse[k + i];
            numbers[i] = __float2int_rn(fminf(fmaxf(value, -TOP), TOP));
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int sum = __reduce_add_sync(~0u, numbers[i]);
            if (lane == i) sums[warp & 3][k + i] = sum;
        }
        const int bit = lane & 15;
#pragma unroll
        for (int p = 0; p < 2; p++) {
            const u32 word = transposed(__byte_perm(numbers[2 * p], numbers[2 * p + 1], 0x5410), lane);
            if (bit < BITS) bits[(bit * RANKS + k + 2 * p + (lane >> 4)) * 4 + (warp & 3)] = word;
        }
        __syncthreads();
        u8* to = z + part / 8 * Z_HALF + t * Z_TILE;
        for (int n = thread; n < N; n += SCALERS) *(uint4*)(to + n * 128 + (part % 8 * 16 ^ (n & 7) << 4)) = ((const uint4*)bits)[n];
        if (thread < RANKS)
            ((int*)(z + Z_BYTES))[TOKENS * RANKS + (part * TOKENS + t) * RANKS + thread] = sums[0][thread] + sums[1][thread] + sums[2][thread] + sums[3][thread];
        __syncthreads();
    }
}

struct Shared {
    i64 table[KNOWN * FIELDS];
    int counts[2 * KNOWN];
    int tile_of[THREADS], needed_of[THREADS], completed[THREADS];
    int n_completed;
    u64 barriers[2 * STAGES + U_SLOTS + Z_BUFFERS * (HALVES + 1)];
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

extern "C" __global__ void __launch_bounds__(THREADS, 1) multiply(const __grid_constant__ Args given) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(16) Shared own;
    u8* stages = memory + Z_BUFFERS * Z_SPACE;
    u8* factors = stages + STAGES * STAGE;
    Args a = given;
    const int thread = threadIdx.x, warp = thread >> 5, slots = a.capacity * a.slices;
    const u32 full = shared_address(own.barriers), empty = full + 8 * STAGES, u_empty = empty + 8 * STAGES;
    const u32 z_full = u_empty + 8 * U_SLOTS, z_empty = z_full + 8 * Z_BUFFERS * HALVES;
    const int entries = a.n_chains * a.capacity;
    if (entries <= KNOWN) {
        for (int i = thread; i < entries * FIELDS; i += THREADS) own.table[i] = a.table[i];
        if (thread < 2 * a.n_chains) own.counts[thread] = a.counts[thread];
    }
    if (thread == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, TOKENS);
        for (int i = 0; i < U_SLOTS; i++) barrier_init(u_empty + 8 * i, 4 * TOKENS);
        for (int i = 0; i < Z_BUFFERS * HALVES; i++) barrier_init(z_full + 8 * i, 1);
        for (int i = 0; i < Z_BUFFERS; i++) barrier_init(z_empty + 8 * i, 2);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        own.n_completed = 0;
    }
    __syncthreads();
    if (entries <= KNOWN) a.table = own.table, a.counts = own.counts;
    int units = 0, idle_tiles = 0;
    for (int c = 0; c < a.n_chains; c++) {
        const int tiles = tiles_of(a, c), dense = a.counts[2 * c + 1];
        units += dense * tiles * a.slices;
        if (!dense) idle_tiles += tiles;
    }
    int count, idle;
    const int first = share(units, count), first_idle = share(idle_tiles, idle), last = first + count;
    const int mine = count + idle;

    if (warp == 8) {  // brings signs and rows of U
        if ((thread & 31) == 0 && first < last) {
            Unit unit;
            unit.find(a, first);
            int stage = 0, phase = 1, slot = 0, u_phase = 1, rank_bytes = 0, n_rows = 0;
            bool plain = false;
            const u8 *map = nullptr, *from = nullptr;
            for (int u = first; u < last; u++, unit.next(a)) {
                if (u == first || unit.tile == 0) {
                    const i64 place = unit.place(a);
                    const i64* row = a.table + place * FIELDS;
                    const int kind = (int)row[KIND];
                    if (map != a.maps + place * 128) {
                        map = a.maps + place * 128;
                        asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(map) : "memory");
                    }
                    plain = row[PLAIN] != 0;
                    rank_bytes = (int)row[RANK] * (kind == SIGN8 ? 1 : 2);
                    from = (const u8*)row[U];
                    n_rows = rows_of(a, unit.chain);
                }
                const int r = unit.tile * TILE, halves = halves_of(a, unit.slice);
                int u_bytes = 0;
                const u8* u_from = (const u8*)((u64)(from + (i64)r * rank_bytes) & ~15ull);
                if (rank_bytes <= 32) {
                    u_bytes = ((int)(from + (i64)min(r + TILE, n_rows) * rank_bytes - u_from) + 15) & ~15;
                    barrier_wait(u_empty + 8 * slot, u_phase);
                }
                for (int h = 0; h < halves; h++) {
                    barrier_wait(empty + 8 * stage, phase);
                    const u32 arrival = full + 8 * stage;
                    barrier_expect(arrival, STAGE + (h == 0 ? u_bytes : 0));
                    // Past the end of the rows the signs read as zeros: those of a block without any.
                    asm volatile(
                        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                            shared_address(stages + stage * STAGE)),
                        "l"(map), "r"(unit.slice * (SLICE / 8) + h * 128), "r"(plain ? 1 << 30 : r), "r"(arrival)
                        : "memory");
                    if (h == 0 && u_bytes) bulk_copy(shared_address(factors + slot * U_BYTES), u_from, u_bytes, arrival);
                    if (++stage == STAGES) stage = 0, phase ^= 1;
                }
                if (rank_bytes <= 32 && ++slot == U_SLOTS) slot = 0, u_phase ^= 1;
            }
        }
    } else if (warp == 9) {  // brings Z
        if ((thread & 31) == 0 && first < last) {
            Unit unit;
            unit.find(a, first);
            i64 known = -1;
            int buffer = 0, phase = 1;
            wait_for_input();
            for (int u = first; u < last; u++, unit.next(a)) {
                if (u != first && unit.tile) continue;
                const i64 own_chain = (i64)unit.chain * a.capacity, wanted = (own_chain + a.table[(own_chain + unit.segment) * FIELDS + SHARED]) * a.slices + unit.slice;
                if (wanted == known) continue;
                known = wanted;
                barrier_wait(z_empty + 8 * buffer, phase);
                const u8* from = a.z + wanted * Z_ALL;
                const u32 to = shared_address(memory + buffer * Z_SPACE);
                const int halves = halves_of(a, unit.slice);
                for (int h = 0; h < halves; h++) {
                    const u32 arrival = z_full + 8 * (buffer * HALVES + h);
                    barrier_expect(arrival, Z_HALF + (h == 0 ? Z_TAIL : 0));
                    bulk_copy(to + h * Z_HALF, from + h * Z_HALF, Z_HALF, arrival);
                    if (h == 0) bulk_copy(to + Z_BYTES, from + Z_BYTES, Z_TAIL, arrival);
                }
                // A buffer's barriers all have the same number of phases.
                for (int h = halves; h < HALVES; h++) barrier_arrive(z_full + 8 * (buffer * HALVES + h));
                if (++buffer == Z_BUFFERS) buffer = 0, phase ^= 1;
            }
        }
    } else if (warp > 9) {  // looks up where the sums belong
        for (int i = thread - 320; i < min(mine, THREADS); i += 64)
            find_tile(a, i, first, count, first_idle, own.tile_of[i], own.needed_of[i]);
    } else if (first < last) {
        const int group = warp >> 2, lane = thread & 31, quad = lane & 3, token = TOKENS == 2 ? group : 0;
        const int within = (warp & 3) * 16 + (lane >> 2);  // and this plus 8: rows of the tile
        const bool elected = (thread & 127) == 0;
        Unit unit;
        unit.find(a, first);
        int stage = 0, phase = 0, slot = 0, slice = -1, z_group = -1, width = 0, rank = 0, n_rows = 0;
        i64 shared = -1;
        bool bytes = false;
        const u8* u_rows = nullptr;
        float step[RANKS / 4];
        int sum[RANKS / 4];
        // The consumers take turns: while one multiplies, the other adds up.
        if (group == 1) asm volatile("bar.arrive 2, 256;" ::: "memory");
        for (int u = first; u < last; u++, unit.next(a)) {
            const int halves = halves_of(a, unit.slice);
            if (u == first || unit.tile == 0) {
                const i64* row = a.table + unit.place(a) * FIELDS;
                const i64 wanted = (i64)unit.chain * a.capacity + row[SHARED];
                if (wanted != shared || unit.slice != slice) {
                    if (z_group >= 0) {
                        // Also what this consumer had no unit of must have come before it can go.
                        for (int h = 1; h < HALVES; h++) barrier_wait(z_full + 8 * (z_group % Z_BUFFERS * HALVES + h), z_group / Z_BUFFERS & 1);
                        if (elected) barrier_arrive(z_empty + 8 * (z_group % Z_BUFFERS));
                    } else {
                        wait_for_input();
                    }
                    z_group++;
                    barrier_wait(z_full + 8 * (z_group % Z_BUFFERS * HALVES), z_group / Z_BUFFERS & 1);
                    shared = wanted, slice = unit.slice;
                }
                const u8* tail = memory + z_group % Z_BUFFERS * Z_SPACE + Z_BYTES;
                const int kind = (int)row[KIND];
                bytes = kind == SIGN8;
                width = (int)row[WIDTH], rank = (int)row[RANK], u_rows = (const u8*)row[U], n_rows = rows_of(a, unit.chain);
                const float* scale = (const float*)row[SCALE];
                const float gain = row[PLAIN] ? -__int_as_float((int)row[GAIN]) : __int_as_float((int)row[GAIN]);
#pragma unroll
                for (int i = 0; i < RANKS / 4; i++) {
                    const int r = i / 2 * 8 + quad * 2 + i % 2;
                    step[i] = r < width ? ((const float*)tail)[token * RANKS + r] * gain * (scale ? scale[r] : 1.f) : 0.f;
                    sum[i] = 0;
#pragma unroll 4
                    for (int p = 0; p < PARTS; p++)
                        if (slice * SLICE + p * 128 < a.columns) sum[i] += ((const int*)tail)[TOKENS * RANKS + (p * TOKENS + token) * RANKS + r];
                }
            }
            const int rank_bytes = rank * (bytes ? 1 : 2);
            const bool local = rank_bytes <= 32;
            if (TOKENS == 1 && ((u - first) & 1) != group) {
                stage += halves;
                if (stage >= STAGES) stage -= STAGES, phase ^= 1;
                if (local && ++slot == U_SLOTS) slot = 0;
                continue;
            }
            u32 acc[N / 2];
            const u32 z_here = shared_address(memory + z_group % Z_BUFFERS * Z_SPACE + token * Z_TILE);
            const int first_stage = stage;
            const u32 z_arrival = z_full + 8 * (z_group % Z_BUFFERS * HALVES), z_phase = z_group / Z_BUFFERS & 1;
            asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory");
            barrier_wait(full + 8 * stage, phase);
            u64 da = described(shared_address(stages + stage * STAGE)), db = described(z_here);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < 4; k++) WGMMA(acc, da + 2 * k, db + 2 * k, k > 0);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            if (halves == HALVES) {
                if (++stage == STAGES) stage = 0, phase ^= 1;
                barrier_wait(full + 8 * stage, phase);
                barrier_wait(z_arrival + 8, z_phase);
                da = described(shared_address(stages + stage * STAGE)), db = described(z_here + Z_HALF);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int k = 0; k < 3; k++) WGMMA(acc, da + 2 * k, db + 2 * k, 1);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                WGMMA(acc, da + 6, db + 6, 1);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            }
            // Two columns of U in a word, of each of two rows.
            u32 left[2][RANKS / 8];
            const int skew = (int)((u64)(u_rows + (i64)unit.tile * TILE * rank_bytes) & 15);
            if (local && !(rank & 1) && !(skew & (bytes ? 1 : 3))) {
                const u8* from = factors + slot * U_BYTES + skew + within * rank_bytes + quad * (bytes ? 2 : 4);
#pragma unroll
                for (int j = 0; j < 2; j++) {
#pragma unroll
                    for (int i = 0; i < RANKS / 8; i++) {
                        left[j][i] = 0;
                        if (unit.tile * TILE + within + 8 * j < n_rows && quad * 2 + 8 * i < width) {
                            if (bytes) left[j][i] = *(const u16*)(from + j * 8 * rank + 8 * i);
                            else left[j][i] = *(const u32*)(from + j * 16 * rank + 16 * i);
                        }
                    }
                }
            } else {
#pragma unroll 1
                for (int p = 0; p < RANKS / 4; p++) {
                    const int j = p & 1, i = p >> 1, m = unit.tile * TILE + within + 8 * j, r = quad * 2 + 8 * i;
                    u32 low = 0, high = 0;
                    if (m < n_rows) {
                        const u8* from = local ? factors + slot * U_BYTES + skew + (within + 8 * j) * rank_bytes : u_rows + (i64)m * rank_bytes;
                        if (r < width) low = bytes ? from[r] : ((const u16*)from)[r];
                        if (r + 1 < width) high = bytes ? from[r + 1] : ((const u16*)from)[r + 1];
                    }
                    const u32 both = low | high << (bytes ? 8 : 16);
                    if (i == 0) {
                        if (j == 0) left[0][0] = both;
                        else left[1][0] = both;
                    } else {
                        if (j == 0) left[0][RANKS / 8 - 1] = both;
                        else left[1][RANKS / 8 - 1] = both;
                    }
                }
            }
            if (bytes) {
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int i = 0; i < RANKS / 8; i++) left[j][i] = wide((u16)left[j][i]);
            }
            float* to = a.partial + (((i64)(unit.chain * a.tiles + unit.tile) * slots + unit.segment * a.slices + unit.slice) * TOKENS + token) * TILE + within;
            if (local) {
                __syncwarp();
                if (lane == 0) barrier_arrive(u_empty + 8 * slot);
                if (++slot == U_SLOTS) slot = 0;
            }
            if (halves == HALVES) {
                asm volatile("wgmma.wait_group.sync.aligned 2;" ::: "memory");
                if (elected) barrier_arrive(empty + 8 * first_stage);
                // The other one may begin while the last product ends.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            }
            if (TOKENS == 2 && group == 0 || u + 1 < last) asm volatile("bar.arrive %0, 256;" ::"r"(3 - group) : "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
            for (int i = 0; i < N / 2; i++) asm volatile("" : "+r"(acc[i])::"memory");
            if (elected) barrier_arrive(empty + 8 * stage);
            if (++stage == STAGES) stage = 0, phase ^= 1;
            float result[2] = {0.f, 0.f};
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int i = 0; i < RANKS / 4; i++) {
                    // Column b·RANKS + r of the product: tiles of 8 columns, of which a thread has two, in two rows.
                    int s = 0;
#pragma unroll
                    for (int b = BITS - 1; b >= 0; b--) {
                        const int v = acc[(b * (RANKS / 8) + i / 2) * 4 + j * 2 + i % 2];
                        s = b == BITS - 1 ? -v : 2 * s + v;
                    }
                    result[j] += (float)(2 * s - sum[i]) * step[i] * half_value((u16)(left[j][i / 2] >> 16 * (i % 2)));
                }
                result[j] += __shfl_xor_sync(~0u, result[j], 1);
                result[j] += __shfl_xor_sync(~0u, result[j], 2);
            }
            if (quad == 0) to[0] = result[0], to[8] = result[1];
        }
        // The other one may need what comes after.
        if (elected) barrier_arrive(z_empty + 8 * (z_group % Z_BUFFERS));
    }
    // All sums of this program are written: count them, and finish the tiles that nobody else adds to.
    // A program without units also comes here: the counters must have been cleared.
    wait_for_input();
    __syncthreads();
    for (int base = 0; base < mine; base += THREADS) {
        const int i = base + thread;
        if (i < mine) {
            if (base) find_tile(a, i, first, count, first_idle, own.tile_of[thread], own.needed_of[thread]);
            const int there = own.tile_of[thread], needed = own.needed_of[thread];
            bool complete = !needed;
            if (needed) {
                int before;
                asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(a.arrived + there) : "memory");
                complete = before == needed - 1;
            }
            if (complete) own.completed[atomicAdd(&own.n_completed, 1)] = there;
        }
        __syncthreads();
        for (int j = thread >> 4; j < own.n_completed; j += THREADS / 16) finish(a, own.completed[j], thread & 15, slots);
        __syncthreads();
        if (thread == 0) own.n_completed = 0;
        __syncthreads();
    }
}
