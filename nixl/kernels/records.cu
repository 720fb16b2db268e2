// Gather and scatter of records on a GPU, with the checksum of every unit taken on the way.
//
// Every source byte is loaded exactly once, and the very register that is stored is the one that is hashed: whatever the engine
// or another process does to the source meanwhile, the sums are those of the bytes that were stored.
//
// build.sh makes records.ptx of this file. The tables below are mirrored in nixl/src/sys/cuda/job.rs; the checksum is that of
// nixl/src/sys/lanes.rs (and of the library beside it for short units), its seed that of nixl/src/sys/checksum.rs.

using u32 = unsigned int;
using u64 = unsigned long long;

// --- What the host hands over: little-endian, naturally aligned.

// One stretch of every record, e.g. one layer: fragments of equal length along three axes, the last axis runs fastest.
struct KvdPiece {
  u64 base;            // device address of block 0 of the piece
  u64 block_stride;    // bytes from one block to the next
  u64 strides[3];      // bytes between fragments on the slow, the middle and the fast axis
  u32 counts[3];       // fragments on these axes
  u32 fragment_bytes;  // a multiple of 16, and so are all addresses and strides
  u32 flat_offset;     // where the piece begins in the flat payload: a multiple of the unit
  u32 bytes;           // of the piece in a record: a multiple of the unit, but perhaps in the last piece
  u32 first_unit;      // flat_offset / unit_bytes
  u32 record_unit;     // that unit's number in the record, where the payload is only a part of one
  u32 in_record;       // where the piece begins in the record itself
  u32 reserved;
};

struct KvdRecord {
  u64 flat;   // address of the flat payload, a multiple of 16: the record, or the part of it that moves by itself
  u64 index;  // number of the block
  u64 seed;   // of the record
};

// Units, and the shorter one at the end too, are multiples of 16 up to 240 bytes or multiples of 64 above. A payload is smaller
// than 2 GiB. Pieces stand in the order of first_unit and cover the payload.
struct KvdJob {
  u64 pieces;   // address of KvdPiece[piece_count]
  u64 records;  // address of KvdRecord[record_count]
  u64 sums;     // address of u64[record_count * units]: unit u of record r has r * units + u
  u32 piece_count, record_count;
  u32 units, unit_bytes;  // units of a payload, and bytes of each but perhaps the last
  u32 payload_bytes;      // what moves of a record
  u32 flat_is_record;     // 1: flat is all of a record, of which the pieces are a part
};

static_assert(sizeof(KvdPiece) == 80 && sizeof(KvdRecord) == 24 && sizeof(KvdJob) == 48, "mirrored in job.rs");
#ifndef __CUDACC_RTC__  // The compiler that build.sh uses knows no offsetof; there the sizes above leave no room for padding.
static_assert(__builtin_offsetof(KvdPiece, strides) == 16 && __builtin_offsetof(KvdPiece, counts) == 40, "job.rs");
static_assert(__builtin_offsetof(KvdPiece, fragment_bytes) == 52 && __builtin_offsetof(KvdPiece, bytes) == 60, "job.rs");
static_assert(__builtin_offsetof(KvdPiece, first_unit) == 64 && __builtin_offsetof(KvdPiece, in_record) == 72, "job.rs");
static_assert(__builtin_offsetof(KvdRecord, seed) == 16, "job.rs");
static_assert(__builtin_offsetof(KvdJob, piece_count) == 24 && __builtin_offsetof(KvdJob, units) == 32, "job.rs");
static_assert(__builtin_offsetof(KvdJob, payload_bytes) == 40, "job.rs");
#endif

// --- XXH3-64.

