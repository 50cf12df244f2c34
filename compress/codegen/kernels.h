/* Kernels: small inlined functions, which the compiler specialises for the constant arguments of each call.
 *
 * K_LANES is the multiple that channels are padded to. Vectors (vf, vi) have K_V numbers: 16 (AVX-512), 8 (AVX2), 4 (NEON), and 1 where there
 * are none or K_SCALAR is defined. The same text is all forms; fused products are asked for by name, so that all give the same integers.
 * Memory of the caller's is read through types that may alias, and no pointer is restrict: a store is never presumed not to be seen. */
#ifndef KERNELS_H
#define KERNELS_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if !defined(K_SCALAR) && defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#elif !defined(K_SCALAR) && defined(__aarch64__)
#include <arm_neon.h>
#elif !defined(K_SCALAR) && defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif
#define K_INLINE static inline __attribute__((always_inline, unused))
/* A layer is opaque to its caller: gcc 12.2 takes some functions that store vectors for pure, at every level, and deletes their calls. */
#if defined(__clang__)
#define K_LAYER static __attribute__((noinline))
#else
#define K_LAYER static __attribute__((noipa))
#endif
#define K_ALIGN __attribute__((aligned(64)))
#define K_ALIAS __attribute__((may_alias))
typedef float k_f32 K_ALIAS;
typedef int32_t k_i32 K_ALIAS;

/* ---- one number ---- */
K_INLINE float s_max(float a, float b) { return a > b ? a : b; }
K_INLINE float s_min(float a, float b) { return a < b ? a : b; }
K_INLINE float s_set(float a) { return a; }
K_INLINE float s_bits(int32_t b) { float f; memcpy(&f, &b, 4); return f; }
K_INLINE int32_t s_int(float a) { return (int32_t)a; }
K_INLINE float s_float(int32_t a) { return (float)a; }
K_INLINE float s_ld(const k_f32 *p) { return *p; }
K_INLINE float s_ldu(const uint8_t *p) { return (float)*p; }
K_INLINE void s_st(k_f32 *p, float v) { *p = v; }
K_INLINE void s_stu(uint8_t *p, float v) { *p = (uint8_t)v; }
K_INLINE void s_stq(uint8_t *p, float v, int z) { *p = (uint8_t)((int)((v + 12582912.0f) - 12582912.0f) + z); }
K_INLINE float s_abs(float a) { return a < 0.0f ? -a : a; }
K_INLINE float s_sqrt(float a) { return sqrtf(a); }

/* ---- vectors ---- */
#if !defined(K_SCALAR) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define K_V 16
#elif !defined(K_SCALAR) && defined(__AVX2__) && defined(__FMA__)
#define K_V 8
#elif !defined(K_SCALAR) && defined(__aarch64__)
#define K_V 4
#else
#define K_V 1
#endif
/* With vectors each call has a kernel of its own, made for its constants; without, where flash is dear, all calls of a kind share one. */
#if K_V > 1
#define K_KERNEL K_INLINE
#else
#define K_KERNEL K_LAYER __attribute__((unused))
#endif
#if K_V == 1 && !defined(__clang__)
#define K_UNROLL _Pragma("GCC unroll 4")
#elif K_V == 1
#define K_UNROLL _Pragma("clang loop unroll_count(4)")
#elif defined(__clang__)
#define K_UNROLL _Pragma("clang loop unroll(full)")
#else
#define K_UNROLL _Pragma("GCC unroll 64")
#endif
/* What a loop of products does not need is read behind it, or before it each time: gcc keeps constants in registers that the sums want. */
#if K_V > 1
#define K_LATE(x) __asm__ volatile("" : "+m"(x))
#else
#define K_LATE(x)
#endif

#if K_V > 1
typedef float vf __attribute__((vector_size(4 * K_V)));
typedef int32_t vi __attribute__((vector_size(4 * K_V)));
typedef float k_vf __attribute__((vector_size(4 * K_V), aligned(4), may_alias));
typedef int32_t k_vi __attribute__((vector_size(4 * K_V), aligned(1), may_alias));
#else
typedef float vf;
typedef int32_t vi;
#endif

