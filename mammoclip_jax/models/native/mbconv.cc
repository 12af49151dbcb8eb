// The middle of a stride-1 mobile inverted bottleneck in float32, channels last, for passes.py: between the product that
// expands and the one that projects, each pass reads and writes the wide maps once. Notation, per channel:
//   a = swish(e f1 + o1)   expanded map e, batch norm as a factor and an offset
//   d = depthwise(a)       k x k, symmetric zeros
//   y = swish(d f2 + o2) s gated by squeeze-excite's s, per image and channel
// Work is split into tasks of some channels and some rows of an image; their partial sums are added in order. What only
// products with bfloat16 operands read, y and the gradient dz, is written so where the caller's buffers are.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Map = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<ffi::Buffer<ffi::F32>>;
using Any = ffi::Result<ffi::AnyBuffer>;  // float32 or bfloat16

#define INLINE static inline __attribute__((always_inline))
constexpr int L = 16;  // channels in a vector; compilers split it where registers are shorter
typedef float V __attribute__((vector_size(4 * L)));
typedef float Loose __attribute__((vector_size(4 * L), aligned(4), may_alias));
typedef int32_t Int __attribute__((vector_size(4 * L)));
constexpr int64_t kCache = 320 << 10;  // bytes of the rows that a task keeps

INLINE V load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
INLINE void store(float* p, V x) { *reinterpret_cast<Loose*>(p) = x; }
INLINE void store(uint16_t* p, V x) {  // as bfloat16, to the nearest, ties to even
  typedef uint16_t Half __attribute__((vector_size(2 * L)));
  typedef uint32_t Bits __attribute__((vector_size(4 * L)));
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  Half half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Half);
  std::memcpy(p, &half, sizeof half);
}
INLINE V all(float x) { return V{} + x; }

// 1 / (1 + exp(-z)): exp by 2^n and Cephes' polynomial, relative error below 2e-7; exact at both ends to float32.
INLINE V sigmoid(V z) {
  V x = -z;
  x = x > 87.0f ? all(87.0f) : x;
  x = x < -87.0f ? all(-87.0f) : x;
  V n = x * 1.44269504088896341f + 12582912.0f;  // rounds to whole numbers
  n = n - 12582912.0f;
  V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Int power = (__builtin_convertvector(n, Int) + 127) << 23;
  V scale;
  std::memcpy(&scale, &power, sizeof scale);
  return 1.0f / (1.0f + p * scale);
}

INLINE V swish(V z) { return z * sigmoid(z); }

// swish(z), and its derivative in `slope`.
INLINE V swish_and_slope(V z, V* slope) {
  V s = sigmoid(z);
  *slope = s * (1.0f + z * (1.0f - s));
  return z * s;
}

struct Shape {
  int64_t n, h, w, c;
  explicit Shape(const Map& x) {
    auto d = x.dimensions();
    n = d[0], h = d[1], w = d[2], c = d[3];
  }
  int64_t at(int64_t image, int64_t row, int64_t channel) const { return ((image * h + row) * w) * c + channel; }
};

// Part of an image: channels [channel, channel + wide), rows [first, last).
struct Task {
  int64_t index, image, channel, first, last;
};

struct Plan {
  Shape shape;
  int64_t wide, chunks, bands, tasks;
  // `rows` of the map must fit into the cache for a task's channels.
  Plan(Shape s, int64_t rows, int64_t threads) : shape(s) {
    wide = L;
    for (int64_t each = L; each <= s.c; each += L)
      if (s.c % each == 0 && each * rows * (s.w + 8) * 4 <= kCache) wide = each;
    chunks = s.c / wide;
    int64_t wanted = std::max<int64_t>(16, 4 * threads);
    bands = std::max<int64_t>(1, std::min<int64_t>(s.h / 8, (wanted + s.n * chunks - 1) / (s.n * chunks)));
    tasks = s.n * chunks * bands;
  }
  Task task(int64_t i) const {
    int64_t band = i % bands, rest = i / bands;
    return {i, rest / chunks, rest % chunks * wide, shape.h * band / bands, shape.h * (band + 1) / bands};
  }
};

