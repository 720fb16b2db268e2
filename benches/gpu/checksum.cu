// What a checksum costs in the gather pass on a GPU: crc64-nvme by table look-up against xxh3-64 by multiply-add.
//
// Units are gathered from random places of a large buffer into a staging buffer, as the store path does, by a few SMs.
// "none" is the gather alone; "xxh3" and "crc64" read each byte once, write it once and leave one 64-bit sum per unit.
// The sums are checked against straight CPU code, so that only right kernels are timed.
//
// nvcc -O3 -std=c++17 -gencode arch=compute_90,code=sm_90 checksum.cu -o checksum && ./checksum
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define CHECK(call)                                                                    \
  do {                                                                                 \
    cudaError_t status = (call);                                                       \
    if (status != cudaSuccess) {                                                       \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, cudaGetErrorString(status));     \
      std::exit(1);                                                                    \
    }                                                                                  \
  } while (0)

using u64 = unsigned long long;
using u32 = unsigned int;

// --- xxh3: the accumulation stage of XXH3-64 (stripes of 64 bytes, blocks of 16 stripes), seedless secret replaced by a fixed table.
constexpr u64 kPrime32 = 0x9E3779B1ull;
__constant__ u64 secret_device[24];
static u64 secret_host[24];

__device__ __forceinline__ u64 mix(u64 data, u64 key) {
  u64 mixed = data ^ key;
  return (mixed & 0xffffffffull) * (mixed >> 32);
}

// One warp owns one unit. Each lane reads 16 bytes: 4 lanes make a stripe, a warp reads 8 stripes at once, two reads make a block.
__global__ void gather_xxh3(const uint4* __restrict__ source, uint4* __restrict__ target, const int* __restrict__ index,
                            int units, int unit_words, u64* __restrict__ sums) {
  int lane = threadIdx.x & 31, quarter = lane & 3, stripe = lane >> 2;
  int warps = gridDim.x * (blockDim.x >> 5);
  for (int unit = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); unit < units; unit += warps) {
    const uint4* from = source + (size_t)index[unit] * unit_words;
    uint4* to = target + (size_t)unit * unit_words;
    u64 even = 0x9E3779B185EBCA87ull + quarter, odd = 0xC2B2AE3D27D4EB4Full + quarter;
    for (int word = 0; word < unit_words; word += 64) {
      u64 sum_even = 0, sum_odd = 0;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint4 v = from[word + half * 32 + lane];
        to[word + half * 32 + lane] = v;
        u64 a = ((u64)v.y << 32) | v.x, b = ((u64)v.w << 32) | v.z;
        int key = half * 8 + stripe + quarter * 2;
        sum_even += mix(a, secret_device[key]) + b;
        sum_odd += mix(b, secret_device[key + 1]) + a;
      }
#pragma unroll
      for (int step = 4; step < 32; step <<= 1) {
        sum_even += __shfl_xor_sync(~0u, sum_even, step);
        sum_odd += __shfl_xor_sync(~0u, sum_odd, step);
      }
      even += sum_even;
      odd += sum_odd;
      even = (even ^ (even >> 47) ^ secret_device[quarter * 2]) * kPrime32;
      odd = (odd ^ (odd >> 47) ^ secret_device[quarter * 2 + 1]) * kPrime32;
    }
    u64 folded = mix(even, odd) + even + odd;
    folded += __shfl_xor_sync(~0u, folded, 1);
    folded += __shfl_xor_sync(~0u, folded, 2);
    if (lane == 0) sums[unit] = folded;
  }
}

static u64 mix_host(u64 data, u64 key) {
  u64 mixed = data ^ key;
  return (mixed & 0xffffffffull) * (mixed >> 32);
}

static u64 xxh3_host(const unsigned char* unit, size_t bytes) {
  u64 lanes[8];
  for (int q = 0; q < 4; q++) lanes[2 * q] = 0x9E3779B185EBCA87ull + q, lanes[2 * q + 1] = 0xC2B2AE3D27D4EB4Full + q;
  for (size_t at = 0; at < bytes; at += 1024) {
    for (int stripe = 0; stripe < 16; stripe++)
      for (int q = 0; q < 4; q++) {
        u64 a, b;
        std::memcpy(&a, unit + at + stripe * 64 + q * 16, 8);
        std::memcpy(&b, unit + at + stripe * 64 + q * 16 + 8, 8);
        lanes[2 * q] += mix_host(a, secret_host[stripe + 2 * q]) + b;
        lanes[2 * q + 1] += mix_host(b, secret_host[stripe + 2 * q + 1]) + a;
      }
    for (int i = 0; i < 8; i++) lanes[i] = (lanes[i] ^ (lanes[i] >> 47) ^ secret_host[i]) * kPrime32;
  }
  u64 folded = 0;
  for (int q = 0; q < 4; q++) folded += mix_host(lanes[2 * q], lanes[2 * q + 1]) + lanes[2 * q] + lanes[2 * q + 1];
  return folded;
}