constexpr u64 kPrime32A = 0x9e3779b1, kPrime32B = 0x85ebca77, kPrime32C = 0xc2b2ae3d;
constexpr u64 kPrime64A = 0x9e3779b185ebca87, kPrime64B = 0xc2b2ae3d27d4eb4f, kPrime64C = 0x165667b19e3779f9;
constexpr u64 kPrime64D = 0x85ebca77c2b2ae63, kPrime64E = 0x27d4eb2f165667c5;
constexpr u64 kPrimeMx1 = 0x165667919e3779f9;

// The default secret as little-endian words.
constexpr u32 kSecretWords = 24;
__constant__ u64 kSecret[kSecretWords] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82,
    0x8e2443f7744608b8, 0x4c263a81e69035e0, 0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8, 0xc3ebd33483acc5ea, 0xeb6313faffa081c5,
    0x49daf0b751dd0d17, 0x9e68d429265516d3, 0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};

constexpr u32 kShortBytes = 240;  // longest of the short forms
constexpr u32 kStripeBytes = 64;
constexpr u32 kBlockBytes = 1024;   // between two scrambles
constexpr u32 kScrambleAt = 16;     // a word of the secret; what follows are bytes of it
constexpr u32 kLastStripeAt = 121;
constexpr u32 kMergeAt = 11;
constexpr u32 kMiddleAt = 3;        // from the ninth word of a unit of 129 to 240 bytes on
constexpr u32 kMiddleLastAt = 119;

__device__ __forceinline__ u64 half_product(u64 value) { return (value & 0xffffffff) * (value >> 32); }

__device__ __forceinline__ u64 folded_product(u64 a, u64 b) { return (a * b) ^ __umul64hi(a, b); }

__device__ __forceinline__ u64 avalanche(u64 value) {
  value = (value ^ (value >> 37)) * kPrimeMx1;
  return value ^ (value >> 32);
}

__device__ __forceinline__ u64 swapped(u64 value) {
  return ((u64)__byte_perm((u32)value, 0, 0x0123) << 32) | __byte_perm((u32)(value >> 32), 0, 0x0123);
}

__device__ __forceinline__ u64 low_of(uint4 value) { return ((u64)value.y << 32) | value.x; }
__device__ __forceinline__ u64 high_of(uint4 value) { return ((u64)value.w << 32) | value.z; }

// A word of the secret at any byte but a multiple of 8.
__device__ __forceinline__ u64 secret_at(const u64* secret, u32 byte) {
  const u32 word = byte / 8, bits = byte % 8 * 8;
  return (secret[word] >> bits) | (secret[word + 1] << (64 - bits));
}

// A word of the seeded secret: even words gain the seed, odd words lose it.
__device__ __forceinline__ u64 seeded(const u64* secret, u32 word, u64 seed) {
  return secret[word] + (word & 1 ? 0 - seed : seed);
}

__device__ __forceinline__ u64 seeded_at(const u64* secret, u32 byte, u64 seed) {
  const u32 word = byte / 8, bits = byte % 8 * 8;
  return (seeded(secret, word, seed) >> bits) | (seeded(secret, word + 1, seed) << (64 - bits));
}

// As unit_seed in checksum.rs.
__device__ __forceinline__ u64 unit_seed(u64 seed, u32 unit) {
  u64 mixed = seed + ((u64)unit + 1) * 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return mixed ^ (mixed >> 31);
}

// --- Memory. Bytes pass once, so they are marked to leave the caches first: the engine's data shall stay there. The loads are
// volatile so that no compiler repeats one, and not of the read-only kind, because others may write there. They are predicated
// here because a branch around each would cost more than it saves. (A host compiler that runs this file brings its own two.)

#ifdef __CUDACC__
__device__ __forceinline__ void load(bool wanted, u64 from, uint4& value) {
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %5, 0; @wanted ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "+r"(value.x), "+r"(value.y), "+r"(value.z), "+r"(value.w)
      : "l"(from), "r"((u32)wanted));
}

