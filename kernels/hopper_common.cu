// y = x·Wᵀ for one, two or four tokens on NVIDIA GPUs of compute capability 9.0, where a matrix product of single bits runs on
// the tensor cores as fast as one of bytes does, and takes eight times the columns.
//
// Signs stay the bits that they are in the file. Z = diag(x·col_scale)·V becomes whole numbers of BITS bits, which share a
// step in a slice of columns and a column of V; each of their bits is a column of the right factor. The product counts
// where both bits are set; the counts, times the values of the bits, make Σ Z over the set signs, exactly.
//
// A program takes units of work, tiles of rows of a segment in a slice of columns; those of one mostly have the same Z, which
// all its consumers make together. What they find is added to sums of whole numbers of 64 bits that also count who has added:
// whoever completes a row writes y. So the order does not matter, and the same input gives the same bits.
//
// Here is what all parts share; `hopper_units.cu`, `_z`, `_ring`, `_sums`, `_helpers` (or `_empty`) and `_multiply` follow. `hopper.py`
// prepends: BITS, RANKS (8 or 16 columns of the factors), TOKENS (1 or 2, or 4 where RANKS is 8), BFLOAT (x and y are bfloat16, not float16), STAGES (of
// the ring of signs), Z_SPACE, X_SPACE (bytes), SIGN8, SHARE_FIELDS, the fields of a row of the table, WGMMA, WIDE (blocks may have more than 16
// columns of the factors, so that a row of U may have more than 32 bytes), and MATRICES: a launch multiplies one matrix, of any number of chains;
// or up to so many, which then have one chain each, by the same x.
#define SLICE 2048             // columns
#define HALVES 2               // of a slice: 1024 columns, of which 64 rows of signs are a box of the copy engine
#define TILE 64                // rows
#define BOX (TILE * 128)       // bytes
#define STAGE (HALVES * BOX)
#define U_BYTES (TILE * 32 + 16)
// A product has eight columns of the factors, so that its sums take half of the registers and four warp groups find room.
#define GROUPS (RANKS / 8)
#define N (BITS * 8)
#define JOBS (TOKENS * GROUPS) // products of a unit of work: one of each token and eight columns of the factors
#define CONSUMERS 4            // warp groups that multiply
#define WARPS (4 * CONSUMERS)
#define AT_ONCE (CONSUMERS / JOBS)  // units
#define Z_TILE (N * 128)       // bytes of Z of half a slice and a job
#define Z_TOKEN (HALVES * GROUPS * Z_TILE)
#define V_GROUPS (SLICE / 256) // of columns, of which the largest of V is known
#define RING_WARP WARPS
#define HELPERS 3              // warps after that one
#define CHUNK 256              // single entries of a warp at a time
#define ROW_BYTES (TILE * 8)   // of what is known of the rows of a tile
// x·col_scale is held times 2^-DOWN, and so is all that is added up: no product with V, which is below 2^16, leaves float32 then, nor does
// such a product with what makes it a whole number added to it.
#define DOWN 28
#define SMALLER (1.f / (1 << DOWN))
#define KNOWN 32               // rows of the table that are kept in shared memory

struct Matrix {
    const void* col_scale;
    const void* bias;
    const i64* table;
    const int* counts;
    const u8* maps;
    const float2* row_values;  // reach and scale of each row; whole tiles for each chain
    u16* y;
    int rows, chain_rows, col_stride, capacity, bias_type;
    int first;                 // row of all that are multiplied
};
// What is the same for all: `rows` and chains of all of them, and the largest capacity.
struct Common {
    const u16* x;
    const int* shares;
    u64* sums;
    int rows, columns, n_chains, capacity, slices, col_type;
};
struct Given {
    Common common;
    Matrix matrices[MATRICES];
};
// The same, as it is looked at. Of several matrices, tables and counts are also in shared memory, if they have room there.
struct Args : Common {
#if MATRICES == 1
    Matrix matrix;
#else
    const Matrix* matrices;
    const i64* table;
    const int* counts;
#endif
};

// What a program holds in shared memory beside signs, U and Z.
struct Shared {
    float xc[WARPS][4][36];   // x·col_scale, times 2^-DOWN: 128 columns of each warp, with room after each 32 against conflicts
    float v_max[V_GROUPS][RANKS];
    float step[TOKENS][RANKS];
    int z_sums[TOKENS][RANKS];  // of the whole numbers of each column of V
    u32 most[TOKENS][WARPS];    // the largest of |xc| of 128 columns, as bits
    u32 largest[TOKENS];        // the largest |x|, as bits
    i64 table[KNOWN * FIELDS];
    int counts[2 * KNOWN];
    float products[HELPERS][CHUNK];  // of single entries
    u64 barriers[2 * STAGES + 3];
};

#if MATRICES == 1
__device__ inline const Matrix& matrix_of(const Args& a, int chain) { return a.matrix; }
__device__ inline int within_matrix(int chain) { return chain; }
__device__ inline int rows_of(const Args& a, int chain) { return min(a.matrix.chain_rows, a.matrix.rows - chain * a.matrix.chain_rows); }
#else
__device__ inline const Matrix& matrix_of(const Args& a, int chain) { return a.matrices[chain]; }
__device__ inline int within_matrix(int chain) { return 0; }
__device__ inline int rows_of(const Args& a, int chain) { return a.matrices[chain].rows; }
#endif
__device__ inline int tiles_of(const Args& a, int chain) { return (rows_of(a, chain) + TILE - 1) / TILE; }
__device__ inline int halves_of(const Args& a, int slice) { return min(HALVES, (a.columns - slice * SLICE + 1023) / 1024); }
// The first row of a matrix, and of a chain, of all that are multiplied.
__device__ inline int first_row(const Matrix& m) { return MATRICES == 1 ? 0 : m.first; }
__device__ inline int first_of(const Args& a, int chain) {
    const Matrix& m = matrix_of(a, chain);
    return first_row(m) + within_matrix(chain) * m.chain_rows;
}
#if MATRICES == 1
__device__ inline const int* counts_of(const Args& a, int chain) { return a.matrix.counts + 2 * chain; }
__device__ inline const i64* line_of(const Args& a, int chain, int segment) { return a.matrix.table + ((i64)chain * a.capacity + segment) * FIELDS; }
#else
__device__ inline const int* counts_of(const Args& a, int chain) { return a.counts ? a.counts + 2 * chain : a.matrices[chain].counts; }
__device__ inline const i64* line_of(const Args& a, int chain, int segment) {
    return a.table ? a.table + (chain * a.capacity + segment) * FIELDS : a.matrices[chain].table + segment * FIELDS;
}
#endif
__device__ inline const u8* map_of(const Args& a, int chain, int segment) {
    const Matrix& m = matrix_of(a, chain);
    return m.maps + ((i64)within_matrix(chain) * m.capacity + segment) * 128;
}
__device__ inline const float2* row_values_of(const Args& a, int chain) {
    const Matrix& m = matrix_of(a, chain);
    return m.row_values + (i64)within_matrix(chain) * ((m.chain_rows + TILE - 1) / TILE * TILE);
}
// Where its scales of columns begin, as a number of them.
__device__ inline i64 scales_of(const Args& a, int chain) { return (i64)within_matrix(chain) * matrix_of(a, chain).col_stride; }