// Runs all tasks on the caller's thread and on XLA's own pool, which bounds the threads; returns when all are done.
static void run(ffi::ThreadPool& pool, const Plan& plan, std::function<void(const Task&)> work) {
  struct State {
    std::atomic<int64_t> next{0};
    int64_t done = 0, total;
    std::mutex mutex;
    std::condition_variable finished;
    Plan plan;
    std::function<void(const Task&)> work;
    State(const Plan& p, std::function<void(const Task&)> w) : total(p.tasks), plan(p), work(std::move(w)) {}
    void help() {
      int64_t own = 0;
      for (int64_t i; (i = next.fetch_add(1)) < total; own++) work(plan.task(i));
      if (!own) return;
      std::lock_guard<std::mutex> lock(mutex);
      if ((done += own) == total) finished.notify_all();
    }
  };
  auto state = std::make_shared<State>(plan, std::move(work));
  int64_t helpers = std::min<int64_t>(pool.num_threads(), plan.tasks) - 1;
  for (int64_t i = 0; i < helpers; i++) pool.Schedule([state] { state->help(); });
  state->help();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done == state->total; });
}

// A row of vectors by channel: rows[v * width + x], with K / 2 zeros on both sides.
template <int K>
struct Ring {
  static constexpr int P = K / 2;
  int64_t width, vectors, size;
  std::vector<float> memory;
  float* begin;
  Ring(int64_t w, int64_t wide) : width(w + 2 * P), vectors(wide / L), size(width * wide), memory(K * size + L, 0.0f) {
    begin = memory.data();
    begin += (64 - reinterpret_cast<uintptr_t>(begin) % 64) % 64 / 4;
  }
  // Of image row r, channel vector v; column x lies at (x + P) * L.
  float* at(int64_t r, int64_t v) { return begin + ((r + K) % K) * size + v * width * L; }
  void clear(int64_t r) { std::fill_n(at(r, 0), size, 0.0f); }
};

// out(x, sum of taps) for all columns of the row whose K rows around are rows[i]; flipped taps for the input gradient.
template <int K, bool Flip, typename F>
INLINE void correlate(const float* const* rows, const float* taps, int64_t stride, int64_t width, F out) {
  constexpr int B = 6;
  int64_t x = 0;
  for (; x + B <= width; x += B) {
    V sum[B] = {};
    for (int i = 0; i < K; i++) {
      V tap[K];
      for (int j = 0; j < K; j++) tap[j] = load(taps + (Flip ? (K - 1 - i) * K + K - 1 - j : i * K + j) * stride);
      const float* row = rows[i] + x * L;
#pragma GCC unroll 16
      for (int t = 0; t < B + K - 1; t++) {
        V value = load(row + t * L);
#pragma GCC unroll 8
        for (int j = 0; j < K; j++)
          if (t - j >= 0 && t - j < B) sum[t - j] += value * tap[j];
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; b++) out(x + b, sum[b]);
  }
  for (; x < width; x++) {
    V sum = {};
    for (int i = 0; i < K; i++)
      for (int j = 0; j < K; j++)
        sum += load(rows[i] + (x + j) * L) * load(taps + (Flip ? (K - 1 - i) * K + K - 1 - j : i * K + j) * stride);
    out(x, sum);
  }
}

// Adds a row of values, whose sum is known, to a task's mean and sum of squared deviations from it: the row's own, then
// both parts' together (Chan, Golub and LeVeque 1983).
INLINE void add_row(const Plan& plan, const Task& t, int64_t r, int64_t v, const float* row, V sum, float* mean,
                    float* squares) {
  int64_t w = plan.shape.w, c = plan.shape.c;
  V here = sum / float(w), spread = {};
  for (int64_t x = 0; x < w; x++) {
    V off = load(row + x * c) - here;
    spread += off * off;
  }
  float *m = mean + t.index * plan.wide + v * L, *q = squares + t.index * plan.wide + v * L;
  float before = float(r - t.first), share = 1.0f / (before + 1.0f);
  V gap = here - load(m);
  store(m, load(m) + gap * share);
  store(q, load(q) + spread + gap * gap * (before * share * float(w)));
}

// The tasks' moments together, [C] each.
static void gather_moments(const Plan& plan, const std::vector<float>& means, const std::vector<float>& squares, float* m,
                           float* q) {
  const Shape& s = plan.shape;
  std::vector<double> counts(s.c, 0.0), m64(s.c, 0.0), q64(s.c, 0.0);
  for (int64_t i = 0; i < plan.tasks; i++) {
    Task t = plan.task(i);
    double count = double(t.last - t.first) * s.w;
    for (int64_t j = 0; j < plan.wide; j++) {
      int64_t c = t.channel + j;
      double gap = means[i * plan.wide + j] - m64[c], total = counts[c] + count;
      m64[c] += gap * count / total;
      q64[c] += squares[i * plan.wide + j] + gap * gap * counts[c] * count / total;
      counts[c] = total;
    }
  }
  for (int64_t c = 0; c < s.c; c++) m[c] = float(m64[c]), q[c] = float(q64[c]);
}

// Mean of e and sum of squared deviations from it, [C].
static ffi::Error Moments(ffi::ThreadPool pool, Map e, Out mean, Out squares) {
  Plan plan(Shape(e), 1, pool.num_threads());
  std::vector<float> means(plan.tasks * plan.wide), spreads(plan.tasks * plan.wide);
  float *m = means.data(), *q = spreads.data();
  const float* in = e.typed_data();
  run(pool, plan, [=](const Task& t) {
    const Shape& s = plan.shape;
    for (int64_t r = t.first; r < t.last; r++)
      for (int64_t v = 0; v < plan.wide / L; v++) {
        const float* row = in + s.at(t.image, r, t.channel + v * L);
        V sum = {};
        for (int64_t x = 0; x < s.w; x++) sum += load(row + x * s.c);
        add_row(plan, t, r, v, row, sum, m, q);
      }
  });
  gather_moments(plan, means, spreads, mean->typed_data(), squares->typed_data());
  return ffi::Error::Success();
}

// d, and its tasks' moments.
template <int K>
static void forward(ffi::ThreadPool& pool, const Plan& plan, const float* e, const float* f, const float* o,
                    const float* kernel, float* d, float* mean, float* squares) {
  const Shape& s = plan.shape;
  run(pool, plan, [=](const Task& t) {
    Ring<K> ring(s.w, plan.wide);
    constexpr int P = K / 2;
    auto fill = [&](int64_t r) {
      if (r < 0 || r >= s.h) return ring.clear(r);
      const float* from = e + s.at(t.image, r, t.channel);
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t v = 0; v < ring.vectors; v++) {
          int64_t c = t.channel + v * L;
          store(ring.at(r, v) + (x + P) * L, swish(load(from + x * s.c + v * L) * load(f + c) + load(o + c)));
        }
    };
    for (int64_t r = t.first - P; r < t.first + P; r++) fill(r);
    for (int64_t r = t.first; r < t.last; r++) {
      fill(r + P);
      float* to = d + s.at(t.image, r, t.channel);
      for (int64_t v = 0; v < ring.vectors; v++) {
        const float* rows[K];
        for (int i = 0; i < K; i++) rows[i] = ring.at(r + i - P, v);
        V sum = {};
        correlate<K, false>(rows, kernel + t.channel + v * L, s.c, s.w, [&](int64_t x, V value) {
          store(to + x * s.c + v * L, value);
          sum += value;
        });
        add_row(plan, t, r, v, to + v * L, sum, mean, squares);
      }
    }
  });
}