#if K_V == 16
K_INLINE vf v_set(float a) { return (vf)_mm512_set1_ps(a); }
K_INLINE vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
K_INLINE vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
K_INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
K_INLINE vf v_ldu(const uint8_t *p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p))); }
K_INLINE void v_stu(uint8_t *p, vf v) { _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)v))); }
K_INLINE void v_stq(uint8_t *p, vf v, int z) {
  const __m512i i = _mm512_cvtps_epi32((__m512)v);
  _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(z ? _mm512_add_epi32(i, _mm512_set1_epi32(z)) : i));
}
K_INLINE float v_sum(vf a) { return _mm512_reduce_add_ps((__m512)a); }
K_INLINE float v_top(vf a) { return _mm512_reduce_max_ps((__m512)a); }
K_INLINE vi v_maxi(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
K_INLINE vf v_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
#elif K_V == 8
K_INLINE vf v_set(float a) { return (vf)_mm256_set1_ps(a); }
K_INLINE vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
K_INLINE vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
K_INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
K_INLINE vf v_ldu(const uint8_t *p) { return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p))); }
K_INLINE void v_stq(uint8_t *p, vf v, int z) {
  const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32((__m256)v), _mm256_set1_epi32(z));
  const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(h, h));
}
K_INLINE void v_stu(uint8_t *p, vf v) { v_stq(p, v, 0); }
K_INLINE vf v_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
K_INLINE vi v_maxi(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#elif K_V == 4
K_INLINE vf v_set(float a) { return (vf)vdupq_n_f32(a); }
K_INLINE vf v_max(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
K_INLINE vf v_min(vf a, vf b) { return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b); }
K_INLINE vf v_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
K_INLINE vf v_ldu(const uint8_t *p) {
  uint32_t t; memcpy(&t, p, 4);
  return (vf)vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8((uint64_t)t)))));
}
K_INLINE void v_stq(uint8_t *p, vf v, int z) {
  const uint16x4_t h = vmovn_u32(vreinterpretq_u32_s32(vaddq_s32(vcvtnq_s32_f32((float32x4_t)v), vdupq_n_s32(z))));
  const uint32_t t = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(h, h))), 0); memcpy(p, &t, 4);
}
K_INLINE void v_stu(uint8_t *p, vf v) { v_stq(p, v, 0); }
K_INLINE vf v_sqrt(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
K_INLINE vi v_maxi(vi a, vi b) { return (vi)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
#endif

#if K_V > 1
K_INLINE vf v_ld(const k_f32 *p) { return (vf)*(const k_vf *)p; }
K_INLINE void v_st(k_f32 *p, vf v) { *(k_vf *)p = (k_vf)v; }
K_INLINE vf v_abs(vf a) { return v_max(a, -a); }
K_INLINE vi v_int(vf a) { return __builtin_convertvector(a, vi); }
K_INLINE vf v_float(vi a) { return __builtin_convertvector(a, vf); }
K_INLINE vf v_bits(vi a) { return (vf)a; }
K_INLINE vi v_seti(int32_t a) { return a - (vi){0}; }
K_INLINE vi v_ldi(const k_i32 *p) { return (vi)*(const k_vi *)p; }
/* the first n numbers, of which the rest of the vector stays as it was in memory */
K_INLINE void v_stn(k_f32 *p, vf v, int n) { if (n >= K_V) v_st(p, v); else if (n > 0) memcpy(p, &v, (size_t)n * 4); }
K_INLINE void v_stqn(uint8_t *p, vf v, int z, int n) {
  if (n >= K_V) v_stq(p, v, z); else if (n > 0) { uint8_t t[K_V]; v_stq(t, v, z); memcpy(p, t, (size_t)n); }
}
K_INLINE void v_stun(uint8_t *p, vf v, int n) { v_stqn(p, v, 0, n); }
/* the first n numbers of a, and b behind them */
K_INLINE vf v_first(vf a, int n, float b) {
  vf r = a;
  if (n < K_V) { float t[K_V]; memcpy(t, &a, sizeof a); for (int i = n < 0 ? 0 : n; i < K_V; i++) t[i] = b; memcpy(&r, t, sizeof r); }
  return r;
}
#else
#define v_set s_set
#define v_max s_max
#define v_min s_min
#define v_ld s_ld
#define v_ldu s_ldu
#define v_st s_st
#define v_stu s_stu
#define v_stq s_stq
#define v_abs s_abs
#define v_int s_int
#define v_float s_float
#define v_bits s_bits
#define v_sqrt s_sqrt
#define v_sum s_set
#define v_top s_set
#if defined(__FP_FAST_FMAF)
K_INLINE vf v_fma(vf a, vf b, vf c) { return __builtin_fmaf(a, b, c); }
#else
K_INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
#endif
K_INLINE vi v_maxi(vi a, vi b) { return a > b ? a : b; }
K_INLINE vi v_seti(int32_t a) { return a; }
K_INLINE vi v_ldi(const k_i32 *p) { return *p; }
K_INLINE void v_stn(k_f32 *p, vf v, int n) { if (n > 0) *p = v; }
K_INLINE void v_stun(uint8_t *p, vf v, int n) { if (n > 0) *p = (uint8_t)v; }
K_INLINE void v_stqn(uint8_t *p, vf v, int z, int n) { if (n > 0) s_stq(p, v, z); }
K_INLINE vf v_first(vf a, int n, float b) { return n > 0 ? a : b; }
#endif
#if K_V == 8
K_INLINE float v_sum(vf a) {
  const __m128 h = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1)), q = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
K_INLINE float v_top(vf a) {
  const __m128 h = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1)), q = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
#elif K_V == 4
K_INLINE float v_sum(vf a) {
  const float32x2_t h = vadd_f32(vget_low_f32((float32x4_t)a), vget_high_f32((float32x4_t)a));
  return vget_lane_f32(vpadd_f32(h, h), 0);
}
K_INLINE float v_top(vf a) { return vmaxvq_f32((float32x4_t)a); }
#endif

/* ---- functions of a number or a vector; T is its type, I that of its bits, p the prefix ----
 * exp by 2^n times a polynomial (Cody and Waite), relative error below 2e-7; erf after Abramowitz and Stegun 7.1.26 (2e-7). */
