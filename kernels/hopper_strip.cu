// What a program makes of W: a strip of 128 rows, tile of 256 columns after tile, for `hopper_rebuild.cu` and `hopper_several.cu`.
//
// U of all segments stays in shared memory, multiplied by its scale and by a power of two for each row, by which no product and no
// sum of products of a row leaves half precision. V and the signs come through a ring, a segment of a tile at a time. Tensor cores
// multiply U and V in half precision; each pair of products is turned by its signs.
//
// After `hopper_tile.cu`; wants SIGN8, GROUP, HELD, HELD_BYTES, STAGES and the fields of a row of the table.
#define WIDTH_MOST 16          // columns of the factors of a segment
#define SIGN_BYTES (SIDE * TILE / 8)
#define V_BYTES (TILE * LINE)
#define AHEAD (STAGES - 2)     // how many come before what is multiplied: of what was multiplied last, warps may still read
static_assert(!(STAGES & (STAGES - 1)), "places are the lowest bits of numbers");

// U of a segment.
struct Factor {
    const u8* first;
    int stride, size;          // bytes from row to row, and of those of a row that are the segment's
    bool bytes;                // whether they are float8
};
// What is brought of a segment: rows of signs, from the strip's first one, or of V.
struct __align__(16) Source {
    const u8* first;
    int stride;                // bytes from row to row
    // SAME: nothing, V is that of the segment before. LINES and WIDE_LINES: rows of 16 and 32 bytes, which are copied. Else these are
    // NARROW, and the bits above say how: their bytes, the bytes of a row in the ring, and those that are loaded at a time.
    int way;
};
#define SAME 0
#define LINES 1
#define WIDE_LINES 2
#define NARROW 3

struct Held {
    Source sources[HELD][2];
    Factor factors[HELD];
    float sizes[HELD][WIDTH_MOST];  // what U is multiplied by
    float most[HELD][WIDTH_MOST];   // the largest of V
    float inverse[SIDE];            // of the power of two of a row
    u64 full[STAGES], empty[STAGES];
    __align__(128) u8 signs[STAGES][SIGN_BYTES];
    __align__(128) u8 v[STAGES][V_BYTES];
};
static_assert(sizeof(Held) <= HELD_BYTES, "what a launch asks for is too little");

// Number k of a row of a factor, as half precision.
__device__ inline u16 number_at(bool bytes, const u8* row, int k) { return bytes ? (u16)wide(__ldg(row + k)) : __ldg((const u16*)row + k); }

// A strip's tiles, from one to before another one.
struct Strip {
    const Matrix& a;
    Held& held;
    u8* const factors;         // U, LINE bytes a row, of one segment after the other
    const int chain, row0, stop_row, first, stop, segments;
    const Where own;
    // Segments of tiles that were multiplied, and of these the ones with a V of their own: both count places in their rings.
    u32 step = 0, v_step = 0;
    // What is brought next, AHEAD of that: a thread brings half of a row of signs, from a byte on, and a row of V, that of a column.
    int tile, segment = 0;
    u32 v_brought = 0;
    const int sign_row;
    int sign_byte, column;
    const int place;           // where that row of V is in the ring
    // What a thread loaded and stores later, and the segment that waits for it, or none.
    int pending = -1;
    u32 raw;

    __device__ Strip(const Matrix& a, u8* memory, int chain, int row0, int stop_row, int first, int stop)
        : a(a), held(*(Held*)memory), factors(memory + sizeof(Held)), chain(chain), row0(row0), stop_row(stop_row), first(first), stop(stop), segments(a.counts[2 * chain + 1]), tile(first), sign_row(min(own.thread >> 1, stop_row - 1 - row0)), sign_byte(first * (TILE / 8) + 16 * (own.thread & 1)), column(first * TILE + own.thread), place(Line::of_column(own.thread)) {
        if (!segments) tile = stop;
    }
    // What lies behind.
    __device__ u8* rest() const { return factors + a.capacity * SIDE * LINE; }

    // Everything that need not wait for what other kernels write. Ends with a barrier.
    __device__ void begin() {
        if (!own.thread)
            for (int i = 0; i < STAGES; i++) barrier_init(shared_address(held.full + i), THREADS), barrier_init(shared_address(held.empty + i), WARPS);
        find_segments();
        __syncthreads();
        for (int i = 0; i < AHEAD; i++) bring(i), store(i);
        bring_factors();
        __syncthreads();
    }