// --- crc64-nvme: each lane runs slicing-by-8 over its share of the unit, then shares are joined by shifting tables.
constexpr u64 kPolynomial = 0x9A6C9329AC4BC9B5ull;  // reflected
static u64 slices_host[8][256];
static std::vector<u64> shifts_host;  // [level][byte position][byte]: advance a CRC over 2^level shares of zeros

__global__ void gather_crc64(const uint4* __restrict__ source, uint4* __restrict__ target, const int* __restrict__ index,
                             int units, int unit_words, u64* __restrict__ sums, const u64* __restrict__ slices,
                             const u64* __restrict__ shifts) {
  extern __shared__ u64 tables[];
  for (int i = threadIdx.x; i < 8 * 256; i += blockDim.x) tables[i] = slices[i];
  __syncthreads();
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int warps = gridDim.x * (blockDim.x >> 5);
  int share = unit_words / 32;  // 16-byte words of each lane
  for (int unit = blockIdx.x * (blockDim.x >> 5) + warp; unit < units; unit += warps) {
    const uint4* from = source + (size_t)index[unit] * unit_words;
    uint4* to = target + (size_t)unit * unit_words;
    u64 crc = lane == 0 ? ~0ull : 0;
    for (int step = 0; step < share; step++) {
      // Coalescing through shared memory was slower than letting the L1 serve these strided reads.
      uint4 v = from[lane * share + step];
      to[lane * share + step] = v;
      u64 halves[2] = {((u64)v.y << 32) | v.x, ((u64)v.w << 32) | v.z};
#pragma unroll
      for (int h = 0; h < 2; h++) {
        u64 x = crc ^ halves[h];
        crc = 0;
#pragma unroll
        for (int b = 0; b < 8; b++) crc ^= tables[(7 - b) * 256 + ((x >> (8 * b)) & 255)];
      }
    }
#pragma unroll
    for (int level = 0; level < 5; level++) {
      u64 right = __shfl_down_sync(~0u, crc, 1 << level);
      u64 moved = 0;
      for (int b = 0; b < 8; b++) moved ^= shifts[(level * 8 + b) * 256 + ((crc >> (8 * b)) & 255)];
      crc = moved ^ right;
    }
    if (lane == 0) sums[unit] = ~crc;
  }
}

static u64 crc_bytes(u64 crc, const unsigned char* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) crc = slices_host[0][(crc ^ data[i]) & 255] ^ (crc >> 8);
  return crc;
}

static void crc_tables(int share_bytes) {
  for (int n = 0; n < 256; n++) {
    u64 c = n;
    for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ kPolynomial : c >> 1;
    slices_host[0][n] = c;
  }
  for (int n = 0; n < 256; n++)
    for (int k = 1; k < 8; k++) slices_host[k][n] = slices_host[0][slices_host[k - 1][n] & 255] ^ (slices_host[k - 1][n] >> 8);
  shifts_host.assign(5 * 8 * 256, 0);
  std::vector<unsigned char> zeros;
  for (int level = 0; level < 5; level++) {
    zeros.assign((size_t)share_bytes << level, 0);
    u64 basis[64];
    for (int bit = 0; bit < 64; bit++) basis[bit] = crc_bytes(1ull << bit, zeros.data(), zeros.size());
    for (int b = 0; b < 8; b++)
      for (int n = 0; n < 256; n++) {
        u64 sum = 0;
        for (int k = 0; k < 8; k++)
          if (n >> k & 1) sum ^= basis[8 * b + k];
        shifts_host[(level * 8 + b) * 256 + n] = sum;
      }
  }
}