#define K_FUNCTIONS(T, I, p) \
  K_INLINE T p##_round(T x) { return (x + 12582912.0f) - 12582912.0f; } /* half to even, of at most 2^22 */ \
  K_INLINE T p##_exp(T x) { \
    x = p##_max(p##_min(x, p##_set(88.0f)), p##_set(-87.0f)); \
    const T n = p##_round(x * 1.44269504f), f = (x - n * 0.693359375f) + n * 2.12194440e-4f; \
    const T q = ((((0.000198527f * f + 0.00139304f) * f + 0.00833336f) * f + 0.0416664853f) * f + 0.166666672f) * f + 0.5f; \
    return ((q * f) * f + f + 1.0f) * p##_bits((p##_int(n) + 127) << 23); \
  } \
  K_INLINE T p##_sigmoid(T x) { return 1.0f / (1.0f + p##_exp(-x)); } \
  K_INLINE T p##_tanh(T x) { return 1.0f - 2.0f / (1.0f + p##_exp(x + x)); } \
  K_INLINE T p##_erf(T x) { \
    const T a = p##_abs(x), t = 1.0f / (0.3275911f * a + 1.0f); \
    const T y = 1.0f - ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t * p##_exp(-a * a); \
    return p##_max(p##_min(x * 1e30f, p##_set(1.0f)), p##_set(-1.0f)) * y; \
  } \
  /* x / s within what rounded to the nearest whole number, half to even, plus z, is 0..255; i is 1 / s */ \
  K_INLINE T p##_within(T x, float i, float z) { return p##_max(p##_min(x * i, p##_set(255.0f - z)), p##_set(-z)); } \
  K_INLINE T p##_quantize(T x, float i, float z) { return p##_round(p##_within(x, i, z)) + z; }
K_FUNCTIONS(float, int32_t, s)
#if K_V > 1
K_FUNCTIONS(vf, vi, v)
#else
#define v_round s_round
#define v_exp s_exp
#define v_sigmoid s_sigmoid
#define v_tanh s_tanh
#define v_erf s_erf
#define v_quantize s_quantize
#define v_within s_within
#endif

/* ---- matrix products, float32 ----
 * Output pixels (rows x cols) times N channels. A pixel reads kh x kw runs of kc numbers; weights lie as [panel of K_LANES][kh kw kc][K_LANES].
 * pool 2: an output is the largest of 2 x 2, before anything is rounded or stored. */
#define K_NV (K_LANES / K_V)
#if K_V == 16
#define K_MR(np) ((np) == 1 ? 14 : 7)
#define K_NP 2
#elif K_V == 8
#define K_MR(np) 6
#define K_NP 1
#elif K_V == 4
#define K_MR(np) 6
#define K_NP 1
#else
#define K_MR(np) 2
#define K_NP 1
#endif
#define K_MOST 8
#define K_POOLED(mr, pool) ((mr) / (pool))
/* vectors of np panels, of the last of which so many numbers are stored */
#define K_COLUMNS(np, last) (K_V > 1 ? ((np) - 1) * K_NV + ((last) + K_V - 1) / K_V : (np) * K_NV)
K_INLINE void k_tile(k_f32 *o, int om, const k_f32 *a, int ih, int am, int kh, int ah, int kw, int aw, int kc, const k_f32 *w, const k_f32 *bias,
                     int mr, int pool, int np, int last, float lo, float hi) {
  vf top[K_MR(1)][K_MOST * K_NV];
  const int nv = K_COLUMNS(np, last), K = kh * kw * kc, low = lo > -1e38f, high = hi < 1e38f;
  K_UNROLL for (int r = 0; r < pool; r++) {
    vf acc[K_MR(1)][K_MOST * K_NV];
    K_LATE(bias);
    K_UNROLL for (int m = 0; m < mr * pool; m++) K_UNROLL for (int j = 0; j < nv; j++) acc[m][j] = v_ld(bias + j * K_V);
    for (int y = 0; y < kh; y++) for (int x = 0; x < kw; x++) for (int k = 0; k < kc; k++) {
      vf b[K_MOST * K_NV];
      const k_f32 *ak = a + r * ih + y * ah + x * aw + k, *wk = w + ((y * kw + x) * kc + k) * K_LANES;
      K_UNROLL for (int j = 0; j < nv; j++) b[j] = v_ld(wk + (j / K_NV) * K * K_LANES + (j % K_NV) * K_V);
      K_UNROLL for (int m = 0; m < mr * pool; m++) {
        const vf s = v_set(ak[m * am]);
        K_UNROLL for (int j = 0; j < nv; j++) acc[m][j] = v_fma(s, b[j], acc[m][j]);
      }
    }
    K_UNROLL for (int m = 0; m < mr; m++) K_UNROLL for (int j = 0; j < nv; j++) {
      const vf v = pool == 1 ? acc[m][j] : v_max(acc[2 * m][j], acc[2 * m + 1][j]);
      top[m][j] = r ? v_max(top[m][j], v) : v;
    }
  }
  K_LATE(lo);
  K_LATE(hi);
  K_UNROLL for (int m = 0; m < mr; m++) K_UNROLL for (int j = 0; j < nv; j++) {
    vf v = top[m][j];
    if (low) v = v_max(v, v_set(lo));
    if (high) v = v_min(v, v_set(hi));
    v_stn(o + m * om + j * K_V, v, (np - 1) * K_LANES + last - j * K_V);
  }
}
K_INLINE void k_panels(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int kc,
                       const k_f32 *w, const k_f32 *bias, int pool, int np, int last, float lo, float hi) {
  const int mr = K_POOLED(K_MR(np), pool);
  for (int y = 0; y < rows; y++) {
    int x = 0;
    for (; x + mr <= cols; x += mr)
      k_tile(o + y * oh + x * ow, ow, a + (y * ih + x * iw) * pool, ih, iw, kh, ah, kw, aw, kc, w, bias, mr, pool, np, last, lo, hi);
    if (cols % mr)
      k_tile(o + y * oh + x * ow, ow, a + (y * ih + x * iw) * pool, ih, iw, kh, ah, kw, aw, kc, w, bias, K_V > 1 ? cols % mr : 1, pool, np, last, lo, hi);
  }
}
K_INLINE void k_conv_any(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int kc,
                         const k_f32 *w, const k_f32 *bias, int n, int last, float lo, float hi, int pool) {
  const int panels = (n + K_LANES - 1) / K_LANES, np = K_V > 1 && rows * cols == 1 ? K_MOST - 1 : K_NP, K = kh * kw * kc;
  int p = 0;
  for (; p + np < panels; p += np)
    k_panels(o + p * K_LANES, oh, ow, a, ih, iw, rows, cols, kh, ah, kw, aw, kc, w + p * K * K_LANES, bias + p * K_LANES, pool, np, K_LANES, lo, hi);
  k_panels(o + p * K_LANES, oh, ow, a, ih, iw, rows, cols, kh, ah, kw, aw, kc, w + p * K * K_LANES, bias + p * K_LANES, pool, (panels - 1) % np + 1, last, lo, hi);
}
/* last: numbers stored of the last panel */
K_KERNEL void k_conv(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int kc,
                     const k_f32 *w, const k_f32 *bias, int n, int last, float lo, float hi) {
  k_conv_any(o, oh, ow, a, ih, iw, rows, cols, kh, ah, kw, aw, kc, w, bias, n, last, lo, hi, 1);
}
K_KERNEL void k_conv_pool(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int kc,
                          const k_f32 *w, const k_f32 *bias, int n, int last, float lo, float hi) {
  k_conv_any(o, oh, ow, a, ih, iw, rows, cols, kh, ah, kw, aw, kc, w, bias, n, last, lo, hi, 2);
}

