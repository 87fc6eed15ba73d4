// y = x·Wᵀ for one or two tokens on NVIDIA GPUs of compute capability 9.0, where a matrix product of single bits runs on
// the tensor cores as fast as one of bytes does, and takes eight times the columns.
//
// Signs stay the bits that they are in the file. Z = diag(x·col_scale)·V becomes whole numbers of BITS bits, which share a
// step in a slice of columns and a column of V; each of their bits is a column of the right factor. The product counts
// where both bits are set; the counts, times the values of the bits, make Σ Z over the set signs, exactly.
//
// `scale_input` makes Z. `multiply` begins while it runs, and brings signs to shared memory before there is any Z. Its programs
// take units of work, tiles of rows of a segment in a slice of columns; those of one mostly have the same Z. The last one that
// adds to a tile of rows sums what all of them left, in one order, so that the same input gives the same bits.
//
// Here is what all parts share; `hopper_units.cu`, `_scale`, `_ring`, `_finish` and `_multiply` follow. `hopper.py` prepends:
// BITS, RANKS (8 or 16 columns of the factors), TOKENS (1 or 2), BFLOAT (x and y are bfloat16, not float16), STAGES (of the
// ring of signs), Z_BUFFERS, TILE_PARTS, SIGN8, SHARE_FIELDS, the fields of a row of the table, and WGMMA.
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
#define Z_HALF (JOBS * Z_TILE)
#define Z_BYTES (HALVES * Z_HALF)
// After the bits: the step of each column of V, and the sums of the whole numbers of each 128 columns.
#define PARTS (SLICE / 128)
#define Z_TAIL (4 * TOKENS * RANKS * (1 + PARTS))
#define Z_ALL (Z_BYTES + Z_TAIL)
#define Z_SPACE ((Z_ALL + 1023) / 1024 * 1024)
#define SCALERS (128 * RANKS / 4)
#define V_GROUPS (SLICE / 256) // of columns, of which the largest of V is known
#define TOP ((float)((1 << (BITS - 1)) - 1))
#define RING_WARP WARPS
#define Z_WARP (WARPS + 1)
#define COUNT_WARP (WARPS + 2)
#define KNOWN 32               // rows of the table that are kept in shared memory
#define LISTED 64              // tiles of rows that all warps finish together; the rest one warp does

struct Args {
    const u16* x;
    const void* row_scale;
    const void* col_scale;
    const void* bias;
    const i64* table;
    const int* counts;
    const u8* maps;
    const int* shares;
    u8* z;
    float* partial;
    int* arrived;
    u16* y;
    int rows, chain_rows, columns, col_stride, n_chains, capacity, tiles, slices;
    int row_type, col_type, bias_type;
};

__device__ inline int rows_of(const Args& a, int chain) { return min(a.chain_rows, a.rows - chain * a.chain_rows); }
__device__ inline int tiles_of(const Args& a, int chain) { return (rows_of(a, chain) + TILE - 1) / TILE; }
__device__ inline int halves_of(const Args& a, int slice) { return min(HALVES, (a.columns - slice * SLICE + 1023) / 1024); }