__device__ __forceinline__ void store(bool wanted, u64 to, uint4 value) {
  asm volatile(
      "{ .reg .pred wanted; setp.ne.u32 wanted, %5, 0; @wanted st.global.cs.v4.u32 [%4], {%0, %1, %2, %3}; }" ::"r"(value.x),
      "r"(value.y), "r"(value.z), "r"(value.w), "l"(to), "r"((u32)wanted)
      : "memory");
}
#endif

// --- Where the bytes of a piece lie.

// Exact division by multiplication: the estimate is never too large and at most one too small.
struct Divisor {
  struct Result {
    u32 quotient, rest;
  };

  u32 divisor, factor;

  __device__ __forceinline__ explicit Divisor(u32 divisor) : divisor(divisor), factor(0xffffffff / divisor) {}

  __device__ __forceinline__ Result divide(u32 number) const {
    const u32 quotient = __umulhi(number, factor), rest = number - quotient * divisor;
    return rest < divisor ? Result{quotient, rest} : Result{quotient + 1, rest - divisor};
  }
};

// The fragments of a piece in one block.
struct Fragments {
  u64 base, slow_stride, middle_stride, fast_stride;
  Divisor bytes, fast, middle;

  __device__ __forceinline__ Fragments(const KvdPiece& piece, u64 base)
      : base(base), slow_stride(piece.strides[0]), middle_stride(piece.strides[1]), fast_stride(piece.strides[2]),
        bytes(piece.fragment_bytes), fast(piece.counts[2]), middle(piece.counts[1]) {}

  // The address of a byte of the piece.
  __device__ __forceinline__ u64 at(u32 offset) const {
    const Divisor::Result fragment = bytes.divide(offset), row = fast.divide(fragment.quotient);
    const Divisor::Result plane = middle.divide(row.quotient);
    return base + plane.quotient * slow_stride + plane.rest * middle_stride + row.rest * fast_stride + fragment.rest;
  }
};

// --- Units of more than 240 bytes: a warp each.
//
// A warp takes a batch of four blocks at a time, eight lanes a block: each lane takes 16 bytes of every other stripe, so that the
// eight touch 128 bytes at once (below: a row) and most of a block's sum is made inside a lane, where a warp across one block
// would spend a third of its instructions on shuffles. Of the sums for an even and an odd accumulator that a lane has in the end,
// it gives one to its neighbour stripe and keeps the other, and with it one of the eight accumulators.

constexpr u32 kAll = 0xffffffff;
constexpr u32 kRows = 8;  // of a block
constexpr u32 kRowBytes = 128;
constexpr u32 kBatchBlocks = 4;
constexpr u32 kBatchBytes = kBatchBlocks * kBlockBytes;
static_assert(kRows * kRowBytes == kBlockBytes && kRows * kBatchBlocks == 32, "a lane for each row of a batch");

// Ways to find the bytes of a unit. The whole warp calls `turn` for a batch, then `at` for this lane's 16 bytes of a row.

// The unit lies in one stretch.
struct Straight {
  u64 own, now;

  __device__ __forceinline__ Straight(u64 unit, u32 lane_offset) : own(unit + lane_offset), now(own) {}
  __device__ __forceinline__ void turn(u32 batch) { now = own + batch; }
  __device__ __forceinline__ u64 at(u32 row) const { return now + row * kRowBytes; }
};

// No row crosses from one fragment to the next: each lane finds the address of one row of the batch for all.
struct Rows {
  Fragments fragments;
  u32 unit, lane;
  u64 own_row = 0;

  __device__ __forceinline__ Rows(const Fragments& fragments, u32 unit, u32 lane)
      : fragments(fragments), unit(unit), lane(lane) {}
  __device__ __forceinline__ void turn(u32 batch) { own_row = fragments.at(unit + batch + lane * kRowBytes); }
  __device__ __forceinline__ u64 at(u32 row) const {
    return __shfl_sync(kAll, own_row, lane / 8 * kRows + row) + lane % 8 * 16;
  }
};

