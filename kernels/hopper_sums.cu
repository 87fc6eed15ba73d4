// Sums of rows, and y.
//
// A sum is a whole number of 64 bits: the upper ones count who has added, the next ones who of these had no number to add, the
// lower ones are what was added. Its step is a power of two that follows from a bound on the row, its reach times the largest |x|,
// so that all who add know it beforehand; whoever finds that nobody is missing writes y, or that it is no number, and leaves a zero.
#define COUNT 53     // where the count begins, of 11 bits
#define ODD 42       // where that of no numbers begins, of as many
#define ROOM 40      // bits of what is added without its sign; one more is left for what rounding adds
#define LEAST -58    // powers of two that are smaller are taken for this one
#define MOST 160     // of larger ones nothing is added up
#define NO_NUMBER 4096

// The exponent of a power of two that is larger.
__device__ inline int exponent(float size) {
    const int found = (int)(__float_as_uint(size) >> 23 & 255) - 126;
    return found > 128 ? NO_NUMBER : found;
}
__device__ inline float power(int exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }

// How many add to each row of a chain: every product, and once who adds up single entries.
__device__ inline int adders(const Args& a, int chain) {
    const int *counts = counts_of(a, chain), dense = counts[1];
    return dense * a.slices * GROUPS + (counts[0] > dense);
}

// What was added to a row, until it is known whether that was the last.
struct Added {
    u64 before, more;  // added up no sooner than needed, since what was there before takes its time to come
    int row;           // of all that are multiplied; -1: nothing
    u32 needed;        // how many add to it, where the upper half of a sum counts them
    float unit;        // what a step of the sum is worth in y
#if MATRICES > 1
    int chain;
#endif
};

// Write a row of y: `row` of all that are multiplied.
__device__ inline void write_row(const Args& a, int chain, int row, int token, float total) {
    const Matrix& m = matrix_of(a, chain);
    row -= first_row(m);
    m.y[(i64)token * m.rows + row] = narrow(total + (m.bias ? typed_value(m.bias, row, m.bias_type) : 0.f));
}

// Add to a row of a chain. `needed`: how many do. `value`: times 2^-DOWN. `known`: its reach,
// as an exponent, and its scale. `largest`: the exponent of |x|.
__device__ inline Added add(const Args& a, int chain, int row, int token, int needed, float value, float2 known, int largest) {
    const int size = max(__float_as_int(known.x) + largest, LEAST);
    const float whole = value * power(ROOM + DOWN - size);
    Added out;
    // By the bound it is no larger; should it be, nobody takes the sum for right.
    out.more = (1ull << COUNT) + (u64)(fabsf(whole) <= power(ROOM) && size <= MOST ? __float2ll_rn(whole) : 1ll << ODD);
    out.row = row, out.needed = (u32)needed << (COUNT - 32), out.unit = power(size - ROOM) * known.y;
    out.before = add_to(a.sums + (i64)token * a.rows + row, out.more);
#if MATRICES > 1
    out.chain = chain;
#endif
    return out;
}

// Write y of the row if nobody else adds to it any more.
__device__ inline void settle_row(const Args& a, const Added& added, int token) {
    if (added.row < 0) return;
    const u64 after = added.before + added.more;
    // What was added may be less than nothing: half of what a count begins with makes the counts right.
    const u32 others = (u32)(after >> 32) + (1u << (ODD - 33)) ^ added.needed;
    if (others >> (COUNT - 32)) return;
    a.sums[(i64)token * a.rows + added.row] = 0;
    const float unit = others >> (ODD - 32) ? __uint_as_float(0x7fc00000u) : added.unit;
    const float total = (float)(i64)(after - ((u64)added.needed << 32)) * unit;
#if MATRICES > 1
    write_row(a, added.chain, added.row, token, total);
#else
    write_row(a, 0, added.row, token, total);
#endif
}