/* ---- one filter per channel, float32; weights lie as [kh kw][cs]; ns numbers of a pixel are stored ---- */
#define K_DX 7
K_INLINE void k_depthwise_part(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int H, int W, int OH, int kh, int kw, int sy, int sx, int dy,
                               int dx, int top, int left, const k_f32 *w, const k_f32 *bias, int cs, float lo, float hi, int x0, int nx, int n) {
  for (int y = 0; y < OH; y++) {
    vf acc[K_DX];
    const vf b = v_ld(bias);
    K_UNROLL for (int i = 0; i < nx; i++) acc[i] = b;
    for (int ky = 0; ky < kh; ky++) {
      const int yi = y * sy - top + ky * dy;
      if (yi < 0 || yi >= H) continue;
      K_UNROLL for (int kx = 0; kx < kw; kx++) {
        const vf f = v_ld(w + (ky * kw + kx) * cs);
        K_UNROLL for (int i = 0; i < nx; i++) {
          const int xi = (x0 + i) * sx - left + kx * dx;
          if (xi >= 0 && xi < W) acc[i] = v_fma(v_ld(a + yi * ih + xi * iw), f, acc[i]);
        }
      }
    }
    K_UNROLL for (int i = 0; i < nx; i++) v_stn(o + y * oh + (x0 + i) * ow, v_max(v_min(acc[i], v_set(hi)), v_set(lo)), n);
  }
}
K_KERNEL void k_depthwise(k_f32 *o, int oh, int ow, const k_f32 *a, int ih, int iw, int H, int W, int OH, int OW, int kh, int kw, int sy, int sx, int dy,
                          int dx, int top, int left, const k_f32 *w, const k_f32 *bias, int cs, int ns, float lo, float hi) {
  int c = 0;
  for (; c + K_V <= ns; c += K_V)
    K_UNROLL for (int x = 0; x < OW; x += K_DX)
      k_depthwise_part(o + c, oh, ow, a + c, ih, iw, H, W, OH, kh, kw, sy, sx, dy, dx, top, left, w + c, bias + c, cs, lo, hi, x, OW - x < K_DX ? OW - x : K_DX, K_V);
  if (ns % K_V)
    K_UNROLL for (int x = 0; x < OW; x += K_DX)
      k_depthwise_part(o + c, oh, ow, a + c, ih, iw, H, W, OH, kh, kw, sy, sx, dy, dx, top, left, w + c, bias + c, cs, lo, hi, x, OW - x < K_DX ? OW - x : K_DX, ns % K_V);
}

/* ---- four products of uint8 and int8, added to each int32: k_bytes are prepared four bytes, of an activation for all lanes or of weights ----
 * Exact in every form. K_BIAS(b, s): the bias of a channel whose weights sum up to s; sdot has signed activations, 128 less. */