// Any fragments.
struct Words {
  Fragments fragments;
  u32 own, now;

  __device__ __forceinline__ Words(const Fragments& fragments, u32 unit, u32 lane_offset)
      : fragments(fragments), own(unit + lane_offset), now(own) {}
  __device__ __forceinline__ void turn(u32 batch) { now = own + batch; }
  __device__ __forceinline__ u64 at(u32 row) const { return fragments.at(now + row * kRowBytes); }
};

// Bytes from the start of a batch to those of a lane in row 0.
__device__ __forceinline__ u32 lane_offset(u32 lane) { return lane / 8 * kBlockBytes + lane % 8 * 16; }

// Adds 16 bytes to the sums for a pair of accumulators.
__device__ __forceinline__ void take(uint4 value, u64 even_key, u64 odd_key, u64& even, u64& odd) {
  even += half_product(low_of(value) ^ even_key) + high_of(value);
  odd += half_product(high_of(value) ^ odd_key) + low_of(value);
}

// What both stripes of a row have for this lane's accumulator.
__device__ __forceinline__ u64 own_sum(u64 even, u64 odd, u32 odd_stripe) {
  return (odd_stripe ? odd : even) + __shfl_xor_sync(kAll, odd_stripe ? even : odd, 4);
}

// What a block of the batch adds to this lane's accumulator.
__device__ __forceinline__ u64 sum_of_block(u64 sum, u32 block, u32 lane) { return __shfl_sync(kAll, sum, block * 8 + lane % 8); }

__device__ __forceinline__ u64 scrambled(u64 accumulator, u64 key) {
  return (accumulator ^ (accumulator >> 47) ^ key) * kPrime32A;
}

// Copies a unit; all lanes return its checksum.
template <class From, class To>
__device__ __forceinline__ u64 long_unit(const u64* secret, u64 seed, u32 bytes, From from, To to, u32 lane) {
  const u32 quarter = lane % 4, odd_stripe = lane / 4 % 2, own = lane_offset(lane);

  // The keys of this lane's halves of a stripe; those of the next row are two words further on.
  u64 keys[2 * kRows];
  const u64 even_seed = odd_stripe ? 0 - seed : seed;
#pragma unroll
  for (u32 row = 0; row < kRows; row++) {
    keys[2 * row] = secret[2 * quarter + odd_stripe + 2 * row] + even_seed;
    keys[2 * row + 1] = secret[2 * quarter + odd_stripe + 2 * row + 1] - even_seed;
  }
  const u64 scramble_key = secret[kScrambleAt + 2 * quarter + odd_stripe] + even_seed;
  const u64 even_start = quarter == 0 ? kPrime32C : quarter == 1 ? kPrime64B : quarter == 2 ? kPrime64D : kPrime64E;
  const u64 odd_start = quarter == 0 ? kPrime64A : quarter == 1 ? kPrime64C : quarter == 2 ? kPrime32B : kPrime32A;
  u64 accumulator = odd_stripe ? odd_start : even_start;

  // Each register is filled for the next batch as soon as it is free, so that loads are always under way.
  uint4 values[kRows] = {};
  from.turn(0);
#pragma unroll
  for (u32 row = 0; row < kRows; row++) load(own + row * kRowBytes < bytes, from.at(row), values[row]);

  u32 batch = 0;
#pragma unroll 1
  for (; batch + kBatchBytes < bytes; batch += kBatchBytes) {
    from.turn(batch + kBatchBytes);
    to.turn(batch);
    u64 even = 0, odd = 0;
#pragma unroll
    for (u32 row = 0; row < kRows; row++) {
      const uint4 value = values[row];
      load(batch + kBatchBytes + own + row * kRowBytes < bytes, from.at(row), values[row]);
      store(true, to.at(row), value);
      take(value, keys[2 * row], keys[2 * row + 1], even, odd);
    }
    const u64 sum = own_sum(even, odd, odd_stripe);
#pragma unroll
    for (u32 block = 0; block < kBatchBlocks; block++) {
      accumulator = scrambled(accumulator + sum_of_block(sum, block, lane), scramble_key);
    }
  }

  // The last batch: the last stripe has keys of its own, and only whole blocks before it are scrambled.
  const u32 last_stripe = bytes - kStripeBytes;
  const u64 last_even = seeded_at(secret, kLastStripeAt + 16 * quarter, seed);
  const u64 last_odd = seeded_at(secret, kLastStripeAt + 16 * quarter + 8, seed);
  to.turn(batch);
  u64 even = 0, odd = 0;
#pragma unroll
  for (u32 row = 0; row < kRows; row++) {
    const u32 offset = batch + own + row * kRowBytes;
    const bool last = offset >= last_stripe;
    store(offset < bytes, to.at(row), values[row]);
    if (offset < bytes) take(values[row], last ? last_even : keys[2 * row], last ? last_odd : keys[2 * row + 1], even, odd);
  }
  const u64 sum = own_sum(even, odd, odd_stripe);
#pragma unroll
  for (u32 block = 0; block < kBatchBlocks; block++) {
    accumulator += sum_of_block(sum, block, lane);
    if (batch / kBlockBytes + block < last_stripe / kBlockBytes) accumulator = scrambled(accumulator, scramble_key);
  }

  const u64 partner = __shfl_xor_sync(kAll, accumulator, 4);
  const u64 low = (odd_stripe ? partner : accumulator) ^ seeded_at(secret, kMergeAt + 16 * quarter, seed);
  const u64 high = (odd_stripe ? accumulator : partner) ^ seeded_at(secret, kMergeAt + 16 * quarter + 8, seed);
  u64 merged = folded_product(low, high);
  merged += __shfl_xor_sync(kAll, merged, 1);
  merged += __shfl_xor_sync(kAll, merged, 2);
  return avalanche(merged + bytes * kPrime64A);
}

