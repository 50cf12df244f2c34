/* example FILE.@suffix@: the label of a picture and its probability. The picture is a binary @kind@ of @width@x@height@ with values to 255. */
#include "@name@.h"
#include <math.h>
#include <stdio.h>

enum { CHANNELS = @channels@, HEIGHT = @height@, WIDTH = @width@, PIXELS = HEIGHT * WIDTH };
@normalised@
static _Alignas(64) unsigned char arena[@NAME@_ARENA_BYTES + 1];
static @name@_pixel image[@NAME@_INPUT_SIZE];
static float outputs[@NAME@_OUTPUTS];

/* The next number of the header and the one character behind it; -1 where there is none. */
static long number(FILE *file) {
  int c = fgetc(file);
  while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    else
      c = fgetc(file);
  }
  long found = -1;
  for (; c >= '0' && c <= '9'; c = fgetc(file))
    if (found < 1000000) found = (found < 0 ? 0 : found * 10) + (c - '0');
  return found;
}

/* 0 where the picture was read. */
static int read_picture(FILE *file, const char *name) {
  const int letter = fgetc(file), digit = fgetc(file);
  const long width = number(file), height = number(file), most = number(file);
  if (letter != 'P' || digit != '@digit@' || most < 1) {
    fprintf(stderr, "example: %s is no binary @kind@ (P@digit@)\n", name);
    return 1;
  }
  if (width != WIDTH || height != HEIGHT || most != 255) {
    fprintf(stderr, "example: %s is %ldx%ld with values to %ld; %dx%d with values to 255 is taken\n", name, width, height, most, WIDTH, HEIGHT);
    return 1;
  }
  for (int i = 0; i < PIXELS; i++)
    for (int c = 0; c < CHANNELS; c++) {
      const int byte = fgetc(file);
      if (byte == EOF) {
        fprintf(stderr, "example: %s is cut short\n", name);
        return 1;
      }
      image[@place@] = @pixel@;
    }
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: example FILE.@suffix@\n");
    return 2;
  }
  FILE *file = fopen(argv[1], "rb");
  if (!file) {
    fprintf(stderr, "example: %s cannot be read\n", argv[1]);
    return 2;
  }
  const int failed = read_picture(file, argv[1]);
  fclose(file);
  if (failed) return 2;
  @name@_run(image, outputs, arena);
  const float *answer = outputs + @NAME@_OUTPUT0_START;
  int best = 0;
  for (int i = 1; i < @NAME@_OUTPUT0_SIZE; i++)
    if (answer[i] > answer[best]) best = i;
@probability@
  if (*@name@_label(best))
    printf("%s %.4f\n", @name@_label(best), (double)probability);
  else
    printf("%d %.4f\n", best, (double)probability);
  return 0;
}