#define K_BIAS(b, s) (b)
#define K_ZERO 0 /* what an activation of 0 is to the product */
K_INLINE int32_t k_word(const uint8_t *p) { int32_t t; memcpy(&t, p, 4); return t; }
#if K_V == 16 && defined(__AVX512VNNI__)
#define K_DOT "vpdpbusd"
typedef vi k_bytes;
K_INLINE k_bytes k_prepared(vi a) { return a; }
K_INLINE k_bytes k_weights(const int8_t *p) { return (vi)*(const k_vi *)(const void *)p; }
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)w); }
#elif K_V == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__)))
#define K_DOT "vpdpbusd"
typedef vi k_bytes;
K_INLINE k_bytes k_prepared(vi a) { return a; }
K_INLINE k_bytes k_weights(const int8_t *p) { return (vi)*(const k_vi *)(const void *)p; }
#if defined(__AVXVNNI__)
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)w); }
#else
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return (vi)_mm256_dpbusd_epi32((__m256i)acc, (__m256i)a, (__m256i)w); }
#endif
#elif K_V >= 8
#define K_DOT "vpmaddwd"
typedef struct { vi even, odd; } k_bytes;
#if K_V == 16
K_INLINE vi k_madd(vi a, vi b) { return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
K_INLINE vi k_pairs(vi a, vi b) { return (vi)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
K_INLINE k_bytes k_weights(const int8_t *p) {
  const __m512i w = _mm512_loadu_si512(p);
  const k_bytes r = {(vi)_mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8), (vi)_mm512_srai_epi16(w, 8)}; return r;
}
#else
K_INLINE vi k_madd(vi a, vi b) { return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
K_INLINE vi k_pairs(vi a, vi b) { return (vi)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
K_INLINE k_bytes k_weights(const int8_t *p) {
  const __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)p);
  const k_bytes r = {(vi)_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), (vi)_mm256_srai_epi16(w, 8)}; return r;
}
#endif
K_INLINE k_bytes k_prepared(vi a) { const k_bytes r = {a & 0x00FF00FF, (a >> 8) & 0x00FF00FF}; return r; }
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return acc + k_madd(a.even, w.even) + k_madd(a.odd, w.odd); }
#define K_NARROW(how) ((how) & 2)
K_INLINE k_bytes k_narrow(vi a) { const k_bytes r = {a, a}; return r; }
K_INLINE k_bytes k_narrow_weights(const int8_t *p) { return k_narrow((vi)*(const k_vi *)(const void *)p); }
K_INLINE vi k_dot_narrow(vi acc, k_bytes a, k_bytes w) { return acc + k_madd(k_pairs(a.even, w.even), v_seti(0x00010001)); }
#elif K_V == 4 && defined(__ARM_FEATURE_MATMUL_INT8)
#define K_DOT "usdot"
typedef vi k_bytes;
K_INLINE k_bytes k_prepared(vi a) { return a; }
K_INLINE k_bytes k_weights(const int8_t *p) { return (vi)*(const k_vi *)(const void *)p; }
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return (vi)vusdotq_s32((int32x4_t)acc, (uint8x16_t)a, (int8x16_t)w); }
#elif K_V == 4 && defined(__ARM_FEATURE_DOTPROD)
#define K_DOT "sdot"
#undef K_BIAS
#undef K_ZERO
#define K_BIAS(b, s) ((b) + 128 * (s))
#define K_ZERO -128
typedef vi k_bytes;
K_INLINE k_bytes k_prepared(vi a) { return (vi)veorq_u8((uint8x16_t)a, vdupq_n_u8(128)); }
K_INLINE k_bytes k_weights(const int8_t *p) { return (vi)*(const k_vi *)(const void *)p; }
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)a, (int8x16_t)w); }
#elif K_V == 4
#define K_DOT ""
typedef struct { vi b[4]; } k_bytes;
K_INLINE k_bytes k_prepared(vi a) { const k_bytes r = {{a & 255, (a >> 8) & 255, (a >> 16) & 255, (a >> 24) & 255}}; return r; }
K_INLINE k_bytes k_weights(const int8_t *p) {
  const vi w = (vi)*(const k_vi *)(const void *)p;
  const k_bytes r = {{(w << 24) >> 24, (w << 16) >> 24, (w << 8) >> 24, w >> 24}}; return r;
}
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return acc + a.b[0] * w.b[0] + a.b[1] * w.b[1] + a.b[2] * w.b[2] + a.b[3] * w.b[3]; }
#elif !defined(K_SCALAR) && defined(__ARM_FEATURE_DSP)
#define K_DOT "smlad"
typedef struct { int32_t even, odd; } k_bytes;
K_INLINE k_bytes k_prepared(vi a) { const k_bytes r = {(int32_t)__uxtb16((uint32_t)a), (int32_t)__uxtb16((uint32_t)a >> 8)}; return r; }
K_INLINE k_bytes k_weights(const int8_t *p) {
  int32_t w; memcpy(&w, p, 4);
  const k_bytes r = {__sxtb16(w), __sxtb16((int32_t)((uint32_t)w >> 8))}; return r;
}
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return __smlad(a.odd, w.odd, __smlad(a.even, w.even, acc)); }
#else
#define K_DOT ""
typedef struct { int b[4]; } k_bytes;
K_INLINE k_bytes k_prepared(vi a) { const k_bytes r = {{a & 255, (a >> 8) & 255, (a >> 16) & 255, (a >> 24) & 255}}; return r; }
K_INLINE k_bytes k_weights(const int8_t *p) { const k_bytes r = {{p[0], p[1], p[2], p[3]}}; return r; }
K_INLINE vi k_dot(vi acc, k_bytes a, k_bytes w) { return acc + a.b[0] * w.b[0] + a.b[1] * w.b[1] + a.b[2] * w.b[2] + a.b[3] * w.b[3]; }
#endif
/* Where no two weights beside each other, times 255, sum up to more than 16 bits hold, one instruction less does. */
#if !defined(K_NARROW)
#define K_NARROW(how) ((how) & 0)
#define k_narrow k_prepared
#define k_narrow_weights k_weights
#define k_dot_narrow k_dot
#endif
K_INLINE k_bytes k_activation(vi a, int how) { return K_NARROW(how) ? k_narrow(a) : k_prepared(a); }
K_INLINE k_bytes k_weight(const int8_t *p, int how) { return K_NARROW(how) ? k_narrow_weights(p) : k_weights(p); }
K_INLINE vi k_add(vi acc, k_bytes a, k_bytes w, int how) { return K_NARROW(how) ? k_dot_narrow(acc, a, w) : k_dot(acc, a, w); }