// Between a place in scattered memory and a flat one.
template <bool kGather, class Place>
__device__ __forceinline__ u64 long_unit_of(const u64* secret, u64 seed, u32 bytes, const Place& place, u64 flat, u32 lane) {
  const Straight straight(flat, lane_offset(lane));
  if constexpr (kGather) {
    return long_unit(secret, seed, bytes, place, straight, lane);
  } else {
    return long_unit(secret, seed, bytes, straight, place, lane);
  }
}

// --- Units of up to 240 bytes: a lane each. Engines with such units are rare, so this is kept simple.

__device__ __forceinline__ u64 mix(uint4 value, u64 low_key, u64 high_key, u64 seed) {
  return folded_product(low_of(value) ^ (low_key + seed), high_of(value) ^ (high_key - seed));
}

template <bool kGather>
__device__ __forceinline__ u64 short_unit(const u64* secret, u64 seed, u32 bytes, Fragments fragments, u32 first, u64 flat) {
  const u32 words = bytes / 16;
  u64 sum = words == 1 ? bytes : bytes * kPrime64A, tail = 0;
  for (u32 word = 0; word < words; word++) {
    const u64 place = fragments.at(first + word * 16);
    uint4 value;
    load(true, kGather ? place : flat + word * 16, value);
    store(true, kGather ? flat + word * 16 : place, value);
    if (words == 1) {
      const u64 low = low_of(value) ^ ((secret[3] ^ secret[4]) + seed);
      const u64 high = high_of(value) ^ ((secret[5] ^ secret[6]) - seed);
      sum += swapped(low) + high + folded_product(low, high);
    } else if (words <= 8) {
      // Pairs from both ends inward; a word in the middle counts from both.
      const u32 back = words - 1 - word, pairs = (words + 1) / 2;
      if (word < pairs) sum += mix(value, secret[4 * word], secret[4 * word + 1], seed);
      if (back < pairs) sum += mix(value, secret[4 * back + 2], secret[4 * back + 3], seed);
    } else {
      const u32 at = kMiddleAt + (word - 8) * 16;
      if (word < 8) sum += mix(value, secret[2 * word], secret[2 * word + 1], seed);
      if (word >= 8) tail += mix(value, secret_at(secret, at), secret_at(secret, at + 8), seed);
      if (word == words - 1) tail += mix(value, secret_at(secret, kMiddleLastAt), secret_at(secret, kMiddleLastAt + 8), seed);
    }
  }
  return avalanche(words > 8 ? avalanche(sum) + tail : sum);
}

