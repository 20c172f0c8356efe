// mma.sync m16n8k16, ldmatrix and movmatrix, with the PTX manual's fragment layouts. Lane = 4 * g + t.
#pragma once

namespace emu {
// d += a * b in fp32; a row-major 16x16, b column-major 16x8, both bf16 or fp16.
template <bool BF16> void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b) {
  struct Lane {
    float* d;
    const uint32_t *a, *b;
  } lane{d, a, b};
  auto multiply = [](Lane** lanes) {
    float A[16][16], B[16][8], D[16][8];
    auto number = [](uint32_t pair, int half) { return BF16 ? from_bf16(uint16_t(pair >> 16 * half)) : from_fp16(uint16_t(pair >> 16 * half)); };
    for (int l = 0; l < 32; l++) {
      int g = l / 4, t = l % 4;
      for (int h = 0; h < 2; h++) {
        for (int r = 0; r < 4; r++) A[g + 8 * (r & 1)][2 * t + h + 8 * (r >> 1)] = number(lanes[l]->a[r], h);
        for (int r = 0; r < 2; r++) B[2 * t + h + 8 * r][g] = number(lanes[l]->b[r], h);
      }
      for (int r = 0; r < 4; r++) D[g + 8 * (r >> 1)][2 * t + (r & 1)] = lanes[l]->d[r];
    }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) D[i][j] += A[i][k] * B[k][j];
    for (int l = 0; l < 32; l++)
      for (int r = 0; r < 4; r++) lanes[l]->d[r] = D[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)];
  };
  collective(~0u, lane, multiply, BF16 ? "mma.m16n8k16.bf16" : "mma.m16n8k16.f16");
}
// Lane 8 * m + r gives the address of row r of matrix m; each lane gets two neighbours of row g of each matrix (or of its transpose).
template <int N, bool TRANSPOSED> void ldmatrix(uint32_t* out, const void* row) {
  struct Lane {
    uint32_t* out;
    const uint16_t* row;
  } lane{out, static_cast<const uint16_t*>(row)};
  if (self->lane < 8 * N) reads(row, 16);
  auto load = [](Lane** lanes) {
    for (int i = 0; i < 8 * N; i++)
      if (uintptr_t(lanes[i]->row) & 15) fail("ldmatrix: row address not 16-byte aligned");
    for (int l = 0; l < 32; l++)
      for (int m = 0; m < N; m++) {
        int g = l / 4, t = 2 * (l % 4);
        uint32_t low = TRANSPOSED ? lanes[8 * m + t]->row[g] : lanes[8 * m + g]->row[t];
        uint32_t high = TRANSPOSED ? lanes[8 * m + t + 1]->row[g] : lanes[8 * m + g]->row[t + 1];
        lanes[l]->out[m] = high << 16 | low;
      }
  };
  collective(~0u, lane, load, "ldmatrix");
}
// An 8x8 matrix of 16-bit numbers in registers (lane: two neighbours of row g), transposed.
inline uint32_t movmatrix_trans(uint32_t value) {
  struct Lane {
    uint32_t value, result;
  } lane{value, 0};
  auto transpose = [](Lane** lanes) {
    auto number = [&](int row, int column) { return lanes[4 * row + column / 2]->value >> 16 * (column & 1) & 0xffff; };
    for (int l = 0; l < 32; l++) lanes[l]->result = number(2 * (l % 4), l / 4) | number(2 * (l % 4) + 1, l / 4) << 16;
  };
  collective(~0u, lane, transpose, "movmatrix.trans");
  return lane.result;
}
}  // namespace emu