/* ---- four rows, one in each byte of a lane; lanes are channels ---- */
#if K_V == 16
K_INLINE vi k_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
  const __m128i x = _mm_loadu_si128((const __m128i *)(const void *)a), y = _mm_loadu_si128((const __m128i *)(const void *)b);
  const __m128i z = _mm_loadu_si128((const __m128i *)(const void *)c), u = _mm_loadu_si128((const __m128i *)(const void *)d);
#if defined(__AVX512VBMI__)
  static const uint8_t order[64] K_ALIGN = {0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51, 4, 20, 36, 52, 5, 21, 37, 53, 6, 22, 38, 54, 7, 23, 39, 55,
                                            8, 24, 40, 56, 9, 25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59, 12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(x), y, 1), high = _mm256_inserti128_si256(_mm256_castsi128_si256(z), u, 1);
  return (vi)_mm512_permutexvar_epi8(_mm512_load_si512(order), _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
#else
  const __m128i l = _mm_unpacklo_epi8(x, y), h = _mm_unpackhi_epi8(x, y), m = _mm_unpacklo_epi8(z, u), n = _mm_unpackhi_epi8(z, u);
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(l, m)), _mm_unpackhi_epi16(l, m), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(h, n)), _mm_unpackhi_epi16(h, n), 1);
  return (vi)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
}
K_INLINE vi k_row(const uint8_t *p) { return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)); }
#elif K_V == 8
K_INLINE vi k_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
  const __m128i l = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(const void *)a), _mm_loadl_epi64((const __m128i *)(const void *)b));
  const __m128i m = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(const void *)c), _mm_loadl_epi64((const __m128i *)(const void *)d));
  return (vi)_mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(l, m)), _mm_unpackhi_epi16(l, m), 1);
}
K_INLINE vi k_row(const uint8_t *p) { return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)); }
#elif K_V == 4
K_INLINE vi k_row(const uint8_t *p) { return (vi)vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8((uint64_t)(uint32_t)k_word(p))))); }
K_INLINE vi k_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) { return k_row(a) | (k_row(b) << 8) | (k_row(c) << 16) | (k_row(d) << 24); }
#else
K_INLINE vi k_row(const uint8_t *p) { return *p; }
K_INLINE vi k_four(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) { return (vi)(*a | ((uint32_t)*b << 8) | ((uint32_t)*c << 16) | ((uint32_t)*d << 24)); }
#endif

/* ---- matrix products, uint8 by int8 ----
 * As k_conv; c4: words of four in a run; weights lie as [panel][kh kw c4][K_LANES][4]. An output is acc * mul between lo and hi, then as it is
 * where how & 1 (float32), else rounded and zero added (uint8). how & 2: what two weights sum up to fits into 16 bits. */