    // Read the table.
    __device__ void find_segments() {
        const i64* table = a.table + (i64)chain * a.capacity * FIELDS;
        for (int i = own.thread; i < segments; i += THREADS) {
            const i64* row = table + i * FIELDS;
            const bool bytes = row[KIND] == SIGN8;
            const int each = bytes ? 1 : 2, stride = (int)row[RANK] * each, size = (int)row[WIDTH] * each;
            held.factors[i] = {(const u8*)row[U], stride, size, bytes};
            held.sources[i][0] = {(const u8*)row[FIRST] + row0 * row[STRIDE], (int)row[STRIDE], LINES};
            const u64 all = (u64)row[V] | (u64)stride | (u64)size;
            const int line = bytes ? LINE / 2 : LINE, unit = !(all & 7) ? 8 : (size == 4 || size == 2) && !(all & (size - 1)) ? size : 0;
            int way = NARROW | size << 8 | line << 16 | unit << 24;
            if (row[SHARED] != i) way = SAME;
            else if (size == line && !(all & 15)) way = bytes ? LINES : WIDE_LINES;
            held.sources[i][1] = {(const u8*)row[V], stride, way};
        }
        for (int i = own.thread; i < segments * WIDTH_MOST; i += THREADS) {
            const int k = i % WIDTH_MOST;
            const i64* row = table + i / WIDTH_MOST * FIELDS;
            float size = 0.f, most = 0.f;
            if (k < (int)row[WIDTH]) {
                const float* scale = (const float*)row[SCALE];
                const float* groups = (const float*)row[V_MAX] + k;
                size = __int_as_float((int)row[GAIN]) * (scale ? scale[k] : 1.f);
                for (int g = first * TILE / GROUP; g * GROUP < stop * TILE; g++) most = fmaxf(most, groups[g * a.ranks]);
            }
            held.sizes[i / WIDTH_MOST][k] = size, held.most[i / WIDTH_MOST][k] = most;
        }
    }

