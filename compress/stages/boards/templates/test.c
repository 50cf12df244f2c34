/* Self-test of @name@: @images@. Prints "N of M"; exit code 0 if all are answered as expected, else 1. */
#include "@name@.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define IMAGES @count@
#define TOLERANCE @tolerance@

static const @name@_pixel images[IMAGES][@NAME@_INPUT_SIZE] = {
@pixels@
};

static const float expected[IMAGES][@NAME@_OUTPUT0_SIZE] = {
@expected@
};

static _Alignas(64) unsigned char arena[@NAME@_ARENA_BYTES + 1];
static float outputs[@NAME@_OUTPUTS];

int main(void) {
  int right = 0;
  float worst = 0.0f;
  for (int image = 0; image < IMAGES; image++) {
    int same = 1;
    memset(arena, 171 + image, sizeof arena); /* nothing is left of the image before */
    memset(outputs, 255, sizeof outputs);
    @name@_run(images[image], outputs, arena);
    for (int i = 0; i < @NAME@_OUTPUT0_SIZE; i++) {
      const float far = fabsf(outputs[@NAME@_OUTPUT0_START + i] - expected[image][i]);
      if (!(far <= worst)) worst = far;
      if (!(far <= TOLERANCE)) same = 0; /* so is what is no number */
    }
    right += same;
  }
  printf("%d of %d images; largest difference %g, %g is allowed\n", right, IMAGES, (double)worst, (double)TOLERANCE);
  return right == IMAGES ? 0 : 1;
}