#if K_V == 16
#define K_MR8(np) ((np) == 1 ? 14 : 7)
#define K_NP8 2
#elif K_V == 8
#define K_MR8(np) 4
#define K_NP8 1
#elif K_V == 4
#define K_MR8(np) 5
#define K_NP8 1
#else
#define K_MR8(np) 2
#define K_NP8 1
#endif
K_INLINE void k_store8(uint8_t *o, int at, vf v, int how, int zero, float lo, float hi, int n) {
  v = v_max(v_min(v, v_set(hi)), v_set(lo));
  if (how & 1) v_stn((k_f32 *)(void *)o + at, v, n); else v_stqn(o + at, v, zero, n);
}
K_INLINE void k_tile8(uint8_t *o, int at, int om, int how, const uint8_t *a, int ih, int am, int kh, int ah, int kw, int aw, int c4, const int8_t *w, const k_i32 *bias,
                      const k_f32 *mul, int mr, int pool, int np, int last, int zero, float lo, float hi) {
  vi top[K_MR8(1)][K_MOST * K_NV];
  const int nv = K_COLUMNS(np, last), K = kh * kw * c4;
  K_UNROLL for (int r = 0; r < pool; r++) {
    vi acc[K_MR8(1)][K_MOST * K_NV];
    K_UNROLL for (int m = 0; m < mr * pool; m++) K_UNROLL for (int j = 0; j < nv; j++) acc[m][j] = v_ldi(bias + j * K_V);
    for (int y = 0; y < kh; y++) for (int x = 0; x < kw; x++) for (int k = 0; k < c4; k++) {
      k_bytes b[K_MOST * K_NV];
      const uint8_t *ak = a + r * ih + y * ah + x * aw + k * 4;
      const int8_t *wk = w + ((y * kw + x) * c4 + k) * K_LANES * 4;
      K_UNROLL for (int j = 0; j < nv; j++) b[j] = k_weight(wk + (j / K_NV) * K * K_LANES * 4 + (j % K_NV) * K_V * 4, how);
      K_UNROLL for (int m = 0; m < mr * pool; m++) {
        const k_bytes s = k_activation(v_seti(k_word(ak + m * am)), how);
        K_UNROLL for (int j = 0; j < nv; j++) acc[m][j] = k_add(acc[m][j], s, b[j], how);
      }
    }
    K_UNROLL for (int m = 0; m < mr; m++) K_UNROLL for (int j = 0; j < nv; j++) {
      const vi v = pool == 1 ? acc[m][j] : v_maxi(acc[2 * m][j], acc[2 * m + 1][j]);
      top[m][j] = r ? v_maxi(top[m][j], v) : v;
    }
  }
  K_UNROLL for (int m = 0; m < mr; m++) K_UNROLL for (int j = 0; j < nv; j++)
    k_store8(o, at + m * om + j * K_V, v_float(top[m][j]) * v_ld(mul + j * K_V), how, zero, lo, hi, (np - 1) * K_LANES + last - j * K_V);
}
K_INLINE void k_panels8(uint8_t *o, int at, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int c4,
                        const int8_t *w, const k_i32 *bias, const k_f32 *mul, int pool, int np, int last, int zero, float lo, float hi) {
  const int mr = K_POOLED(K_MR8(np), pool);
  for (int y = 0; y < rows; y++) {
    int x = 0;
    for (; x + mr <= cols; x += mr)
      k_tile8(o, at + y * oh + x * ow, ow, how, a + (y * ih + x * iw) * pool, ih, iw, kh, ah, kw, aw, c4, w, bias, mul, mr, pool, np, last, zero, lo, hi);
    if (cols % mr) k_tile8(o, at + y * oh + x * ow, ow, how, a + (y * ih + x * iw) * pool, ih, iw, kh, ah, kw, aw, c4, w, bias, mul, K_V > 1 ? cols % mr : 1, pool, np, last, zero, lo, hi);
  }
}
K_INLINE void k_conv8_any(uint8_t *o, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int c4,
                      const int8_t *w, const k_i32 *bias, const k_f32 *mul, int n, int last, int zero, float lo, float hi, int pool) {
  const int panels = (n + K_LANES - 1) / K_LANES, np = K_V > 1 && rows * cols == 1 ? K_MOST - 1 : K_NP8, K = kh * kw * c4;
  int p = 0;
  for (; p + np < panels; p += np)
    k_panels8(o, p * K_LANES, oh, ow, how, a, ih, iw, rows, cols, kh, ah, kw, aw, c4, w + p * K * K_LANES * 4, bias + p * K_LANES, mul + p * K_LANES, pool, np, K_LANES, zero, lo, hi);
  k_panels8(o, p * K_LANES, oh, ow, how, a, ih, iw, rows, cols, kh, ah, kw, aw, c4, w + p * K * K_LANES * 4, bias + p * K_LANES, mul + p * K_LANES, pool, (panels - 1) % np + 1, last, zero, lo, hi);
}
K_KERNEL void k_conv8(uint8_t *o, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int c4,
                      const int8_t *w, const k_i32 *bias, const k_f32 *mul, int n, int last, int zero, float lo, float hi) {
  k_conv8_any(o, oh, ow, how, a, ih, iw, rows, cols, kh, ah, kw, aw, c4, w, bias, mul, n, last, zero, lo, hi, 1);
}
K_KERNEL void k_conv8_pool(uint8_t *o, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int rows, int cols, int kh, int ah, int kw, int aw, int c4,
                           const int8_t *w, const k_i32 *bias, const k_f32 *mul, int n, int last, int zero, float lo, float hi) {
  k_conv8_any(o, oh, ow, how, a, ih, iw, rows, cols, kh, ah, kw, aw, c4, w, bias, mul, n, last, zero, lo, hi, 2);
}

/* ---- one filter per channel, uint8 by int8: dot products down columns of four rows; weights lie as [panel][kh / 4][kw][K_LANES][4] ----
 * What lies outside of the map is za, its zero point, which the bias takes off. */
