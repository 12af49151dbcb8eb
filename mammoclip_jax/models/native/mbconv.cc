// The middle of a stride-1 mobile inverted bottleneck in float32, channels last, for passes.py: between the product that
// expands and the one that projects, each pass reads and writes the wide maps once. Notation, per channel:
//   a = swish(e f1 + o1)   expanded map e, batch norm as a factor and an offset
//   d = depthwise(a)       k x k, symmetric zeros
//   y = swish(d f2 + o2) s gated by squeeze-excite's s, per image and channel
// Work is split into tasks of some channels and some rows of an image; their partial sums are added in order. What only
// products with bfloat16 operands read, y and the gradient dz, is written so where the caller's buffers are.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
using Map = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<ffi::Buffer<ffi::F32>>;
using Any = ffi::Result<ffi::AnyBuffer>;  // float32 or bfloat16
#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER
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
  Bits bits = reinterpret_cast<Bits>(x);
  Half half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Half);
  std::memcpy(p, &half, sizeof half);
}

// 1 / (1 + exp(-z)): exp by 2^n and Cephes' polynomial, relative error below 2e-7; exact at both ends to float32.
INLINE V sigmoid(V z) {
  V x = -z;
  x = x > 87.0f ? V{} + 87.0f : x < -87.0f ? V{} - 87.0f : x;
  V n = x * 1.44269504088896341f + 12582912.0f - 12582912.0f;  // to whole numbers
  V r = x - n * 0.693359375f + n * 2.12194440e-4f;
  V p = ((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f;
  p = ((p * r + 1.6666665459e-1f) * r + 5.0000001201e-1f) * r * r + r + 1.0f;
  V scale = reinterpret_cast<V>((__builtin_convertvector(n, Int) + 127) << 23);
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
  explicit Shape(const Map& x)
      : n(x.dimensions()[0]), h(x.dimensions()[1]), w(x.dimensions()[2]), c(x.dimensions()[3]) {}
  int64_t at(int64_t image, int64_t row, int64_t channel) const { return ((image * h + row) * w) * c + channel; }
};

// Part of an image: channels [channel, channel + wide), rows [first, last).
struct Task { int64_t index, image, channel, first, last; };

struct Plan {
  Shape shape;
  int64_t wide = L, chunks, bands, tasks;
  // `rows` of the map must fit into the cache for a task's channels.
  Plan(Shape s, int64_t rows, int64_t threads) : shape(s) {
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
    Plan plan;
    std::function<void(const Task&)> work;
    std::atomic<int64_t> next{0}, done{0};
    void help() {
      for (int64_t i; (i = next.fetch_add(1)) < plan.tasks; done.fetch_add(1)) work(plan.task(i));
      done.notify_all();
    }
  };
  auto state = std::make_shared<State>(plan, std::move(work));  // a thread may come when all is done
  for (int64_t i = 1; i < std::min<int64_t>(pool.num_threads(), plan.tasks); i++) pool.Schedule([state] { state->help(); });
  state->help();
  for (int64_t done; (done = state->done.load()) < plan.tasks;) state->done.wait(done);
}

constexpr int B = 6;  // columns at a time
// The last K rows of a map, by channel vector: zeros on both sides, and as many columns as fill blocks of B.
template <int K>
struct Ring {
  static constexpr int P = K / 2;
  int64_t width, vectors, size;
  std::vector<float> memory;
  float* begin;
  Ring(int64_t w, int64_t wide)
      : width((w + B - 1) / B * B + 2 * P), vectors(wide / L), size(width * wide), memory(K * size + L, 0.0f) {
    begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / 4;
  }
  // Of image row r, channel vector v; column x lies at (x + P) * L.
  float* at(int64_t r, int64_t v) { return begin + ((r + K) % K) * size + v * width * L; }
  // Row r of each(offset of the pixel's channels, channel); zeros outside the image.
  template <typename F>
  void fill(const Shape& s, const Task& t, int64_t r, F each) {
    if (r < 0 || r >= s.h) return (void)std::fill_n(at(r, 0), size, 0.0f);
    int64_t from = s.at(t.image, r, t.channel);
    for (int64_t x = 0; x < s.w; x++)
      for (int64_t v = 0; v < vectors; v++)
        store(at(r, v) + (x + P) * L, each(from + x * s.c + v * L, t.channel + v * L));
  }
  // out(x, sum of taps) for all columns of channel vector v in row r; flipped taps for the input gradient.
  template <bool Flip, typename F>
  INLINE_MEMBER void correlate(int64_t r, int64_t v, const float* taps, int64_t stride, int64_t w, F out) {
    for (int64_t x = 0; x < w; x += B) {
      V sum[B] = {};
      for (int i = 0; i < K; i++) {
        V tap[K];
        for (int j = 0; j < K; j++) tap[j] = load(taps + (Flip ? (K - 1 - i) * K + K - 1 - j : i * K + j) * stride);
        const float* row = at(r + i - P, v) + x * L;
#pragma GCC unroll 16
        for (int t = 0; t < B + K - 1; t++) {
          V value = load(row + t * L);
#pragma GCC unroll 8
          for (int j = 0; j < K; j++)
            if (t - j >= 0 && t - j < B) sum[t - j] += value * tap[j];
        }
      }
#pragma GCC unroll 8
      for (int b = 0; b < B; b++)
        if (x + b < w) out(x + b, sum[b]);
    }
  }
};

// [tasks, 2, wide]: mean and sum of squared deviations from it of a task's values. Two parts' together are those of Chan,
// Golub and LeVeque (1983). Here a row of channel vector v is added, whose sum is known.
INLINE void add_row(const Plan& plan, const Task& t, int64_t r, int64_t v, const float* row, V sum, float* moments) {
  float w = float(plan.shape.w), before = float(r - t.first), share = 1.0f / (before + 1.0f);
  V here = sum / w, spread = {};
  for (int64_t x = 0; x < plan.shape.w; x++) {
    V off = load(row + x * plan.shape.c) - here;
    spread += off * off;
  }
  float *m = moments + 2 * t.index * plan.wide + v * L, *q = m + plan.wide;
  V gap = here - load(m);
  store(m, load(m) + gap * share);
  store(q, load(q) + spread + gap * gap * (before * share * w));
}

static ffi::Error gather_moments(const Plan& plan, const std::vector<float>& parts, Out& mean, Out& squares) {
  std::vector<double> counts(plan.shape.c, 0.0), m(counts), q(counts);
  for (int64_t i = 0; i < plan.tasks * plan.wide; i++) {
    Task t = plan.task(i / plan.wide);
    int64_t c = t.channel + i % plan.wide, at = 2 * t.index * plan.wide + i % plan.wide;
    double count = double(t.last - t.first) * plan.shape.w, gap = parts[at] - m[c], total = counts[c] + count;
    m[c] += gap * count / total;
    q[c] += parts[at + plan.wide] + gap * gap * counts[c] * count / total;
    counts[c] = total;
  }
  std::copy(m.begin(), m.end(), mean->typed_data());
  std::copy(q.begin(), q.end(), squares->typed_data());
  return ffi::Error::Success();
}

// Of e, [C] each.
static ffi::Error OfMap(ffi::ThreadPool pool, Map e, Out mean, Out squares) {
  Plan plan(Shape(e), 1, pool.num_threads());
  std::vector<float> parts(2 * plan.tasks * plan.wide);
  const float* in = e.typed_data();
  run(pool, plan, [=, moments = parts.data()](const Task& t) {
    for (int64_t r = t.first; r < t.last; r++)
      for (int64_t v = 0; v < plan.wide / L; v++) {
        const float* row = in + plan.shape.at(t.image, r, t.channel + v * L);
        V sum = {};
        for (int64_t x = 0; x < plan.shape.w; x++) sum += load(row + x * plan.shape.c);
        add_row(plan, t, r, v, row, sum, moments);
      }
  });
  return gather_moments(plan, parts, mean, squares);
}

// d, and its tasks' moments.
template <int K>
static void forward(ffi::ThreadPool& pool, const Plan& plan, const float* e, const float* f, const float* o,
                    const float* kernel, float* d, float* moments) {
  run(pool, plan, [=](const Task& t) {
    const Shape& s = plan.shape;
    Ring<K> ring(s.w, plan.wide);
    auto a = [=](int64_t at, int64_t c) { return swish(load(e + at) * load(f + c) + load(o + c)); };
    for (int64_t r = t.first - K / 2; r < t.first + K / 2; r++) ring.fill(s, t, r, a);
    for (int64_t r = t.first; r < t.last; r++) {
      ring.fill(s, t, r + K / 2, a);
      for (int64_t v = 0; v < ring.vectors; v++) {
        float* to = d + s.at(t.image, r, t.channel + v * L);
        V sum = {};
        ring.template correlate<false>(r, v, kernel + t.channel + v * L, s.c, s.w, [&](int64_t x, V value) {
          store(to + x * s.c, value);
          sum += value;
        });
        add_row(plan, t, r, v, to, sum, moments);
      }
    }
  });
}

static ffi::Error check(const Plan& plan, int64_t k) {
  if ((k == 3 || k == 5) && plan.shape.c % L == 0) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("kernels of 3 or 5, channels a multiple of 16");
}

static ffi::Error Forward(ffi::ThreadPool pool, Map e, Map f, Map o, Map kernel, Out d, Out mean, Out squares) {
  Plan plan(Shape(e), kernel.dimensions()[0], pool.num_threads());
  if (ffi::Error wrong = check(plan, kernel.dimensions()[0]); wrong.failure()) return wrong;
  std::vector<float> parts(2 * plan.tasks * plan.wide);
  (kernel.dimensions()[0] == 3 ? forward<3> : forward<5>)(pool, plan, e.typed_data(), f.typed_data(), o.typed_data(),
                                                          kernel.typed_data(), d->typed_data(), parts.data());
  return gather_moments(plan, parts, mean, squares);
}

// Adds what the tasks found, [tasks, S, wide], to out [S, N, C].
static void gather(const Plan& plan, const std::vector<float>& parts, int64_t sums, float* out) {
  const Shape& s = plan.shape;
  std::fill_n(out, sums * s.n * s.c, 0.0f);
  for (int64_t i = 0; i < plan.tasks * sums * plan.wide; i++) {
    Task t = plan.task(i / plan.wide / sums);
    out[(i / plan.wide % sums * s.n + t.image) * s.c + t.channel + i % plan.wide] += parts[i];
  }
}

// Adds each(offset of the pixel's channels, channel, sums) up over the pixels of an image to out [S, N, C].
template <int S, typename F>
static ffi::Error add_up(ffi::ThreadPool& pool, const Plan& plan, Out& out, F each) {
  std::vector<float> memory(plan.tasks * S * plan.wide);
  float* parts = memory.data();
  run(pool, plan, [=](const Task& t) {
    const Shape& s = plan.shape;
    std::vector<float> row(S * plan.wide);
    for (int64_t r = t.first; r < t.last; r++) {
      std::fill(row.begin(), row.end(), 0.0f);
      int64_t at = s.at(t.image, r, t.channel);
      for (int64_t x = 0; x < s.w; x++, at += s.c)  // whole pixels: memory is slow by single vectors
        for (int64_t v = 0; v < plan.wide; v += L) {
          V sum[S] = {};
          each(at + v, t.channel + v, sum);
          for (int k = 0; k < S; k++) store(&row[k * plan.wide + v], load(&row[k * plan.wide + v]) + sum[k]);
        }
      for (int64_t i = 0; i < S * plan.wide; i++) parts[t.index * S * plan.wide + i] += row[i];
    }
  });
  gather(plan, memory, S, out->typed_data());
  return ffi::Error::Success();
}

// Sums [1, N, C] of swish(d f + o).
static ffi::Error Pool(ffi::ThreadPool pool, Map d, Map f, Map o, Out sums) {
  const float *in = d.typed_data(), *factor = f.typed_data(), *offset = o.typed_data();
  return add_up<1>(pool, Plan(Shape(d), 1, pool.num_threads()), sums, [=](int64_t at, int64_t c, V* sum) {
    sum[0] += swish(load(in + at) * load(factor + c) + load(offset + c));
  });
}

template <typename F>
static ffi::Error typed(Any& to, F run) {
  void* data = to->untyped_data();
  to->element_type() == ffi::BF16 ? run(static_cast<uint16_t*>(data)) : run(static_cast<float*>(data));
  return ffi::Error::Success();
}

// y = swish(d f + o) * gate[n, c].
static ffi::Error Gate(ffi::ThreadPool pool, Map d, Map f, Map o, Map gate, Any y) {
  Plan plan(Shape(d), 1, pool.num_threads());
  const float *in = d.typed_data(), *factor = f.typed_data(), *offset = o.typed_data(), *by = gate.typed_data();
  return typed(y, [&](auto* to) {
    run(pool, plan, [=](const Task& t) {
      for (int64_t r = t.first; r < t.last; r++)
        for (int64_t x = 0; x < plan.shape.w; x++)
          for (int64_t c = t.channel; c < t.channel + plan.wide; c += L) {
            int64_t at = plan.shape.at(t.image, r, c) + x * plan.shape.c;
            V b = swish(load(in + at) * load(factor + c) + load(offset + c));
            store(to + at, b * load(by + t.image * plan.shape.c + c));
          }
    });
  });
}

// With b = swish(z), z = d f + o, and g the gradient of y: sums [5, N, C] of g b, g b', g b' d, b', b' d.
static ffi::Error Sums(ffi::ThreadPool pool, Map d, Map gradient, Map f, Map o, Out sums) {
  const float *in = d.typed_data(), *g = gradient.typed_data(), *factor = f.typed_data(), *offset = o.typed_data();
  return add_up<5>(pool, Plan(Shape(d), 2, pool.num_threads()), sums, [=](int64_t at, int64_t c, V* sum) {
    V x = load(in + at), from = load(g + at), slope;
    V b = swish_and_slope(x * load(factor + c) + load(offset + c), &slope);
    V all[] = {from * b, from * slope, from * slope * x, slope, slope * x};
    for (int k = 0; k < 5; k++) sum[k] += all[k];
  });
}

struct Backwards {
  const float *e, *d, *g, *f1, *o1, *kernel, *f2, *o2;
  const float *gate, *mean, *by_z, *by_d, *constant;  // dd = (g gate + mean) b' by_z - d by_d + constant
  float* parts;                                       // K K taps, sum of dz, sum of dz e
};

template <int K, typename T>
static void backward(ffi::ThreadPool& pool, const Plan& plan, const Backwards& q, T* to_z) {
  run(pool, plan, [=](const Task& t) {
    const Shape& s = plan.shape;
    constexpr int P = K / 2, S = K * K + 2;
    Ring<K> ring(s.w, plan.wide);
    int64_t width = s.w + 1;  // a zero behind an odd number of columns
    std::vector<float> memory(2 * width * plan.wide, 0.0f);
    float *a = memory.data(), *slopes = a + width * plan.wide, *parts = q.parts + t.index * S * plan.wide;
    const float *gate = q.gate + t.image * s.c, *mean = q.mean + t.image * s.c;
    auto dd = [=](int64_t at, int64_t c) {
      V value = load(q.d + at), slope;
      swish_and_slope(value * load(q.f2 + c) + load(q.o2 + c), &slope);
      V wide = (load(q.g + at) * load(gate + c) + load(mean + c)) * slope;
      return wide * load(q.by_z + c) - value * load(q.by_d + c) + load(q.constant + c);
    };
    for (int64_t r = t.first - P; r < t.first + P; r++) ring.fill(s, t, r, dd);
    for (int64_t r = t.first; r < t.last; r++) {
      ring.fill(s, t, r + P, dd);
      int64_t from = s.at(t.image, r, t.channel);
      for (int64_t x = 0; x < s.w; x++)
        for (int64_t v = 0; v < ring.vectors; v++) {
          int64_t c = t.channel + v * L, to = (v * width + x) * L;
          V slope;
          store(a + to, swish_and_slope(load(q.e + from + x * s.c + v * L) * load(q.f1 + c) + load(q.o1 + c), &slope));
          store(slopes + to, slope);
        }
      for (int64_t v = 0; v < ring.vectors; v++) {
        const float *own = a + v * width * L, *slope = slopes + v * width * L;
        V sum = {}, with_e = {};
        ring.template correlate<true>(r, v, q.kernel + t.channel + v * L, s.c, s.w, [&](int64_t x, V value) {
          int64_t at = from + x * s.c + v * L;
          V dz = value * load(slope + x * L);
          store(to_z + at, dz);
          sum += dz;
          with_e += dz * load(q.e + at);
        });
        float* to = parts + v * L;
        auto add = [=](int k, V value) { store(to + k * plan.wide, load(to + k * plan.wide) + value); };
        add(K * K, sum);
        add(K * K + 1, with_e);
        // Tap (i, j) took row r for the output row r + P - i; the same for columns.
        for (int i = 0; i < K; i++) {
          V tap[2][K] = {};
          const float* row = ring.at(r + P - i, v) + (K - 1) * L;
          for (int64_t x = 0; x < s.w; x += 2)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
#pragma GCC unroll 8
              for (int j = 0; j < K; j++) tap[half][j] += load(own + (x + half) * L) * load(row + (x + half - j) * L);
          for (int j = 0; j < K; j++) add(i * K + j, tap[0][j] + tap[1][j]);
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
  if (ffi::Error wrong = check(plan, k); wrong.failure()) return wrong;
  std::vector<float> parts(plan.tasks * (k * k + 2) * plan.wide);
  auto at = [](const Map& map) { return map.typed_data(); };
  Backwards all{at(e),  at(d),    at(g),    at(f1),   at(o1),   at(kernel),   at(f2),
                at(o2), at(gate), at(mean), at(by_z), at(by_d), at(constant), parts.data()};
  auto run_all = [&](auto* to) { k == 3 ? backward<3>(pool, plan, all, to) : backward<5>(pool, plan, all, to); };
  ffi::Error done = typed(dz, run_all);
  gather(plan, parts, k * k + 2, sums->typed_data());
  return done;
}

#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define MAPS2 Arg<Map>().Arg<Map>()
#define MAPS4 MAPS2.MAPS2
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvMoments, OfMap, BIND.Arg<Map>().Ret<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvForward, Forward, BIND.MAPS4.Ret<Map>().Ret<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvPool, Pool, BIND.MAPS2.Arg<Map>().Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvGate, Gate, BIND.MAPS4.Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvSums, Sums, BIND.MAPS4.Ret<Map>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(MbconvBackward, Backward, BIND.MAPS4.MAPS4.MAPS4.Arg<Map>().Ret<ffi::AnyBuffer>().Ret<Map>());