static ffi::Error Unfit() { return ffi::Error::InvalidArgument("kernels of 3 or 5, channels a multiple of 16"); }

static ffi::Error Forward(ffi::ThreadPool pool, Map e, Map f, Map o, Map kernel, Out d, Out mean, Out squares) {
  Shape s(e);
  int64_t k = kernel.dimensions()[0];
  Plan plan(s, k, pool.num_threads());
  std::vector<float> means(plan.tasks * plan.wide), spreads(plan.tasks * plan.wide);
  if ((k != 3 && k != 5) || s.c % L) return Unfit();
  auto go = k == 3 ? forward<3> : forward<5>;
  go(pool, plan, e.typed_data(), f.typed_data(), o.typed_data(), kernel.typed_data(), d->typed_data(), means.data(),
     spreads.data());
  gather_moments(plan, means, spreads, mean->typed_data(), squares->typed_data());
  return ffi::Error::Success();
}

// Adds what the tasks found, [tasks, S, wide], to out [S, N, C].
static void gather(const Plan& plan, const std::vector<float>& parts, int64_t sums, float* out) {
  const Shape& s = plan.shape;
  std::fill_n(out, sums * s.n * s.c, 0.0f);
  for (int64_t i = 0; i < plan.tasks; i++)
    for (int64_t k = 0; k < sums; k++)
      for (int64_t j = 0; j < plan.wide; j++) {
        Task t = plan.task(i);
        out[(k * s.n + t.image) * s.c + t.channel + j] += parts[(i * sums + k) * plan.wide + j];
      }
}

// Calls each(offset of pixel and channels, channel, v) for a task's pixels, row by row, with `zero` before each row and
// `end` behind it: what a row adds up stays in registers.
template <int S, typename F>
INLINE void add_up(const Plan& plan, const Task& t, float* parts, F each) {
  const Shape& s = plan.shape;
  parts += t.index * S * plan.wide;
  for (int64_t r = t.first; r < t.last; r++)
    for (int64_t v = 0; v < plan.wide; v += L) {
      V sum[S] = {};
      int64_t at = s.at(t.image, r, t.channel + v);
      for (int64_t x = 0; x < s.w; x++, at += s.c) each(at, t.channel + v, sum);
      for (int k = 0; k < S; k++) store(parts + k * plan.wide + v, load(parts + k * plan.wide + v) + sum[k]);
    }
}

