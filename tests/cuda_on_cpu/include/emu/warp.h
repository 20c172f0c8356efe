// Warp collectives. The last lane of the mask to arrive does the work for all; only __syncwarp orders memory between lanes,
// the others exchange registers.
#pragma once

namespace emu {
// `work` gets the lanes' payloads, null for lanes outside the mask. A lambda's type is its own, so `kind` differs between call sites'
// functions, and lanes of one mask that meet at different collectives are found out.
template <bool ORDERS_MEMORY = false, class Payload, class Work>
__attribute__((noinline)) void collective(unsigned mask, Payload& payload, Work work, const char* what) {
  Unseen bookkeeping;
  static const char kind = 0;
  auto& open = block.warps[self->warp];
  unsigned width = std::min(32u, block.size - self->warp * 32);
  if (width < 32) mask &= (1u << width) - 1;
  if (!(mask >> self->lane & 1)) fail("%s: lane %u calls it but is not in its mask %08x", what, self->lane, mask);
  Collective* mine = nullptr;
  for (auto& other : open)
    if (other.here && other.mask == mask) mine = &other;
  if (!mine) {
    for (auto& other : open) {
      if (other.here && (other.mask & mask)) fail("%s: mask %08x overlaps a collective in progress with mask %08x", what, mask, other.mask);
      if (!other.here) mine = &other;
    }
    if (!mine) mine = &open.emplace_back();
    mine->mask = mask;
    mine->kind = &kind;
    for (auto& p : mine->payload) p = nullptr;
  }
  if (mine->kind != &kind) fail("%s: another lane of mask %08x is at a different collective", what, mask);
  mine->payload[self->lane] = &payload;
  mine->here |= 1u << self->lane;
  if (ORDERS_MEMORY) publish(&open);
  if (mine->here == mask) {
    Payload* all[32];
    for (int i = 0; i < 32; i++) all[i] = static_cast<Payload*>(mine->payload[i]);
    mine->here = 0;
    work(all);
    for (int i = 0; i < 32; i++)
      if (all[i]) block.fibers[self->warp * 32 + i].blocked = false;
  } else {
    wait_here(what);
  }
  if (ORDERS_MEMORY) observe(&open);
}
template <class T, class Source> T shuffle(unsigned mask, T value, Source source, const char* what) {
  struct Lane {
    T value;
    int source;
    T result;
  } lane{value, source(int(self->lane)), value};
  auto exchange = [](Lane** lanes) {
    for (int i = 0; i < 32; i++)
      if (lanes[i] && lanes[i]->source >= 0 && lanes[i]->source < 32 && lanes[lanes[i]->source])
        lanes[i]->result = lanes[lanes[i]->source]->value;
  };
  collective(mask, lane, exchange, what);
  return lane.result;
}
template <class T, class F> T reduce(unsigned mask, T value, F combine, const char* what) {
  struct Lane {
    T value, result;
  } lane{value, value};
  auto fold = [&](Lane** lanes) {
    bool first = true;
    T total{};
    for (int i = 0; i < 32; i++)
      if (lanes[i]) {
        total = first ? lanes[i]->value : combine(total, lanes[i]->value);
        first = false;
      }
    for (int i = 0; i < 32; i++)
      if (lanes[i]) lanes[i]->result = total;
  };
  collective(mask, lane, fold, what);
  return lane.result;
}
}  // namespace emu

static inline void __syncwarp(unsigned mask = ~0u) {
  int nothing = 0;
  emu::collective<true>(mask, nothing, [](int**) {}, "__syncwarp");
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int from, int w = 32) {
  return emu::shuffle(m, v, [=](int l) { return (l & ~(w - 1)) | (from & (w - 1)); }, "__shfl_sync");
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
  return emu::shuffle(m, v, [=](int l) { return (l ^ x) < (l & ~(w - 1)) + w ? l ^ x : l; }, "__shfl_xor_sync");
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, int d, int w = 32) {
  return emu::shuffle(m, v, [=](int l) { return (l & (w - 1)) + d < w ? l + d : l; }, "__shfl_down_sync");
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, int d, int w = 32) {
  return emu::shuffle(m, v, [=](int l) { return (l & (w - 1)) >= d ? l - d : l; }, "__shfl_up_sync");
}
static inline unsigned __ballot_sync(unsigned m, int p) {
  return emu::reduce(m, p ? 1u << emu::self->lane : 0u, [](unsigned a, unsigned b) { return a | b; }, "__ballot_sync");
}
static inline int __any_sync(unsigned m, int p) {
  return emu::reduce(m, p != 0, [](bool a, bool b) { return a || b; }, "__any_sync");
}
static inline int __all_sync(unsigned m, int p) {
  return emu::reduce(m, p != 0, [](bool a, bool b) { return a && b; }, "__all_sync");
}
#define EMU_REDUCE(NAME, T, EXPRESSION) \
  static inline T NAME(unsigned m, T v) { return emu::reduce(m, v, [](T a, T b) -> T { return EXPRESSION; }, #NAME); }
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_add_sync, int, a + b)
EMU_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
EMU_REDUCE(__reduce_min_sync, int, std::min(a, b))
EMU_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
EMU_REDUCE(__reduce_max_sync, int, std::max(a, b))
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_and_sync, unsigned, a & b)
static inline unsigned __match_any_sync(unsigned m, unsigned v) {
  struct Lane {
    unsigned value, result;
  } lane{v, 0};
  auto match = [](Lane** lanes) {
    for (int i = 0; i < 32; i++)
      for (int j = 0; lanes[i] && j < 32; j++)
        if (lanes[j] && lanes[j]->value == lanes[i]->value) lanes[i]->result |= 1u << j;
  };
  emu::collective(m, lane, match, "__match_any_sync");
  return lane.result;
}