// --- The kernels.

// The last piece that begins at the unit or before.
__device__ __forceinline__ KvdPiece piece_of(const KvdPiece* pieces, u32 count, u32 unit) {
  u32 low = 0;
  for (u32 high = count; high - low > 1;) {
    const u32 middle = (low + high) / 2;
    if (pieces[middle].first_unit <= unit) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return pieces[low];
}

template <bool kGather>
__device__ __forceinline__ void move_records(const KvdJob& job) {
  __shared__ u64 secret[kSecretWords];
  if (threadIdx.x < kSecretWords) secret[threadIdx.x] = kSecret[threadIdx.x];
  __syncthreads();

  // A worker is a warp, or a lane where all units are short. Neighbours take neighbouring units.
  const u32 width = job.unit_bytes > kShortBytes ? 32 : 1, lane = threadIdx.x % 32;
  const u32 worker = (blockIdx.x * blockDim.x + threadIdx.x) / width, workers = gridDim.x * blockDim.x / width;
  u32 number = worker / job.units, unit = worker % job.units;
  while (number < job.record_count) {
    const KvdRecord record = reinterpret_cast<const KvdRecord*>(job.records)[number];
    const KvdPiece piece = piece_of(reinterpret_cast<const KvdPiece*>(job.pieces), job.piece_count, unit);
    u64* const sum = reinterpret_cast<u64*>(job.sums) + (u64)number * job.units + unit;

    const u32 start = unit * job.unit_bytes, first = start - piece.flat_offset;
    const u32 bytes = min(job.unit_bytes, job.payload_bytes - start);
    const u64 base = piece.base + record.index * piece.block_stride;
    const u64 flat = record.flat + (job.flat_is_record ? piece.in_record + first : start);
    const u64 seed = unit_seed(record.seed, piece.record_unit + unit - piece.first_unit);
    if (bytes <= kShortBytes) {
      if (lane == 0 || width == 1) *sum = short_unit<kGather>(secret, seed, bytes, Fragments(piece, base), first, flat);
    } else {
      u64 result;
      const u32 fragment = piece.fragment_bytes;
      const bool whole = fragment == piece.bytes;
      if (whole || first % fragment + bytes <= fragment) {
        const u64 address = whole ? base + first : Fragments(piece, base).at(first);
        const Straight place(address, lane_offset(lane));
        result = long_unit_of<kGather>(secret, seed, bytes, place, flat, lane);
      } else if (first % kRowBytes == 0 && fragment % kRowBytes == 0) {
        const Rows place(Fragments(piece, base), first, lane);
        result = long_unit_of<kGather>(secret, seed, bytes, place, flat, lane);
      } else {
        const Words place(Fragments(piece, base), first, lane_offset(lane));
        result = long_unit_of<kGather>(secret, seed, bytes, place, flat, lane);
      }
      if (lane == 0) *sum = result;
    }

    unit += workers;
    number += unit / job.units;
    unit %= job.units;
  }
}

// Any grid, 512 threads a block. Gather stores the fragments of each record's block in its flat payload; scatter the other way.
extern "C" __global__ void __launch_bounds__(512) kvd_gather(KvdJob job) { move_records<true>(job); }

extern "C" __global__ void __launch_bounds__(512) kvd_scatter(KvdJob job) { move_records<false>(job); }