    // Eight numbers of a row of U as half precision.
    __device__ uint4 load_eight(const Factor& f, int row, int k0) const {
        const int each = f.bytes ? 1 : 2;
        uint4 out = make_uint4(0, 0, 0, 0);
        if (row >= stop_row || k0 * each >= f.size) return out;
        const u8* from = f.first + (i64)row * f.stride + k0 * each;
        if ((k0 + 8) * each <= f.size && !((u64)from & (8 * each - 1))) {
            if (!f.bytes) return __ldg((const uint4*)from);
            const uint2 two = __ldg((const uint2*)from);
            return make_uint4(wide((u16)two.x), wide((u16)(two.x >> 16)), wide((u16)two.y), wide((u16)(two.y >> 16)));
        }
        u32 words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++)
            if ((k0 + i) * each < f.size) words[i >> 1] |= (u32)number_at(f.bytes, from, i) << 16 * (i & 1);
        return make_uint4(words[0], words[1], words[2], words[3]);
    }

    // Bring U of all segments. Products are of the other sign, so that a bit that is set turns them.
    __device__ void bring_factors() {
        const int row = own.thread >> 1, k0 = (own.thread & 1) * 8;
        u32* own = (u32*)factors + factor_at(row, k0);
        float total = 0.f, largest = 0.f;
        for (int s0 = 0; s0 < segments; s0 += 4) {
            uint4 raw[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (s0 + i < segments) raw[i] = load_eight(held.factors[s0 + i], row0 + row, k0);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (s0 + i >= segments) continue;
                const u32 words[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    const float size = fabsf(half_value((u16)(words[k >> 1] >> 16 * (k & 1))) * held.sizes[s0 + i][k0 + k]);
                    total += size * held.most[s0 + i][k0 + k], largest = fmaxf(largest, size);
                }
                u32* to = own + (s0 + i) * SIDE * LINE / 4;
                to[0] = raw[i].x, to[2] = raw[i].y, to[4] = raw[i].z, to[6] = raw[i].w;
            }
        }
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        largest = fmaxf(fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1)), total);
        // Its power of two becomes 2^13; what is no number stays one.
        const int exponent = min(max((int)(__float_as_uint(largest) >> 23), 14), 253);
        const float power = __uint_as_float((u32)(267 - exponent) << 23);
        if (!k0) held.inverse[row] = __uint_as_float((u32)(exponent - 13) << 23);
        for (int s = 0; s < segments; s++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32& both = own[s * SIDE * LINE / 4 + 2 * i];
                const float* sizes = held.sizes[s] + k0 + 2 * i;
                both = half_pair(-(half_value((u16)both) * sizes[0]) * power, -(half_value((u16)(both >> 16)) * sizes[1]) * power);
            }
    }

    // Bring what comes next, if anything does; its number, of all segments of tiles, is given.
    __device__ void bring(u32 number) {
        if (tile == stop) return;
        const Source signs = held.sources[segment][0], v = held.sources[segment][1];
        const int stage = number % STAGES;
        barrier_wait(shared_address(held.empty + stage), number / STAGES & 1 ^ 1);
        copy_16(shared_address(held.signs) + stage * SIGN_BYTES + 16 * own.thread, signs.first + (u32)(sign_row * signs.stride + sign_byte), sign_byte * 8 < a.columns ? 16 : 0);
        if (v.way != SAME) {
            const bool inside = column < a.columns;
            const u8* from = v.first + (u32)(column * v.stride);
            if (v.way <= WIDE_LINES) {
                const u32 to = shared_address(held.v) + v_brought % STAGES * V_BYTES + (place << (3 + v.way));
                copy_16(to, from, inside ? 16 : 0);
                if (v.way == WIDE_LINES) copy_16(to + 16, from + 16, inside ? 16 : 0);
            } else {
                bring_narrow(v.way, from, inside);
            }
            v_brought++;
        }
        if (pending < 0) arrive_copied(shared_address(held.full + stage));
        if (++segment == segments) segment = 0, tile++, sign_byte += TILE / 8, column += TILE;
    }
    // A row of V that is not as long as a line, or whose address is odd.
    __device__ void bring_narrow(int way, const u8* from, bool inside) {
        const int size = inside ? way >> 8 & 255 : 0, line = way >> 16 & 255, unit = way >> 24;
        u8* to = held.v[v_brought % STAGES] + place * line;
        if (unit == 8) {
            for (int i = 0; i < line; i += 8) copy_8(shared_address(to) + i, from + i, size > i ? 8 : 0);
            return;
        }
        if (unit) {
            pending = segment;
            raw = !size ? 0 : unit == 4 ? __ldg((const u32*)from) : __ldg((const u16*)from);
            return;
        }
        for (int i = 0; i < line; i++) to[i] = i < size ? __ldg(from + i) : 0;
        __threadfence_block();
    }
    // Store what `bring` loaded for a number, if it did: after something else, since it takes a while.
    __device__ void store(u32 number) {
        if (pending < 0) return;
        const int line = held.sources[pending][1].way >> 16 & 255;
        u8* to = held.v[(v_brought - 1) % STAGES] + place * line;
        *(uint4*)to = make_uint4(raw, 0, 0, 0);
        if (line > 16) *(uint4*)(to + 16) = make_uint4(0, 0, 0, 0);
        __threadfence_block();  // what is not copied is there before the thread arrives
        arrive_copied(shared_address(held.full + number % STAGES));
        pending = -1;
    }

    // Wait for the next segment, which is `s`.
    __device__ void begin_segment(int s) {
        bring(step + AHEAD);
        if (held.sources[s][1].way != SAME) v_step++;
        barrier_wait(shared_address(held.full + step % STAGES), step / STAGES & 1);
    }
    // Give `use` the signs of a thread's four rows, and what adds a product of U and V, each of 16 rows, number m, and of the columns with
    // the number `at` that `Line` knows.
    template <class Use> __device__ void multiply(int s, Use use) const {
        const Factor& u = held.factors[s];
        const u8 *signs = held.signs[step % STAGES], *v = held.v[(v_step - 1) % STAGES];
        if (u.bytes && u.size <= 8) multiply<true, true>(signs, v, s, use);
        else if (u.bytes) multiply<true, false>(signs, v, s, use);
        else multiply<false, false>(signs, v, s, use);
    }
    __device__ void end_segment() {
        __syncwarp();
        if (!own.lane) barrier_arrive(shared_address(held.empty + step % STAGES));
        store(step + AHEAD);
        step++;
    }
    // `narrow`: factors have eight columns or fewer. A thread has two or four of the numbers that are added up, side by side.
    template <bool bytes, bool narrow, class Use> __device__ void multiply(const u8* all_signs, const u8* v, int s, Use use) const {
        const int g = own.lane >> 2, q = own.lane & 3;
        u32 left[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const u32* from = (const u32*)factors + s * SIDE * LINE / 4 + factor_at(own.row + 16 * m, narrow ? 2 * q & ~3 : 4 * q);
            if (narrow) {
                const uint2 two = *(const uint2*)(from + 2 * (q & 1));
                left[m][0] = two.x, left[m][1] = two.y;
            } else {
                const uint4 four = *(const uint4*)from;
                left[m][0] = four.x, left[m][1] = four.y, left[m][2] = four.z, left[m][3] = four.w;
            }
        }
        u32 signs[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint4 row = *(const uint4*)(all_signs + (own.row + r * 8) * (TILE / 8) + own.half * 16);
            signs[r] = __byte_perm(__byte_perm(row.x, row.y, own.byte), __byte_perm(row.z, row.w, own.byte), 0x5410);
        }
        constexpr int SIZE = bytes ? LINE / 2 : LINE;
        const u32 first = shared_address(v) + Line::first(own.half * 16, g) * SIZE + q * (narrow ? SIZE / 8 : SIZE / 4);
#pragma unroll
        for (int at = 0; at < 16; at++) {
            const u32 line = (first ^ (at & 3) * SIZE) + (at >> 2) * 32 * SIZE;
            uint2 right;
            if (narrow) {
                right.x = bytes ? wide(shared_short(line)) : shared_word(line);
            } else if (bytes) {
                const u32 four = shared_word(line);
                right.x = wide((u16)four), right.y = wide((u16)(four >> 16));
            } else {
                right = shared_pair(line);
            }
#pragma unroll
            for (int m = 0; m < 2; m++)
                use(at, m, signs, [&](u32 (&out)[2]) {
                    if (narrow) add_narrow_product(left[m], right.x, out);
                    else add_half_product(left[m], right, out);
                });
        }
    }
};

// The first tile of a part of the columns: each has as many as any other, to one.
__device__ inline int first_tile(int columns, int part, int parts) { return (int)((i64)((columns + TILE - 1) / TILE) * part / parts); }