// sums [1, N, C] of swish(d f + o).
static ffi::Error Pool(ffi::ThreadPool pool, Map d, Map f, Map o, Out sums) {
  Plan plan(Shape(d), 1, pool.num_threads());
  std::vector<float> parts(plan.tasks * plan.wide);
  const float *in = d.typed_data(), *factor = f.typed_data(), *offset = o.typed_data();
  float* out = parts.data();
  run(pool, plan, [=](const Task& t) {
    add_up<1>(plan, t, out, [=](int64_t at, int64_t c, V* sum) {
      sum[0] += swish(load(in + at) * load(factor + c) + load(offset + c));
    });
  });
  gather(plan, parts, 1, sums->typed_data());
  return ffi::Error::Success();
}

// y = swish(d f + o) * gate[n, c].
template <typename T>
static void gated(ffi::ThreadPool& pool, const Plan& plan, const float* d, const float* f, const float* o, const float* gate,
                  T* y) {
  run(pool, plan, [=](const Task& t) {
    const Shape& s = plan.shape;
    for (int64_t r = t.first; r < t.last; r++)
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t c = t.channel; c < t.channel + plan.wide; c += L) {
          int64_t at = s.at(t.image, r, c) + x * s.c;
          store(y + at, swish(load(d + at) * load(f + c) + load(o + c)) * load(gate + t.image * s.c + c));
        }
  });
}

static ffi::Error Gate(ffi::ThreadPool pool, Map d, Map f, Map o, Map gate, Any y) {
  Plan plan(Shape(d), 1, pool.num_threads());
  auto go = [&](auto* out) { gated(pool, plan, d.typed_data(), f.typed_data(), o.typed_data(), gate.typed_data(), out); };
  if (y->element_type() == ffi::BF16) go(static_cast<uint16_t*>(y->untyped_data()));
  else go(static_cast<float*>(y->untyped_data()));
  return ffi::Error::Success();
}

// With b = swish(z), z = d f + o, and g the gradient of y: sums [5, N, C] of g b, g b', g b' d, b', b' d.
static ffi::Error Sums(ffi::ThreadPool pool, Map d, Map gradient, Map f, Map o, Out sums) {
  Plan plan(Shape(d), 2, pool.num_threads());
  std::vector<float> parts(plan.tasks * 5 * plan.wide);
  const float *in = d.typed_data(), *g = gradient.typed_data(), *factor = f.typed_data(), *offset = o.typed_data();
  float* out = parts.data();
  run(pool, plan, [=](const Task& t) {
    add_up<5>(plan, t, out, [=](int64_t at, int64_t c, V* sum) {
      V x = load(in + at), from = load(g + at), slope;
      V b = swish_and_slope(x * load(factor + c) + load(offset + c), &slope);
      sum[0] += from * b;
      sum[1] += from * slope;
      sum[2] += from * slope * x;
      sum[3] += slope;
      sum[4] += slope * x;
    });
  });
  gather(plan, parts, 5, sums->typed_data());
  return ffi::Error::Success();
}

struct Backwards {
  const float *e, *d, *g, *f1, *o1, *kernel, *f2, *o2;
  const float *gate, *mean, *by_z, *by_d, *constant;  // dd = (g gate + mean) b' by_z - d by_d + constant
  float* parts;                                       // K K taps, sum of dz, sum of dz e
};