#define K_DX8 (K_V == 16 ? 14 : K_V == 8 ? 7 : 4)
K_INLINE void k_depthwise8_part(uint8_t *o, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int za, int H, int W, int OH, int kh, int kw, int sy, int sx, int dy,
                                int dx, int top, int left, const int8_t *w, const k_i32 *bias, const k_f32 *mul, int zero, float lo, float hi, int c, int x0, int nx, int n) {
  const int G = (kh + 3) / 4, first = x0 * sx - left, columns = (nx - 1) * sx + (kw - 1) * dx + 1;
  uint8_t none[K_V];
  memset(none, za, sizeof none);
  for (int y = 0; y < OH; y++) {
    vi acc[14];
    const vi b = v_ldi(bias);
    K_UNROLL for (int i = 0; i < nx; i++) acc[i] = b;
    K_UNROLL for (int g = 0; g < G; g++) {
      const uint8_t *row[4];
      int step[4];
      K_UNROLL for (int j = 0; j < 4; j++) {
        const int yi = y * sy - top + (g * 4 + j) * dy, in = yi >= 0 && yi < H;
        step[j] = in ? iw : 0;
        row[j] = in ? a + yi * ih + (first > 0 ? first : 0) * iw : none;
      }
      K_UNROLL for (int i = 0; i < columns; i++) {
        const int xi = first + i;
        vi q;
        if (xi < 0 || xi >= W) { if (za == 0 && K_ZERO == 0) continue; q = v_seti(za * 0x01010101); }
        else {
          q = kh - g * 4 == 1 ? k_row(row[0]) : k_four(row[0], row[1], row[2], row[3]);
          K_UNROLL for (int j = 0; j < 4; j++) row[j] += step[j];
        }
        const k_bytes s = k_activation(q, how);
        K_UNROLL for (int kx = 0; kx < kw; kx++) {
          const int t = i - kx * dx;
          if (t >= 0 && t % sx == 0 && t / sx < nx) acc[t / sx] = k_add(acc[t / sx], s, k_weight(w + (g * kw + kx) * K_LANES * 4, how), how);
        }
      }
    }
    K_UNROLL for (int i = 0; i < nx; i++) k_store8(o, c + y * oh + (x0 + i) * ow, v_float(acc[i]) * v_ld(mul), how, zero, lo, hi, n);
  }
}
K_KERNEL void k_depthwise8(uint8_t *o, int oh, int ow, int how, const uint8_t *a, int ih, int iw, int za, int H, int W, int OH, int OW, int kh, int kw, int sy, int sx, int dy,
                           int dx, int top, int left, const int8_t *w, const k_i32 *bias, const k_f32 *mul, int ns, int zero, float lo, float hi) {
  int c = 0;
  for (; c + K_V <= ns; c += K_V)
    K_UNROLL for (int x = 0; x < OW; x += K_DX8)
      k_depthwise8_part(o, oh, ow, how, a + c, ih, iw, za, H, W, OH, kh, kw, sy, sx, dy, dx, top, left, w + c / K_LANES * ((kh + 3) / 4) * kw * K_LANES * 4 + c % K_LANES * 4,
                        bias + c, mul + c, zero, lo, hi, c, x, OW - x < K_DX8 ? OW - x : K_DX8, K_V);
  if (ns % K_V)
    K_UNROLL for (int x = 0; x < OW; x += K_DX8)
      k_depthwise8_part(o, oh, ow, how, a + c, ih, iw, za, H, W, OH, kh, kw, sy, sx, dy, dx, top, left, w + c / K_LANES * ((kh + 3) / 4) * kw * K_LANES * 4 + c % K_LANES * 4,
                        bias + c, mul + c, zero, lo, hi, c, x, OW - x < K_DX8 ? OW - x : K_DX8, ns % K_V);
}

/* ---- the larger of K_LANES bytes ---- */
#if K_V >= 8
typedef __m128i vb;
K_INLINE vb b_ld(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
K_INLINE void b_st(uint8_t *p, vb v) { _mm_storeu_si128((__m128i *)(void *)p, v); }
K_INLINE vb b_max(vb a, vb b) { return _mm_max_epu8(a, b); }
#elif K_V == 4
typedef uint8x16_t vb;
K_INLINE vb b_ld(const uint8_t *p) { return vld1q_u8(p); }
K_INLINE void b_st(uint8_t *p, vb v) { vst1q_u8(p, v); }
K_INLINE vb b_max(vb a, vb b) { return vmaxq_u8(a, b); }
#else
typedef struct { uint8_t b[K_LANES]; } vb;
K_INLINE vb b_ld(const uint8_t *p) { vb v; memcpy(v.b, p, K_LANES); return v; }
K_INLINE void b_st(uint8_t *p, vb v) { memcpy(p, v.b, K_LANES); }
K_INLINE vb b_max(vb a, vb b) { for (int i = 0; i < K_LANES; i++) a.b[i] = a.b[i] > b.b[i] ? a.b[i] : b.b[i]; return a; }
#endif

/* ---- few output channels: vectors along a row of planes, which have a margin; weights lie as [n][c][kh][kw] ---- */
K_KERNEL void k_planes(k_f32 *o, int on, int oh, const k_f32 *a, int ic, int ih, int rows, int cols, int n, int c, int kh, int kw, int ah, int aw,
                       const k_f32 *w, const k_f32 *bias, float lo, float hi) {
  for (int p = 0; p < n; p++) for (int y = 0; y < rows; y++) {
    int x = 0;
    for (; x < cols; x += K_V) {
      vf acc[2] = {v_set(bias[p]), v_set(0.0f)};
      for (int q = 0; q < c; q++) for (int i = 0; i < kh; i++) K_UNROLL for (int j = 0; j < kw; j++)
        acc[j % 2] = v_fma(v_set(w[((p * c + q) * kh + i) * kw + j]), v_ld(a + q * ic + y * ih + i * ah + j * aw + x), acc[j % 2]);
      v_stn(o + p * on + y * oh + x, v_max(v_min(acc[0] + acc[1], v_set(hi)), v_set(lo)), cols - x);
    }
  }
}

/* ---- softmax of n numbers, as and os apart ---- */
K_KERNEL void k_softmax(k_f32 *o, int os, const k_f32 *a, int as, int n) {
  float top = a[0], sum = 0.0f;
  for (int i = 1; i < n; i++) top = s_max(top, a[i * as]);
  for (int i = 0; i < n; i++) o[i * os] = s_exp(a[i * as] - top);
  for (int i = 0; i < n; i++) sum += o[i * os];
  for (int i = 0; i < n; i++) o[i * os] /= sum;
}

/* ---- memory of one value, w bytes of it n times, s apart ---- */
K_INLINE void k_fill(uint8_t *o, int s, int n, int w, int value) { for (int i = 0; i < n; i++) memset(o + i * s, value, (size_t)w); }
#endif
