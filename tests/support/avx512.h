/* AVX-512, its VNNI and VBMI, and AVX-VNNI in plain C, for a processor that lacks them: included before kernels.h, in place of immintrin.h.
 *
 * From SIMDe (simd-everywhere.github.io), which is others' reading of the same instructions; what its release in Debian 12 lacks is below,
 * after Intel's Intrinsics Guide. Fused products are fused here, which SIMDe's are not. Slow, and for proofs only. */
#ifndef EMULATED_AVX512_H
#define EMULATED_AVX512_H
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#include <string.h>

typedef union { __m512 f; __m512i i; float floats[16]; int32_t integers[16]; } emulated;

static inline __m512i emulated_cvtps_epi32(__m512 a) { /* half to even */
  emulated from = {.f = a}, to;
  for (int i = 0; i < 16; i++) to.integers[i] = (int32_t)rintf(from.floats[i]);
  return to.i;
}
static inline __m512 emulated_cvtepi32_ps(__m512i a) {
  emulated from = {.i = a}, to;
  for (int i = 0; i < 16; i++) to.floats[i] = (float)from.integers[i];
  return to.f;
}
static inline __m512i emulated_cvtepu8_epi32(__m128i a) {
  uint8_t from[16];
  emulated to;
  memcpy(from, &a, sizeof from);
  for (int i = 0; i < 16; i++) to.integers[i] = from[i];
  return to.i;
}
static inline __m128i emulated_cvtepi32_epi8(__m512i a) { /* the low byte */
  emulated from = {.i = a};
  uint8_t to[16];
  __m128i made;
  for (int i = 0; i < 16; i++) to[i] = (uint8_t)((uint32_t)from.integers[i] & 255u);
  memcpy(&made, to, sizeof made);
  return made;
}
static inline __m512 emulated_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  emulated x = {.f = a}, y = {.f = b}, z = {.f = c};
  for (int i = 0; i < 16; i++) z.floats[i] = fmaf(x.floats[i], y.floats[i], z.floats[i]);
  return z.f;
}
static inline __m256 emulated_fmadd256_ps(__m256 a, __m256 b, __m256 c) {
  float x[8], y[8], z[8];
  memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y), memcpy(z, &c, sizeof z);
  for (int i = 0; i < 8; i++) z[i] = fmaf(x[i], y[i], z[i]);
  memcpy(&c, z, sizeof z);
  return c;
}
static inline float emulated_reduce_add_ps(__m512 a) { /* halves, as Intel's order */
  emulated v = {.f = a};
  for (int n = 8; n; n /= 2) for (int i = 0; i < n; i++) v.floats[i] += v.floats[i + n];
  return v.floats[0];
}
static inline float emulated_reduce_max_ps(__m512 a) {
  emulated v = {.f = a};
  for (int i = 1; i < 16; i++) v.floats[0] = v.floats[i] > v.floats[0] ? v.floats[i] : v.floats[0];
  return v.floats[0];
}
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_reduce_add_ps emulated_reduce_add_ps
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#undef _mm512_madd_epi16 /* its alias takes the arguments of another */
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#undef _mm512_maddubs_epi16
#define _mm512_maddubs_epi16 simde_mm512_maddubs_epi16
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps emulated_fmadd_ps
#undef _mm256_fmadd_ps
#define _mm256_fmadd_ps emulated_fmadd256_ps
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32

/* what the compiler would say of such a processor; which of them, the caller says */
#undef __AVX2__
#define __AVX2__ 1
#undef __FMA__
#define __FMA__ 1
#ifdef EMULATE_AVX512
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#endif
#ifdef EMULATE_AVX512VNNI
#define __AVX512VNNI__ 1
#endif
#ifdef EMULATE_AVX512VBMI
#define __AVX512VBMI__ 1
#endif
#ifdef EMULATE_AVXVNNI
#define __AVXVNNI__ 1
#endif
#endif