template <int K, typename T>
static void backward(ffi::ThreadPool& pool, const Plan& plan, const Backwards& q, T* to_z) {
  const Shape& s = plan.shape;
  run(pool, plan, [&](const Task& t) {
    constexpr int P = K / 2, S = K * K + 2;
    Ring<K> ring(s.w, plan.wide);
    std::vector<float> memory(2 * s.w * plan.wide);
    float *a = memory.data(), *slopes = a + s.w * plan.wide, *parts = q.parts + t.index * S * plan.wide;
    const float *gate = q.gate + t.image * s.c, *mean = q.mean + t.image * s.c;
    auto fill = [&](int64_t r) {
      if (r < 0 || r >= s.h) return ring.clear(r);
      int64_t from = s.at(t.image, r, t.channel);
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t v = 0; v < ring.vectors; v++) {
          int64_t c = t.channel + v * L, at = from + x * s.c + v * L;
          V value = load(q.d + at), slope;
          swish_and_slope(value * load(q.f2 + c) + load(q.o2 + c), &slope);
          V wide = (load(q.g + at) * load(gate + c) + load(mean + c)) * slope;
          store(ring.at(r, v) + (x + P) * L, wide * load(q.by_z + c) - value * load(q.by_d + c) + load(q.constant + c));
        }
    };
    for (int64_t r = t.first - P; r < t.first + P; r++) fill(r);
    for (int64_t r = t.first; r < t.last; r++) {
      fill(r + P);
      int64_t from = s.at(t.image, r, t.channel);
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t v = 0; v < ring.vectors; v++) {
          int64_t c = t.channel + v * L, to = (v * s.w + x) * L;
          V slope;
          store(a + to, swish_and_slope(load(q.e + from + x * s.c + v * L) * load(q.f1 + c) + load(q.o1 + c), &slope));
          store(slopes + to, slope);
        }
      for (int64_t v = 0; v < ring.vectors; v++) {
        const float* rows[K];
        for (int i = 0; i < K; i++) rows[i] = ring.at(r + i - P, v);
        const float *own = a + v * s.w * L, *slope = slopes + v * s.w * L;
        V sum = {}, with_e = {};
        correlate<K, true>(rows, q.kernel + t.channel + v * L, s.c, s.w, [&](int64_t x, V value) {
          int64_t at = from + x * s.c + v * L;
          V dz = value * load(slope + x * L);
          store(to_z + at, dz);
          sum += dz;
          with_e += dz * load(q.e + at);
        });
        float* to = parts + v * L;
        store(to + K * K * plan.wide, load(to + K * K * plan.wide) + sum);
        store(to + (K * K + 1) * plan.wide, load(to + (K * K + 1) * plan.wide) + with_e);
        // Tap (i, j) took row r for the output row r - i + P, which is rows[K - 1 - i]; the same for columns.
        for (int i = 0; i < K; i++) {
          V tap[2][K] = {};
          const float* row = rows[K - 1 - i];
          int64_t x = 0;
          for (; x + 2 <= s.w; x += 2)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
              for (int j = 0; j < K; j++) tap[half][j] += load(own + (x + half) * L) * load(row + (x + half + K - 1 - j) * L);
          for (; x < s.w; x++)
            for (int j = 0; j < K; j++) tap[0][j] += load(own + x * L) * load(row + (x + K - 1 - j) * L);
          for (int j = 0; j < K; j++) {
            float* total = to + (i * K + j) * plan.wide;
            store(total, load(total) + tap[0][j] + tap[1][j]);
          }
        }
      }
    }
  });
}

// dz [N, H, W, C], the gradient before the first swish; sums [K K + 2, N, C]: of the taps, of dz, of dz e.
static ffi::Error Backward(ffi::ThreadPool pool, Map e, Map d, Map g, Map f1, Map o1, Map kernel, Map f2, Map o2, Map gate,
                           Map mean, Map by_z, Map by_d, Map constant, Any dz, Out sums) {
  int64_t k = kernel.dimensions()[0];
  Plan plan(Shape(e), k + 2, pool.num_threads());
  if ((k != 3 && k != 5) || plan.shape.c % L) return Unfit();
  std::vector<float> parts(plan.tasks * (k * k + 2) * plan.wide);
  Backwards all{e.typed_data(),  d.typed_data(),  g.typed_data(),    f1.typed_data(),   o1.typed_data(),
                kernel.typed_data(), f2.typed_data(), o2.typed_data(), gate.typed_data(), mean.typed_data(),
                by_z.typed_data(), by_d.typed_data(), constant.typed_data(), parts.data()};
  auto go = [&](auto* out) { k == 3 ? backward<3>(pool, plan, all, out) : backward<5>(pool, plan, all, out); };
  if (dz->element_type() == ffi::BF16) go(static_cast<uint16_t*>(dz->untyped_data()));
  else go(static_cast<float*>(dz->untyped_data()));
  gather(plan, parts, k * k + 2, sums->typed_data());
  return ffi::Error::Success();
}

#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define MAPS2 Arg<Map>().Arg<Map>()
#define MAPS4 MAPS2.MAPS2
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvMoments, Moments, BIND.Arg<Map>().Ret<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvForward, Forward, BIND.MAPS4.Ret<Map>().Ret<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvPool, Pool, BIND.MAPS2.Arg<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvGate, Gate, BIND.MAPS4.Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvSums, Sums, BIND.MAPS4.Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvBackward, Backward, BIND.MAPS4.MAPS4.MAPS4.Arg<Map>().Ret<ffi::AnyBuffer>().Ret<Map>());