__global__ void gather(const uint4* __restrict__ source, uint4* __restrict__ target, const int* __restrict__ index, int units,
                       int unit_words) {
  int lane = threadIdx.x & 31;
  int warps = gridDim.x * (blockDim.x >> 5);
  for (int unit = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); unit < units; unit += warps) {
    const uint4* from = source + (size_t)index[unit] * unit_words;
    uint4* to = target + (size_t)unit * unit_words;
    for (int word = 0; word < unit_words; word += 128) {
      uint4 v[4];
#pragma unroll
      for (int k = 0; k < 4; k++) v[k] = from[word + k * 32 + lane];
#pragma unroll
      for (int k = 0; k < 4; k++) to[word + k * 32 + lane] = v[k];
    }
  }
}

int main() {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  std::mt19937_64 random(1);
  for (auto& word : secret_host) word = random();
  CHECK(cudaMemcpyToSymbol(secret_device, secret_host, sizeof secret_host));

  const size_t pool = 4ull << 30, staged = 256ull << 20;
  std::vector<unsigned char> sample(64 << 20);
  for (size_t i = 0; i < sample.size(); i += 8) {
    u64 word = random();
    std::memcpy(&sample[i], &word, 8);
  }
  unsigned char *source, *target;
  CHECK(cudaMalloc(&source, pool));
  CHECK(cudaMalloc(&target, staged));
  for (size_t at = 0; at < pool; at += sample.size()) CHECK(cudaMemcpy(source + at, sample.data(), sample.size(), cudaMemcpyHostToDevice));

  std::printf("{\"device\": \"%s\", \"unit\": \"GB/s of payload, median of 9\", \"rows\": [\n", properties.name);
  bool first = true;
  for (int unit_bytes : {4096, 16384, 65536}) {
    int units = staged / unit_bytes, unit_words = unit_bytes / 16;
    std::vector<int> places(pool / unit_bytes);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), random);
    int* index;
    u64 *sums, *slices, *shifts;
    CHECK(cudaMalloc(&index, units * sizeof(int)));
    CHECK(cudaMemcpy(index, places.data(), units * sizeof(int), cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&sums, units * sizeof(u64)));
    crc_tables(unit_bytes / 32);
    CHECK(cudaMalloc(&slices, sizeof slices_host));
    CHECK(cudaMemcpy(slices, slices_host, sizeof slices_host, cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&shifts, shifts_host.size() * 8));
    CHECK(cudaMemcpy(shifts, shifts_host.data(), shifts_host.size() * 8, cudaMemcpyHostToDevice));
    for (int sms : {4, 8, 16, 132}) {
      double rates[3];
      for (int kind = 0; kind < 3; kind++) {
        int threads = 1024;
        auto launch = [&] {
          const uint4* from = reinterpret_cast<const uint4*>(source);
          uint4* to = reinterpret_cast<uint4*>(target);
          if (kind == 0) gather<<<sms, threads>>>(from, to, index, units, unit_words);
          if (kind == 1) gather_xxh3<<<sms, threads>>>(from, to, index, units, unit_words, sums);
          if (kind == 2) gather_crc64<<<sms, threads, sizeof slices_host>>>(from, to, index, units, unit_words, sums, slices, shifts);
          CHECK(cudaGetLastError());
          CHECK(cudaDeviceSynchronize());
        };
        launch();
        if (kind > 0) {
          std::vector<u64> got(units);
          CHECK(cudaMemcpy(got.data(), sums, units * sizeof(u64), cudaMemcpyDeviceToHost));
          for (int unit : {0, 1, units / 2, units - 1}) {
            const unsigned char* bytes = &sample[((size_t)places[unit] * unit_bytes) % sample.size()];
            u64 want = kind == 1 ? xxh3_host(bytes, unit_bytes) : ~crc_bytes(~0ull, bytes, unit_bytes);
            if (got[unit] != want) {
              std::fprintf(stderr, "kernel %d unit %d: %llx, expected %llx\n", kind, unit, got[unit], want);
              return 1;
            }
          }
        }
        std::vector<double> times;
        for (int round = 0; round < 9; round++) {
          auto start = std::chrono::steady_clock::now();
          launch();
          times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        std::sort(times.begin(), times.end());
        rates[kind] = staged / times[4] / 1e9;
      }
      std::printf("%s  {\"unit_bytes\": %d, \"sms\": %d, \"gather\": %.1f, \"xxh3\": %.1f, \"crc64_nvme\": %.1f}", first ? "" : ",\n", unit_bytes,
                  sms, rates[0], rates[1], rates[2]);
      first = false;
    }
    CHECK(cudaFree(index));
    CHECK(cudaFree(sums));
    CHECK(cudaFree(slices));
    CHECK(cudaFree(shifts));
  }
  std::printf("\n]}\n");
  return 0;
}
